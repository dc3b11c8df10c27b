"""From any layout to any other: open_model(path) -> Model -> write(model, out, to).

    our folders, official .pt or .safetensors (DiT, fast-DiT, SiT), diffusers' folders; and out, .pt2, .onnx

Weights stay in their files until they are written: memory holds one tensor at a time, except for programs of
torch.export and ONNX, which have the network in them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scaledit.callbacks import Progress
from scaledit.config import NOTHING
from scaledit.errors import RunError, UsageError
from scaledit.files.atomic import atomic_write
from scaledit.files.manifest import sha256_of
from scaledit.interop import card, diffusers_folder, native, official, sit
from scaledit.interop.difference import Difference, measured
from scaledit.interop.infer import KNOWN_NAMES, Hints, classes_of, config_of
from scaledit.interop.lazy_tensors import (
    Lazy,
    checked_finite,
    open_safetensors,
    write_safetensors,
)
from scaledit.interop.model import EPSILON, SIT, Model, described
from scaledit.interop.pickle_reader import grouped
from scaledit.interop.pickled import open_pickled, write_pickled
from scaledit.models.config import LATENT_DOWNSAMPLING
from scaledit.part import Allowed

if TYPE_CHECKING:
    from scaledit.models.dit import DiT

Layout = Literal["scaledit", "official", "diffusers", "program", "onnx"]
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
TENSORS = ".safetensors"
PATCHES = "patch_embed.weight"


def open_model(
    path: Path,
    hints: Hints | None = None,
    weights: str = "ema",
    allow_nonfinite: bool = False,
    allowed: Allowed = NOTHING,
) -> Model:
    """What lies at `path`. weights: "ema" or "model", where it holds both, or the name of another part.

    A tensor with NaN or infinite values raises RunError when it is read, naming it; allow_nonfinite: it does
    not, and the notes say which they are (which reads every tensor once more, at once). allowed: modules that
    a config of ours may name parts of.

    Raises UsageError where it is no model, or leaves something to ask for; RunError where it is corrupt.
    """
    hints = hints or Hints()
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.is_file():
        return _official(path, hints, weights, allow_nonfinite)
    folder = native.locate(path)
    if folder is not None:
        return native.read(folder, weights, allow_nonfinite, allowed)
    if diffusers_folder.transformer_folder(path) is not None:
        return diffusers_folder.read(path, hints, allow_nonfinite, allowed)
    raise UsageError(
        f"{path} holds no checkpoint; give a run folder or a checkpoint of one, a folder of diffusers, or an "
        "official .pt"
    )


def _official(path: Path, hints: Hints, kind: str, allow_nonfinite: bool) -> Model:
    """A file of the official layout, or of our own names."""
    args: Mapping[str, Any] = {}
    if path.suffix == TENSORS:
        tensors = open_safetensors(path)
        parts = {
            part: {name: tensors[key] for name, key in names.items()}
            for part, names in grouped(tensors).items()
        }
        parts = parts or {"": tensors}
    elif path.suffix in PICKLES:
        opened = open_pickled(path)
        args, parts = opened.args, opened.parts
    else:
        raise UsageError(f"{path} is neither {', '.join(PICKLES)} nor {TENSORS}")
    tensors, kind, notes = _part(parts, kind, path)
    tensors, kept = checked_finite(tensors, path, allow_nonfinite)
    notes += kept
    weights = official.to_native(tensors)
    shapes = {key: lazy.shape for key, lazy in weights.items()}
    patches, table = tensors.get(official.PATCHES), tensors.get(official.POSITION)
    position = None if table is None else _table(table).read()
    hints = _with_args(hints, args, position is None)
    null_row = None if patches is not None else True  # by our own names the table always has one
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
            "read as a DiT (linear betas, epsilon); SiT's files look the same: say --model SiT-XL/2 for one",
        )
    model = described(config, weights, SIT if hints.is_flow else EPSILON, source, notes)
    return dataclasses.replace(model, kind=kind, sha256=source["sha256"])


def _part(
    parts: Mapping[str, Mapping[str, Lazy]], kind: str, path: Path
) -> tuple[Mapping[str, Lazy], str, tuple[str, ...]]:
    """The state dict that is asked for, what it is ("ema", "model" or its own name), and what to say of it.

    A bare one is simply the weights. "ema" is what is called so, or like it; where there is none, the one
    network that there is, which is said. "model" is the one network that is no average.
    """
    if set(parts) == {""}:
        return parts[""], "model", ()
    if kind in parts:
        return parts[kind], kind, ()
    averages = [part for part in parts if _words(part) & AVERAGES]
    networks = [part for part in parts if not _words(part) & (AVERAGES | OPTIMIZERS)]
    candidates = {"ema": averages or networks, "model": networks}.get(kind, [])
    if len(candidates) != 1:
        listed = ", ".join(sorted(part or "model" for part in parts))[:200]
        raise UsageError(f"{path} holds {listed}; say which with --weights")
    (part,) = candidates
    if part in averages:
        return parts[part], "ema", ()
    said = f"the file has no average of the weights: {part or 'the bare state dict'} was taken"
    return parts[part], "model", () if kind == "model" else (said,)


AVERAGES = {"ema", "averaged", "average", "avg", "swa", "shadow"}
OPTIMIZERS = {"opt", "optim", "optimizer", "optimizers"}
"""Words in the names of parts. Some optimizers keep their states under the names of the weights."""


def _words(part: str) -> set[str]:
    return set(re.split(r"[^a-z]+", part.lower()))


def _table(table: Lazy) -> Lazy:
    if len(table.shape) != 3 or table.shape[0] != 1:
        raise UsageError(f"{official.POSITION} has shape {table.shape}, not (1, patches, width)")
    return table


def _with_args(hints: Hints, args: Mapping[str, Any], ask_size: bool) -> Hints:
    """What the user says, else what the arguments of the program that wrote the file say of the same."""
    model, size = args.get("model"), args.get("image_size")
    classes = args.get("num_classes")
    dropout = args.get("class_dropout_prob", args.get("class_dropout"))
    if hints.num_classes is None and type(classes) is int:
        hints = dataclasses.replace(hints, num_classes=classes)
    if hints.class_dropout is None and type(dropout) in (int, float):
        hints = dataclasses.replace(hints, class_dropout=dropout)
    if hints.model is None and model in KNOWN_NAMES:
        hints = dataclasses.replace(hints, model=model)
    if (
        ask_size
        and hints.input_size is None
        and type(size) is int
        and size > 0
        and size % LATENT_DOWNSAMPLING == 0
    ):
        hints = dataclasses.replace(hints, input_size=size // LATENT_DOWNSAMPLING)
    return hints


class Written(NamedTuple):
    """sha256: of the weights (of the first file, where there are several). difference: of a plain diffusers
    folder, as measured. notes: what a person should know of the result."""

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
    """Writes the model. results: of `scaledit evaluate --json`, for the card. plain, shard: of diffusers.

    Raises UsageError where the layout cannot hold such a model or `out` exists.
    """
    if to == "scaledit":
        return Written(native.write(model, out, card.text(model, results), progress))
    if to == "official":
        return _write_official(model, out, progress)
    if to == "program":
        return _write_program(model, out, progress)
    if to == "onnx":
        return _write_onnx(model, out, progress)
    text = card.text(model, results, "plain" if plain else "diffusers")
    written = diffusers_folder.write(model, out, text, progress, plain, shard)
    sha256, notes = next(iter(written.sha256.values())), []
    if not written.has_pipeline and model.autoencoder_info is None:
        notes.append(
            "diffusers' DiTPipeline makes no pixels without an autoencoder: it does not open the folder"
        )
    elif not written.has_pipeline:
        notes.append(
            f"diffusers' DiTPipeline does not sample the schedule {model.config.diffusion.schedule.label()}: "
            f"the folder holds the transformer alone"
        )
    elif not model.config.autoencoder.path:
        notes.append("no autoencoder is recorded: give DiTPipeline.from_pretrained one with vae=")
    if not plain:
        return Written(sha256, None, tuple(notes))
    if written.has_pipeline and model.config.model.num_classes != 1000:
        notes.append(
            "DiTPipeline's null label is 1000, which this model has not: it cannot guide the plain folder"
        )
    difference = measured(model, out)
    if difference is None:
        notes.append("diffusers is not installed: the difference of the plain layout was not measured")
    return Written(sha256, difference, tuple(notes))


def _write_official(model: Model, out: Path, progress: Progress) -> Written:
    """A bare state dict, as .pt (torch.save's format, in float32 or what the weights are) or .safetensors."""
    if out.suffix not in (".pt", ".pth", TENSORS):
        raise UsageError(f"--to official writes a file: give OUT.pt or OUT{TENSORS}, not {out}")
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
    total, done = sum(lazy.nbytes for lazy in tensors.values()), 0

    def step(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    with _writing(out), atomic_write(out) as file:
        if out.suffix == TENSORS:
            write_safetensors(file, tensors, step)
        else:
            write_pickled(file, tensors, step)
    return Written(sha256_of(out))


def _write_program(model: Model, out: Path, progress: Progress) -> Written:
    """The network as a .pt2 of torch.export; it has the weights inside, in float32."""
    from scaledit.interop import program

    program.check_name(out)
    with _writing(out):
        program.save(_network(model), out)
    progress(model.nbytes, model.nbytes)
    return Written(sha256_of(out))


def _write_onnx(model: Model, out: Path, progress: Progress) -> Written:
    """The network as an .onnx, with the weights inside or, where they are large, in a file beside it."""
    from scaledit.interop import onnx_file

    onnx_file.check(out)
    with _writing(out):
        beside = onnx_file.save(_network(model), out)
    progress(model.nbytes, model.nbytes)
    notes = () if beside is None else (f"the weights are in {beside.name}, which belongs beside it",)
    return Written(sha256_of(out), None, notes)


def _network(model: Model) -> DiT:
    from scaledit.models.dit import DiT

    official.check_shapes({key: lazy.shape for key, lazy in model.weights.items()}, model.config.model)
    net = DiT(model.config.model)
    net.load_state_dict({key: lazy.read() for key, lazy in model.weights.items()})
    return net


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Around the writing of a new file: one sentence where it is there, or cannot be made."""
    try:
        if out.exists():
            raise UsageError(f"{out} exists; choose another name or delete it")
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
