"""Our own folders: a run, a checkpoint, or a model that was exported to be passed on.

    exported/  config.json  model.safetensors  manifest.json (size and SHA-256 of both, sealed)  README.md

An exported folder is a checkpoint with the weights alone, under the names that the Hub knows. The manifest is
what is believed; README.md, the model card, may be edited.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaledit import __version__, checkpoint
from scaledit.config import NOTHING, RunConfig
from scaledit.data.latents import MadeBy
from scaledit.errors import RunError, UsageError, reading
from scaledit.interop.lazily import Lazy, Progress, looked_through, open_safetensors, write_safetensors
from scaledit.interop.model import Model
from scaledit.interop.official import check_size
from scaledit.models.shapes import shapes
from scaledit.part import Allowed
from scaledit.parts import sealed, sha256_of

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
    allow_nonfinite: see `lazily.looked_through`. allowed: see `RunConfig.from_json`.

    Raises RunError if it is damaged: every byte that is used has been hashed before. Raises UsageError where
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
        if CONFIG in opened.files and sha256_of(folder / CONFIG) != opened.files[CONFIG]["sha256"]:
            raise RunError(
                f"{folder / CONFIG} was changed after {checkpoint.MANIFEST} was written; restore it"
            )
        names, made_by, source = state["class_names"], state.get("made_by"), state.get("source", {})
        maker = None if made_by is None else MadeBy(**made_by)
        said = (*names, weights, entry["sha256"], *(() if maker is None else maker[:3]))
        numbers = (entry["size"], opened.step, *(() if maker is None else maker[4:]))
        if not all(isinstance(text, str) for text in said) or not isinstance(source, dict):
            raise ValueError("a name in it is no text")
        if not all(type(number) is int for number in numbers):
            raise ValueError("a size in it is no whole number")
        if maker is not None and not (type(maker.scale) in (int, float) and math.isfinite(maker.scale)):
            raise ValueError(f"the latents' scale is {maker.scale!r:.60}")
        config = RunConfig.from_json(opened.config, allowed)
    tensors = _verified(folder, name, entry["size"], entry["sha256"])
    check_size(config.model, len(tensors))
    wanted, found = shapes(config.model), {key: lazy.shape for key, lazy in tensors.items()}
    for key in sorted(wanted.keys() | found.keys()):
        have, want = found.get(key, "nothing"), wanted.get(key, "nothing")
        if have != want:
            raise UsageError(f"{folder} does not fit its config: {key} is {have}, the config says {want}")
    tensors, notes = looked_through(tensors, folder / name, allow_nonfinite)
    return Model(
        config=config,
        weights=tensors,
        class_names=tuple(names),
        made_by=maker,
        source=source,
        step=opened.step,
        kind=weights,
        sha256=entry["sha256"],
        notes=notes,
    )


def _verified(folder: Path, name: str, size: int, sha256: str) -> dict[str, Lazy]:
    """The tensors of a file, unread, after comparing its every byte with the manifest."""
    path = folder / name
    if not path.is_file():
        raise checkpoint.damaged(folder, f"{name} is missing")
    if path.stat().st_size != size:
        raise checkpoint.damaged(folder, f"{name} has {path.stat().st_size} bytes instead of {size}")
    if sha256_of(path) != sha256:
        raise checkpoint.damaged(folder, f"{name} does not match its SHA-256")
    return open_safetensors(path)


def write(model: Model, out: Path, card: str, progress: Progress) -> str:
    """Writes an exported folder, whole or not at all; gives the SHA-256 of its weights."""
    with whole_folder(out) as folder:
        done, total = 0, model.nbytes

        def step(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(done, total)

        with synced(folder / WEIGHTS) as file:
            sha256 = write_safetensors(file, model.weights, step)
        config = (json.dumps(model.config.to_json(), indent=1) + "\n").encode()
        put(folder / CONFIG, config)
        state = {
            "class_names": model.class_names,
            "made_by": None if model.made_by is None else model.made_by._asdict(),
            "kind": model.kind,
            "source": dict(model.source),
        }
        manifest: dict[str, Any] = {
            "format": checkpoint.FORMAT,
            "version": __version__,
            "step": model.step,
            "config": model.config.to_json(),
            "state": state,
            "files": {
                WEIGHTS: {"size": (folder / WEIGHTS).stat().st_size, "sha256": sha256},
                CONFIG: {"size": len(config), "sha256": hashlib.sha256(config).hexdigest()},
            },
        }
        put(folder / CARD, card.replace("{sha256}", sha256).encode())
        put(folder / checkpoint.MANIFEST, sealed(json.loads(json.dumps(manifest))))
    return sha256


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete. Raises UsageError where `out` holds something,
    RunError on a full disk."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists; choose another name or delete it")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def synced(path: Path) -> Iterator[Any]:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with synced(path) as file:
        file.write(data)
