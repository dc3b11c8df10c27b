"""The classes' numbers of a run that began when class folders were numbered by their text (1, 10, 2), not in
natural order (1, 2, 10): it goes on with the numbers that its checkpoints record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from scaledit import checkpoint
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.data.files import ImageFiles
from scaledit.data.latents import Latents
from scaledit.data.names import natural_key
from scaledit.data.sets import TrainingSet
from scaledit.errors import RunError, UsageError
from scaledit.training.events import Event, Remarked
from scaledit.training.folder import CHECKPOINTS
from scaledit.training.loop import RunContext


def as_recorded(dataset: TrainingSet, out: Path) -> TrainingSet:
    """`dataset` with its classes numbered as the newest checkpoint in the run folder `out` has them, where
    they are the same classes in the order of their text. Any other difference is left for the check of a
    run's data to name."""
    now = list(dataset.class_names)
    before = _recorded(out)
    if before is None or before == now or before != sorted(now) or now != sorted(now, key=natural_key):
        return dataset
    return renumbered(dataset, tuple(before))


def renumbered(dataset: TrainingSet, class_names: tuple[str, ...]) -> TrainingSet:
    """`dataset` with the same classes under other numbers. Sets that do not come from files stay."""
    if isinstance(dataset, EncodedImages):
        return replace(dataset, images=renumbered(dataset.images, class_names))
    if isinstance(dataset, ImageFiles):
        return replace(dataset, source=dataset.source.with_classes(class_names))
    if isinstance(dataset, Latents):
        old = {name: i for i, name in enumerate(dataset.class_names)}
        counts = tuple(dataset.index.counts[old[name]] for name in class_names)
        number = torch.tensor([class_names.index(name) for name in dataset.class_names])
        index = replace(dataset.index, class_names=class_names, counts=counts)
        return replace(dataset, index=index, labels=number[dataset.labels])
    return dataset


def _recorded(out: Path) -> list[str] | None:
    try:
        for folder in checkpoint.find(out / CHECKPOINTS)[-1:]:
            names = checkpoint.open_checkpoint(folder).manifest["state"].get("class_names")
            return names if isinstance(names, list) else None
    except (RunError, UsageError, OSError):
        pass  # what is wrong with it is said where the run is restored
    return None


def remarks(dataset: TrainingSet, context: RunContext) -> Iterator[Event]:
    """What is to be told of a set from files."""
    lines = getattr(dataset, "remarks", ())
    if lines and context.ranks.first:
        yield Remarked(lines)
