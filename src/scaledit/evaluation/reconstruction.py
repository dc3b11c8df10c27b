"""How close reconstructions are to their originals: pixel by pixel, and in the features of a trained network.

    PSNR, SSIM              of each pair, means                              (scaledit.evaluation.fidelity)
    perceptual distance     of the feature maps of each pair, mean           (scaledit.autoencoders.losses)
    Fréchet distance        between the pooled features of all originals and all reconstructions

The network is EfficientNet-Lite0 with its ImageNet weights where the extra "scaledit[features]" is installed,
and otherwise its twin with random weights, whose distances are labeled so and say little. Both distances are
comparable only with their own kind, and the Fréchet distance only at the same number of images: with fewer
images than features (1,280), the covariances are far from complete.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scaledit.autoencoders.losses import FeatureMaps, perceptual_distance
from scaledit.evaluation import efficientnet
from scaledit.evaluation.efficientnet import DEVIATION, MEAN, EfficientNetExtractor, EfficientNetLite0
from scaledit.evaluation.extractors.efficientnet import EfficientNetFeatures, EfficientNetTwin
from scaledit.evaluation.fidelity import psnr, ssim
from scaledit.evaluation.metrics.frechet import frechet_distance

MAPS = 5
"""Stages whose maps are compared: those of at least 1/16 of the side, so that a crop of 32 pixels has all."""
BATCH = 16
"""Images whose features are computed at once."""


class Quality(NamedTuple):
    """psnr: in dB. ssim. perceptual: from 0 (equal) to 4. fd: None for fewer than two images. extractor: the
    name of the network of the last two."""

    psnr: float
    ssim: float
    perceptual: float
    fd: float | None
    extractor: str


def judge(device: torch.device | str = "cpu") -> EfficientNetExtractor:
    """EfficientNet-Lite0 if its weights are installed, otherwise its random twin; the name says which."""
    part = EfficientNetTwin() if efficientnet.weights_file() is None else EfficientNetFeatures()
    network = part.load(device)
    assert isinstance(network, EfficientNetExtractor)
    return network


def quality(originals: np.ndarray, reconstructions: np.ndarray, network: EfficientNetExtractor) -> Quality:
    """The quality of reconstructions; both arrays are (N, H, W, 3) uint8. Raises UsageError if H or W is
    below 11, as SSIM does."""
    distances, pools = [], []
    maps = feature_maps(network.network)
    for first in range(0, len(originals), BATCH):
        pair = [_batch(images[first : first + BATCH]) for images in (originals, reconstructions)]
        pools.append([network(images)["pool"].numpy() for images in pair])
        with torch.no_grad():
            x, xhat = (images.to(network.device).float() / 127.5 - 1 for images in pair)
            distances.append(perceptual_distance(maps, x, xhat).double().cpu())
    of_originals, of_reconstructions = (np.concatenate(part) for part in zip(*pools, strict=True))
    return Quality(
        float(psnr(originals, reconstructions).mean()),
        float(ssim(originals, reconstructions).mean()),
        float(torch.cat(distances).mean()),
        frechet_distance(of_originals, of_reconstructions) if len(originals) > 1 else None,
        network.name,
    )


def feature_maps(network: EfficientNetLite0) -> FeatureMaps:
    """The maps of the first MAPS stages, for images (N, 3, H, W) in [-1, 1] of any side."""
    return partial(_maps, network)


def _maps(network: EfficientNetLite0, x: Tensor) -> list[Tensor]:
    return network.stages(((x + 1) * 127.5 - MEAN) / DEVIATION, MAPS)


def _batch(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
