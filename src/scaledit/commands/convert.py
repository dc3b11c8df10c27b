"""scaledit convert: between official checkpoints, diffusers' folders and scaledit's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError, counted
from scaledit.interop import hub
from scaledit.part import Allowed

if TYPE_CHECKING:
    from scaledit.interop.convert import Written
    from scaledit.interop.difference import Difference
    from scaledit.interop.model import Model

SUMMARY = "convert between official DiT checkpoints, diffusers and scaledit"
DESCRIPTION = """IN is a run folder, a checkpoint, an exported folder, an official .pt or .safetensors file
(also one that another trainer wrote), a folder of diffusers, or hf://ORG/NAME. Code that is stored in a .pt
file is not run. Official models with 1,000 classes get the names of ImageNet's classes."""
EXAMPLES = (
    Example(
        "scaledit convert DiT-XL-2-256x256.pt xl2 --to scaledit --autoencoder stabilityai/sd-vae-ft-mse",
        "Import the official DiT-XL/2",
        needs="the official checkpoint and a download from the Hugging Face Hub",
    ),
    Example(
        "scaledit convert SiT-XL-2-256.pt sit --to scaledit --model SiT-XL/2",
        "Import the official SiT-XL/2",
        needs="the official checkpoint",
    ),
    Example("scaledit convert runs/digits exported --to scaledit", "Export a model of your own to share it"),
    Example("scaledit convert runs/digits digits-diffusers --to diffusers", "Export it for diffusers"),
    Example(
        "scaledit convert runs/digits-paper digits.pt --to official",
        "Export a model for the official programs",
        needs="a model with linear betas and epsilon, such as a run of digits-paper",
    ),
    Example(
        "scaledit convert runs/digits digits.pt2 --to program",
        "Export it with torch.export, for any batch size",
    ),
    Example(
        "scaledit convert runs/digits digits.onnx --to onnx",
        "Export it for other runtimes, for any batch size",
        needs="the packages onnx and onnxscript",
    ),
    Example(
        "scaledit convert runs/adapted adapter --to peft",
        "Export the LoRA adapter of a run for PEFT",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="IN", help="the model to read, as above")
    out = "what to write: a folder; for official a .pt or .safetensors, for program a .pt2, for onnx a .onnx"
    add("out", metavar="OUT", type=Path, help=out)
    layouts = ["scaledit", "official", "diffusers", "program", "onnx", "peft"]
    add("--to", choices=layouts, required=True, help="the layout to write")
    weights = "the weights to convert: ema, model, or the name of another part of the file (default: ema)"
    add("--weights", default="ema", metavar="PART", help=weights)
    common.average(parser)
    autoencoder = "record what decodes the latents of the model: a folder or a hub id, or pixels for none"
    add("--autoencoder", metavar="AE", help=autoencoder)
    _what_it_is(parser)
    add("--plain", action="store_true", help="write for diffusers' own class, and print how far off it is")
    shard = "the largest size of a weights file of diffusers, such as 5GB"
    add("--max-shard-size", metavar="BYTES", help=shard)
    results = "a result of `scaledit evaluate --json FILE` to show in the model card (may be repeated)"
    add("--metrics", type=Path, action="append", default=[], metavar="FILE", help=results)
    add("--push", metavar="ORG/NAME", help="upload OUT to the Hugging Face Hub under this name, too")
    add("--private", action="store_true", help="make the repository that --push creates private")
    common.allow_import(parser)
    common.output(parser)


def _what_it_is(parser: argparse.ArgumentParser) -> None:
    """What weights from elsewhere may not say about themselves."""
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME",
        help="the model that IN holds, if it does not say so: DiT-XL/2, SiT-XL/2, ...",
    )
    heads = "the number of attention heads, for models whose size is not one of the paper's"
    add("--heads", type=common.whole, metavar="N", help=heads)
    size = "the side or the height and width of the input in latents, for weights without a position table"
    add("--input-size", metavar="S|H,W", help=size)
    patch = "the side of a patch, for weights under the names of scaledit"
    add("--patch-size", type=common.whole, metavar="P", help=patch)
    classes = "the number of classes without the null label, which tells whether the label table has one"
    add("--num-classes", type=common.whole, metavar="N", help=classes)
    nonfinite = "convert weights that are NaN or infinite as well, and report them"
    add("--allow-nonfinite", action="store_true", help=nonfinite)


def run(args: argparse.Namespace) -> None:
    common.at_least(args, 1, "heads", "patch_size", "num_classes")
    hub.check(args.source)
    if args.to != "diffusers" and (args.plain or args.max_shard_size):
        raise UsageError("--plain and --max-shard-size go with --to diffusers")
    if args.push and args.to in ("official", "program", "onnx"):
        raise UsageError("--push sends a folder; use --to scaledit or --to diffusers")
    shard = _bytes(args.max_shard_size)

    from scaledit.evaluation.result import Result
    from scaledit.interop.convert import write

    results = tuple(Result.read(path).to_json() for path in args.metrics)
    model = _opened(args)
    with common.interruptible(), common.progress_bar("converting, MB") as progress:

        def megabytes(done: int, total: int) -> None:
            progress(-(-done // 10**6), -(-total // 10**6))

        written = write(model, args.out, args.to, megabytes, results, args.plain, shard)
    pushed = hub.push(args.out, args.push, args.private) if args.push else None
    notes = [*model.notes, *written.notes]
    if model.averaged is not None:
        notes.insert(0, model.averaged.in_words())
    recorded = model.autoencoder_info is None or model.config.autoencoder.path or model.autoencoder_info.name
    if args.to == "scaledit" and not recorded:
        notes.append(
            "no autoencoder is recorded: sampling will ask for --decoder (or convert with --autoencoder AE)"
        )
    if args.json:
        terminal.say_json({**_values(args, model, written), "notes": notes, "pushed": pushed})
        return
    result, *more = _lines(args, model, written)
    terminal.say(result)
    terminal.inform(*more)
    if written.difference is not None:
        terminal.say(_difference(written.difference))
    terminal.say(*(f"note: {note}" for note in notes))
    terminal.say(*([pushed] if pushed else []))


def _opened(args: argparse.Namespace) -> Model:
    from scaledit.interop.convert import open_model
    from scaledit.interop.infer import Hints
    from scaledit.interop.model import decoded_by

    hints = Hints(args.model, args.heads, _size(args.input_size), args.patch_size, args.num_classes)
    allowed = Allowed.only(args.allow_import, args.source)
    model = open_model(
        hub.local(args.source), hints, args.weights, args.allow_nonfinite, allowed, args.average
    )
    return decoded_by(model, common.absolute(args.autoencoder)) if args.autoencoder else model


def _values(args: argparse.Namespace, model: Model, written: Written) -> dict[str, Any]:
    from scaledit.models import flops

    return {
        "out": str(args.out),
        "to": args.to,
        "params": flops.count(model.config.model).params,
        "weights": model.kind,
        "sha256": written.sha256,
        "model": model.config.to_json()["model"],
        "class_names": _class_names(args, model),
        "source": dict(model.source),
        "difference": None if written.difference is None else written.difference._asdict(),
    }


def _lines(args: argparse.Namespace, model: Model, written: Written) -> list[str]:
    from scaledit.models import flops

    params, names = flops.count(model.config.model).params, _class_names(args, model)
    if args.to == "peft":
        size = sum(file.stat().st_size for file in args.out.iterdir()) / 1e6
        return [
            f"{model.config.name}: LoRA adapter of rank {model.config.lora.rank}, {model.kind} weights, "
            f"{size:.3g} MB, in {args.out}",
            f"SHA-256 {written.sha256}",
        ]
    return [
        f"{model.config.name}: {params:,} parameters, {model.kind} weights, in {args.out}",
        f"SHA-256 {written.sha256}",
        *([f"class names: {names} ({counted(len(model.class_names), 'class', 'classes')})"] if names else []),
    ]


def _class_names(args: argparse.Namespace, model: Model) -> str | None:
    """Whose names the classes have in what was written, if they are not the model's own."""
    from scaledit.data import imagenet

    keeps_names = args.to in ("scaledit", "diffusers")
    return "ImageNet's" if keeps_names and model.class_names == imagenet.names() else None


def _difference(difference: Difference) -> str:
    return (
        f"plain layout: diffusers {difference.version} computes a different function with these weights; "
        f"outputs differ by {difference.output:.2e} of the largest, and the cosine similarity of timestep "
        f"embeddings is as low as {difference.embedding:.2f} (t = {', '.join(map(str, difference.times))})"
    )


def _size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    sides = text.split(",")
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise UsageError(f"--input-size is a side or height,width, in latents; got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "": 1}
    unit = text[-2:].upper() if text[-2:].isalpha() else ""
    number = text[: len(text) - len(unit)]
    if unit not in units or not number.isdigit() or not int(number):
        raise UsageError(f"--max-shard-size is a number of bytes, as in 5GB or 200MB; got {text!r}")
    return int(number) * units[unit]
