"""From images to features, with several extractors over one pass of a sample set.

    SampleSet --batches of uint8--> FeatureNetwork --> {"pool": (N, D), "logits", "spatial", "nearest"}

Only the statistics of `spatial` are kept; the other features are kept in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scaledit.callbacks import Progress
from scaledit.errors import UsageError
from scaledit.evaluation.samples import SampleSet, check_count
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


def extract(
    samples: SampleSet, extractors: Sequence[FeatureNetwork], progress: Progress | None = None
) -> list[Features]:
    """The features of every extractor, in one pass over the images.

    Raises UsageError for fewer than two images, images that hold only 0 and 1, or features that are not
    finite.
    """
    check_count(samples)
    outputs: list[dict[str, list[np.ndarray]]] = [{} for _ in extractors]
    spatial = [Accumulator() for _ in extractors]
    labels: list[np.ndarray | None] = []
    done, brightest, size = 0, 0, (0, 0)
    for batch in samples.batches():
        images = torch.from_numpy(batch.images.transpose(0, 3, 1, 2).copy())
        size = (images.shape[2], images.shape[3])
        brightest = max(brightest, int(images.max()))
        for i, extractor in enumerate(extractors):
            for name, value in extractor(images).items():
                if name == "spatial":
                    spatial[i].add(value.numpy())
                else:
                    outputs[i].setdefault(name, []).append(value.numpy())
        labels.append(batch.labels)
        done += len(images)
        if progress is not None:
            progress(done, samples.n)
    if brightest <= 1:
        raise UsageError(
            f"{samples.name} contains only the values 0 and 1; images must be uint8 from 0 to 255"
        )
    parts = [part for part in labels if part is not None]
    all_labels = np.concatenate(parts) if len(parts) == len(labels) else None
    features = []
    for batches, accumulator in zip(outputs, spatial, strict=True):
        arrays = {name: np.concatenate(values) for name, values in batches.items()}
        check_features(arrays["pool"])
        named = ("pool", "logits", "nearest")
        known: dict[str, Any] = {name: arrays.pop(name) for name in named if name in arrays}
        if accumulator.n or accumulator.waiting:
            known["spatial"] = accumulator.result()
        features.append(Features(done, size, labels=all_labels, more=arrays, **known))
    return features
