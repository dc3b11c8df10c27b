"""The least-squares search for a power law with a floor.

    ln f(x) = ln(c + a x^-b) = level + g(t),      t = (ln x - ln x_1) / (ln x_n - ln x_1) in [0, 1]
    g(t)    = ln(share + (1 - share) exp(-steepness t)),      share = q exp(-drop),      g(1) = -drop

The level is a mean. Two parameters are left: drop, which the points determine well, and q, the share of the
law's last value that is floor, which they determine badly. A full grid is evaluated, then ever finer grids
around the best cell: unlike a descent, this cannot end far off where the floor is hardly determined.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Coordinates of the search: z = -ln(1 - q) and ln(drop).
DEPTHS, DROPS = np.linspace(0, 20, 51), np.linspace(math.log(0.01), math.log(16), 60)
AROUND, SHRINK, ROUNDS = np.linspace(-1, 1, 7), 0.6, 26  # a 7 x 7 grid around the best, to 1e-6 of a cell


def fit_floor(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """(ln a, b, c), (...) each, of the laws closest to v = ln y, (..., n), over rising u = ln x, (n,). All
    rows are searched at once."""
    t = (u - u[0]) / (u[-1] - u[0])
    rows = v.reshape(-1, len(u))
    centered = rows - rows.mean(1, keepdims=True)
    z, drop = (grid.ravel() for grid in np.meshgrid(DEPTHS, DROPS))
    shapes = _centered(_shape(t, z, drop))
    best = ((shapes**2).sum(-1) - 2 * centered @ shapes.T).argmin(1)
    z, drop = z[best], drop[best]
    cells = DEPTHS[1] - DEPTHS[0], DROPS[1] - DROPS[0]
    around = [grid.ravel() * cell for grid, cell in zip(np.meshgrid(AROUND, AROUND), cells, strict=True)]
    for shrunk in SHRINK ** np.arange(ROUNDS):
        near_z = np.clip(z[:, None] + shrunk * around[0], 0, DEPTHS[-1])
        near_drop = np.clip(drop[:, None] + shrunk * around[1], DROPS[0], DROPS[-1])
        distance = _centered(_shape(t, near_z, near_drop)) - centered[:, None]
        best = (distance**2).sum(-1).argmin(1)[:, None]
        z, drop = (np.take_along_axis(near, best, 1)[:, 0] for near in (near_z, near_drop))
    share, steepness = _share(z, drop)
    first = rows.mean(1) - _shape(t, z, drop).mean(1)  # ln f at the smallest x
    exponent = steepness / (u[-1] - u[0])
    level = first + np.log1p(-share) + exponent * u[0]
    floor, shape = share * np.exp(first), v.shape[:-1]
    return level.reshape(shape), exponent.reshape(shape), floor.reshape(shape)


def _share(z: Array, drop: Array) -> tuple[Array, Array]:
    """(share, steepness) at z and ln(drop)."""
    last, rest = np.exp(-np.exp(drop)), np.exp(-z)
    return (1 - rest) * last, z + np.exp(drop) + np.log1p(-(1 - rest) * last)


def _shape(t: Array, z: Array, drop: Array) -> Array:
    """g(t), (..., n), at z and ln(drop), (...)."""
    share, steepness = (part[..., None] for part in _share(z, drop))
    return np.log(share + (1 - share) * np.exp(-steepness * t))


def _centered(shape: Array) -> Array:
    return shape - shape.mean(-1, keepdims=True)
