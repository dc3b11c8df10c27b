"""The map of `scaledit sweep`: the deciding metric by the settings that a run was sampled with.

columns    the guidance scales, or else the last axis
panels     the steps, or else the first axis that is left
rows       all other axes together
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from scaledit.evaluation.metric import Column
from scaledit.report import page
from scaledit.scaling.sweep import badness
from scaledit.tuning.cells import NAMES
from scaledit.tuning.found import Finding

CELL, MARGIN = (0.62, 0.42), (1.3, 0.9)
"""Inches of a cell, and of what is around the cells of a panel."""
DARK_INK = "#102030"
"""Text on light cells, in both color schemes."""
MOST_CELLS = 400
"""Cells of a map that are drawn."""


class _Map(NamedTuple):
    """across, down, beside: the axes; beside is "" without panels. numbers: (panels, rows, columns), NaN
    where there is no result. best: the place of the best cell."""

    across: str
    down: list[str]
    beside: str
    panels: tuple[str, ...]
    rows: list[tuple[str, ...]]
    columns: tuple[str, ...]
    numbers: np.ndarray
    best: tuple[int, int, int] | None


def chart(found: Finding) -> page.Chart | None:
    """None without results, and for maps of too many cells to be read."""
    if not found.ranked() or len(found.cells) > MOST_CELLS:
        return None
    return _drawn(found, _map(found))


def _map(found: Finding) -> _Map:
    across = "scale" if "scale" in found.varied else found.varied[-1]
    others = [axis for axis in found.varied if axis != across]
    beside = "steps" if "steps" in others and len(others) > 1 else ""
    down = [axis for axis in others if axis != beside]
    columns, panels = found.axes[across], found.axes[beside] if beside else ("",)
    rows = list(itertools.product(*(found.axes[axis] for axis in down)))
    numbers = np.full((len(panels), len(rows), len(columns)), np.nan)
    best = None
    for number, cell in enumerate(found.cells):
        panel = panels.index(cell.values[beside]) if beside else 0
        row = rows.index(tuple(cell.values[axis] for axis in down))
        place = panel, row, columns.index(cell.values[across])
        if found.main.key in cell.metrics:
            numbers[place] = cell.metrics[found.main.key].mean
        best = place if number == found.best else best
    return _Map(across, down, beside, panels, rows, columns, numbers, best)


def _drawn(found: Finding, drawn: _Map) -> page.Chart:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shades = _shades(found.main, drawn.numbers)
    panels, height, width = shades.shape
    size = panels * (CELL[0] * width + 0.3) + MARGIN[0], CELL[1] * height + MARGIN[1]
    with rc_context({"font.size": page.CHART_FONT, "text.parse_math": False}):
        figure = Figure(figsize=(max(2.4, size[0]), size[1]), layout="constrained")
        plots = figure.subplots(1, panels, squeeze=False, sharey=True)[0]
        for p, plot in enumerate(plots):
            plot.pcolormesh(shades[p], cmap="Blues_r", vmin=-0.35, vmax=1.1, edgecolors="white", linewidth=1)
            for i, j in itertools.product(range(height), range(width)):
                value = drawn.numbers[p, i, j]
                plot.text(
                    j + 0.5,
                    i + 0.5,
                    "" if np.isnan(value) else f"{value:.3g}",
                    ha="center",
                    va="center",
                    color="white" if shades[p, i, j] < 0.45 else DARK_INK,
                    fontweight="bold" if (p, i, j) == drawn.best else "normal",
                )
            plot.set_xticks(np.arange(width) + 0.5, list(drawn.columns))
            plot.set_yticks(np.arange(height) + 0.5, [", ".join(row) for row in drawn.rows])
            plot.set_ylim(height, 0)
            plot.tick_params(length=0)
            plot.spines[:].set_visible(False)
            plot.set_xlabel(NAMES[drawn.across])
            if drawn.beside:
                plot.set_title(f"{drawn.panels[p]} {NAMES[drawn.beside]}", fontsize=page.CHART_FONT)
        plots[0].set_ylabel(", ".join(NAMES[axis] for axis in drawn.down))
    return page.chart(figure, f"{found.main.title} by {', '.join(NAMES[axis] for axis in found.varied)}")


def _shades(column: Column, numbers: np.ndarray) -> np.ndarray:
    """0 for the best cell and 1 for the worst, on a logarithmic scale where all values are positive."""
    bad = np.vectorize(lambda value: math.nan if math.isnan(value) else badness(column, value))(numbers)
    if np.nanmin(bad) > 0:
        bad = np.log(bad)
    low, high = np.nanmin(bad), np.nanmax(bad)
    return (bad - low) / (high - low) if high > low else np.where(np.isnan(bad), bad, 0.0)
