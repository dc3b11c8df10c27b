"""Requests for images: how many, of which classes, with which settings.

Image i of a request has the index start + i, the noise of (seed, start + i), and a class by one of these
rules:

    equal     the classes in turn, by index uniform   at random, keyed by (seed, index), as in ADM and the
    paper real      the classes of the real images in turn, so that a distance does not measure a difference
    of classes
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from scaledit import assemble, checks, images, machine
from scaledit.callbacks import Progress
from scaledit.captions import class_labels
from scaledit.config import SampleConfig
from scaledit.data.datasets import attribution
from scaledit.diffusion.guidance import active
from scaledit.diffusion.noise import Stream, uniform
from scaledit.errors import UsageError, counted, printable
from scaledit.pipeline import MOST_IMAGES, Pipeline, near_classes

Rule = Literal["equal", "real", "uniform"]
BYTES_OF_A_LABEL = 8


def labels_at(rule: Rule, indices: Sequence[int], classes: Sequence[int], seed: int) -> np.ndarray:
    """(N,) int64: the class of each index."""
    if rule == "uniform":
        places = (uniform(seed, indices, Stream.SAMPLE_LABEL).numpy() * len(classes)).astype(np.int64)
    else:
        places = np.asarray(indices, dtype=np.int64) % len(classes)
    return np.asarray(classes, dtype=np.int64)[places]


@dataclass(frozen=True)
class Request:
    """`num` images with classes by `rule`; or, if num is None, `per_class` of each class, class after class.

    classes: the classes to choose from; for the rule "real", the class of each real image. Raises UsageError
    if start is not a whole number of at least 0, or a number of images is not one of at least 1.
    """

    classes: tuple[int, ...]
    settings: SampleConfig
    start: int = 0
    per_class: int | None = None
    num: int | None = None
    rule: Rule = "equal"

    def __post_init__(self) -> None:
        for name in ("per_class", "num"):
            if getattr(self, name) is not None:
                checks.integer(getattr(self, name), name, 1)
        checks.integer(self.start, "start", 0)
        checks.integer(self.start + self.n, "start and the number of images together", 0, MOST_IMAGES)

    @property
    def images_per_class(self) -> int:
        return self.per_class or self.settings.per_class

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.classes) * self.images_per_class if self.num is None else self.num

    def labels(self) -> list[int]:
        """The class of every image. Raises UsageError if the labels do not fit in memory."""
        machine.check_memory(
            BYTES_OF_A_LABEL * self.n, f"the labels of {counted(self.n, 'image')}", "ask for fewer"
        )
        if self.num is None:
            return [c for c in self.classes for _ in range(self.images_per_class)]
        indices = range(self.start, self.start + self.num)
        return labels_at(self.rule, indices, self.classes, self.settings.seed).tolist()

    def origin(self, pipeline: Pipeline) -> dict[str, Any]:
        """How to reproduce these images, for the files that hold them. size: [height, width] in pixels, only
        if the model was trained at another one."""
        settings = self.settings
        credit = attribution(pipeline.config.data.name, pipeline.class_names)
        return {
            **pipeline.origin,
            "n": self.n,
            "classes": sorted(set(self.classes)),
            "labels": "rows" if self.num is None else self.rule,
            "start": self.start,
            "seed": settings.seed,
            "sampler": assemble.sampler_json(
                settings.sampler, pipeline.config.diffusion.schedule, pipeline.model.shape
            ),
            "guidance": [part.to_json() for part in active(pipeline.opened(settings.guidance))],
            "precision": "fp32",
            "decoder": pipeline.decoder_name,
            "rounding": images.ROUNDING,
            **({} if pipeline.size is None else {"size": list(pipeline.size)}),
            **({"attribution": credit} if credit else {}),
        }


EVALUATIONS = "evaluations"
"""The key of an origin for the evaluations of the denoiser per image, where the sampler decides them."""


class Spent:
    """How often a sampler with error control evaluated the denoiser, for each image: n, sum, and bounds."""

    def __init__(self) -> None:
        self.n, self.sum, self.min, self.max = 0, 0, 0, 0

    def add(self, evaluations: Tensor) -> None:
        """evaluations: (N,) of further images."""
        low, high = int(evaluations.min()), int(evaluations.max())
        self.min, self.max = min(low, self.min) if self.n else low, max(high, self.max)
        self.n, self.sum = self.n + len(evaluations), self.sum + int(evaluations.sum())

    def stated(self, settings: SampleConfig) -> dict[str, Any]:
        """For the origin of samples: {"evaluations": {"mean", "min", "max"}} per image, or {} for a sampler
        whose steps say it already. Guidance may evaluate the network several times each time."""
        if not (settings.sampler.paced and self.n):
            return {}
        return {EVALUATIONS: {"mean": round(self.sum / self.n, 3), "min": self.min, "max": self.max}}


def is_stated(value: Any) -> bool:
    """Whether it is what `Spent.stated` has under its key; files from elsewhere may hold anything."""
    return (
        isinstance(value, Mapping)
        and value.keys() == {"mean", "min", "max"}
        and all(type(number) in (int, float) for number in value.values())
    )


def together(stated: Sequence[Any], sizes: Sequence[int]) -> dict[str, Any]:
    """What `Spent.stated` gives for sets of images together; {} unless each of them has it. stated: the
    evaluations of each set; sizes: their numbers of images."""
    if not stated or not all(map(is_stated, stated)):
        return {}
    total = sum(one["mean"] * n for one, n in zip(stated, sizes, strict=True))
    low, high = min(one["min"] for one in stated), max(one["max"] for one in stated)
    return {EVALUATIONS: {"mean": round(total / sum(sizes), 3), "min": low, "max": high}}


class Samples(NamedTuple):
    """images (N, H, W, 3) uint8, labels (N,) int64, columns of their grid, `Request.origin`, and the name of
    each label for people (`captions.class_labels`)."""

    images: np.ndarray
    labels: np.ndarray
    columns: int
    origin: dict[str, Any]
    names: Sequence[str]


def parse_classes(
    text: str | None, pipeline: Pipeline, warn: Callable[[str], None] = warnings.warn
) -> tuple[int, ...]:
    """'0,2,cat' -> class numbers; None is every class.

    A word is the name of a class or else its number; "name:2" and "number:2" are explicit. If a word is the
    name of one class and the number of another, it is read as the name, with a warning. A name with commas
    must be the whole text. Raises UsageError if the model has no such class.
    """
    if text is None:
        return tuple(range(pipeline.config.model.num_classes))
    words = [text] if text in pipeline.class_names else [part.strip() for part in text.split(",")]
    return tuple(_parse_class(word, pipeline, warn) for word in words)


def _parse_class(word: str, pipeline: Pipeline, warn: Callable[[str], None]) -> int:
    names, rest = pipeline.class_names, word.partition(":")[2]
    if word in names:
        label, number = pipeline.label(word), _number(word)
        if number is not None and 0 <= number < pipeline.config.model.num_classes and number != label:
            other = printable(repr(names[number])) if number < len(names) else "without a name"
            warn(
                f"class {word} is read as the name of class number {label}, while class number {number} is "
                f"{other}; write name:{word} or number:{word} to choose"
            )
        return label
    if word.startswith("name:"):
        return pipeline.label(rest)
    number = _number(rest if word.startswith("number:") else word)
    if number is not None:
        return pipeline.label(number)
    if word.startswith("number:"):
        raise UsageError(f"the number of a class must be a whole number, got {rest!r}")
    raise UsageError(f"unknown class {word!r}{near_classes(word, names)}")


def _number(word: str) -> int | None:
    return int(word) if word.removeprefix("-").isdecimal() and word.isascii() else None


def run(
    pipeline: Pipeline, request: Request, batch_size: int = 64, progress: Progress | None = None
) -> Samples:
    """Generates the images of the request."""
    labels = request.labels()
    spent = Spent()
    generated = pipeline.sample(labels, request.settings, request.start, batch_size, progress, spent.add)
    columns = request.images_per_class if request.num is None else max(1, round(len(labels) ** 0.5))
    names = class_labels(labels, pipeline.class_names, pipeline.config.model.num_classes)
    origin = {**request.origin(pipeline), **spent.stated(request.settings)}
    return Samples(generated, np.array(labels), columns, origin, names)
