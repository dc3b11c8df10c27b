"""The paper's figure 6: distance over training; above by patch size, below by model size."""

from __future__ import annotations

from matplotlib.axes import Axes

from scaledit.report.figures import axes, style, words
from scaledit.report.figures.curves import Curve, over_training
from scaledit.scaling.table import Table, evaluated

HEIGHT = 2.05
"""Inches of a row of panels."""


def training(table: Table) -> style.Plot | None:
    longest = max((row.steps for row in evaluated(table.models())), default=0)
    lines = [line for line in over_training(table, longest) if len(line.rows) > 1]
    if len(lines) < 2:
        return None
    look = style.Look.of(table)
    patches = sorted({line.first.patch_size for line in lines}, reverse=True)
    sizes = [size for size in look.sizes if any(line.first.size == size for line in lines)]
    cuts = [
        [(f"patch {p}", [line for line in lines if line.first.patch_size == p]) for p in patches],
        [(f"size {s}", [line for line in lines if line.first.size == s]) for s in sizes],
    ]
    rows = [row for line in lines for row in line.rows]
    unit = axes.steps_unit(rows)
    floor = [] if table.about.floor is None else [table.about.floor]
    values = [*floor, *(row.distance for row in rows)]
    figure = style.figure(style.TWO_COLUMNS, 2 * HEIGHT)
    for band, cut in zip(figure.subfigures(2, 1, squeeze=False)[:, 0], cuts, strict=True):
        plots = band.subplots(1, len(cut), squeeze=False, sharex=True, sharey=True)[0]
        for plot, (name, cut_lines) in zip(plots, cut, strict=True):
            _panel(plot, look, cut_lines, unit)
            axes.mark_real(plot, table.about.floor)
            axes.set_labels(plot, "", "")
            axes.linear(plot, "x", 4)
            axes.set_title(plot, name)
        band.supxlabel(unit.name, fontsize=style.TEXT, color=style.INK)
        band.supylabel(words.distance(table, lines[0].rows), fontsize=style.TEXT, color=style.INK)
        plots[0].set_ylim(0.85 * min(values), 1.15 * max(values))
        for plot in plots:
            axes.logarithmic(plot, "y", HEIGHT - 0.6)
        axes.legend(plots[-1], look.size_handles(sizes) if cut is cuts[0] else look.patch_handles(patches))
    caption = (
        f"{len(lines)} models during training. Top: model sizes at one patch size, and so one number of "
        f"tokens. Bottom: patch sizes at one model size. {words.averaged([line.runs for line in lines])}"
        f"{words.floor(table)} {words.protocol(table, rows)}"
    )
    return style.finish("06-training", "Model size and patch size during training", caption, figure)


def _panel(plot: Axes, look: style.Look, lines: list[Curve], unit: axes.Unit) -> None:
    for line in lines:
        x = [row.steps / unit.divisor for row in line.rows]
        axes.line(plot, x, line.rows, line.runs, **look.line(line.first))
