"""Whether a run goes on with the data that it was trained on so far.

    manifest.json: state.class_names, state.data = {samples, fingerprint}        compared on every resume

The fingerprint does not depend on the path, so that a folder may be moved, and not all data is read for it:

    images in memory   SHA-256 of pixels and labels
    images in files    of every name and label, and of the bytes of PEEKS files spread evenly
    encoded images     of the SHA-256 of every shard, as the index has them
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scaledit import checkpoint
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.checkpoint import Checkpoint, Latest
from scaledit.data.decode import BadImage
from scaledit.data.files import ImageFiles
from scaledit.data.latents import Latents
from scaledit.data.names import encoded
from scaledit.data.sets import Images, TrainingSet
from scaledit.data.sources import Source
from scaledit.errors import RunError, UsageError
from scaledit.training.events import DataChanged, DataRecorded, Event
from scaledit.training.folder import CHECKPOINTS

PEEKS = 32
"""Files whose bytes are looked at. Other images under the same names are found unless fewer than one in
PEEKS was replaced; every one is not read, because data sets take hours to read."""
SHOWN = 3
"""Class names in a message."""


def fingerprint(dataset: TrainingSet) -> str | None:
    """Of the samples and labels of a set, whose class names are compared apart. None for a set of somebody
    else's making, unless it has a `fingerprint` (a str) of its own."""
    if isinstance(dataset, EncodedImages):
        return fingerprint(dataset.images)  # the encoder is compared by its hash
    if isinstance(dataset, Images):
        images, labels = (np.ascontiguousarray(t.numpy()) for t in (dataset.images, dataset.labels))
        return _hashed([images.data, labels.data])
    if isinstance(dataset, Latents):
        return _hashed(shard.sha256.encode() for shard in dataset.index.shards)
    if isinstance(dataset, ImageFiles):
        return _hashed(_of_files(dataset.source))
    own = getattr(dataset, "fingerprint", None)
    return own if isinstance(own, str) else None


def _of_files(source: Source) -> Iterator[bytes]:
    yield np.asarray(source.labels, "<i8").tobytes()
    for name in source.names:
        yield encoded(name) + b"\0"
    count = len(source)
    for i in sorted({k * count // PEEKS for k in range(PEEKS)}):
        try:
            yield hashlib.sha256(source.read(i)).digest()
        except (BadImage, OSError):
            yield b"unreadable"


def _hashed(pieces: Sequence[Any] | Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


class SameData:
    """The data of one life of a run, held against what a checkpoint says. notes: what is to be told of it
    when the run has started; on the rank that has checked."""

    def __init__(self, dataset: TrainingSet, changed: str):
        self.dataset, self.changed = dataset, changed
        self.notes: list[Callable[[int], Event]] = []

    @cached_property
    def record(self) -> dict[str, Any]:
        """For a checkpoint's manifest, beside its class names."""
        return {"samples": len(self.dataset), "fingerprint": fingerprint(self.dataset)}

    def check(self, found: Latest) -> None:
        """Raises UsageError naming what differs from the data of the checkpoint, unless data.changed is
        "accept"."""
        saved = found.checkpoint
        if saved is None:
            return
        differs = self.differences(saved)
        if differs and self.changed != "accept":
            raise UsageError(
                f"the data is not what this run was trained on up to step {saved.step}: "
                f"{'; '.join(differs)}. Give the same data, or choose another --out; data.changed=accept "
                "goes on with this data"
            )
        if differs:
            self.notes.append(lambda step: DataChanged(step, differs))
        elif not saved.manifest["state"].get("data"):
            self.notes.append(lambda step: DataRecorded(step, **self.record))

    def check_newest(self, out: Path) -> None:
        """As `check`, with the newest checkpoint of a run folder not claimed yet, if it can be read."""
        try:
            for folder in checkpoint.find(out / CHECKPOINTS)[-1:]:
                return self.check(checkpoint.Latest(checkpoint.open_checkpoint(folder), {}))
        except (RunError, OSError):
            return None

    def differences(self, saved: Checkpoint) -> list[str]:
        """What of the data is not as it was, in words; of a run that recorded no more, its classes only."""
        state = saved.manifest["state"]
        before, names = state.get("data") or {}, state.get("class_names")
        now = list(self.dataset.class_names)
        differs = [] if names is None or len(names) == len(now) == 1 else _of_classes(names, now)
        # One class is named after its folder, which may have been moved.
        samples = before.get("samples", len(self.dataset))
        if samples != len(self.dataset):
            differs.append(f"{_images(samples)} before, {_images(len(self.dataset))} now")
        known, own = before.get("fingerprint"), self.record["fingerprint"] if before else None
        if not differs and known is not None and own is not None and known != own:
            differs.append(f"as many images ({samples}) in the same classes, but not the same ones")
        return differs


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _of_classes(before: list[str], now: list[str]) -> list[str]:
    """As 'class 3 was "owl", is "elk"' where as many have other names in the same places."""
    if before == now:
        return []
    gone = [name for name in before if name not in set(now)]
    new = [name for name in now if name not in set(before)]
    if not gone and not new and len(before) == len(now):
        k = next(k for k, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        return [
            f"the classes are in another order (class {k} was {before[k]!r}, is {now[k]!r}), so that labels "
            "would mean other classes"
        ]
    if len(before) == len(now):
        pairs = [
            f"class {k} was {a!r}, is {b!r}"
            for k, (a, b) in enumerate(zip(before, now, strict=True))
            if a != b
        ]
        return _some(pairs, "classes")
    said = f"{len(before)} classes before, {len(now)} now"
    listed = [f"new: {name!r}" for name in new] + [f"gone: {name!r}" for name in gone]
    return [f"{said} ({', '.join(_some(listed, 'of them'))})"]


def _some(parts: list[str], what: str) -> list[str]:
    left = len(parts) - SHOWN
    return [*parts[:SHOWN], f"and {left} more {what}"] if left > 0 else parts
