"""The share of each class that training does not see.

    of the n images of a class, those with the round(share n) lowest SHA-256(name) are held out

The choice depends on names only: the order of files, the machine and a moved folder change nothing, and an
image that is added leaves the others where they are unless the number to hold out grows.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np

from scaledit.data.names import encoded
from scaledit.data.sources import Source
from scaledit.diffusion.noise import Stream, generator
from scaledit.errors import UsageError


class Split(NamedTuple):
    training: Source
    held_out: Source


def split(source: Source, share: float) -> Split:
    """`source` without and with the held-out share of each class, both in the order of `source`.

    share: from 0 to less than 1; the number of images of a class is rounded half up, so that a class of fewer
    than 1 / (2 share) images is not held out. Raises UsageError if a class would have no training image.
    """
    hashes = [hashlib.sha256(encoded(name)).digest() for name in source.names]
    is_held_out = np.zeros(len(source), bool)
    for label, name in enumerate(source.class_names):
        members = np.flatnonzero(source.labels == label)
        count = math.floor(share * len(members) + 0.5)
        if count >= len(members) > 0:
            raise UsageError(
                f"data.holdout={share:g} would hold out all {len(members)} images of the class {name!r}; "
                "choose a smaller share"
            )
        is_held_out[sorted(members, key=lambda i: hashes[i])[:count]] = True
    return Split(source.subset(np.flatnonzero(~is_held_out)), source.subset(np.flatnonzero(is_held_out)))


ORDER_SEED = 2013
"""Of the order of `class_ranks`."""


def class_ranks(labels: np.ndarray) -> np.ndarray:
    """The place (N,) of each image in a random order of the images of its class, from 0. The order is always
    the same for as many images of a class, so that judges of the same data choose the same images."""
    ranks = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = generator(ORDER_SEED, int(label), Stream.DATA_ORDER).permutation(len(members))
        ranks[members] = order
    return ranks


def evenly(labels: np.ndarray, most: int) -> np.ndarray:
    """The indices, sorted, of at most `most` images, spread evenly over the classes."""
    return np.sort(np.lexsort((labels, class_ranks(labels)))[:most])
