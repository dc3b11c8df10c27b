"""The order of training: one endless stream of positions, independent of batch size and number of ranks.

    sample at position p  =  permutation(seed, p // size)[p % size]

Step i of batch size B reads the positions i B .. (i + 1) B - 1. No sample is dropped at the end of an epoch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from scaledit.diffusion.noise import permutation

_cached_permutation = lru_cache(maxsize=16)(permutation)


def samples_at(positions: range, size: int, seed: int, stream: int = 0) -> np.ndarray:
    """Indices into a set of `size` samples, (len(positions),) int64. stream: another number has another
    order."""
    return np.array([_cached_permutation(seed, p // size, size, stream)[p % size] for p in positions])


def paired(positions: range) -> range:
    """The positions together with their partners: position p and p XOR 1 are a pair, whatever the batch."""
    return range(positions.start - positions.start % 2, positions.stop + positions.stop % 2)
