"""Our own folders: a run, a checkpoint, or a model that was exported to be passed on.

    exported/  config.json  model.safetensors  manifest.json (size and SHA-256 of both, sealed)  README.md

An exported folder is a checkpoint with the weights alone, under the names that the Hub knows. The manifest is
what is believed; README.md, the model card, may be edited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaledit import __version__, checkpoint
from scaledit.callbacks import Progress
from scaledit.config import NOTHING, RunConfig
from scaledit.data.latents import AutoencoderInfo
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.atomic import atomic_folder
from scaledit.files.manifest import FileHash, mismatch, sealed
from scaledit.interop.lazy_tensors import checked_finite, open_safetensors, write_safetensors
from scaledit.interop.model import Model
from scaledit.interop.official import check_size
from scaledit.models.shapes import shapes
from scaledit.part import Allowed

CONFIG, CARD, WEIGHTS = "config.json", "README.md", "model.safetensors"


def locate(path: Path) -> Path | None:
    """The checkpoint that `path` is, or a run's latest; None where `path` is neither."""
    if (path / checkpoint.MANIFEST).is_file() or path.name.startswith("step-"):
        return path
    found = checkpoint.find(path / "checkpoints")
    return found[-1] if found else None


def read(
    folder: Path, weights: str = "ema", allow_nonfinite: bool = False, allowed: Allowed = NOTHING
) -> Model:
    """A checkpoint's model, or an exported one. weights: "ema" or "model"; an exported folder has one kind.
    allow_nonfinite: see `lazy_tensors.checked_finite`. allowed: see `RunConfig.from_json`.

    Raises RunError if it is corrupt: every byte that is used has been hashed before. Raises UsageError where
    its config is that of other weights.
    """
    manifest = folder / checkpoint.MANIFEST
    with reading(manifest, "a manifest", "restore it from a copy"):
        opened = checkpoint.open_checkpoint(folder)
        name, state = f"{weights}.safetensors", opened.manifest["state"]
        if "ema.safetensors" not in opened.files:
            name, weights = WEIGHTS, str(state.get("kind", "model"))
        if name not in opened.files:
            raise RunError(f"{folder} has no {name}; it holds {', '.join(opened.files)}")
        entry = opened.files[name]
        config_said = opened.files.get(CONFIG)
        if config_said and mismatch(folder / CONFIG, config_said["size"], config_said["sha256"]):
            raise RunError(
                f"{folder / CONFIG} was changed after {checkpoint.MANIFEST} was written; restore it"
            )
        names, info, source = state["class_names"], state.get("autoencoder_info"), state.get("source", {})
        maker = None if info is None else AutoencoderInfo(**info)
        said = (*names, weights, entry["sha256"], *(() if maker is None else maker[:3]))
        numbers = (entry["size"], opened.step, *(() if maker is None else maker[4:]))
        if not all(isinstance(text, str) for text in said) or not isinstance(source, dict):
            raise ValueError("a name in it is no text")
        if not all(type(number) is int for number in numbers):
            raise ValueError("a size in it is no whole number")
        if maker is not None and not (type(maker.scale) in (int, float) and math.isfinite(maker.scale)):
            raise ValueError(f"the latents' scale is {maker.scale!r:.60}")
        config = RunConfig.from_json(opened.config, allowed)
    if wrong := mismatch(folder / name, entry["size"], entry["sha256"]):
        raise checkpoint.corrupt(folder, f"{name} {wrong}")
    tensors = open_safetensors(folder / name)
    check_size(config.model, len(tensors))
    wanted, found = shapes(config.model), {key: lazy.shape for key, lazy in tensors.items()}
    for key in sorted(wanted.keys() | found.keys()):
        have, want = found.get(key, "nothing"), wanted.get(key, "nothing")
        if have != want:
            raise UsageError(f"{folder} does not fit its config: {key} is {have}, the config says {want}")
    tensors, notes = checked_finite(tensors, folder / name, allow_nonfinite)
    return Model(
        config=config,
        weights=tensors,
        class_names=tuple(names),
        autoencoder_info=maker,
        source=source,
        step=opened.step,
        kind=weights,
        sha256=entry["sha256"],
        notes=notes,
    )


def write(model: Model, out: Path, card: str, progress: Progress) -> str:
    """Writes an exported folder, whole or not at all; gives the SHA-256 of its weights."""
    with new_folder(out) as folder:
        done, total = 0, model.nbytes

        def step(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(done, total)

        with (folder / WEIGHTS).open("wb") as file:
            weights = write_safetensors(file, model.weights, step)
        config = (json.dumps(model.config.to_json(), indent=1) + "\n").encode()
        (folder / CONFIG).write_bytes(config)
        state = {
            "class_names": model.class_names,
            "autoencoder_info": None if model.autoencoder_info is None else model.autoencoder_info._asdict(),
            "kind": model.kind,
            "source": dict(model.source),
        }
        manifest: dict[str, Any] = {
            "format": checkpoint.FORMAT,
            "version": __version__,
            "step": model.step,
            "config": model.config.to_json(),
            "state": state,
            "files": {WEIGHTS: weights._asdict(), CONFIG: FileHash.of_bytes(config)._asdict()},
        }
        (folder / CARD).write_bytes(card.replace("{sha256}", weights.sha256).encode())
        (folder / checkpoint.MANIFEST).write_bytes(sealed(json.loads(json.dumps(manifest))))
    return weights.sha256


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete. Raises UsageError where `out` holds something,
    RunError on a full disk."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists; choose another name or delete it")
    try:
        with atomic_folder(out) as folder:
            yield folder
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
