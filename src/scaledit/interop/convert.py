"""From any layout to any other: open_model(path) -> Model -> write(model, out, to).

    in     scaledit's folders, official .pt or .safetensors (DiT, fast-DiT, SiT), diffusers' folders
    out    all of these, .pt2 of torch.export, .onnx, PEFT's folder of a LoRA run's factors

Weights stay in their files until they are written: memory holds one tensor at a time, except for torch.export
and ONNX, which need the network.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scaledit.averages import Average, asked
from scaledit.callbacks import Progress
from scaledit.config import NOTHING
from scaledit.errors import RunError, UsageError, no_such
from scaledit.files.atomic import atomic_write
from scaledit.files.manifest import sha256_of
from scaledit.interop import adapter, card, diffusers_folder, native, official, sit
from scaledit.interop.difference import Difference, measured
from scaledit.interop.infer import KNOWN_NAMES, Hints, classes_of, config_of
from scaledit.interop.lazy_tensors import Lazy, checked_finite, counting, open_safetensors, write_safetensors
from scaledit.interop.model import EPSILON, SIT, Model, from_weights
from scaledit.interop.pickle_reader import networks
from scaledit.interop.pickled import open_pickled, write_pickled
from scaledit.models.config import LATENT_DOWNSAMPLING
from scaledit.part import Allowed

Layout = Literal["scaledit", "official", "diffusers", "program", "onnx", "peft"]
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
TENSORS = ".safetensors"


def open_model(
    path: Path,
    hints: Hints | None = None,
    weights: str = "ema",
    allow_nonfinite: bool = False,
    allowed: Allowed = NOTHING,
    average: str | float | Average | None = None,
) -> Model:
    """The model at `path`. weights: "ema" or "model" if it holds both, or the name of another part. allowed:
    modules that a config of scaledit may name parts of. average: of a run, in place of its EMA, such as 0.13
    or "0.13@20000" (averages.asked); None: sample.average of the run.

    Reading a tensor with NaN or infinite values raises RunError, which names it. allow_nonfinite: keeps such
    values and describes them in the notes, for which every tensor is read once more, at once.

    Raises UsageError if it is not a model or more hints are needed, or if it is not a run that kept what
    `average` needs; RunError if it is corrupt.
    """
    hints = hints or Hints()
    if not path.exists():
        raise UsageError(no_such(path))
    folder = None if path.is_file() else native.locate(path)
    if folder is None and (wanted := asked(average)) is not None:
        raise UsageError(
            f"{path} is not a run of scaledit, so it has no snapshots from which the average {wanted} could "
            "be computed; leave the average out"
        )
    if path.is_file():
        return _from_file(path, hints, weights, allow_nonfinite)
    if folder is not None:
        return native.open_run(path, folder, weights, allow_nonfinite, allowed, average)
    if diffusers_folder.transformer_folder(path) is not None:
        return diffusers_folder.read(path, hints, allow_nonfinite, allowed)
    raise UsageError(
        f"{path} contains no checkpoint; use a run folder, one of its checkpoints, a diffusers folder, or an "
        "official .pt"
    )


def _from_file(path: Path, hints: Hints, kind: str, allow_nonfinite: bool) -> Model:
    """A file of the official layout, or with scaledit's names."""
    args: Mapping[str, Any] = {}
    if path.suffix == TENSORS:
        stored = open_safetensors(path)
        named = networks(stored)
        parts = {part: {name: stored[key] for name, key in names.items()} for part, names in named.items()}
        parts = parts or {"": stored}
    elif path.suffix in PICKLES:
        opened = open_pickled(path)
        args, parts = opened.args, opened.parts
    else:
        raise UsageError(f"{path} is neither {', '.join(PICKLES)} nor {TENSORS}")
    tensors, kind, notes = _part(parts, kind, path)
    tensors, nonfinite_notes = checked_finite(tensors, path, allow_nonfinite)
    notes += nonfinite_notes
    weights = official.to_native(tensors)
    shapes = {key: lazy.shape for key, lazy in weights.items()}
    patches, table = tensors.get(official.PATCHES), tensors.get(official.POSITION)
    if table is not None and (len(table.shape) != 3 or table.shape[0] != 1):
        raise UsageError(f"{official.POSITION} has shape {table.shape}, not (1, patches, width)")
    position = None if table is None else table.read()
    hints = _with_args(hints, args, position is None)
    null_row = None if patches is not None else True  # under scaledit's names the table always has one
    config = config_of(shapes, hints, None if patches is None else patches.shape, position, null_row)
    if note := classes_of(shapes[official.LABELS][0], hints, null_row).note:
        notes += (note,)
    weights = official.with_null_row(weights, config)
    official.check_shapes({key: lazy.shape for key, lazy in weights.items()}, config)
    if position is not None:
        official.check_position(position, config)
    source = {"layout": "official", "name": path.name, "sha256": sha256_of(path)}
    source |= {key: args[key] for key in ("model", "image_size", "vae") if key in args}
    if hints.is_flow:
        weights, config = sit.from_sit(weights, config)
        source["layout"] = "official (SiT)"
    elif hints.model is None:
        notes += (
            "read as a DiT (linear betas, epsilon); SiT's files look the same, so pass --model "
            "SiT-XL/2 for one",
        )
    model = from_weights(config, weights, SIT if hints.is_flow else EPSILON, source, notes)
    return dataclasses.replace(model, kind=kind, sha256=source["sha256"])


AVERAGES = {"ema", "averaged", "average", "avg", "swa", "shadow"}
OPTIMIZERS = {"opt", "optim", "optimizer", "optimizers"}
"""Words in the names of parts. Some optimizers store their states under the names of the weights."""


def _words(part: str) -> set[str]:
    return set(re.split(r"[^a-z]+", part.lower()))


def _part(
    parts: Mapping[str, Mapping[str, Lazy]], kind: str, path: Path
) -> tuple[Mapping[str, Lazy], str, tuple[str, ...]]:
    """The requested state dict, what it is ("ema", "model" or its own name), and notes.

    A bare state dict is taken as it is. "ema" is the part with such a name, or else the only network, which a
    note says; "model" is the only network that is not an average.
    """
    if set(parts) == {""}:
        return parts[""], "model", ()
    if kind in parts:
        return parts[kind], kind, ()
    averages = [part for part in parts if _words(part) & AVERAGES]
    others = [part for part in parts if not _words(part) & (AVERAGES | OPTIMIZERS)]
    candidates = {"ema": averages or others, "model": others}.get(kind, [])
    if len(candidates) != 1:
        names = ", ".join(sorted(part or "model" for part in parts))[:200]
        raise UsageError(f"{path} contains {names}; choose one with --weights")
    (part,) = candidates
    if part in averages:
        return parts[part], "ema", ()
    note = f"the file has no EMA weights; {part or 'the bare state dict'} is used instead"
    return parts[part], "model", () if kind == "model" else (note,)


def _with_args(hints: Hints, args: Mapping[str, Any], needs_size: bool) -> Hints:
    """The user's hints, completed by the arguments of the program that wrote the file."""
    model, size, classes = args.get("model"), args.get("image_size"), args.get("num_classes")
    dropout = args.get("class_dropout_prob", args.get("class_dropout"))
    stated: dict[str, Any] = {}
    if type(classes) is int:
        stated["num_classes"] = classes
    if type(dropout) in (int, float):
        stated["class_dropout"] = dropout
    if model in KNOWN_NAMES:
        stated["model"] = model
    if needs_size and type(size) is int and size > 0 and size % LATENT_DOWNSAMPLING == 0:
        stated["input_size"] = size // LATENT_DOWNSAMPLING
    return dataclasses.replace(
        hints, **{key: value for key, value in stated.items() if getattr(hints, key) is None}
    )


class Written(NamedTuple):
    """sha256: of the weights, the first file if there are several. difference: measured for a plain diffusers
    folder. notes: sentences that the user should see."""

    sha256: str
    difference: Difference | None = None
    notes: tuple[str, ...] = ()


def write(
    model: Model,
    out: Path,
    to: Layout,
    progress: Progress,
    results: tuple[Mapping[str, Any], ...] = (),
    plain: bool = False,
    shard: int | None = None,
) -> Written:
    """Writes the model. progress: in bytes. results: of `scaledit evaluate --json`, for the card. plain,
    shard: see `diffusers_folder.write`.

    Raises UsageError if the layout cannot hold the model or `out` exists, RunError if writing fails.
    """
    if to == "scaledit":
        return Written(native.write(model, out, card.text(model, results), progress))
    if to == "official":
        return _write_official(model, out, progress)
    if to == "peft":
        return Written(adapter.write(model, out, progress))
    if to in ("program", "onnx"):
        return _write_network(model, out, to, progress)
    text = card.text(model, results, "plain" if plain else "diffusers")
    sha256 = diffusers_folder.write(model, out, text, progress, plain, shard)
    has_pipeline, notes = diffusers_folder.has_pipeline(model), []
    if not has_pipeline and model.autoencoder_info is None:
        notes.append(
            "diffusers' DiTPipeline needs an autoencoder to make pixels, so it cannot open the folder"
        )
    elif not has_pipeline:
        notes.append(
            f"diffusers' DiTPipeline does not sample the schedule {model.config.diffusion.schedule.label()}, "
            "so the folder contains the transformer only"
        )
    elif not model.config.autoencoder.path:
        notes.append("no autoencoder is recorded: pass one to DiTPipeline.from_pretrained with vae=")
    if not plain:
        return Written(sha256, None, tuple(notes))
    if has_pipeline and model.config.model.num_classes != 1000:
        notes.append(
            "DiTPipeline's null label is 1000, which this model lacks, so it cannot guide the plain folder"
        )
    difference = measured(model, out)
    if difference is None:
        notes.append("diffusers is not installed, so the difference of the plain layout was not measured")
    return Written(sha256, difference, tuple(notes))


def _write_official(model: Model, out: Path, progress: Progress) -> Written:
    """A bare state dict as .pt (torch.save's format) or .safetensors, in the dtype of the weights."""
    if out.suffix not in (".pt", ".pth", TENSORS):
        raise UsageError(f"--to official writes a file; use OUT.pt or OUT{TENSORS}, not {out}")
    weights, config = model.weights, model.config.model
    diffusion = model.config.diffusion
    if (type(diffusion.schedule), diffusion.prediction) == (type(SIT.schedule), SIT.prediction):
        weights, config = sit.to_sit(weights, config)
    elif (diffusion.schedule, diffusion.prediction) != (EPSILON.schedule, EPSILON.prediction):
        raise UsageError(
            "the official programs sample epsilon on 1000 linear betas only; this model has "
            f"{diffusion.prediction.label()} on {diffusion.schedule.label()}"
        )
    tensors = official.to_official(weights, config)
    write = write_safetensors if out.suffix == TENSORS else write_pickled
    with _writing(out), atomic_write(out) as file:
        write(file, tensors, counting(progress, tensors))
    return Written(sha256_of(out))


def _write_network(model: Model, out: Path, to: Layout, progress: Progress) -> Written:
    """The network with float32 weights inside, as a .pt2 of torch.export or an .onnx."""
    from scaledit.interop import onnx_file, program

    writer = program if to == "program" else onnx_file
    writer.check(out)
    with _writing(out):
        beside = writer.save(model.network(), out)
    progress(model.nbytes, model.nbytes)
    notes = () if beside is None else (f"the weights are in {beside.name}, which belongs beside it",)
    return Written(sha256_of(out), notes=notes)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Raises UsageError if the new file exists, RunError if it cannot be written."""
    try:
        if out.exists():
            raise UsageError(f"{out} exists; choose another name or delete it")
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
