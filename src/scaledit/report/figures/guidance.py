"""Classifier-free guidance: distance, and precision against recall, over its scale.

The paper has no such figure; its tables 2 and 3 have three scales. The best scale is ringed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes

from scaledit.report.figures import axes, labels, style, words
from scaledit.report.figures.curves import Curve, curves
from scaledit.scaling.table import GUIDANCE, Table

HEIGHT = 2.6
RING = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "color": style.INK, "markeredgewidth": 0.8}
SHOWN = ("precision", "recall")


def guidance(table: Table) -> style.Plot | None:
    lines = curves(
        table.part(GUIDANCE),
        lambda row: row.guidance_scale,
        lambda row: (
            row.model,
            row.tokens,
            row.conditioning,
            row.decoder,
            row.guided_channels,
            row.other_guidance,
        ),
    )
    if not any(len(line.rows) > 1 for line in lines):
        return None
    rows = [row for line in lines for row in line.rows]
    both = any(sum(row.metric(key) is not None for row in line.rows) > 1 for line in lines for key in SHOWN)
    figure = style.figure(style.TWO_COLUMNS if both else style.ONE_COLUMN, HEIGHT)
    plots = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    _distance(plots[0], table, lines)
    trade = _trade(plots[1], table, lines) if both else []
    if len(lines) > 1:
        handles = plots[0].get_legend_handles_labels()[0]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=style.SMALL
        )
    else:
        labels.ends(plots[0], [(lines[0].rows[-1].distance, lines[0].first.model, style.INK)])
    labels.ends(plots[-1], trade)
    caption = (
        f"Classifier-free guidance after {words.trained(rows)}: {words.measured(table, rows)} with the "
        f"best scale circled{', and precision and recall' if both else ''}.{words.floor(table)} "
        f"{words.protocol(table, rows)}"
    )
    return style.finish("14-guidance", "Guidance", caption, figure)


def _distance(plot: Axes, table: Table, lines: Sequence[Curve]) -> None:
    for line, look, name in _each(table, lines):
        axes.line(plot, [row.guidance_scale for row in line.rows], line.rows, line.runs, **look, label=name)
        if len(line.rows) > 1:
            least = min(line.rows, key=lambda row: row.distance)
            plot.plot([least.guidance_scale], [least.distance], linestyle="", **RING)
    axes.mark_real(plot, table.about.floor)
    axes.set_labels(plot, "guidance scale (1 is none)", words.distance(table, lines[0].rows))
    axes.logarithmic(plot, "y", HEIGHT - 0.8)


def _trade(plot: Axes, table: Table, lines: Sequence[Curve]) -> list[tuple[float, str, str]]:
    """Returns the labels for the ends of the lines, of each metric for the line that ends last."""
    notes: dict[str, tuple[float, tuple[float, str, str]]] = {}
    for line, look, _ in _each(table, lines):
        for key, dash in zip(SHOWN, ("-", (0, (3, 1.5))), strict=True):
            points = [(row.guidance_scale, v) for row in line.rows if (v := row.metric(key)) is not None]
            if len(points) > 1:
                x, y = zip(*points, strict=True)
                plot.plot(x, y, **{**look, "linestyle": dash})
                note = x[-1], (y[-1], key, look["color"])
                notes[key] = max(notes.get(key, note), note)
    axes.set_labels(plot, "guidance scale (1 is none)", "precision, recall (fraction)")
    return [note for _, note in notes.values()]


def _each(table: Table, lines: Sequence[Curve]) -> Iterator[tuple[Curve, dict[str, Any], str]]:
    """(line, look, name): the first line of a model has its usual look, further ones have other markers,
    every second one hollow."""
    usual = style.Look.of(table)
    seen: list[str] = []
    for line in lines:
        before = seen.count(line.first.model)
        seen.append(line.first.model)
        look = usual.line(line.first)
        marker = style.MARKERS[(style.MARKERS.index(look["marker"]) + before) % len(style.MARKERS)]
        fill = {"markerfacecolor": "white"} if before % 2 else {}
        name = words.named(line.first, [other.first for other in lines])
        yield line, {**look, "marker": marker, **fill}, name
