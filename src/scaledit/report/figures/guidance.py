"""Classifier-free guidance: distance, and precision against recall, over its scale.

The paper gives no figure of it; its tables 2 and 3 hold three scales. Ringed: the best scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scaledit.report.figures import axes, labels, style, words
from scaledit.report.figures.curves import Curve, curves, fd
from scaledit.scaling.table import GUIDANCE, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 2.6
RING = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "color": style.INK, "markeredgewidth": 0.8}
SHOWN = ("precision", "recall")


def guidance(table: Table) -> style.Drawn | None:
    rows = table.part(GUIDANCE)
    lines = curves(
        rows,
        lambda row: row.cfg_scale,
        lambda row: (row.size, row.patch_size, row.conditioning, row.decoder, row.cfg_channels),
    )
    lines = [line for line in lines if len(line.rows) > 1]
    if not lines:
        return None
    shown = [row for line in lines for row in line.rows]
    both = any(row.metric(key) is not None for row in shown for key in SHOWN)
    figure = style.figure(style.TWO_COLUMNS if both else style.ONE_COLUMN, HEIGHT)
    plots = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    _distance(plots[0], table, lines)
    if both:
        _trade(plots[1], table, lines)
    caption = (
        f"Classifier-free guidance: {table.about.distance}, its best scale ringed"
        f"{', and precision and recall' if both else ''}; after {words.trained(shown)}.{words.floor(table)} "
        f"{words.protocol(table, shown)}"
    )
    return style.finished("14-guidance", "Guidance", caption, figure)


def _name(line: Curve, lines: Sequence[Curve]) -> str:
    """The model, and of how many channels where that varies."""
    channels = {one.first.cfg_channels for one in lines}
    if len(channels) == 1:
        return line.first.model
    return f"{line.first.model}, {line.first.cfg_channels} channels"


def _distance(plot: Axes, table: Table, lines: Sequence[Curve]) -> None:
    look = style.Look.of(table)
    notes = []
    for line in lines:
        x = [row.cfg_scale for row in line.rows]
        axes.line(plot, x, line.rows, line.runs, **_marks(line, look))
        least = min(line.rows, key=fd)
        plot.plot([least.cfg_scale], [fd(least)], linestyle="", **RING)
        notes.append((fd(line.rows[-1]), _name(line, lines), look.colour(line.first.size)))
    axes.real(plot, table.about.floor)
    axes.dress(plot, "guidance scale (1: none)", words.distance(table))
    axes.logarithmic(plot, "y", HEIGHT - 0.6)
    labels.ends(plot, notes)


def _trade(plot: Axes, table: Table, lines: Sequence[Curve]) -> None:
    look = style.Look.of(table)
    notes = []
    for line in lines:
        for key, dash in zip(SHOWN, ("-", (0, (3, 1.5))), strict=True):
            found = [(row.cfg_scale, value) for row in line.rows if (value := row.metric(key)) is not None]
            if found:
                x, y = zip(*found, strict=True)
                plot.plot(x, y, **{**_marks(line, look), "linestyle": dash})
                name = key if len(lines) == 1 else f"{key}, {_name(line, lines)}"
                notes.append((y[-1], name, look.colour(line.first.size)))
    axes.dress(plot, "guidance scale (1: none)", "precision, recall (fraction)")
    labels.ends(plot, notes)


def _marks(line: Curve, look: style.Look) -> dict[str, Any]:
    """Hollow where guidance acts on all channels."""
    return look.line(line.first) | ({"markerfacecolor": "white"} if line.first.cfg_channels == "all" else {})
