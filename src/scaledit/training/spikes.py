"""Losses out of line with those before.

    flagged:  loss_i > median + factor * 1.4826 MAD   of the WINDOW losses before it

MAD is the median absolute deviation; times 1.4826 it is the standard deviation of a Gaussian, and one outlier
does not move it.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

WINDOW = 200
FEWEST = 50
"""Losses that must have been seen before one is judged."""


class SpikeDetector:
    """Sees the loss of every step. losses: the last ones, oldest first; what a checkpoint must hold."""

    def __init__(self, factor: float):
        self.factor = factor
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def threshold(self) -> float:
        """Infinite until enough has been seen, and for factor 0."""
        if self.factor == 0 or len(self.losses) < FEWEST:
            return math.inf
        middle = median(self.losses)
        return middle + self.factor * 1.4826 * median(abs(loss - middle) for loss in self.losses)

    def see(self, loss: float) -> float | None:
        """The threshold that `loss` exceeds, or None."""
        threshold = self.threshold()
        self.losses.append(loss)
        return threshold if loss > threshold else None
