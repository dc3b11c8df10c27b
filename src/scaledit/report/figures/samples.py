"""The paper's figure 7: samples of every model from the same noise and labels.

Sizes rise from left to right, patch sizes fall from top to bottom: compute grows to the right and down.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scaledit.captions import images_in
from scaledit.report.figures import axes, style, words
from scaledit.report.figures.curves import grid
from scaledit.scaling.table import Row, Table

LEFT, TOP, GAP, BELOW = 0.45, 0.25, 0.12, 0.18
"""Inches left and above for the names of rows and columns, between columns, and below an image for its
name."""
TALLEST, NARROWEST = 8.5, 1.05
"""Inches: height of the figure, so that it fits a page; width of an image, so that its name fits below."""
FINE = 600
"""Dots per inch to which pixels are enlarged by a whole factor, so that all print equally wide."""


def samples(table: Table) -> style.Plot | None:
    look = style.Look.of(table)
    models: dict[tuple[str, int], Row] = {}
    for row in grid(sorted(table.rows, key=lambda row: -row.steps)):  # the end of training first
        if row.name in table.pictures:
            models.setdefault((row.size, row.patch_size), row)
    if len(models) < 2:
        return None
    sizes = [size for size in look.sizes if any(size == other for other, _ in models)]
    patches = sorted({patch for _, patch in models}, reverse=True)
    pictures = {key: _read(table.pictures[row.name]) for key, row in models.items()}
    shape = next(iter(pictures.values())).shape
    wide = (style.TWO_COLUMNS - LEFT) / max(len(sizes), 2) - GAP
    wide = min(wide, max(NARROWEST, ((TALLEST - TOP) / len(patches) - BELOW) * shape[1] / shape[0]))
    tall = wide * shape[0] / shape[1]
    width, height = LEFT + len(sizes) * (wide + GAP), TOP + len(patches) * (tall + BELOW)
    figure = style.figure(width, height)
    figure.set_layout_engine("none")

    def at(x: float, y: float) -> tuple[float, float]:
        """Inches from the left and the top as shares of the figure from the left and the bottom."""
        return x / width, 1 - y / height

    unit = axes.unit([row.macs for row in models.values()], "flops")
    for (size, patch), row in models.items():
        left, top = LEFT + sizes.index(size) * (wide + GAP), TOP + patches.index(patch) * (tall + BELOW)
        plot = figure.add_axes((*at(left, top + tall), wide / width, tall / height))
        zoom = max(1, round(wide * FINE / shape[1]))
        enlarged = pictures[size, patch].repeat(zoom, 0).repeat(zoom, 1)
        plot.imshow(enlarged, interpolation="antialiased", aspect="auto")
        plot.set_axis_off()
        name = f"{row.model}: {axes.number(row.macs / unit.divisor)} {unit.name}"
        plot.text(0.5, -0.03 / tall, name, transform=plot.transAxes, va="top", **_type(style.SMALL))
    for j, size in enumerate(sizes):
        figure.text(
            *at(LEFT + j * (wide + GAP) + wide / 2, TOP / 2), f"size {size}", va="center", **_type(style.TEXT)
        )
    for i, patch in enumerate(patches):
        place = at(0.4 * LEFT, TOP + i * (tall + BELOW) + tall / 2)
        figure.text(*place, f"patch {patch}", rotation=90, va="center", **_type(style.TEXT))
    trained = words.trained(list(models.values()))
    caption = (
        f"Images of {len(models)} models after {trained}, sampled from the same noise and class labels. "
        "Each row of a grid shows one class. Models grow to the right; the number of tokens grows downward. "
        f"{words.FLOPS}"
    )
    return style.finish("07-samples", "The same noise, sampled by every model", caption, figure)


def _type(size: float) -> dict[str, Any]:
    return {"ha": "center", "fontsize": size, "color": style.INK}


def _read(png: bytes) -> np.ndarray:
    """A grid without the names beside its rows, which would be too small to read here."""
    return images_in(png)
