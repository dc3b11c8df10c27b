"""Images encoded while training reads them: nothing to prepare, and everything to pay at every step.

x_0 = scale (mean + exp(logvar / 2) eps),   (mean, logvar) = encode(flip(image))

The same draws as from a cache of the same images (`scaledit encode`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from scaledit.autoencoders import Autoencoder
from scaledit.data.posterior import sample
from scaledit.data.sets import Batch, TrainingSet
from scaledit.diffusion.noise import Stream, normal


@dataclass(frozen=True)
class EncodedImages:
    """A training set of latents. images: (3, H, W) in [-1, 1], with its own flips."""

    images: TrainingSet
    autoencoder: Autoencoder

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        _, h, w = self.images.shape
        f = self.autoencoder.downsampling
        return self.autoencoder.channels, h // f, w // f

    @property
    def remarks(self) -> tuple[str, ...]:
        return getattr(self.images, "remarks", ())

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        images, y = self.images.batch(indices, positions, seed)
        return Batch(self.encoded(images, positions, seed), y)

    def encoded(self, images: Tensor, positions: range, seed: int) -> Tensor:
        """The latents of the images at these positions, (N, C, h, w)."""
        eps = normal(seed, positions, self.shape, Stream.TRAIN_LATENT)
        return sample(self.autoencoder.encode(images), eps, self.autoencoder.scale)
