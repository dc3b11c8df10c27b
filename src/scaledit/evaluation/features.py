"""From images to features, with several extractors over one pass of a sample set.

    SampleSet --batches of uint8--> FeatureNetwork --> {"pool": (N, D), "logits", "spatial", "nearest"}

Only the statistics of `spatial` are kept; the other features are kept in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from scaledit.callbacks import Progress
from scaledit.errors import UsageError
from scaledit.evaluation.samples import Batch, SampleSet, check_count
from scaledit.evaluation.statistics import Accumulator, Statistics, check_features


class FeatureNetwork(Protocol):
    """images (N, 3, H, W) uint8 -> named float32 tensors (N, ...) on the CPU. sha256: of its weights. resize:
    how it resizes images."""

    name: str
    sha256: str
    resize: str

    def __call__(self, images: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Features:
    """The features of n images of `size` (height, width), by one extractor. pool (n, D) float32; if the
    extractor gives them: logits (n, K), nearest (n,), the statistics of spatial, and `more` by name, (n, ...)
    each. labels (n,): the requested classes, if known."""

    n: int
    size: tuple[int, int]
    pool: np.ndarray
    logits: np.ndarray | None = None
    nearest: np.ndarray | None = None
    spatial: Statistics | None = None
    labels: np.ndarray | None = None
    more: Mapping[str, np.ndarray] = field(default_factory=dict)


class Computed(NamedTuple):
    """What extractors return for some images. size: (height, width). brightest: the largest value in them.
    outputs: of each extractor, by name, (n, ...)."""

    size: tuple[int, int]
    brightest: int
    outputs: Sequence[Mapping[str, np.ndarray]]


class Extraction:
    """The features of a sample set, batch after batch. name: of the set, for messages."""

    def __init__(self, name: str, extractors: Sequence[FeatureNetwork]):
        self.name, self.extractors = name, extractors
        self.done, self.brightest, self.size = 0, 0, (0, 0)
        self._outputs: list[dict[str, list[np.ndarray]]] = [{} for _ in extractors]
        self._spatial = [Accumulator() for _ in extractors]
        self._labels: list[np.ndarray | None] = []

    def computed(self, images: np.ndarray) -> Computed:
        """What `add_computed` takes, of images (n, H, W, 3) uint8; several sets may share it."""
        tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        outputs = [
            {name: value.numpy() for name, value in extractor(tensor).items()}
            for extractor in self.extractors
        ]
        return Computed((images.shape[1], images.shape[2]), int(images.max()), outputs)

    def add(self, batch: Batch) -> None:
        self.add_computed(self.computed(batch.images), batch.labels)

    def add_computed(self, computed: Computed, labels: np.ndarray | None) -> None:
        self.size, n = computed.size, 0
        self.brightest = max(self.brightest, computed.brightest)
        for i, values in enumerate(computed.outputs):
            for name, value in values.items():
                n = len(value)
                if name == "spatial":
                    self._spatial[i].add(value)
                else:
                    self._outputs[i].setdefault(name, []).append(value)
        self._labels.append(labels)
        self.done += n

    def features(self) -> list[Features]:
        """Of every extractor. Raises UsageError for images that hold only 0 and 1, and for features that are
        not finite."""
        if self.brightest <= 1:
            raise UsageError(
                f"{self.name} contains only the values 0 and 1; images must be uint8 from 0 to 255"
            )
        parts = [part for part in self._labels if part is not None]
        all_labels = np.concatenate(parts) if len(parts) == len(self._labels) else None
        features = []
        for batches, accumulator in zip(self._outputs, self._spatial, strict=True):
            arrays = {name: np.concatenate(values) for name, values in batches.items()}
            check_features(arrays["pool"])
            named = ("pool", "logits", "nearest")
            known: dict[str, Any] = {name: arrays.pop(name) for name in named if name in arrays}
            if accumulator.n or accumulator.waiting:
                known["spatial"] = accumulator.result()
            features.append(Features(self.done, self.size, labels=all_labels, more=arrays, **known))
        return features


def extract(
    samples: SampleSet, extractors: Sequence[FeatureNetwork], progress: Progress | None = None
) -> list[Features]:
    """The features of every extractor, in one pass over the images.

    Raises UsageError for fewer than two images, images that hold only 0 and 1, or features that are not
    finite.
    """
    check_count(samples)
    extraction = Extraction(samples.name, extractors)
    for batch in samples.batches():
        extraction.add(batch)
        if progress is not None:
            progress(extraction.done, samples.n)
    return extraction.features()
