"""Whether a run resumes with the data that it was trained on so far.

    manifest.json: state.class_names, state.data = {samples, fingerprint}        compared on every resume

The fingerprint does not depend on the path, so a folder may be moved, and not all data is read for it:

    images in memory   SHA-256 of pixels and labels
    images in files    of every name and label, and of the bytes of PEEKS evenly spaced files
    encoded images     of the SHA-256 of every shard, as recorded in the index
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaledit import checkpoint
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.checkpoint import Checkpoint, Latest
from scaledit.data.decode import BadImage
from scaledit.data.files import ImageFiles
from scaledit.data.latent_buckets import BucketLatents
from scaledit.data.latents import Latents
from scaledit.data.names import encoded, natural_key
from scaledit.data.sets import Images, TrainingSet
from scaledit.data.sources import Source
from scaledit.errors import RunError, UsageError, counted
from scaledit.training.events import DataChanged, DataRecorded, Event
from scaledit.training.folder import CHECKPOINTS

PEEKS = 32
"""Files whose bytes are hashed. Other images under the same names are noticed unless fewer than one in PEEKS
was replaced; hashing every file would take hours for a large data set."""
MOST_NAMES = 3
"""The most class names in a message."""


def fingerprint(dataset: TrainingSet) -> str | None:
    """A hash of the samples and labels of a set; class names are compared separately. None for a user's own
    set, unless it has an attribute `fingerprint` (a str)."""
    if isinstance(dataset, EncodedImages):
        return fingerprint(dataset.images)  # the encoder is compared by its hash
    if isinstance(dataset, Images):
        images, labels = (np.ascontiguousarray(t.numpy()) for t in (dataset.images, dataset.labels))
        return _hash([images.data, labels.data])
    if isinstance(dataset, BucketLatents):
        return _hash(shard.sha256.encode() for one in dataset.caches for shard in one.index.shards)
    if isinstance(dataset, Latents):
        return _hash(shard.sha256.encode() for shard in dataset.index.shards)
    if isinstance(dataset, ImageFiles):
        return _hash(_pieces(dataset.source))
    own = getattr(dataset, "fingerprint", None)
    return own if isinstance(own, str) else None


def _pieces(source: Source) -> Iterator[bytes]:
    yield np.asarray(source.labels, "<i8").tobytes()
    for name in source.names:
        yield encoded(name) + b"\0"
    count = len(source)
    for i in sorted({k * count // PEEKS for k in range(PEEKS)}):
        try:
            yield hashlib.sha256(source.read(i)).digest()
        except (BadImage, OSError):
            yield b"unreadable"


def _hash(pieces: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


class SameData:
    """The data of a run, compared with what a checkpoint records. notes: make events to report after the run
    has started, from its step; filled on the rank that has checked."""

    def __init__(self, dataset: TrainingSet, changed: str):
        self.dataset, self.changed = dataset, changed
        self.notes: list[Callable[[int], Event]] = []

    @cached_property
    def record(self) -> dict[str, Any]:
        """The entry `state.data` of a checkpoint's manifest."""
        return {"samples": len(self.dataset), "fingerprint": fingerprint(self.dataset)}

    def check(self, latest: Latest) -> None:
        """Raises UsageError naming the differences to the data of the checkpoint, unless data.changed is
        "accept"."""
        saved = latest.checkpoint
        if saved is None:
            return
        differences = self.differences(saved)
        if differences and self.changed != "accept":
            raise UsageError(
                f"the data is not what this run was trained on up to step {saved.step}: "
                f"{'; '.join(differences)}. Use the same data, choose another --out, or set "
                "data.changed=accept to resume with this data"
            )
        if differences:
            self.notes.append(lambda step: DataChanged(step, differences))
        elif not saved.manifest["state"].get("data"):
            self.notes.append(lambda step: DataRecorded(step, **self.record))

    def check_newest(self, out: Path) -> None:
        """`check` with the newest checkpoint of a run folder that is not locked, if it can be read."""
        with suppress(RunError, OSError):
            self.check(Latest(_newest(out), {}))

    def differences(self, saved: Checkpoint) -> list[str]:
        """How the data differs from that of a checkpoint, in words. Of the oldest runs only the classes can
        be compared."""
        state = saved.manifest["state"]
        before, names = state.get("data") or {}, state.get("class_names")
        now = list(self.dataset.class_names)
        # A single class is named after its folder, which may have been moved.
        differences = [] if names is None or len(names) == len(now) == 1 else _class_differences(names, now)
        samples = before.get("samples", len(self.dataset))
        if samples != len(self.dataset):
            differences.append(f"{_images(samples)} before, {_images(len(self.dataset))} now")
        recorded, current = before.get("fingerprint"), self.record["fingerprint"] if before else None
        if not differences and None not in (recorded, current) and recorded != current:
            differences.append(f"as many images ({samples}) in the same classes, but other images")
        return differences


def as_recorded(dataset: TrainingSet, out: Path) -> TrainingSet:
    """`dataset` with its classes numbered as in the newest checkpoint of the run folder `out`, if that is of
    an old run, which numbered the same classes in text order (1, 10, 2) and not in natural order (1, 2, 10).
    Any other difference is left to `SameData.check`."""
    try:
        saved = _newest(out)
    except (RunError, OSError):
        return dataset  # reported when the run is restored
    before = saved.manifest["state"].get("class_names") if saved else None
    now = list(dataset.class_names)
    if before is None or before == now or before != sorted(now) or now != sorted(now, key=natural_key):
        return dataset
    return renumbered(dataset, tuple(before))


def renumbered(dataset: TrainingSet, class_names: tuple[str, ...]) -> TrainingSet:
    """`dataset` with its classes in the order of `class_names`; a set that is not read from files is
    unchanged."""
    if isinstance(dataset, EncodedImages):
        return replace(dataset, images=renumbered(dataset.images, class_names))
    if isinstance(dataset, ImageFiles):
        return replace(dataset, source=dataset.source.with_classes(class_names))
    if isinstance(dataset, Latents) and not isinstance(dataset, BucketLatents):
        old = {name: i for i, name in enumerate(dataset.class_names)}
        counts = tuple(dataset.index.counts[old[name]] for name in class_names)
        number = torch.tensor([class_names.index(name) for name in dataset.class_names])
        index = replace(dataset.index, class_names=class_names, counts=counts)
        return replace(dataset, index=index, labels=number[dataset.labels])
    return dataset


def _newest(out: Path) -> Checkpoint | None:
    folders = checkpoint.find(out / CHECKPOINTS)
    return checkpoint.open_checkpoint(folders[-1]) if folders else None


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _class_differences(before: list[str], now: list[str]) -> list[str]:
    if before == now:
        return []
    if len(before) != len(now):
        names = [f"new: {name!r}" for name in now if name not in set(before)]
        names += [f"gone: {name!r}" for name in before if name not in set(now)]
        return [
            f"{counted(len(before), 'class', 'classes')} before, {len(now)} now "
            f"({', '.join(_shortened(names, 'of them'))})"
        ]
    renamed = [(k, a, b) for k, (a, b) in enumerate(zip(before, now, strict=True)) if a != b]
    if set(before) == set(now):
        k, a, b = renamed[0]
        return [
            f"the classes are in another order (class {k} was {a!r} and is now {b!r}), so that labels would "
            "mean other classes"
        ]
    return _shortened([f"class {k} was {a!r} and is now {b!r}" for k, a, b in renamed], "classes")


def _shortened(parts: list[str], noun: str) -> list[str]:
    left = len(parts) - MOST_NAMES
    return [*parts[:MOST_NAMES], f"and {left} more {noun}"] if left > 0 else parts
