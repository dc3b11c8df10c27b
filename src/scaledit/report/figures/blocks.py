"""The paper's figure 5: the block designs, over training if the table holds it, else at its end."""

from __future__ import annotations

from scaledit.report.figures import axes, bars, labels, style, words
from scaledit.report.figures.curves import Curve, curves
from scaledit.scaling import paper
from scaledit.scaling.table import TRAINING, Row, Table, evaluated

NAME, TITLE = "05-blocks", "Block designs"
COLORS = tuple(style.OKABE_ITO[i] for i in (3, 1, 4, 2))
"""From light to dark, the paper's own design in black."""
OTHERS = tuple(color for color in style.OKABE_ITO if color not in COLORS)
"""Colors of designs that the paper does not have."""
HEIGHT = 2.5


def blocks(table: Table) -> style.Plot | None:
    final = evaluated(table.blocks())
    if len(final) < 2:
        return None
    model = (final[0].size, final[0].patch_size, final[0].tokens)
    rows = table.part(TRAINING, lambda row: (row.size, row.patch_size, row.tokens) == model)
    lines = curves(rows, lambda row: row.steps, lambda row: row.conditioning)
    return _over_training(table, lines) if len(lines) > 1 else _at_end(table, final)


def _over_training(table: Table, lines: list[Curve]) -> style.Plot:
    figure = style.figure(style.ONE_COLUMN, HEIGHT)
    plot = figure.subplots()
    unit = axes.steps_unit([row for line in lines for row in line.rows])
    notes = []
    of_design = {line.first.conditioning: line for line in lines}
    known = paper.designs()[::-1]
    others = [design for design in of_design if design not in known]
    for i, design in enumerate((*known, *others)):
        if design not in of_design:
            continue
        line = of_design[design]
        color = COLORS[i] if i < len(COLORS) else OTHERS[(i - len(COLORS)) % len(OTHERS)]
        marker, dashes = style.MARKERS[i % len(style.MARKERS)], style.DASHES[i % len(style.DASHES)]
        look = {"marker": marker, "linestyle": dashes, "color": color}
        x = [row.steps / unit.divisor for row in line.rows]
        axes.line(plot, x, line.rows, line.runs, markersize=3, linewidth=1.2, **look)
        notes.append((line.rows[-1].distance, words.design(design), color))
    axes.mark_real(plot, table.about.floor)
    axes.set_labels(plot, unit.name, words.distance(table, lines[0].rows))
    axes.linear(plot, "x", 5)
    axes.logarithmic(plot, "y", HEIGHT - 0.6)
    labels.ends(plot, notes)
    rows = [row for line in lines for row in line.rows]
    caption = (
        f"Block designs of {rows[0].model} during training. {words.averaged([line.runs for line in lines])}"
        f"{words.floor(table)} {words.protocol(table, rows)}"
    )
    return style.finish(NAME, TITLE, caption, figure)


def _at_end(table: Table, rows: list[Row]) -> style.Plot:
    rows = sorted(rows, key=lambda row: -row.distance)
    figure = style.figure(style.ONE_COLUMN, 0.6 + bars.HEIGHT * len(rows))
    entries = [bars.Bar(words.design(row.conditioning), row.distance, row.fd_std) for row in rows]
    bars.plot_bars(figure.subplots(), entries, words.distance(table, rows))
    caption = f"Block designs of {rows[0].model} after {words.trained(rows)}. {words.protocol(table, rows)}"
    return style.finish(NAME, TITLE, caption, figure)
