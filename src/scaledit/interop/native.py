"""scaledit's own folders: a run, a checkpoint, or a model exported to be shared.

    exported/  config.json  model.safetensors  manifest.json (size and SHA-256 of both, sealed)  README.md

An exported folder is a checkpoint with the weights only, under the file names that the Hub knows. The
manifest is authoritative; README.md, the model card, may be edited.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaledit import __version__, checkpoint
from scaledit.averages import Average, asked
from scaledit.callbacks import Progress
from scaledit.config import NOTHING, RunConfig
from scaledit.data.latents import AutoencoderInfo
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.atomic import atomic_folder
from scaledit.files.manifest import FileHash, mismatch, sealed
from scaledit.files.reading import read_json
from scaledit.interop import adapter, averaged
from scaledit.interop.lazy_tensors import checked_finite, counting, open_safetensors, write_safetensors
from scaledit.interop.model import Model
from scaledit.interop.official import check_size
from scaledit.models.shapes import shapes
from scaledit.part import Allowed

CONFIG, CARD, WEIGHTS = "config.json", "README.md", "model.safetensors"


def locate(path: Path) -> Path | None:
    """`path` itself if it is a checkpoint, the latest checkpoint if it is a run, None if it is neither."""
    if (path / checkpoint.MANIFEST).is_file() or path.name.startswith("step-"):
        return path
    checkpoints = checkpoint.find(path / "checkpoints")
    return checkpoints[-1] if checkpoints else None


def open_run(
    path: Path,
    folder: Path,
    weights: str = "ema",
    allow_nonfinite: bool = False,
    allowed: Allowed = NOTHING,
    average: str | float | Average | None = None,
) -> Model:
    """The model at `path`, whose checkpoint is `folder`, with the [sample] section that its run has now.

    average: a power-function average in place of `weights` (averages.asked); None: sample.average of a run.
    Raises as `read` and `averaged.compute` do, and UsageError if both are named.
    """
    sample = _sample_of(path) if path != folder else None
    wanted = asked(average)
    if wanted is not None and weights != "ema":
        raise UsageError(f"the average {wanted} and the weights {weights!r} exclude each other; name one")
    if wanted is None:
        model = read(folder, weights, allow_nonfinite, allowed, sample=sample)
        own = asked(model.config.sample.average)
        if average is not None or own is None or weights != "ema" or not _is_of_a_run(path, folder):
            return model
        wanted = own
    computed = averaged.compute(path, folder, wanted, allow_nonfinite)
    return read(folder, weights, allow_nonfinite, allowed, sample=sample, computed=computed)


def _is_of_a_run(path: Path, folder: Path) -> bool:
    return path != folder or folder.parent.name == "checkpoints"


def _sample_of(run: Path) -> object:
    """The [sample] section of a run's config.json, which may be newer than the checkpoint's; None if the file
    is missing or cannot be read."""
    try:
        config = read_json(run / CONFIG, "a run's config", "restore it")
    except (RunError, OSError):
        return None
    return config.get("sample") if isinstance(config, dict) else None


def at_step(path: str) -> Path:
    """The checkpoint that RUN@STEP names; any other path, or one that exists with such a name, as it is."""
    run, at, step = path.rpartition("@")
    if not at or not (step.isascii() and step.isdigit()) or Path(path).expanduser().exists():
        return Path(path).expanduser()
    return Path(run).expanduser() / "checkpoints" / checkpoint.folder_name(int(step))


def read(
    folder: Path,
    weights: str = "ema",
    allow_nonfinite: bool = False,
    allowed: Allowed = NOTHING,
    sample: object = None,
    computed: averaged.Computed | None = None,
) -> Model:
    """The model of a checkpoint or an exported folder. weights: "ema" or "model"; an exported folder has one
    kind. allow_nonfinite: see `lazy_tensors.checked_finite`. allowed: see `RunConfig.from_json`. sample: a
    [sample] section that replaces the checkpoint's. computed: takes the place of the trained parameters.

    Every file is hashed before it is used. Raises RunError if one is corrupt, UsageError if they do not fit.
    """
    manifest = folder / checkpoint.MANIFEST
    with reading(manifest, "a manifest", "restore it from a copy"):
        opened = checkpoint.open_checkpoint(folder)
        name, state = f"{weights}.safetensors", opened.manifest["state"]
        if "ema.safetensors" not in opened.files:
            name, weights = WEIGHTS, str(state.get("kind", "model"))
        if name not in opened.files:
            raise RunError(f"{folder} has no {name}; it contains {', '.join(opened.files)}")
        entry, config_entry = opened.files[name], opened.files.get(CONFIG)
        if config_entry and mismatch(folder / CONFIG, config_entry["size"], config_entry["sha256"]):
            raise RunError(
                f"{folder / CONFIG} was changed after {checkpoint.MANIFEST} was written; restore it"
            )
        names, info, source = state["class_names"], state.get("autoencoder_info"), state.get("source", {})
        autoencoder = None if info is None else AutoencoderInfo(**info)
        texts = (*names, weights, entry["sha256"], *(() if autoencoder is None else autoencoder[:3]))
        numbers = (entry["size"], opened.step, *(() if autoencoder is None else autoencoder[4:]))
        if not all(isinstance(text, str) for text in texts) or not isinstance(source, dict):
            raise ValueError("a name in it is not a string")
        if not all(type(number) is int for number in numbers):
            raise ValueError("a size in it is not a whole number")
        if autoencoder is not None and not (
            type(autoencoder.scale) in (int, float) and math.isfinite(autoencoder.scale)
        ):
            raise ValueError(f"the latents' scale is {autoencoder.scale!r:.60}")
        config = RunConfig.from_json(opened.config, allowed)
    notes: tuple[str, ...] = ()
    if sample is not None:
        try:
            config = RunConfig.from_json({**opened.config, "sample": sample}, allowed)
        except UsageError as error:
            notes = (f"[sample] of the run's {CONFIG} is not used: {error}",)
    if wrong := mismatch(folder / name, entry["size"], entry["sha256"]):
        raise checkpoint.corrupt(folder, f"{name} {wrong}")
    stored, more = checked_finite(open_safetensors(folder / name), folder / name, allow_nonfinite)
    notes += more
    sha256, step = entry["sha256"], opened.step
    if computed is not None:
        if foreign := computed.tensors.keys() - stored.keys():
            raise UsageError(f"{folder} does not fit the run's averages: it has no {min(foreign)}")
        stored, notes = {**stored, **computed.tensors}, (*notes, *computed.notes)
        weights, step = f"average {computed.about.length:g}", computed.about.step
        sha256 = hashlib.sha256((sha256 + computed.sha256).encode()).hexdigest()
    tensors = adapter.merged(stored, config.lora, folder / name)
    check_size(config.model, len(tensors))
    expected, actual = shapes(config.model), {key: lazy.shape for key, lazy in tensors.items()}
    for key in sorted(expected.keys() | actual.keys()):
        shape, needed = actual.get(key, "nothing"), expected.get(key, "nothing")
        if shape != needed:
            raise UsageError(
                f"{folder} does not fit its config: {key} has the shape {shape}, but "
                f"the config needs {needed}"
            )
    return Model(
        config=config,
        weights=tensors,
        class_names=tuple(names),
        autoencoder_info=autoencoder,
        source=source,
        step=step,
        kind=weights,
        sha256=sha256,
        notes=notes,
        breaks=tuple(state.get("breaks", ())),
        factors=adapter.factors(stored),
        averaged=None if computed is None else computed.about,
    )


def write(model: Model, out: Path, card: str, progress: Progress) -> str:
    """Writes an exported folder atomically and returns the SHA-256 of its weights. card: the text of
    README.md, in which "{sha256}" is replaced. progress: in bytes. Raises as `new_folder` does."""
    with new_folder(out) as folder:
        with (folder / WEIGHTS).open("wb") as file:
            weights = write_safetensors(file, model.weights, counting(progress, model.weights))
        config = (json.dumps(model.config.to_json(), indent=1) + "\n").encode()
        (folder / CONFIG).write_bytes(config)
        manifest: dict[str, Any] = {
            "format": checkpoint.FORMAT,
            "version": __version__,
            "step": model.step,
            "config": model.config.to_json(),
            "state": model.state(),
            "files": {WEIGHTS: weights._asdict(), CONFIG: FileHash.of_bytes(config)._asdict()},
        }
        (folder / CARD).write_bytes(card.replace("{sha256}", weights.sha256).encode())
        (folder / checkpoint.MANIFEST).write_bytes(sealed(json.loads(json.dumps(manifest))))
    return weights.sha256


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `out` when it is complete. Raises UsageError if `out` exists and
    is not an empty folder, RunError if it cannot be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists; choose another name or delete it")
    try:
        with atomic_folder(out) as folder:
            yield folder
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
