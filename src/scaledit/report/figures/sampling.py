"""The paper's figure 10: distance over the compute of sampling an image.

One line per model, one panel per patch size.
"""

from __future__ import annotations

from scaledit.report.figures import axes, labels, style, words
from scaledit.report.figures.curves import Curve, curves
from scaledit.scaling.table import SAMPLING, Row, Table

HEIGHT = 2.9
ROOM = 0.12
"""Room for names right of the lines, as a share of the axis."""


def sampling(table: Table) -> style.Plot | None:
    lines = curves(
        table.part(SAMPLING),
        lambda row: row.sampling_steps,
        lambda row: (row.size, row.patch_size, row.conditioning, row.method),
    )
    rows = [row for line in lines for row in line.rows]
    if len(rows) < 2:
        return None
    patches = sorted({row.patch_size for row in rows}, reverse=True)
    unit = axes.unit([row.sampling_macs for row in rows], "flops")
    figure = style.figure(style.TWO_COLUMNS * (0.5 if len(patches) == 1 else 1), HEIGHT)
    plots = figure.subplots(1, len(patches), squeeze=False, sharex=True, sharey=True)[0]
    for plot, patch in zip(plots, patches, strict=True):
        for line in _of(lines, patch):
            x = [row.sampling_macs / unit.divisor for row in line.rows]
            axes.line(plot, x, line.rows, line.runs, **style.Look.of(table).line(line.first))
        axes.mark_real(plot, table.about.floor)
        axes.set_labels(plot, "", "")
        axes.set_title(plot, f"patch {patch}")
    figure.supxlabel(f"sampling compute ({unit.name} per image)", fontsize=style.TEXT, color=style.INK)
    figure.supylabel(words.distance(table, rows), fontsize=style.TEXT, color=style.INK)
    plots[0].set(xscale="log", yscale="log")
    plots[0].margins(x=0.06, y=0.1)
    low, high = plots[0].get_xlim()
    plots[0].set_xlim(low, high * (high / low) ** ROOM)
    for plot in plots:
        axes.logarithmic(plot, "x", 4.5 / len(patches))
        axes.logarithmic(plot, "y", HEIGHT - 0.6)
    for plot, patch in zip(plots, patches, strict=True):
        labels.place(plot, [_label(line, rows, unit) for line in _of(lines, patch)])
    caption = _caption(table, lines, rows)
    return style.finish("10-sampling", "Distance over sampling compute", caption, figure)


def _of(lines: list[Curve], patch: int) -> list[Curve]:
    return [line for line in lines if line.first.patch_size == patch]


def _label(line: Curve, rows: list[Row], unit: axes.Unit) -> labels.Label:
    """The name of a line, beside its last point."""
    last = line.rows[-1]
    steps = f", {last.sampling_steps} steps" if len(line.rows) == 1 else ""
    return labels.Label(
        last.sampling_macs / unit.divisor, last.distance, words.named(last, rows) + steps, end=True
    )


def _caption(table: Table, lines: list[Curve], rows: list[Row]) -> str:
    along = max(lines, key=lambda line: len(line.rows)).rows
    steps = ", ".join(str(row.sampling_steps) for row in along)
    over = f" The points of a line, from the left, have {steps} sampling steps." if len(along) > 1 else ""
    return (
        f"{len(lines)} models after {words.trained(rows)}.{over}{words.floor(table)} {words.FLOPS} "
        f"{words.protocol(table, rows)}"
    )
