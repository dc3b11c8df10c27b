"""From images to features: what an extractor's network is, and running several over one pass of a sample set.

    SampleSet --batches of uint8--> FeatureNetwork --> {"pool": (N, D), "logits", "spatial", "nearest"}

`spatial` is streamed into its statistics; the others are kept, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scaledit.callbacks import Progress
from scaledit.errors import UsageError
from scaledit.evaluation.samples import SampleSet
from scaledit.evaluation.statistics import Accumulator, Statistics, check_features

"""Called with (done, total): images."""


class FeatureNetwork(Protocol):
    """images (N, 3, H, W) uint8 -> named float32 tensors (N, ...) on the CPU. sha256: of its weights. resize:
    what it does with images of another size."""

    name: str
    sha256: str
    resize: str

    def __call__(self, images: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Features:
    """Of n images (height x width). pool (n, D) float32; the others where the extractor gives them: logits
    (n, K), nearest (n,), spatial as statistics; more: by name, (n, ...) each. labels (n,): the classes asked
    for, if known."""

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
    if samples.n < 2:
        raise UsageError(f"{samples.name} holds {samples.n} image; figures need at least two")
    kept: list[dict[str, list[np.ndarray]]] = [{} for _ in extractors]
    spatial = [Accumulator() for _ in extractors]
    labels: list[np.ndarray | None] = []
    done, brightest, size = 0, 0, (0, 0)
    for batch in samples.batches():
        images = torch.from_numpy(batch.images.transpose(0, 3, 1, 2).copy())
        size = (images.shape[2], images.shape[3])
        brightest = max(brightest, int(images.max()))
        for i, extractor in enumerate(extractors):
            for output, value in extractor(images).items():
                if output == "spatial":
                    spatial[i].add(value.numpy())
                else:
                    kept[i].setdefault(output, []).append(value.numpy())
        labels.append(batch.labels)
        done += len(images)
        if progress is not None:
            progress(done, samples.n)
    if brightest <= 1:
        raise UsageError(f"{samples.name} holds only the values 0 and 1; images are uint8 from 0 to 255")
    known = [part for part in labels if part is not None]
    joined = np.concatenate(known) if len(known) == len(labels) else None
    return [
        _features(done, size, outputs, accumulator, joined)
        for outputs, accumulator in zip(kept, spatial, strict=True)
    ]


def _features(
    n: int,
    size: tuple[int, int],
    outputs: dict[str, list[np.ndarray]],
    spatial: Accumulator,
    labels: np.ndarray | None,
) -> Features:
    arrays = {name: np.concatenate(parts) for name, parts in outputs.items()}
    check_features(arrays["pool"])
    return Features(
        n=n,
        size=size,
        pool=arrays.pop("pool"),
        logits=arrays.pop("logits", None),
        nearest=arrays.pop("nearest", None),
        spatial=spatial.result() if spatial.n or spatial.waiting else None,
        labels=labels,
        more=arrays,
    )
