"""The paper's figure 12: every metric over Gflops, dashed what real held-out images score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaledit.evaluation.result import TITLES
from scaledit.report.figures import axes, style, words
from scaledit.scaling.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, HEIGHT = 4, 1.6
FRACTIONS = ("class_accuracy", "precision", "recall", "coverage")
HIGHER = (*FRACTIONS, "density", "inception_score", "class_score")
"""Better when higher; `nearest` is best near 1; all others are distances."""
DECADE = 10.0
"""Ratio of largest to smallest from which on a distance has a logarithmic axis."""


def metrics(table: Table) -> style.Drawn | None:
    models = table.models()
    keys = [key for key in TITLES if not key.endswith("_spread")]
    keys = [key for key in keys if sum(row.metric(key) is not None for row in models) >= 2]
    if len(keys) < 2:
        return None
    look = style.Look.of(table)
    unit = axes.unit([row.macs for row in models], "flops")
    rows = -(-len(keys) // COLUMNS)
    figure = style.figure(style.TWO_COLUMNS, rows * HEIGHT + 0.3)
    plots = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).ravel()
    for i, (plot, key) in enumerate(zip(plots, keys, strict=False)):
        _panel(plot, look, unit, key, models)
        plot.tick_params(axis="x", labelbottom=i >= len(keys) - COLUMNS)  # the lowest of its column
    axes.logarithmic(plots[0], "x", 1.6)
    for plot in plots[len(keys) :]:
        plot.set_axis_off()
    figure.supxlabel(f"model compute ({unit.name} of a forward pass)", fontsize=style.TEXT, color=style.INK)
    keyed = look.keys(models, lines=False)
    figure.legend(handles=keyed, loc="outside upper center", ncols=9, frameon=False, fontsize=style.SMALL)
    caption = (
        f"Every metric of {len(models)} models after {words.trained(models)}; dashed: real held-out images. "
        f"{words.FLOPS} {words.protocol(table, models)}"
    )
    return style.finished("12-metrics", "Every metric", caption, figure)


def _panel(plot: Axes, look: style.Look, unit: axes.Unit, key: str, models: Sequence[Row]) -> None:
    shown = [(row, value) for row in models if (value := row.metric(key)) is not None]
    for row, value in shown:
        plot.plot([row.macs / unit.divisor], [value], **look.dots(row))
    real = [value for row, _ in shown if (value := row.metric(f"{key}_real")) is not None]
    axes.real(plot, real[0] if real else None, name="")
    axes.dress(plot, "", "")
    axes.heading(plot, f"{TITLES[key]}\n({sense(key)})")
    values = [value for _, value in shown]
    distance = key not in (*HIGHER, "nearest") and min(values + real) > 0  # an unbiased estimate can be below
    if key in FRACTIONS:
        plot.set_ylim(0, 1.03)
    if distance and max(values) / min(values) >= DECADE:
        axes.logarithmic(plot, "y", HEIGHT - 0.5)
    else:
        axes.linear(plot, "y", 4)


def sense(key: str) -> str:
    """Unit and direction of a metric."""
    if key in FRACTIONS:
        return "fraction, higher is better"
    if key == "nearest":
        return "ratio, 1 is best"
    return f"{'higher' if key in HIGHER else 'lower'} is better"
