"""`scaledit sample`: which images to draw, and the files they go into.

image i of a request has the class classes[i] and the noise of (seed, start + i)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaledit import images
from scaledit.config import SampleConfig
from scaledit.errors import UsageError, did_you_mean
from scaledit.pipeline import PROGRESS, Pipeline


@dataclass(frozen=True)
class Request:
    """What to draw: `per_class` of each class, class after class, or `num` in all, the classes in turn;
    neither: the settings' per_class of each."""

    classes: tuple[int, ...]
    settings: SampleConfig
    start: int = 0
    per_class: int | None = None
    num: int | None = None

    @property
    def of_each(self) -> int:
        return self.per_class or self.settings.per_class

    def labels(self) -> list[int]:
        """The class of every image."""
        if self.num is not None:
            return [self.classes[i % len(self.classes)] for i in range(self.num)]
        return [c for c in self.classes for _ in range(self.of_each)]


class Samples(NamedTuple):
    """images (N, H, W, 3) uint8, labels (N,) int64, columns of their grid, and how they were made."""

    images: np.ndarray
    labels: np.ndarray
    columns: int
    origin: dict[str, Any]


def parse_classes(text: str | None, pipeline: Pipeline) -> tuple[int, ...]:
    """'0,2,cat' -> class numbers; None is every class. Raises UsageError for a class the model lacks."""
    if text is None:
        return tuple(range(pipeline.config.model.num_classes))
    names = pipeline.class_names
    chosen = []
    for word in (part.strip() for part in text.split(",")):
        if word in names:
            chosen.append(names.index(word))
        elif word.lstrip("-").isdigit():
            chosen.append(int(word))
        else:
            raise UsageError(f"unknown class {word!r}{did_you_mean(word, names)}")
    return tuple(pipeline.labels(chosen).tolist())


def run(
    pipeline: Pipeline, request: Request, batch_size: int = 64, progress: PROGRESS | None = None
) -> Samples:
    """Draws the request."""
    labels, settings = request.labels(), request.settings
    made = pipeline.draw(labels, settings, request.start, batch_size, progress)
    origin = {
        **pipeline.origin,
        "n": len(labels),
        "classes": list(request.classes),
        "labels": "in turn" if request.num is not None else "equal per class",
        "start": request.start,
        "seed": settings.seed,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg_scale": settings.cfg_scale,
        "cfg_channels": settings.cfg_channels,
    }
    columns = request.of_each if request.num is None else max(1, round(len(labels) ** 0.5))
    return Samples(made, np.array(labels), columns, origin)


def write(samples: Samples, out: Path) -> None:
    """A grid (.png), ADM's batch (.npz: arr_0 images, arr_1 labels) or a folder with a PNG an image."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        images.save_png(out, images.grid(samples.images, samples.columns), samples.origin)
    elif out.suffix == ".npz":
        partial = out.with_name(f".{out.name}.partial")
        with partial.open("wb") as file:
            np.savez(file, arr_0=samples.images, arr_1=samples.labels)
        os.replace(partial, out)
    else:
        for i, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
            index = samples.origin["start"] + i
            origin = {**samples.origin, "index": index, "class": int(label)}
            images.save_png(out / f"{index:06d}-{label}.png", image, origin)
