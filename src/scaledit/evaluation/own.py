"""The images of a run's own data, as a judge reads them: what training does not see, and what it sees.

    data.name="images"    held out: the files of data.holdout        training: the other files
    data.name="latents"   held out: pixels stored by scaledit encode  training: latents, decoded
    a set of your own     held out: its held_out()                   training: its open()

All are (N, S, S, 3) uint8, scaled and cropped as for training, not mirrored, with the model's class numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scaledit import assemble, images
from scaledit.autoencoders.decoder import Decoder
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.config import RunConfig
from scaledit.data import held_out as stored
from scaledit.data.datasets import DataSet
from scaledit.data.held_out import MOST, HeldOut
from scaledit.data.holdout import class_ranks, evenly
from scaledit.data.latents import Latents
from scaledit.data.posterior import split
from scaledit.data.sets import AnySize, TrainingSet
from scaledit.errors import RunError, UsageError, counted, listed
from scaledit.evaluation.samples import BATCH, Batch, StoredSamples, npz_samples
from scaledit.part import YOURS, Allowed

HELD_OUT = "held-out"
"""The value of evaluate.reference that stands for the held-out images of the run's own data."""
AS_IN_TRAINING, DECODED = "as in training", "decoded from their latents"
"""How training images become pixels."""
PER_CLASS = 20
"""Training images of each class behind its mean, or as many as are held out, if these are more."""
FIX = "or turn evaluation off with evaluate.every=0 evaluate.reference="


@dataclass(frozen=True, eq=False)
class Readable:
    """Labelled images that are read by their numbers. labels (N,) int64. read: numbers (n,) -> (n, H, W, 3)
    uint8; raises RunError naming an image that cannot be used."""

    name: str
    labels: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, numbers: np.ndarray) -> Readable:
        return Readable(self.name, self.labels[numbers], lambda rows: self.read(numbers[rows]))

    def samples(self) -> StoredSamples:
        """The images as a sample set."""

        def batches() -> Iterator[Batch]:
            for first in range(0, len(self), BATCH):
                rows = np.arange(first, min(first + BATCH, len(self)))
                yield Batch(self.read(rows), self.labels[rows])

        return StoredSamples(self.name, len(self), {}, batches)


@dataclass(frozen=True, eq=False)
class OwnImages:
    """held_out: at most `held_out.MOST` images that training does not see; all: how many there are. training:
    all that it sees. training_made: how these become pixels, for protocols. flip: whether training mirrors
    half of them."""

    name: str
    class_names: tuple[str, ...]
    held_out: Readable
    all: int
    training: Readable
    training_made: str
    flip: bool

    def training_like_held_out(self) -> tuple[Readable, Readable]:
        """(as many training images of each class as are held out, or all of them if there are fewer; further
        ones of classes with less than PER_CLASS of them)."""
        labels, classes = self.training.labels, len(self.class_names)
        held = np.bincount(self.held_out.labels, minlength=classes)
        each = max(1, min(PER_CLASS, MOST // classes))
        ranks = class_ranks(labels)
        floor = ranks < held[labels]
        more = ~floor & (ranks < np.maximum(held, each)[labels])
        return self.training.subset(np.flatnonzero(floor)), self.training.subset(np.flatnonzero(more))


def own_images(
    config: RunConfig,
    class_names: Sequence[str],
    decoder: Decoder | None = None,
    dataset: TrainingSet | None = None,
    allowed: Allowed = YOURS,
    size: tuple[int, int] | None = None,
) -> OwnImages:
    """The images of the data that `config` names. Reads no pixels.

    class_names: of the model. decoder: of the model's latents. dataset: the open training set, if there is
    one. allowed: the modules that a set of the user's may be imported from. size: height and width of the
    images in pixels, None for those of the training. Raises UsageError if the data holds fewer than two
    images out, has other classes than the model, or has one size only; RunError if a file is corrupt.
    """
    part = assemble.data_part(config.data, allowed)
    dataset = part.open() if dataset is None else dataset
    dataset = dataset.images if isinstance(dataset, EncodedImages) else dataset
    name = str(getattr(part, "path", "") or config.data.name)
    flip, made = bool(getattr(dataset, "flip", False)), AS_IN_TRAINING
    training = _sized(_straight(dataset), size)
    if isinstance(training, Latents):
        assert decoder is not None
        held_out, total = _beside_latents(training, class_names)
        read, labels, made = (
            _decoded(training, decoder),
            training.labels.numpy(),
            DECODED,
        )
    else:
        pixels = _sized(_straight(part.held_out()), size)
        numbers = evenly(_labels(pixels), MOST)
        held_out, total = readable(f"{name}, held out", pixels, class_names).subset(numbers), len(pixels)
        read, labels = _reader(training), _labels(training)
    labels = _renumbered(labels, dataset.class_names, class_names, name)
    if len(held_out) < 2:
        more = "data.holdout" if not isinstance(training, Latents) else "scaledit encode --holdout"
        raise UsageError(
            f"{name} has {counted(len(held_out), 'held-out image')}; metrics need at least two: set a larger "
            f"share with {more}, {FIX}"
        )
    where = Readable(f"{name}, training images", labels, read)
    return OwnImages(name, tuple(class_names), held_out, total, where, made, flip)


def _straight(dataset: TrainingSet) -> TrainingSet:
    """The set without mirrored images."""
    has_flip = is_dataclass(dataset) and "flip" in {item.name for item in fields(dataset)}
    return replace(dataset, flip=False) if has_flip else dataset  # pyright: ignore[reportArgumentType, reportCallIssue]


def _sized(dataset: TrainingSet, size: tuple[int, int] | None) -> TrainingSet:
    """The set at another size. Raises UsageError if it has one size only."""
    if size is None:
        return dataset
    if not isinstance(dataset, AnySize):
        raise UsageError(
            f"the held-out images of this run's data have one size, which is not {size[0]}x{size[1]}; pass a "
            "folder of real images of that size with --reference"
        )
    return dataset.at(*size)


def _labels(dataset: TrainingSet) -> np.ndarray:
    """The labels (N,) of a set, which `labels` has in all but a user's own sets."""
    labels = getattr(dataset, "labels", None)
    if labels is not None:
        return np.asarray(labels, np.int64)
    batches = [
        dataset.batch(numbers, range(len(numbers)), 0).y.numpy()
        for numbers in np.array_split(np.arange(len(dataset)), -(-len(dataset) // BATCH))
    ]
    return np.concatenate(batches)


def _reader(dataset: TrainingSet) -> Callable[[np.ndarray], np.ndarray]:
    return lambda numbers: images.to_uint8(dataset.batch(numbers, range(len(numbers)), 0).x0)


def readable(name: str, dataset: TrainingSet, class_names: Sequence[str] = ()) -> Readable:
    """The images of a set, with the numbers of its classes in `class_names`, by default its own."""
    labels = _renumbered(_labels(dataset), dataset.class_names, class_names or dataset.class_names, name)
    return Readable(name, labels, _reader(dataset))


def _decoded(latents: Latents, decoder: Decoder) -> Callable[[np.ndarray], np.ndarray]:
    """Decodes the means of the posteriors."""

    def read(numbers: np.ndarray) -> np.ndarray:
        mean, _ = split(latents.moments(numbers, [False] * len(numbers)))
        return images.to_uint8(decoder(latents.index.autoencoder.scale * mean))

    return read


def _beside_latents(latents: Latents, class_names: Sequence[str]) -> tuple[Readable, int]:
    """The held-out images in a folder of latents, and how many there were to choose from."""
    folder = latents.folder
    found = stored_images(folder)
    if found is None:
        raise UsageError(
            f"{folder} has no held-out images, because it was encoded without --holdout: encode the images "
            f"again into another folder with --holdout 0.1, {FIX}"
        )
    record, pixels, labels = found
    if record.image_size != latents.index.image_size:
        sizes = ["x".join(map(str, size[::-1])) for size in (record.image_size, latents.index.image_size)]
        raise RunError(f"{folder}: the held-out images have {sizes[0]} pixels, the encoded ones {sizes[1]}")
    labels = _renumbered(labels, record.class_names, class_names, str(folder))
    return Readable(f"{folder}, held out", labels, lambda numbers: pixels[numbers]), record.held_out


class Stored(NamedTuple):
    """Held-out images in a folder: images (N, H, W, 3) uint8, labels (N,) int64 into record.class_names."""

    record: HeldOut
    images: np.ndarray
    labels: np.ndarray


def stored_images(folder: Path) -> Stored | None:
    """What `scaledit encode --holdout` stored in a folder; None if it stored nothing. Raises RunError or
    UsageError if a file is corrupt or the files do not agree."""
    record = HeldOut.read(folder)
    if record is None:
        return None
    path = folder / stored.ARRAYS
    batches = list(npz_samples(path).batches()) if record.images else []
    empty = np.empty((0, *record.image_size, 3), np.uint8)
    pixels = np.concatenate([empty, *(batch.images for batch in batches)])
    labels = np.concatenate(
        [np.empty(0, np.int64), *(batch.labels for batch in batches if batch.labels is not None)]
    )
    counts = tuple(int((labels == label).sum()) for label in range(len(record.class_names)))
    if len(pixels) != record.images or counts != record.counts or pixels.shape[1:3] != record.image_size:
        raise RunError(f"{path} has other images than {stored.RECORD} lists; {stored.AGAIN}")
    return Stored(record, pixels, labels)


def _renumbered(
    labels: np.ndarray, names: Sequence[str], class_names: Sequence[str], where: str
) -> np.ndarray:
    """Labels into `names` as labels into `class_names`. Raises UsageError for a class that is missing there;
    a single class is named after its folder, which may have been moved."""
    if list(names) == list(class_names) or len(names) == len(class_names) == 1:
        return labels
    number = {name: i for i, name in enumerate(class_names)}
    if missing := [name for name in names if name not in number]:
        raise UsageError(
            f"{where} has the class {missing[0]!r}, which this model does not have: its classes are "
            f"{listed(list(class_names)[:6], 'and')}{', ...' if len(class_names) > 6 else ''}"
        )
    return np.array([number[name] for name in names], np.int64)[labels]


def check_own_reference(config: RunConfig, data_set: DataSet, class_names: Sequence[str]) -> None:
    """Raises UsageError if a run on images of the user's is to be compared with a built-in set, `data_set`,
    of other classes."""
    if config.data.name not in ("images", "latents"):
        return
    others = data_set.classes_of()
    if set(others) == set(class_names):
        return
    fix = f"evaluate.reference={HELD_OUT}"
    if config.data.name == "images" and not config.data.holdout:  # the share is one to begin with
        fix += " data.holdout=0.1"
    if config.data.name == "latents" and not (Path(config.data.path) / stored.RECORD).is_file():
        fix += " (encode the images again with --holdout 0.1)"
    raise _other_classes(config.evaluate.reference, others, class_names, fix)


def check_built_in_reference(config: RunConfig, data_set: DataSet, class_names: Sequence[str]) -> None:
    """Raises UsageError if a run on a built-in set is to be compared with another one, `data_set`, of other
    classes: an extractor that resizes images would accept them."""
    name, reference = config.data.name, config.evaluate.reference
    if ":" in name + reference or name in ("images", "latents", reference):
        return
    others = data_set.classes_of()
    if set(others) != set(class_names):
        raise _other_classes(reference, others, class_names, f"evaluate.reference={name}")


def _other_classes(reference: str, others: Sequence[str], class_names: Sequence[str], fix: str) -> UsageError:
    return UsageError(
        f"evaluate.reference={reference} is another set, whose classes "
        f"({listed(list(others)[:3], 'and')}{', ...' if len(others) > 3 else ''}) are not those of your data "
        f"({listed(list(class_names)[:3], 'and')}{', ...' if len(class_names) > 3 else ''}), so the metrics "
        f"would mean nothing; set {fix}, {FIX}"
    )
