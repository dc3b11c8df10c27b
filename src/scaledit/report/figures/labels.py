"""Labels beside points and at the ends of lines, placed deterministically where they cover nothing.

    cost = outside + labels covered + points covered + lines crossed + distance        the cheapest place wins

Places are offsets in points for the current layout of the axes, so labels are added last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from scaledit.report.figures.style import INK, QUIET, SMALL

Box = tuple[float, float, float, float]  # left, bottom, right, top

POINTS = 72.0
SLANTED = 2.0
"""Cost of a direction of 20 degrees, in points of distance."""
DIRECTIONS = (0, 20, -20, 45, -45, 180, 135, -135, 90, -90)  # degrees; readers look to the right first
GAPS = (3.0, 6.0, 10.0, 15.0, 21.0)  # points from the point to the text
LEADER = 9.0  # least gap at which a line leads from the text to its point
ROUNDS = 4
"""Passes over all labels, from each label as the first; the best result wins."""
CLEAR = 1.2
"""Points between two labels: 2 pixels on a page."""
MEETING, STRAY = 1e4, 1e3
"""Costs of touching another label, and of being nearer to another label's point than to its own."""
HALO = withStroke(linewidth=1.6, foreground="white")
"""Keeps a label readable on a line."""
SPACE = 1.15  # between lines of text, in heights


class Label(NamedTuple):
    """A text beside the point (x, y) of the axes. radius: of the marker there, in points. end: whether a line
    ends there from the left, so that the text is never left of it."""

    x: float
    y: float
    text: str
    radius: float = 2.0
    end: bool = False


class _Place(NamedTuple):
    """A possible place of a text, in dots of the figure. leader: points along its line, empty without a
    line."""

    box: Box
    gap: float
    leader: np.ndarray


def place(plot: Axes, labels: Sequence[Label]) -> None:
    """Writes every label beside its point, clear of other labels and, if possible, of markers and lines."""
    if not labels:
        return
    scale = _laid_out(plot) / POINTS
    points, lines = _plotted_points(plot)
    anchors = plot.transData.transform([(label.x, label.y) for label in labels])
    radii = np.array([[label.radius * scale] for label in labels])
    discs = np.concatenate([points, np.hstack([anchors, radii])])
    frame = tuple(plot.get_window_extent().extents)
    options = [
        _options(anchor, _size(plot, label.text), label, scale)
        for anchor, label in zip(anchors, labels, strict=True)
    ]
    own = [
        np.array([_own_cost(place, frame, discs, lines) + _stray(place, anchors, k) for place in places])
        for k, places in enumerate(options)
    ]
    spots = [_spots(places) for places in options]
    orders = [np.roll(np.arange(len(labels)), start) for start in range(len(labels))]
    best = min((_descend(spots, own, order, scale) for order in orders), key=lambda found: found[0])[1]
    for label, anchor, places, k in zip(labels, anchors, options, best, strict=True):
        box = places[k].box
        middle = ((box[0] + box[2]) / 2 - anchor[0], (box[1] + box[3]) / 2 - anchor[1])
        leader = {"arrowstyle": "-", "linewidth": 0.4, "color": QUIET, "shrinkA": 0, "shrinkB": label.radius}
        plot.annotate(
            label.text,
            (label.x, label.y),
            xytext=(middle[0] / scale, middle[1] / scale),
            textcoords="offset points",
            arrowprops=leader if len(places[k].leader) else None,
            path_effects=[HALO],
            **_type("center"),
        ).set_in_layout(False)


class _Spots(NamedTuple):
    """All places of a label. boxes: (P, 4). leaders: (P, K, 2), filled up with nan."""

    boxes: np.ndarray
    leaders: np.ndarray


def _spots(places: Sequence[_Place]) -> _Spots:
    leaders = np.full((len(places), max(1, *(len(place.leader) for place in places)), 2), np.nan)
    for i, place in enumerate(places):
        leaders[i, : len(place.leader)] = place.leader.reshape(-1, 2)
    return _Spots(np.array([place.box for place in places]), leaders)


def _descend(
    spots: Sequence[_Spots], own: Sequence[np.ndarray], order: np.ndarray, scale: float
) -> tuple[float, list[int]]:
    """(cost, the place of each label): moves each label in turn, in this order, to its best place while the
    others stay."""
    best = [int(np.argmin(costs)) for costs in own]
    paid = np.zeros(len(own))
    for _ in range(ROUNDS):
        for i in order:
            others = [j for j in order if j != i]
            boxes = np.array([spots[j].boxes[best[j]] for j in others]).reshape(-1, 4)
            leaders = [spots[j].leaders[best[j]] for j in others]
            costs = own[i] + MEETING * _meetings(spots[i], boxes, leaders, CLEAR * scale)
            best[i] = int(np.argmin(costs))
            paid[i] = costs[best[i]]
    return float(paid.sum()), best


def _meetings(spots: _Spots, boxes: np.ndarray, leaders: Sequence[np.ndarray], gap: float) -> np.ndarray:
    """(P,): how many of the other texts (boxes) or their leaders each place touches."""
    left, bottom, right, top = spots.boxes.T[..., None]
    x0, y0, x1, y1 = boxes.T
    apart = (left >= x1 + gap) | (x0 >= right + gap) | (bottom >= y1 + gap) | (y0 >= top + gap)
    x, y = np.moveaxis(spots.leaders, -1, 0)[..., None]
    crossed = ((x0 < x) & (x < x1) & (y0 < y) & (y < y1)).any(1)
    for k, leader in enumerate(leaders):
        x, y = leader.T
        crossed[:, k] |= ((left < x) & (x < right) & (bottom < y) & (y < top)).any(1)
    return (~apart | crossed).sum(1)


def _stray(place: _Place, anchors: np.ndarray, own: int) -> float:
    """The cost of being nearer to another label's point than to its own."""
    left, bottom, right, top = place.box
    x, y = anchors.T
    away = np.hypot(
        np.maximum(0, np.maximum(left - x, x - right)), np.maximum(0, np.maximum(bottom - y, y - top))
    )
    return STRAY * float(np.sum(away < away[own] - 1e-6))


def ends(plot: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Labels lines at their ends by (y, text, color): writes the text right of the axes, moved up or down so
    that no two touch; a thin line of that color leads to it from y."""
    if not labels:
        return
    labels = sorted(labels)
    notes = []
    for y, text, color in labels:
        leader = {"arrowstyle": "-", "linewidth": 0.6, "color": color, "shrinkA": 0, "shrinkB": 0}
        leader |= {"relpos": (0, 0.5)}
        notes.append(
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
    scale = _laid_out(plot) / POINTS  # after the texts, for which the axes make room
    heights = [float(plot.transData.transform((1, y))[1]) for y, *_ in labels]
    height = SPACE * max(_size(plot, text)[1] for _, text, _ in labels)
    frame = plot.get_window_extent()
    for note, y, place in zip(notes, heights, spread(heights, height, frame.y0, frame.y1), strict=True):
        note.set_position((10, (place - y) / scale))


def spread(heights: Sequence[float], height: float, bottom: float, top: float) -> list[float]:
    """Ascending places at least `height` apart, as close as possible to `heights`, within [bottom, top] if
    they fit."""

    def inside(middle: float, count: int) -> tuple[float, int]:
        half = (count - 1) * height / 2
        return max(bottom + half, min(top - half, middle)), count

    groups: list[tuple[float, int]] = []  # middle, number of places
    for y in heights:
        groups.append((y, 1))
        while True:
            groups = [inside(*group) for group in groups]
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
    """Lays the axes out and returns the figure's dots per inch."""
    figure = _figure(plot)
    figure.draw_without_rendering()
    return figure.dpi


def _size(plot: Axes, text: str) -> tuple[float, float]:
    note = plot.text(0, 0, text, fontsize=SMALL)
    box = note.get_window_extent()
    note.remove()
    return box.width, box.height


def _options(anchor: np.ndarray, size: tuple[float, float], label: Label, scale: float) -> list[_Place]:
    """The places around a point, best first."""
    places, radius = [], label.radius
    for gap in GAPS:
        for degrees in DIRECTIONS:
            if label.end and abs(degrees) > 90:
                continue
            reach, angle = (radius + gap) * scale, math.radians(degrees)
            dx, dy = math.cos(angle), math.sin(angle)
            x = anchor[0] + reach * dx + size[0] / 2 * np.sign(round(dx, 6))
            y = anchor[1] + reach * dy + size[1] / 2 * dy
            box = (x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)
            reaches = np.arange(radius + 1, radius + gap, 1.5) if gap >= LEADER else np.empty(0)
            leader = anchor + reaches[:, None] * scale * [dx, dy]
            places.append(_Place(box, gap + SLANTED * (abs(degrees) == 20), leader))
    return places


def _own_cost(place: _Place, frame: Any, discs: np.ndarray, lines: np.ndarray) -> float:
    """The cost of a place without other labels. discs: (N, 3) of x, y, radius; lines: (N, 2)."""
    box = place.box
    beyond = (frame[0] - box[0], frame[1] - box[1], box[2] - frame[2], box[3] - frame[3])
    outside = sum(max(0.0, excess) for excess in beyond)
    dx = np.maximum(0, np.maximum(box[0] - discs[:, 0], discs[:, 0] - box[2]))
    dy = np.maximum(0, np.maximum(box[1] - discs[:, 1], discs[:, 1] - box[3]))
    covered = np.sum(np.hypot(dx, dy) < discs[:, 2])
    led = np.hypot(*(place.leader[:, None] - discs[None, :, :2]).T) < discs[:, 2:]
    return 1e6 * outside + 2e3 * float(covered + led.any(1).sum()) + 20.0 * _inside(lines, box) + place.gap


def _inside(points: np.ndarray, box: Box) -> int:
    if not len(points):  # most places have no leader
        return 0
    x, y = points.T
    return int(np.sum((box[0] < x) & (x < box[2]) & (box[1] < y) & (y < box[3])))


def _plotted_points(plot: Axes) -> tuple[np.ndarray, np.ndarray]:
    """(points with their radius, lines as points at most 4 dots apart), in dots of the figure."""
    scale = _figure(plot).dpi / POINTS
    points, lines = [np.empty((0, 3))], [np.empty((0, 2))]
    for line in plot.get_lines():
        at = line.get_transform().transform(np.asarray(line.get_xydata(), float))
        if line.get_marker() not in ("", "None", None):
            points.append(np.column_stack([at, np.full(len(at), line.get_markersize() / 2 * scale)]))
        if line.get_linestyle() not in ("", "None"):
            lines += [np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 4)) for a, b in pairwise(at)]
    for collection in plot.collections:
        at = plot.transData.transform(np.asarray(collection.get_offsets()))
        sizes = getattr(collection, "get_sizes", list)()  # bands have no sizes
        if len(at) and len(sizes):
            radius = np.sqrt(np.broadcast_to(sizes, len(at))) / 2 * scale
            points.append(np.column_stack([at, radius]))
    return np.concatenate(points), np.concatenate(lines)
