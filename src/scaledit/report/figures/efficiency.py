"""The paper's figure 9: distance over training compute, one line per model, and the frontier of all.

training compute = 3 macs * images        frontier: the least distance at that compute or less
"""

from __future__ import annotations

from collections.abc import Sequence

from scaledit.report.figures import axes, labels, style, words
from scaledit.report.figures.curves import Curve, at_ends, over_training
from scaledit.scaling.comparable import points
from scaledit.scaling.frontier import staircase
from scaledit.scaling.table import Table

HEIGHT = 3.8


def efficiency(table: Table) -> style.Plot | None:
    """From curves over training, or else from training runs of different lengths."""
    curves = over_training(table)
    if sum(len(curve.rows) > 1 for curve in curves) < 2:
        curves = at_ends(table)
    if len(curves) < 2 or not any(len(curve.rows) > 1 for curve in curves):
        return None
    look = style.Look.of(table)
    rows = [row for curve in curves for row in curve.rows]
    unit = axes.unit([row.train_macs for row in rows], "flops")
    figure = style.figure(style.TWO_COLUMNS, HEIGHT)
    plot = figure.subplots()
    frontier = staircase(points(rows))
    [line] = plot.plot(
        [point.compute / unit.divisor for point in frontier],
        [point.distance for point in frontier],
        color=style.FAINT,
        linewidth=5,
        solid_capstyle="round",
        zorder=0,
        label="frontier",
    )
    for curve in curves:
        x = [row.train_macs / unit.divisor for row in curve.rows]
        axes.line(plot, x, curve.rows, curve.runs, **look.line(curve.first))
    axes.mark_real(plot, table.about.floor)
    axes.set_labels(
        plot, f"training compute ({unit.name}: 3 × forward pass × images)", words.distance(table, rows)
    )
    plot.set_xscale("log")
    plot.set_yscale("log")
    plot.margins(x=0.08, y=0.06)
    axes.logarithmic(plot, "x", style.TWO_COLUMNS - 1.6)
    axes.logarithmic(plot, "y", HEIGHT - 0.6)
    axes.legend(plot, [*look.handles(rows), line])
    ends = [curve.rows[-1] for curve in curves]
    notes = [labels.Label(r.train_macs / unit.divisor, r.distance, r.model, end=True) for r in ends]
    labels.place(plot, notes)
    return style.finish("09-efficiency", "Distance over training compute", _caption(table, curves), figure)


def _caption(table: Table, curves: Sequence[Curve]) -> str:
    rows = [row for curve in curves for row in curve.rows]
    several = sum(len(curve.rows) > 1 for curve in curves)
    coverage = (
        f"{len(curves)} models during training. {words.averaged([curve.runs for curve in curves])}"
        if several > 1
        else f"{len(curves)} models at the end of training; lines join runs of different lengths."
    )
    return (
        f"{coverage} The gray line is the frontier: the lowest distance at that training compute or less."
        f"{words.floor(table)} {words.FLOPS} {words.protocol(table, rows)}"
    )
