"""Images that are encoded at every training step, without a cache to prepare.

x_0 = scale (mean + exp(logvar / 2) eps),   (mean, logvar) = encode(flip(image))

The random numbers are those of a cache of the same images (`scaledit encode`).
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
    """A training set of latents. images: a set of (3, H, W) images in [-1, 1], which does the flips."""

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
        """(N, C, h, w) latents of the images, of any size, at these positions of the training stream."""
        f = self.autoencoder.downsampling
        shape = (self.autoencoder.channels, images.shape[2] // f, images.shape[3] // f)
        eps = normal(seed, positions, shape, Stream.TRAIN_LATENT)
        return sample(self.autoencoder.encode(images), eps, self.autoencoder.scale)
