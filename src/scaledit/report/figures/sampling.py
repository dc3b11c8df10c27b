"""The paper's figure 10: distance over the compute of sampling an image, one line per model."""

from __future__ import annotations

from scaledit.report.figures import axes, labels, style, words
from scaledit.report.figures.curves import Curve, curves
from scaledit.scaling.table import SAMPLING, Row, Table

HEIGHT = 2.9


def sampling(table: Table) -> style.Plot | None:
    lines = curves(
        table.part(SAMPLING),
        lambda row: row.sampling_steps,
        lambda row: (row.size, row.patch_size, row.conditioning, row.method),
    )
    rows = [row for line in lines for row in line.rows]
    if len(rows) < 2:
        return None
    look = style.Look.of(table)
    unit = axes.unit([row.sampling_macs for row in rows], "flops")
    figure = style.figure(style.TWO_COLUMNS * 0.75, HEIGHT)
    plot = figure.subplots()
    for line in lines:
        x = [row.sampling_macs / unit.divisor for row in line.rows]
        axes.line(plot, x, line.rows, line.runs, **look.line(line.first))
    axes.mark_real(plot, table.about.floor)
    axes.set_labels(plot, f"sampling compute ({unit.name} an image)", words.distance(table, rows))
    plot.set_xscale("log")
    plot.set_yscale("log")
    plot.margins(x=0.1, y=0.1)
    axes.logarithmic(plot, "x", 3.6)
    axes.logarithmic(plot, "y", HEIGHT - 0.6)
    notes = []
    for line in lines:
        last = line.rows[-1]
        name = words.named(last, rows)
        if len(line.rows) == 1:
            name += f", {last.sampling_steps} steps"
        notes.append(labels.Label(last.sampling_macs / unit.divisor, last.distance, name))
    axes.legend(plot, look.handles(rows) if len(rows) > len(lines) else [])
    labels.place(plot, notes)
    caption = _caption(table, lines, rows)
    return style.finish("10-sampling", "Distance over sampling compute", caption, figure)


def _caption(table: Table, lines: list[Curve], rows: list[Row]) -> str:
    along = max(lines, key=lambda line: len(line.rows)).rows
    steps = ", ".join(str(row.sampling_steps) for row in along)
    over = f" Along a line, from the left: {steps} sampling steps." if len(along) > 1 else ""
    return (
        f"{len(lines)} models after {words.trained(rows)}.{over}{words.floor(table)} {words.FLOPS} "
        f"{words.protocol(table, rows)}"
    )
