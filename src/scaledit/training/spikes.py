"""Detects losses that are far above the losses before them.

    flagged:  loss_i > median + factor * 1.4826 MAD   of the WINDOW losses before it

MAD is the median absolute deviation. Times 1.4826 it estimates the standard deviation of a Gaussian, and a
single outlier does not change it.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

WINDOW = 200
FEWEST = 50
"""The losses needed before the first one is judged."""


class SpikeDetector:
    """Sees the loss of every step. factor: 0 turns it off. losses: the last WINDOW, oldest first, for
    checkpoints."""

    def __init__(self, factor: float):
        self.factor = factor
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def threshold(self) -> float:
        """The highest loss that is not flagged; infinite before FEWEST losses, and for factor 0."""
        if self.factor == 0 or len(self.losses) < FEWEST:
            return math.inf
        center = median(self.losses)
        return center + self.factor * 1.4826 * median(abs(loss - center) for loss in self.losses)

    def see(self, loss: float) -> float | None:
        """Adds a loss; returns the threshold that it exceeds, or None."""
        threshold = self.threshold()
        self.losses.append(loss)
        return threshold if loss > threshold else None
