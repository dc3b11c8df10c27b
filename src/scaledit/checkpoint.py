"""Checkpoints: folders of safetensors, each written completely or not at all.

    write  .step-N.partial/  ->  fsync each file  ->  rename to step-N/  ->  fsync the parent  ->  verify
    read   manifest.json (its own SHA-256 checked)  ->  size and SHA-256 of each file  ->  tensors

safetensors does not notice a flipped bit, so every file is hashed before it is read. Nothing is pickled or
unpickled. sharded/ holds the shards that several ranks wrote (torch.distributed.checkpoint in its safetensors
format).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from torch import Tensor

from scaledit import __version__
from scaledit.errors import RunError, reading
from scaledit.files.atomic import sync, synced
from scaledit.files.manifest import FileHash, mismatch, read_sealed, sealed

MANIFEST = "manifest.json"
SHARDED = "sharded"
AVERAGES, POWER = "averages", "power"
"""The folder of a run for the snapshots of its power-function averages, which have the form of checkpoints,
and the part of a checkpoint or a snapshot that holds the averages."""
FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder and its (verified) manifest. checked: the files whose hash has been
    verified."""

    folder: Path
    manifest: Mapping[str, Any]
    checked: set[str] = field(default_factory=set, compare=False)

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def config(self) -> Mapping[str, Any]:
        """RunConfig.to_json() of the run that wrote it."""
        return self.manifest["config"]

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        return self.manifest["files"]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of `part`.safetensors, after checking its size and SHA-256.

        Raises RunError naming the file if it is missing or differs from the one that was written.
        """
        from safetensors.torch import load_file

        path = self._checked_file(part)
        with reading(path, "tensors", "it was not written by scaledit"):
            return load_file(path)

    def names(self, part: str) -> set[str]:
        """The names of the tensors of `part`.safetensors, from its header. Raises as `tensors` does."""
        from scaledit.files.tensors import header

        path = self._checked_file(part)
        with reading(path, "tensors", "it was not written by scaledit"):
            return set(header(path))

    def _checked_file(self, part: str) -> Path:
        name = f"{part}.safetensors"
        if name not in self.files:
            raise RunError(f"{self.folder} has no {name}; it contains {', '.join(self.files)}")
        self._check(name)
        return self.folder / name

    @property
    def is_sharded(self) -> bool:
        return any(name.startswith(f"{SHARDED}/") for name in self.files)

    def verify(self) -> None:
        """Checks every file; raises RunError naming the first that differs."""
        for name in self.files:
            self._check(name)

    def _check(self, name: str) -> None:
        """Checks a file, at most once."""
        if name in self.checked:
            return
        expected = self.files[name]
        if wrong := mismatch(self.folder / name, expected["size"], expected["sha256"]):
            raise corrupt(self.folder, f"{name} {wrong}")
        self.checked.add(name)


class OtherFormat(RunError):
    """A complete checkpoint in the format of another version of scaledit."""


def corrupt(folder: Path, what: str) -> RunError:
    earlier = [other for other in find(folder.parent) if other.name < folder.name]
    fix = f"; the previous one is {earlier[-1]}" if earlier else ""
    return RunError(f"checkpoint {folder} is corrupt: {what}{fix}")


class Latest(NamedTuple):
    """The newest intact checkpoint, and what is wrong with newer ones."""

    checkpoint: Checkpoint | None
    corrupt: dict[Path, str]


def latest(checkpoints: Path) -> Latest:
    """The newest intact checkpoint, found by checking them from the newest on; there is no pointer file. If a
    running job removes a checkpoint meanwhile, newer ones exist and the search starts again.

    Raises RunError if all checkpoints are corrupt, or if the newest intact one has another format.
    """
    corrupt_ones: dict[Path, str] = {}
    removed = False
    for folder in reversed(find(checkpoints)):
        try:
            newest = open_checkpoint(folder)
            if folder.name != folder_name(newest.step):
                raise corrupt(folder, f"its manifest belongs to step {newest.step}")
            newest.verify()
        except OtherFormat:
            raise
        except RunError as error:
            if folder.exists():
                corrupt_ones[folder] = str(error)
            else:
                removed = True
        else:
            return Latest(newest, corrupt_ones)
    if removed:
        return latest(checkpoints)
    if corrupt_ones:
        raise RunError(
            f"no checkpoint in {checkpoints} is intact: {'; '.join(corrupt_ones.values())}. Restore one from "
            "a copy, or choose another --out"
        )
    return Latest(None, {})


def set_aside(folder: Path) -> Path:
    """Renames a corrupt checkpoint so that its step can be saved again; nothing is deleted. Returns the new
    path."""
    for number in range(1000):
        aside = folder.with_name(f"corrupt-{folder.name}" + (f".{number}" if number else ""))
        if not aside.exists():
            folder.rename(aside)
            return aside
    raise RunError(f"{folder.parent} contains a thousand corrupt copies of {folder.name}; remove some")


def find(checkpoints: Path) -> list[Path]:
    """The checkpoint folders below `checkpoints`, oldest first. Partial ones do not match the name."""
    if not checkpoints.is_dir():
        return []
    folders = [path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads and checks the manifest (not yet the tensors). Raises RunError if it is corrupt."""
    path = folder / MANIFEST
    if not path.is_file():
        raise corrupt(folder, f"{MANIFEST} is missing")
    try:
        manifest, is_as_written = read_sealed(path, "a manifest")
    except (RunError, OSError):
        raise corrupt(folder, f"{MANIFEST} cannot be read") from None
    if not is_as_written:
        raise corrupt(folder, f"{MANIFEST} does not match its SHA-256")
    if manifest.get("format") != FORMAT:
        raise OtherFormat(
            f"{folder} has checkpoint format {manifest.get('format')!r}, but this scaledit "
            f"({__version__}) reads format {FORMAT}; use the scaledit that wrote it "
            f"({manifest.get('version', 'unknown')})"
        )
    if isinstance(manifest.get("state"), dict):
        manifest["state"] = modern_state(manifest["state"])
    wrong = _nonsense(manifest)
    if wrong:
        raise corrupt(folder, f"{MANIFEST} has an invalid entry ({wrong})")
    return Checkpoint(folder, manifest)


SINCE_0_1 = {"passed_over": "skipped_batches", "made_by": "autoencoder_info"}
"""Keys of a manifest's `state` in scaledit 0.1, and their names now."""


def modern_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's `state` under today's keys, whichever version wrote it."""
    return {SINCE_0_1.get(key, key): value for key, value in state.items()}


LARGEST_COUNT = 1 << 53
"""For steps, bytes and the like: integers up to this are exact in every program that reads JSON."""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_COUNT


def _is_number(value: object) -> bool:
    """Whether it is a finite number, as a float too."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_file(name: str, value: object) -> bool:
    """Whether it is a name inside the folder with the size and the SHA-256 of a file."""
    path = PurePosixPath(name)
    inside = name == str(path) and not path.is_absolute() and ".." not in path.parts and name not in ("", ".")
    return (
        inside
        and "\0" not in name
        and isinstance(value, dict)
        and _is_count(value.get("size"))
        and isinstance(value.get("sha256"), str)
    )


def _are_breaks(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and _is_count(item.get("step")) and _are_names(item.get("changes"))
        for item in value
    )


STATE = {
    "skipped": _is_count,
    "seconds": _is_number,
    "skipped_batches": _is_count,
    "position": _is_count,
    "micro_batch": lambda value: _is_count(value) and value > 0,
    "accumulate": lambda value: _is_count(value) and value > 0,
    "losses": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "breaks": _are_breaks,
    "class_names": _are_names,
    "data": lambda value: value is None or isinstance(value, dict),
    "autoencoder_info": lambda value: value is None or isinstance(value, dict),
    "kind": lambda value: isinstance(value, str),
    "source": lambda value: isinstance(value, dict),
}
"""The keys that a manifest's `state` may hold, and when their values are valid. Each reader checks by itself
that the keys it needs are there."""


def _nonsense(manifest: Mapping[str, Any]) -> str:
    """The first invalid field of a manifest, as "step: -1"; "" if all are valid. The hash alone only shows
    that the file is as somebody wrote it."""
    top = {
        "version": isinstance(manifest.get("version"), str),
        "step": _is_count(manifest.get("step")),
        "world": _is_count(manifest.get("world", 1)),
        "config": isinstance(manifest.get("config"), dict),
        "state": isinstance(manifest.get("state"), dict),
        "files": isinstance(manifest.get("files"), dict),
    }
    for key, right in top.items():
        if not right:
            return f"{key}: {_short(manifest.get(key))}"
    for key, value in manifest["state"].items():
        if key in STATE and not STATE[key](value):
            return f"state.{key}: {_short(value)}"
    for name, value in manifest["files"].items():
        if not _is_file(name, value):
            return f"files: {_short(name)}: {_short(value)}"
    return ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def begin(checkpoints: Path, step: int) -> Path:
    """Makes an empty folder, under a temporary name, for the checkpoint of `step`. Raises RunError if it
    cannot."""
    partial = checkpoints / f".{folder_name(step)}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise not_saved(partial, error) from error
    return partial


def finish(
    partial: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    world: int = 1,
    **state: Any,
) -> Path:
    """Completes the folder that `begin` made: writes each of `parts` as NAME.safetensors beside the files
    already there, and a manifest with `state` (plain values) and the number of ranks. Returns the folder.

    Only the last rename gives the folder its name, so an interrupted save leaves earlier checkpoints intact;
    after it every file is read again and compared. On failure (a full disk, say) the partial folder is
    removed and RunError is raised."""
    checkpoints, final = partial.parent, partial.parent / folder_name(step)
    try:
        shards = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {str(path.relative_to(partial)): FileHash.of(path)._asdict() for path in shards}
        for name, tensors in parts.items():
            path = partial / f"{name}.safetensors"
            files[path.name] = write_tensors(path, tensors)._asdict()
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "step": step,
            "world": world,
            "config": config,
            "state": state,
            "files": files,
        }
        manifest = json.loads(json.dumps(manifest))
        with synced(partial / MANIFEST) as file:
            file.write(sealed(manifest))
        for folder in {partial, *(path.parent for path in shards)}:
            sync(folder)
        partial.rename(final)
        sync(checkpoints)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise not_saved(final, error) from error
    open_checkpoint(final).verify()
    return final


def save(
    checkpoints: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    **state: Any,
) -> Path:
    """Writes one checkpoint of full tensors: `begin` and `finish`."""
    return finish(begin(checkpoints, step), step, parts, config, **state)


def not_saved(folder: Path, error: OSError) -> RunError:
    return RunError(f"could not save {folder}: {error.strerror or error}; earlier checkpoints are intact")


def prune(checkpoints: Path, keep: int, keep_every: int = 0) -> None:
    """Removes all checkpoints except the newest `keep` and those of steps divisible by keep_every."""
    for folder in find(checkpoints)[:-keep]:
        if keep_every and int(folder.name.removeprefix("step-")) % keep_every == 0:
            continue
        try:
            remove(folder)
        except OSError as error:  # a full disk is no reason to stop training
            _LOG.warning("could not remove the old checkpoint %s: %s", folder, error.strerror or error)


def remove(folder: Path) -> None:
    """Removes a checkpoint; its name disappears at once."""
    if folder.is_symlink():
        to = os.readlink(folder)
        folder.unlink()
        _LOG.warning("the old checkpoint %s was a link; the link was removed, and %s was kept", folder, to)
        return
    gone = folder.with_name(f".{folder.name}.removed")
    folder.rename(gone)
    shutil.rmtree(gone)


_LOG = logging.getLogger(__name__)


def clean(checkpoints: Path) -> None:
    """Removes the leftovers of interrupted saves and removals."""
    for leftover in checkpoints.glob(".step-*"):
        if leftover.is_symlink():
            leftover.unlink(missing_ok=True)
        shutil.rmtree(leftover, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileHash:
    """Writes a safetensors file, tensors in the order of their names, without copying those on the CPU."""
    from scaledit.files.tensors import NAMES, bytes_of, write

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    described = ((name, NAMES[tensor.dtype], tensor.shape, tensor.nbytes) for name, tensor in ready.items())
    with synced(path) as file:
        return write(file, described, map(bytes_of, ready.values()))
