"""Texts beside points and at the ends of lines, where they cover nothing; the same places each time.

    cost = outside + texts covered + points covered + lines crossed + distance        the cheapest place wins

Places are offsets in points, found when the axes are laid out: these come last in a figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from scaledit.report.figures.style import INK, QUIET, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Box = tuple[float, float, float, float]  # left, bottom, right, top

POINTS = 72.0
DIRECTIONS = (0, 45, -45, 180, 135, -135, 90, -90)  # degrees; the right first, where one looks for a label
GAPS = (3.0, 6.0, 10.0, 15.0, 21.0)  # points from the point to the text
LEADER = 9.0  # from this gap on a line leads from the text to its point
ROUNDS = 4
SPACE = 1.15  # from one line of text to the next, in heights


class Label(NamedTuple):
    """text beside the point (x, y) of the axes. radius: of what is drawn there, in points."""

    x: float
    y: float
    text: str
    radius: float = 2.0


class _Place(NamedTuple):
    """Where a text can go, in dots of the figure. leader: points along its line, none where it needs none."""

    box: Box
    gap: float
    leader: np.ndarray


def place(plot: Axes, labels: Sequence[Label]) -> None:
    """Writes every label beside its point, clear of other labels and, where it can be, of what is drawn."""
    if not labels:
        return
    scale = _laid_out(plot) / POINTS
    points, lines = _plotted_points(plot)
    anchors = plot.transData.transform([(label.x, label.y) for label in labels])
    radii = np.array([[label.radius * scale] for label in labels])
    discs = np.concatenate([points, np.hstack([anchors, radii])])
    frame = tuple(plot.get_window_extent().extents)
    options = [
        _options(anchor, _size(plot, label.text), label.radius, scale)
        for anchor, label in zip(anchors, labels, strict=True)
    ]
    own = [[_own_cost(option, frame, discs, lines) for option in some] for some in options]
    chosen = [int(np.argmin(costs)) for costs in own]
    for _ in range(ROUNDS):  # each in turn where it suits best while the others stay
        for i, some in enumerate(options):
            others = [options[j][chosen[j]] for j in range(len(labels)) if j != i]
            costs = [
                cost + 1e4 * sum(_meet(option, other, scale) for other in others)
                for cost, option in zip(own[i], some, strict=True)
            ]
            chosen[i] = int(np.argmin(costs))
    for label, anchor, some, k in zip(labels, anchors, options, chosen, strict=True):
        box = some[k].box
        middle = ((box[0] + box[2]) / 2 - anchor[0], (box[1] + box[3]) / 2 - anchor[1])
        leader = {"arrowstyle": "-", "linewidth": 0.4, "color": QUIET, "shrinkA": 0, "shrinkB": label.radius}
        plot.annotate(
            label.text,
            (label.x, label.y),
            xytext=(middle[0] / scale, middle[1] / scale),
            textcoords="offset points",
            arrowprops=leader if len(some[k].leader) else None,
            **_type("center"),
        ).set_in_layout(False)


def ends(plot: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """(y, text, colour): a text right of the axes for a line that ends at y, moved up or down until none
    touches another; a thin line of that colour leads to it."""
    if not labels:
        return
    made = []
    for y, text, colour in sorted(labels):
        leader = {"arrowstyle": "-", "linewidth": 0.6, "color": colour, "shrinkA": 0, "shrinkB": 0}
        leader |= {"relpos": (0, 0.5)}
        made.append(
            plot.annotate(
                text,
                (1.0, y),
                xycoords=plot.get_yaxis_transform(),
                xytext=(10, 0),
                textcoords="offset points",
                arrowprops=leader,
                **_type("left"),
            )
        )
    scale = _laid_out(plot) / POINTS  # with the texts, which the axes make room for
    wanted = [float(plot.transData.transform((1, y))[1]) for y, *_ in sorted(labels)]
    height = SPACE * max(_size(plot, text)[1] for _, text, _ in labels)
    frame = plot.get_window_extent()
    for note, y, place in zip(made, wanted, spread(wanted, height, frame.y0, frame.y1), strict=True):
        note.set_position((10, (place - y) / scale))


def spread(wanted: Sequence[float], height: float, bottom: float, top: float) -> list[float]:
    """Ascending places at least `height` apart that lie as near to those wanted as can be, within [bottom,
    top] if they fit."""
    groups: list[tuple[float, int]] = []  # middle, how many
    for y in wanted:
        groups.append((y, 1))
        while True:
            fitted = []
            for middle, count in groups:
                half = (count - 1) * height / 2
                fitted.append((max(bottom + half, min(top - half, middle)), count))
            groups = fitted
            if len(groups) < 2:
                break
            (below, m), (above, n) = groups[-2:]
            if above - below >= (m + n) / 2 * height - 1e-9:
                break
            groups[-2:] = [((below * m + above * n) / (m + n), m + n)]
    return [middle + (i - (count - 1) / 2) * height for middle, count in groups for i in range(count)]


def _type(align: str) -> dict[str, Any]:
    return {"fontsize": SMALL, "color": INK, "ha": align, "va": "center"}


def _figure(plot: Axes) -> Figure:
    return cast("Figure", plot.get_figure())


def _laid_out(plot: Axes) -> float:
    """Gives the axes their places; the figure's dots an inch."""
    figure = _figure(plot)
    figure.draw_without_rendering()
    return figure.dpi


def _size(plot: Axes, text: str) -> tuple[float, float]:
    note = plot.text(0, 0, text, fontsize=SMALL)
    box = note.get_window_extent()
    note.remove()
    return box.width, box.height


def _options(anchor: np.ndarray, size: tuple[float, float], radius: float, scale: float) -> list[_Place]:
    """The places around a point, from the best on."""
    found = []
    for gap in GAPS:
        for degrees in DIRECTIONS:
            reach, angle = (radius + gap) * scale, math.radians(degrees)
            dx, dy = math.cos(angle), math.sin(angle)
            x = anchor[0] + reach * dx + size[0] / 2 * np.sign(round(dx, 6))
            y = anchor[1] + reach * dy + size[1] / 2 * dy
            box = (x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)
            along = (
                np.arange(radius + 1, radius + gap, 1.5)[:, None] * scale
                if gap >= LEADER
                else np.empty((0, 1))
            )
            found.append(_Place(box, gap, anchor + along * [dx, dy]))
    return found


def _own_cost(option: _Place, frame: Any, discs: np.ndarray, lines: np.ndarray) -> float:
    """Of a place, whatever the other labels do. discs: (N, 3) of x, y, radius; lines: (N, 2)."""
    box = option.box
    beyond = (frame[0] - box[0], frame[1] - box[1], box[2] - frame[2], box[3] - frame[3])
    outside = sum(max(0.0, excess) for excess in beyond)
    dx = np.maximum(0, np.maximum(box[0] - discs[:, 0], discs[:, 0] - box[2]))
    dy = np.maximum(0, np.maximum(box[1] - discs[:, 1], discs[:, 1] - box[3]))
    covered = np.sum(np.hypot(dx, dy) < discs[:, 2])
    led = np.hypot(*(option.leader[:, None] - discs[None, :, :2]).T) < discs[:, 2:]
    return 1e6 * outside + 2e3 * float(covered + led.any(1).sum()) + 20.0 * _inside(lines, box) + option.gap


def _meet(a: _Place, b: _Place, gap: float) -> bool:
    """Whether texts or the lines that lead to them touch."""
    (left, bottom, right, top), other = a.box, b.box
    apart = (
        left >= other[2] + gap or other[0] >= right + gap or bottom >= other[3] + gap or other[1] >= top + gap
    )
    return not apart or bool(_inside(a.leader, b.box) or _inside(b.leader, a.box))


def _inside(points: np.ndarray, box: Box) -> int:
    if not len(points):  # most places need no leader
        return 0
    x, y = points.T
    return int(np.sum((box[0] < x) & (x < box[2]) & (box[1] < y) & (y < box[3])))


def _plotted_points(plot: Axes) -> tuple[np.ndarray, np.ndarray]:
    """(points with their radius, lines as points 4 dots apart or less), in dots of the figure."""
    scale = _figure(plot).dpi / POINTS
    points, lines = [np.empty((0, 3))], [np.empty((0, 2))]
    for line in plot.get_lines():
        at = line.get_transform().transform(np.asarray(line.get_xydata(), float))
        if line.get_marker() not in ("", "None", None):
            points.append(np.column_stack([at, np.full(len(at), line.get_markersize() / 2 * scale)]))
        if line.get_linestyle() not in ("", "None"):
            lines += [np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 4)) for a, b in pairwise(at)]
    for some in plot.collections:
        at = plot.transData.transform(np.asarray(some.get_offsets()))
        sizes = getattr(some, "get_sizes", list)()  # bands have none
        if len(at) and len(sizes):
            radius = np.sqrt(np.broadcast_to(sizes, len(at))) / 2 * scale
            points.append(np.column_stack([at, radius]))
    return np.concatenate(points), np.concatenate(lines)
