"""Which images to draw: how many, of which classes, with which settings.

image i of a request has the index start + i, the noise of (seed, start + i), and a class by one of these:

    equal     the classes in turn, by the index: each as often as the others, if N is a multiple
    uniform   at random, keyed by (seed, index): ADM's and the paper's
    real      as the real images' in turn: so that a difference of classes is no part of a distance
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from scaledit import assemble, checks, images, machine
from scaledit.callbacks import Progress
from scaledit.config import SampleConfig
from scaledit.diffusion.noise import Stream, uniform
from scaledit.errors import UsageError, did_you_mean, printable
from scaledit.pipeline import MOST_IMAGES, Pipeline

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
    """What to draw: `num` images with classes by `rule`; or, where num is None, `per_class` of each class,
    class after class. classes: those of the model to choose from; for the rule "real", one for each real
    image. Raises UsageError for a start or number of images that is not whole, or negative."""

    classes: tuple[int, ...]
    settings: SampleConfig
    start: int = 0
    per_class: int | None = None
    num: int | None = None
    rule: Rule = "equal"

    def __post_init__(self) -> None:
        for name, lowest in (("per_class", 1), ("num", 1)):
            if getattr(self, name) is not None:
                checks.integer(getattr(self, name), name, lowest)
        checks.integer(self.start, "start", 0)
        checks.integer(self.start + self.n, "start and the number of images together", 0, MOST_IMAGES)

    @property
    def of_each(self) -> int:
        return self.per_class or self.settings.per_class

    @property
    def n(self) -> int:
        """Images in all, without making anything of that size."""
        return len(self.classes) * self.of_each if self.num is None else self.num

    def labels(self) -> list[int]:
        """The class of every image. Raises UsageError where so many numbers are more than there is memory."""
        machine.check_memory(BYTES_OF_A_LABEL * self.n, f"the labels of {self.n:,} images", "ask for fewer")
        if self.num is None:
            return [c for c in self.classes for _ in range(self.of_each)]
        indices = range(self.start, self.start + self.num)
        return labels_at(self.rule, indices, self.classes, self.settings.seed).tolist()

    def origin(self, pipeline: Pipeline) -> dict[str, Any]:
        """How to make these images again: written into every file that holds them."""
        settings = self.settings
        return {
            **pipeline.origin,
            "n": self.n,
            "classes": sorted(set(self.classes)),
            "labels": "rows" if self.num is None else self.rule,
            "start": self.start,
            "seed": settings.seed,
            "sampler": assemble.sampler_json(settings.sampler, pipeline.config.diffusion.schedule),
            "guidance": [part.to_json() for part in settings.guidance if not part.idle],
            "precision": "fp32",
            "decoder": pipeline.decoder_name,
            "rounding": images.ROUNDING,
        }


class Samples(NamedTuple):
    """images (N, H, W, 3) uint8, labels (N,) int64, columns of their grid, and how they were made."""

    images: np.ndarray
    labels: np.ndarray
    columns: int
    origin: dict[str, Any]


def parse_classes(
    text: str | None, pipeline: Pipeline, say: Callable[[str], None] = warnings.warn
) -> tuple[int, ...]:
    """'0,2,cat' -> class numbers; None is every class.

    A word is a class's name, or else its number. Where names are numbers a word can be both, of two classes:
    it is taken as the name, which is said, and "number:2" or "name:2" says which is meant. A name with commas
    is taken where it is all of the text.

    say: where that is told. Raises UsageError for a class the model lacks.
    """
    if text is None:
        return tuple(range(pipeline.config.model.num_classes))
    words = [text] if text in pipeline.class_names else [part.strip() for part in text.split(",")]
    return tuple(_class(word, pipeline, say) for word in words)


def _class(word: str, pipeline: Pipeline, say: Callable[[str], None]) -> int:
    names, (kind, colon, rest) = pipeline.class_names, word.partition(":")
    if word in names:
        number = pipeline.label(word)
        if _is_number(word) and 0 <= int(word) < pipeline.config.model.num_classes and int(word) != number:
            other = printable(repr(names[int(word)])) if int(word) < len(names) else "without a name"
            say(
                f"class {word} is taken as the name of class number {number}; class number {int(word)} is "
                f"{other}: write number:{word} for that one, name:{word} for this one"
            )
        return number
    if colon and kind == "name":
        return pipeline.label(rest)
    if colon and kind == "number":
        word = rest
    if _is_number(word):
        return pipeline.label(int(word))
    if colon and kind == "number":
        raise UsageError(f"a class's number is a whole number, got {word!r}")
    raise UsageError(f"unknown class {word!r}{did_you_mean(word, names)}")


def _is_number(word: str) -> bool:
    return word.removeprefix("-").isdecimal() and word.isascii()


def run(
    pipeline: Pipeline, request: Request, batch_size: int = 64, progress: Progress | None = None
) -> Samples:
    """Draws the request."""
    labels = request.labels()
    made = pipeline.sample(labels, request.settings, request.start, batch_size, progress)
    columns = request.of_each if request.num is None else max(1, round(len(labels) ** 0.5))
    return Samples(made, np.array(labels), columns, request.origin(pipeline))
