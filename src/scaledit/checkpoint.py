"""Checkpoints: folders of safetensors that are either whole or not there.

    write  .step-N.partial/  ->  fsync each file  ->  rename to step-N/  ->  fsync the parent
    read   manifest.json (its own SHA-256 checked)  ->  size and SHA-256 of each file  ->  tensors

safetensors does not notice a flipped bit, so every file is hashed before it is believed. Nothing is
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scaledit import __version__
from scaledit.errors import RunError
from scaledit.parts import sealed

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder and its (verified) manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def config(self) -> Mapping[str, Any]:
        """RunConfig.to_json() of the run that made it."""
        return self.manifest["config"]

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        return self.manifest["files"]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of `part`.safetensors, after checking its size and SHA-256.

        Raises RunError naming the file if it is missing or not the one that was written.
        """
        from safetensors.torch import load

        name = f"{part}.safetensors"
        if name not in self.files:
            raise RunError(f"{self.folder} has no {name}; it holds {', '.join(self.files)}")
        return load(self._verified(name))

    def verify(self) -> None:
        """Checks every file; raises RunError naming the first that differs."""
        for name in self.files:
            self._verified(name)

    def _verified(self, name: str) -> bytes:
        expected, path = self.files[name], self.folder / name
        if not path.is_file():
            raise damaged(self.folder, f"{name} is missing")
        data = path.read_bytes()
        if len(data) != expected["size"]:
            raise damaged(self.folder, f"{name} has {len(data)} bytes instead of {expected['size']}")
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise damaged(self.folder, f"{name} does not match its SHA-256")
        return data


def damaged(folder: Path, what: str) -> RunError:
    earlier = [other for other in find(folder.parent) if other.name < folder.name]
    fix = f"delete it to go on from {earlier[-1].name}" if earlier else "delete it and train again"
    return RunError(f"checkpoint {folder} is damaged: {what}; {fix}")


def find(checkpoints: Path) -> list[Path]:
    """The checkpoint folders below `checkpoints`, oldest first. Partial ones do not match the name."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads and checks the manifest (not yet the tensors). Raises RunError if it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise damaged(folder, f"{MANIFEST} is missing")
    try:
        data = path.read_bytes()
        manifest = json.loads(data)
        del manifest["sha256"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise damaged(folder, f"{MANIFEST} cannot be read") from None
    if data != sealed(manifest):
        raise damaged(folder, f"{MANIFEST} does not match its SHA-256")
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{folder} has checkpoint format {manifest['format']}, this scaledit ({__version__}) reads "
            f"{FORMAT}; use the scaledit that wrote it ({manifest['version']})"
        )
    return Checkpoint(folder, manifest)


def save(
    checkpoints: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    **state: Any,
) -> Path:
    """Writes one checkpoint; `parts` become NAME.safetensors, `state` (plain values) goes to the manifest.

    Until the last rename nothing carries the checkpoint's name, so an interrupted save leaves the ones
    before intact. Raises RunError (a full disk, say) after removing what it had written.
    """
    final = checkpoints / folder_name(step)
    partial = checkpoints / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = {
            f"{name}.safetensors": _write_tensors(partial / f"{name}.safetensors", tensors)
            for name, tensors in parts.items()
        }
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "step": step,
            "config": config,
            "state": state,
            "files": files,
        }
        manifest = json.loads(json.dumps(manifest))
        _write(partial / MANIFEST, sealed(manifest))
        _sync(partial)
        partial.rename(final)
        _sync(checkpoints)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"could not save {final}: {error.strerror or error}; earlier checkpoints are intact"
        ) from error
    return final


def prune(checkpoints: Path, keep: int) -> None:
    """Removes the oldest checkpoints but `keep`; each disappears under its name at once."""
    for folder in find(checkpoints)[:-keep]:
        gone = folder.with_name(f".{folder.name}.removed")
        folder.rename(gone)
        shutil.rmtree(gone)


def clean(checkpoints: Path) -> None:
    """Removes what interrupted saves and removals left."""
    for leftover in checkpoints.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    from safetensors.torch import save as serialize

    data = serialize({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    _write(path, data)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
