"""The paper's figure 12: every metric over Gflops; dashed: held-out real images."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from scaledit.evaluation.metric import Column, columns
from scaledit.report.figures import axes, style, words
from scaledit.scaling.table import Row, Table

COLUMNS, HEIGHT = (4, 3), 1.6
"""Choices of panels in a row, from which the one with the fewest empty places is taken; inches of a panel."""
DECADE = 10.0
"""A distance whose largest value is this many times the smallest has a logarithmic axis."""


def metrics(table: Table) -> style.Plot | None:
    models = table.models()
    plotted = [
        column
        for column in columns(*table.about.protocols.values()).values()
        if not column.aside and sum(row.metric(column.key) is not None for row in models) >= 2
    ]
    if len(plotted) < 2:
        return None
    look = style.Look.of(table)
    unit = axes.unit([row.macs for row in models], "flops")
    across = min(COLUMNS, key=lambda count: -len(plotted) % count)
    rows = -(-len(plotted) // across)
    figure = style.figure(style.TWO_COLUMNS, rows * HEIGHT + 0.3)
    plots = figure.subplots(rows, across, squeeze=False, sharex=True).ravel()
    for i, (plot, column) in enumerate(zip(plots, plotted, strict=False)):
        _panel(plot, look, unit, column, models)
        plot.tick_params(axis="x", labelbottom=i >= len(plotted) - across)  # the lowest of its column
    axes.logarithmic(plots[0], "x", 1.6)
    for plot in plots[len(plotted) :]:
        plot.set_axis_off()
    figure.supxlabel(f"model compute ({unit.name} of a forward pass)", fontsize=style.TEXT, color=style.INK)
    handles = look.handles(models, lines=False)
    figure.legend(handles=handles, loc="outside upper center", ncols=9, frameon=False, fontsize=style.SMALL)
    caption = (
        f"Every metric of {len(models)} models after {words.trained(models)}. Dashed lines mark held-out "
        f"real images. {words.FLOPS} {words.protocol(table, models)}"
    )
    return style.finish("12-metrics", "Every metric", caption, figure)


def _panel(plot: Axes, look: style.Look, unit: axes.Unit, column: Column, models: Sequence[Row]) -> None:
    key = column.key
    points = [(row, value) for row in models if (value := row.metric(key)) is not None]
    for row, value in points:
        plot.plot([row.macs / unit.divisor], [value], **look.dots(row))
    real = [value for row, _ in points if (value := row.metric(f"{key}_real")) is not None]
    axes.mark_real(plot, real[0] if real else None, name="")
    axes.set_labels(plot, "", "")
    axes.set_title(plot, f"{column.title}\n({sense(column)})")
    values = [value for _, value in points]
    distance = column.better == "lower" and min(values + real) > 0  # an unbiased estimate can be below
    if column.fraction:
        plot.set_ylim(0, 1.03)
    if distance and max(values) / min(values) >= DECADE:
        axes.logarithmic(plot, "y", HEIGHT - 0.5)
    else:
        axes.linear(plot, "y", 4)


def sense(column: Column) -> str:
    """Unit and direction of a metric."""
    if column.better == "near 1":
        return "ratio, 1 is best"
    return f"{'fraction, ' if column.fraction else ''}{column.better} is better"
