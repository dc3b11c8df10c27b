"""scaledit convert: between official checkpoints, diffusers' folders and our own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from scaledit.commands import common
from scaledit.errors import UsageError, printable
from scaledit.interop import hub
from scaledit.part import Allowed

SUMMARY = """between official DiT checkpoints, diffusers' folders and our own

  scaledit convert DiT-XL-2-256x256.pt xl2 --to scaledit --autoencoder stabilityai/sd-vae-ft-mse
  scaledit convert SiT-XL-2-256.pt sit --to scaledit --model SiT-XL/2
  scaledit convert runs/mine mine-diffusers --to diffusers
  scaledit convert runs/mine mine.pt --to official
  scaledit convert runs/mine mine.pt2 --to program      torch.export, any batch size
  scaledit convert runs/mine mine.onnx --to onnx        for other runtimes, any batch size

IN is a run, a checkpoint, an exported folder, an official .pt or .safetensors (a trainer's, fast-DiT's),
a folder of diffusers, or hf://org/name. Pickles are read without being run (docs/interop.md)."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="see above")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="a folder; official: .pt or .safetensors; program: .pt2; onnx: .onnx",
    )
    parser.add_argument(
        "--to", choices=["scaledit", "official", "diffusers", "program", "onnx"], required=True
    )
    parser.add_argument("--weights", default="ema", metavar="PART", help="ema (default), model, or another")
    parser.add_argument(
        "--model", metavar="NAME", help="what IN is, where it does not say: DiT-XL/2, SiT-XL/2"
    )
    parser.add_argument("--heads", type=int, metavar="N", help="of models that are none of the paper's sizes")
    parser.add_argument("--input-size", metavar="S|H,W", help="of weights without a position table")
    parser.add_argument("--patch-size", type=int, metavar="P", help="of weights in our own names")
    parser.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="without the null label: tells whether the label table ends with one",
    )
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="keep weights that are NaN or infinite, and say which"
    )
    parser.add_argument(
        "--autoencoder",
        metavar="AE",
        help="what decodes its latents: a folder or a hub id; recorded (or pixels)",
    )
    parser.add_argument("--plain", action="store_true", help="diffusers' own class; prints how far off it is")
    parser.add_argument("--max-shard-size", metavar="BYTES", help="of diffusers' files, as in 5GB")
    parser.add_argument(
        "--metrics",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="of scaledit evaluate --json",
    )
    parser.add_argument("--push", metavar="ORG/NAME", help="send OUT to the Hugging Face Hub as well")
    parser.add_argument("--private", action="store_true", help="with --push")
    common.allow_import(parser)
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    common.at_least(given, 1, "heads", "patch_size", "num_classes")
    hub.check(given.source)
    if given.to != "diffusers" and (given.plain or given.max_shard_size):
        raise UsageError("--plain and --max-shard-size go with --to diffusers")
    if given.push and given.to in ("official", "program", "onnx"):
        raise UsageError("--push sends a folder; use --to scaledit or --to diffusers")
    shard = _bytes(given.max_shard_size)

    from scaledit.interop.convert import open_model, write
    from scaledit.interop.infer import Hints
    from scaledit.interop.model import decoded_by
    from scaledit.models import flops

    results = tuple(_result(path) for path in given.metrics)
    hints = Hints(given.model, given.heads, _size(given.input_size), given.patch_size, given.num_classes)
    allowed = Allowed.only(given.allow_import, given.source)
    model = open_model(hub.local(given.source), hints, given.weights, given.allow_nonfinite, allowed)
    if given.autoencoder:
        model = decoded_by(model, _absolute(given.autoencoder))
    with common.shown_progress("converting, MB") as progress:
        written = write(
            model,
            given.out,
            given.to,
            lambda done, total: progress(-(-done // 10**6), -(-total // 10**6)),
            results,
            given.plain,
            shard,
        )
    pushed = hub.push(given.out, given.push, given.private) if given.push else None
    notes = [*model.notes, *written.notes]
    recorded = model.autoencoder_info is None or model.config.autoencoder.path or model.autoencoder_info.name
    if given.to == "scaledit" and not recorded:
        notes.append(
            "no autoencoder is recorded: sampling will ask for --decoder (or convert with --autoencoder AE)"
        )
    params = flops.count(model.config.model).params
    if given.json:
        difference = None if written.difference is None else written.difference._asdict()
        report = {
            "out": str(given.out),
            "to": given.to,
            "params": params,
            "weights": model.kind,
            "sha256": written.sha256,
            "model": model.config.to_json()["model"],
            "source": dict(model.source),
            "difference": difference,
            "notes": notes,
            "pushed": pushed,
        }
        print(json.dumps(report))
        return
    print(printable(f"{model.config.name}: {params:,} parameters, {model.kind} weights, in {given.out}"))
    print(printable(f"SHA-256 {written.sha256}"))
    if written.difference is not None:
        far = written.difference
        print(
            printable(
                f"plain layout: in diffusers {far.version} these weights are another function; outputs "
                f"differ by {far.output:.2e} of the largest, timestep embeddings have cosine similarity down "
                f"to {far.embedding:.2f} (t = {', '.join(map(str, far.times))})"
            )
        )
    for note in notes:
        print(printable(f"note: {note}"))
    if pushed:
        print(printable(pushed))


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


def _result(path: Path) -> dict[str, Any]:
    """Raises UsageError unless `path` is a file of `scaledit evaluate --json`."""
    from scaledit.evaluation.result import Result

    return Result.read(path).to_json()


def _absolute(where: str) -> str:
    """A folder's full path, so that it is found from elsewhere; a hub id as it is."""
    path = Path(where).expanduser()
    return str(path.resolve()) if path.exists() else where
