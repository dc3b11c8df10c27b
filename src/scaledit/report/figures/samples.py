"""The paper's figure 7: the same noise and labels through every model.

Sizes from left to right, patches from above, large ones first: compute grows to the right and below.
"""

from __future__ import annotations

import io

import numpy as np

from scaledit.report.figures import axes, style, words
from scaledit.report.figures.curves import grid
from scaledit.scaling.table import FINAL, Row, Table

LEFT, TOP, GAP, BELOW = 0.5, 0.22, 0.1, 0.17
"""Inches for the names of rows and columns, between pictures, and for a model's Gflops."""
FINE = 600
"""Dots an inch to which whole pixels are enlarged, so that none is wider than another when it is printed."""


def samples(table: Table) -> style.Drawn | None:
    look = style.Look.of(table)
    shown: dict[tuple[str, int], Row] = {}
    for row in grid([*table.part(FINAL), *table.rows]):  # final ones know how long a run trained
        if row.name in table.pictures:
            shown.setdefault((row.size, row.patch_size), row)
    if len(shown) < 2:
        return None
    sizes = [size for size in look.sizes if any(size == one for one, _ in shown)]
    patches = sorted({patch for _, patch in shown}, reverse=True)
    pictures = {key: _read(table.pictures[row.name]) for key, row in shown.items()}
    height, width = next(iter(pictures.values())).shape[:2]
    wide = (style.TWO_COLUMNS - LEFT) / max(len(sizes), 2) - GAP
    tall = wide * height / width
    whole = TOP + len(patches) * (tall + BELOW + GAP / 2)
    figure = style.figure(style.TWO_COLUMNS, whole)
    figure.set_layout_engine("none")
    unit = axes.unit([row.macs for row in shown.values()], "flops")
    for (size, patch), row in shown.items():
        i, j = patches.index(patch), sizes.index(size)
        left, top = LEFT + j * (wide + GAP), TOP + i * (tall + BELOW + GAP / 2)
        plot = figure.add_axes(
            (left / style.TWO_COLUMNS, 1 - (top + tall) / whole, wide / style.TWO_COLUMNS, tall / whole)
        )
        zoom = max(1, round(wide * FINE / width))
        plot.imshow(
            pictures[size, patch].repeat(zoom, 0).repeat(zoom, 1), interpolation="antialiased", aspect="auto"
        )
        plot.set_axis_off()
        plot.text(
            0.5,
            -0.03,
            f"{row.model}: {axes.number(row.macs / unit.divisor)} {unit.name}",
            transform=plot.transAxes,
            ha="center",
            va="top",
            fontsize=style.SMALL,
            color=style.INK,
        )
    for j, size in enumerate(sizes):
        x = (LEFT + j * (wide + GAP) + wide / 2) / style.TWO_COLUMNS
        figure.text(x, 1 - 0.5 * TOP / whole, f"size {size}", ha="center", va="center", fontsize=style.TEXT)
    for i, patch in enumerate(patches):
        y = 1 - (TOP + i * (tall + BELOW + GAP / 2) + tall / 2) / whole
        x = 0.4 * LEFT / style.TWO_COLUMNS
        figure.text(x, y, f"patch {patch}", rotation=90, ha="center", va="center", fontsize=style.TEXT)
    rows = list(shown.values())
    caption = (
        f"Samples of {len(rows)} models from the same noise and labels after {words.trained(rows)}: "
        f"larger models to the right, more tokens below. {words.FLOPS}"
    )
    return style.finished("07-samples", "The same noise through every model", caption, figure)


def _read(png: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
