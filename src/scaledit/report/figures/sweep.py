"""Figures of a sweep: each metric against what was varied, a map of two keys, and the losses by value.

one key      mean over seeds with its deviation, and every seed as a dot; a logarithmic axis for decades
two keys     a map of the deciding metric, one cell per pair of values
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from scaledit.evaluation.metric import Column
from scaledit.report.figures import axes, style
from scaledit.report.figures.losses import WINDOW, smoothed
from scaledit.scaling.sweep import Point, Sweep, numbers, short, spans_decades, worded
from scaledit.scaling.table import Table, grouped

COLUMNS, PANEL = 3, (2.3, 1.9)
"""Panels beside each other, and the size of one in inches."""
LEGEND_ROWS = 16


def all_figures(table: Table, sweep: Sweep) -> dict[str, style.Plot]:
    """The figures that the sweep has enough results for, by file name."""
    plots = [by_value(sweep), by_pair(sweep), losses(table, sweep)]
    return {f"{plot.name}.png": plot for plot in plots if plot is not None}


def by_value(sweep: Sweep) -> style.Plot | None:
    """Every metric against the one key that was varied."""
    if len(sweep.keys) != 1:
        return None
    key = sweep.keys[0]
    columns = [c for c in sweep.columns if any(c.key in point.metrics for point in sweep.points)]
    if not columns:
        return None
    wide = min(COLUMNS, len(columns))
    high = -(-len(columns) // wide)
    figure = style.figure(wide * PANEL[0], high * PANEL[1])
    plots = np.atleast_1d(figure.subplots(high, wide)).ravel()
    for plot in plots[len(columns) :]:
        plot.set_axis_off()
    for plot, column in zip(plots, columns, strict=False):
        _panel(plot, [point for point in sweep.points if column.key in point.metrics], key, column)
        axes.set_labels(plot, short(key), column.title)
        _positions(plot, [point.values[key] for point in sweep.points])
    caption = (
        f"Each metric by {key}: the mean over training seeds, with one standard deviation where there are "
        "several, and every seed as a dot."
    )
    return style.finish("by-value", f"Results by {short(key)}", caption, figure)


def _panel(plot: Axes, points: Sequence[Point], key: str, column: Column) -> None:
    order = {json_key(point.values[key]): i for i, point in enumerate(points)}
    values = [point.values[key] for point in points]
    x = numbers(values) or [float(order[json_key(value)]) for value in values]
    spreads = [point.metrics[column.key] for point in points]
    for at, spread in zip(x, spreads, strict=True):
        plot.plot([at] * len(spread.values), spread.values, "o", color=style.QUIET, markersize=2.5, alpha=0.6)
    ordered = sorted(zip(x, spreads, strict=True), key=lambda pair: pair[0])
    line = "" if numbers(values) is None else "-"
    plot.errorbar(
        [at for at, _ in ordered],
        [spread.mean for _, spread in ordered],
        yerr=[spread.std or 0.0 for _, spread in ordered],
        color=style.OKABE_ITO[0],
        marker="s",
        markersize=4,
        linestyle=line,
        linewidth=1.2,
        capsize=2,
    )


def _positions(plot: Axes, values: Sequence[Any]) -> None:
    """The x axis of all values of the key: of numbers, with decades where they span some, or of names."""
    x = numbers(values)
    if x is None:
        names = [worded(value) for value in values]
        plot.set_xticks(range(len(names)), names, rotation=30 if max(map(len, names)) > 8 else 0)
        plot.set_xlim(-0.5, len(names) - 0.5)
        return
    if spans_decades(x):
        axes.logarithmic(plot, "x", PANEL[0] - 0.6)
    else:
        axes.linear(plot, "x", 5)
    axes.linear(plot, "y", 5)


def by_pair(sweep: Sweep) -> style.Plot | None:
    """The deciding metric of every pair of values of two keys."""
    if len(sweep.keys) != 2 or not sweep.ranked():
        return None
    down, across = sweep.keys
    rows, columns = (
        list(dict.fromkeys(json_key(point.values[key]) for point in sweep.points)) for key in sweep.keys
    )
    names = {json_key(value): worded(value) for point in sweep.points for value in point.values.values()}
    means = np.full((len(rows), len(columns)), np.nan)
    texts: dict[tuple[int, int], str] = {}
    for point in sweep.points:
        i, j = rows.index(json_key(point.values[down])), columns.index(json_key(point.values[across]))
        spread = point.metrics.get(sweep.main.key)
        texts[i, j] = (
            "failed"
            if spread is None
            else f"{spread.mean:.3g}" + (f"\n± {spread.std:.2g}" if spread.std else "")
        )
        means[i, j] = np.nan if spread is None else spread.mean
    figure = style.figure(max(2.6, 1.2 + 0.75 * len(columns)), max(1.6, 0.9 + 0.5 * len(rows)))
    plot = figure.subplots()
    better = "viridis" if sweep.main.better == "higher" else "viridis_r"
    image = plot.imshow(means, cmap=better, aspect="auto")
    low, high = np.nanmin(means), np.nanmax(means)
    for (i, j), text in texts.items():
        share = (means[i, j] - low) / (high - low) if high > low else 0.0
        is_light = share > 0.6 if sweep.main.better == "higher" else share < 0.4
        color = "black" if np.isnan(means[i, j]) or is_light else "white"
        plot.text(j, i, text, ha="center", va="center", fontsize=style.SMALL, color=color)
    axes.set_labels(plot, short(across), short(down))
    plot.set_xticks(range(len(columns)), [names[value] for value in columns])
    plot.set_yticks(range(len(rows)), [names[value] for value in rows])
    figure.colorbar(image, ax=plot).ax.tick_params(labelsize=style.SMALL)
    caption = (
        f"{sweep.main.title} by {down} and {across}: the mean over training seeds, with one standard "
        "deviation."
    )
    return style.finish(
        "by-pair", f"{sweep.main.title} by {short(down)} and {short(across)}", caption, figure
    )


def losses(table: Table, sweep: Sweep) -> style.Plot | None:
    """The training loss of the first seed of every value."""
    logged = grouped(table.losses, lambda loss: loss.name)
    shown = [
        (point, logged[point.runs[0]]) for point in sweep.points if len(logged.get(point.runs[0], [])) > 1
    ]
    if not shown:
        return None
    figure = style.figure(style.TWO_COLUMNS, 3.0)
    plot = figure.subplots()
    colors = style.palette(len(sweep.points))
    for point, loss in shown:
        steps, values = smoothed(loss)
        color = colors[sweep.points.index(point)]
        plot.plot(steps, values, color=color, linewidth=1.1, label=point.title)
    plot.set_yscale("log")
    axes.set_labels(plot, "training steps", "training loss")
    axes.logarithmic(plot, "y", 2.2)
    axes.linear(plot, "x", 6)
    columns = -(-len(shown) // LEGEND_ROWS)
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    plot.legend(frameon=False, fontsize=style.SMALL, ncols=columns, **place)
    caption = (
        f"Training loss of the first seed of each value. Each point is the mean over the last {WINDOW:.0%} "
        "of the steps up to it. Losses of different objectives or batches cannot be compared."
    )
    return style.finish("losses", "Training loss", caption, figure)


def json_key(value: Any) -> str:
    return f"{type(value).__name__} {worded(value)}"
