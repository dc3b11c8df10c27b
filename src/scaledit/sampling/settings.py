"""A grid over settings: the same images, from the same noise, with every value of one or two settings.

    --cfg-scale 1,1.5,4                columns: guidance scales    rows: classes
    --steps 4,12 --cfg-scale 1,1.5,4   columns: guidance scales    rows: steps       one block per class

A cell holds the images of one class with one combination of values: those that a call with these values alone
makes, because the noise of image i depends on the seed and i only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from scaledit import captions
from scaledit.captions import Block, Sheet, class_labels
from scaledit.errors import UsageError, counted
from scaledit.sampling.request import Samples

MOST_CELLS = 64
"""Combinations of values that a grid shows at most."""
MOST_PER_CLASS = 4
"""Images of each class in a cell by default."""


class Axis(NamedTuple):
    """An option (sampler, steps or cfg_scale) and its values in the order of the grid."""

    option: str
    values: tuple[Any, ...]

    @property
    def flag(self) -> str:
        return f"--{self.option.replace('_', '-')}"

    def labels(self) -> list[str]:
        """'guidance 1.5', '20 steps', 'ddim'."""
        match self.option:
            case "cfg_scale":
                return [f"guidance {value:.10g}" for value in self.values]
            case "steps":
                return [counted(value, "step") for value in self.values]
            case _:
                return [captions.drawable(value, f"sampler {i}") for i, value in enumerate(self.values, 1)]


def check(axes: Sequence[Axis]) -> None:
    """Raises UsageError if there are too many lists or values, or one value twice."""
    if len(axes) > 2:
        raise UsageError(
            f"{', '.join(axis.flag for axis in axes)} are lists, but a grid has two axes; give one of them a "
            "single value"
        )
    for axis in axes:
        twice = [value for i, value in enumerate(axis.values) if value in axis.values[:i]]
        if twice:
            raise UsageError(f"{axis.flag} has {twice[0]} twice")
    cells = len(combinations(axes))
    if cells > MOST_CELLS:
        raise UsageError(f"the lists make {cells} combinations; a grid shows at most {MOST_CELLS}")


def combinations(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """The values of each column of each row, row after row."""
    names = [axis.option for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(a.values for a in axes))]


class Grid(NamedTuple):
    """The drawn grid, and how to reproduce it. origin: that of the images, with the list `settings` (one
    entry per combination) in place of a sampler and guidance, and the list `cells` (class, number of its
    settings, box)."""

    sheet: Sheet
    origin: dict[str, Any]


def grid(axes: Sequence[Axis], made: Sequence[Samples], names: Sequence[str], num_classes: int) -> Grid:
    """made: the same request with each of `combinations(axes)`, its rows being classes. names: of all
    classes."""
    classes = made[0].labels[:: made[0].columns].tolist()
    labels = class_labels(classes, names, num_classes)
    # (settings, classes, images of a cell, H, W, 3)
    cells = np.stack([s.images.reshape(len(classes), s.columns, *s.images.shape[1:]) for s in made])
    if len(axes) == 1:
        blocks = [Block(cells.swapaxes(0, 1), labels if any(labels) else (), axes[0].labels())]
    else:
        rows, columns = (axis.labels() for axis in axes)
        shape = (len(rows), len(columns), *cells.shape[2:])
        blocks = [Block(cells[:, i].reshape(shape), rows, columns, name) for i, name in enumerate(labels)]
    order = [(c, k) for c in range(len(classes)) for k in range(len(made))]  # that of the cells in both cases
    drawn = captions.sheet(blocks)
    every = {key: value for key, value in made[0].origin.items() if key not in ("sampler", "guidance")}
    settings = [
        {**values, "sampler": samples.origin["sampler"], "guidance": samples.origin["guidance"]}
        for values, samples in zip(combinations(axes), made, strict=True)
    ]
    boxes = [
        {"class": classes[c], "settings": k, "box": box}
        for (c, k), box in zip(order, drawn.cells, strict=True)
    ]
    return Grid(drawn, {**every, "per_class": made[0].columns, "settings": settings, "cells": boxes})
