"""Many samples, generated in parts: an interrupted run resumes, and --shard i/n divides it among processes.

    part k holds the images [k P, (k+1) P), P = 250; shard i of n generates the parts k with k mod n = i

    OUT/request.json  OUT/part-00000.npz ...    if OUT is a folder
    FILE.npz.parts/   the same, merged into FILE.npz by the process that completes it, and then removed

Each image is a function of its index and each part is generated on its own, so neither shards nor
interruptions change a byte. Processes communicate through these files only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaledit import checks
from scaledit.callbacks import Progress
from scaledit.config import old
from scaledit.errors import RunError, UsageError, counted
from scaledit.files.reading import read_json
from scaledit.files.shards import ALL, Shard, begin_or_join
from scaledit.pipeline import Pipeline
from scaledit.posix import POSIX, require
from scaledit.sampling import files
from scaledit.sampling.request import EVALUATIONS, Request, Spent, labels_at, together

PART = 250
REQUEST = "request.json"


class Generated(NamedTuple):
    """images: the number of images that exist now, from all shards. complete: whether `out` is finished."""

    out: Path
    images: int
    complete: bool


@dataclass(frozen=True)
class Parts:
    """A folder of parts and their request, as in request.json."""

    folder: Path
    request: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Parts:
        """Raises UsageError if the folder's request.json cannot be read."""
        path, noun = folder / REQUEST, "a request that scaledit generate wrote"
        try:
            request = read_json(path, noun, error=UsageError)
        except OSError as error:
            raise UsageError(f"{path} cannot be read as {noun}: {error.strerror or error}") from None
        if not all(type(request.get(key)) is int and request[key] > 0 for key in ("n", "part")):
            raise UsageError(f"{path} cannot be read as {noun}: it has no number of images and size of parts")
        return cls(folder, old.protocol(request))

    @property
    def n(self) -> int:
        return self.request["n"]

    def path(self, k: int) -> Path:
        return self.folder / f"part-{k:05d}.npz"

    def numbers(self) -> range:
        return range(-(-self.n // self.request["part"]))

    def indices(self, k: int) -> range:
        size = self.request["part"]
        return range(k * size, min((k + 1) * size, self.n))

    def missing(self) -> list[int]:
        return [k for k in self.numbers() if not self.path(k).is_file()]

    def origin(self) -> dict[str, Any]:
        """The request, with the evaluations that the parts state, if all of them do."""
        stated = [(_origin(self.path(k)) or {}).get(EVALUATIONS) for k in self.numbers()]
        return {**self.request, **together(stated, [len(self.indices(k)) for k in self.numbers()])}

    def images(self) -> Iterator[np.ndarray]:
        """The images of one part after another. Raises RunError naming a corrupt part."""
        for k in self.numbers():
            path, fix = self.path(k), "delete it and run the command again"
            try:
                with np.load(path, allow_pickle=False) as part:
                    images = part["arr_0"]
            except Exception as error:  # numpy and zipfile raise many kinds for corrupt files
                raise RunError(f"{path} is corrupt ({error}); {fix}") from None
            if len(images) != len(self.indices(k)):
                raise RunError(f"{path} contains {counted(len(images), 'image')}; {fix}")
            yield images


def generate(
    pipeline: Pipeline,
    request: Request,
    out: Path,
    shard: Shard = ALL,
    batch_size: int = 125,
    progress: Progress | None = None,
) -> Generated:
    """Generates this shard's missing parts of `request`, which has a num and start 0, and merges all parts if
    `out` is a .npz and they are complete.

    progress(done, total) counts this shard's images. Raises UsageError if `out` holds other samples or the
    disk is too small, or for shards on Windows, and RunError if sampling fails.
    """
    assert request.num is not None and request.start == 0
    if shard != ALL:
        require("sampling in shards")
    origin = json.loads(json.dumps({**request.origin(pipeline), "part": PART}))
    merged = out.suffix == ".npz"
    if merged and out.exists():
        made = _origin(out) or {}
        if {key: value for key, value in made.items() if key != EVALUATIONS} != origin:
            raise UsageError(f"{out} contains other samples; choose another --out, or delete it")
        return Generated(out, request.num, True)
    folder = parts_folder(out)
    batch_size = checks.integer(batch_size, "batch_size", 1)
    pipeline.check(request.settings)
    _check_disk(pipeline, request.num, folder, merged)
    begin_or_join(folder, REQUEST, origin, "generated samples", old.protocol)
    parts = Parts.read(folder)
    todo = [k for k in parts.missing() if shard.has(k)]
    total = sum(len(parts.indices(k)) for k in parts.numbers() if shard.has(k))
    done = total - sum(len(parts.indices(k)) for k in todo)
    if progress is not None:
        progress(done, total)
    for k in todo:
        indices = parts.indices(k)
        labels = labels_at(request.rule, indices, request.classes, request.settings.seed)
        batches, spent = [], Spent()
        for first in range(0, len(indices), batch_size):
            batch = labels[first : first + batch_size].tolist()
            start = indices.start + first
            batches.append(
                pipeline.sample(batch, request.settings, start, batch_size, on_evaluations=spent.add)
            )
            done += len(batch)
            if progress is not None:
                progress(done, total)
        of_part = {**origin, "start": indices.start, **spent.stated(request.settings)}
        files.write_npz(parts.path(k), batches, labels, of_part, len(indices))
    missing = parts.missing()
    if missing and not (merged and out.exists()):  # another shard may have merged and removed them
        return Generated(out, request.num - sum(len(parts.indices(k)) for k in missing), False)
    if merged and not out.exists():
        _merge(parts, request, out)
    return Generated(out, request.num, True)


def parts_folder(out: Path) -> Path:
    """Where the parts of `out` are until it is complete."""
    return out.with_name(f"{out.name}.parts") if out.suffix == ".npz" else out


def _check_disk(pipeline: Pipeline, n: int, folder: Path, merged: bool) -> None:
    """Raises UsageError if `n` images do not fit on the disk, given the parts that are there already; while
    parts are merged, images are there twice."""
    height, width = pipeline.image_size
    size = 3 * height * width
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    used = sum(path.stat().st_size for path in folder.glob("part-*.npz")) if existing == folder else 0
    checks.fits(
        size * n * (2 if merged else 1),
        shutil.disk_usage(existing).free + used,
        f"{counted(n, 'image')} of {width}x{height}",
        f"free at {existing}",
        "ask for fewer (--num), or choose another --out",
    )


def _merge(parts: Parts, request: Request, out: Path) -> None:
    """Writes one file of all parts and removes them, in one process at a time; another may be faster."""
    with ExitStack() as stack:
        if POSIX:
            import fcntl

            try:
                lock = stack.enter_context((parts.folder / ".lock").open("w"))
            except FileNotFoundError:
                return
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            labels = labels_at(request.rule, range(parts.n), request.classes, request.settings.seed)
            files.write_npz(out, parts.images(), labels, parts.origin(), parts.n)
        shutil.rmtree(parts.folder, ignore_errors=True)


def _origin(path: Path) -> dict[str, Any] | None:
    """How a file of samples was made; None for any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return old.protocol(json.loads(str(file["origin"])))
    except Exception:  # a file of any other kind
        return None
