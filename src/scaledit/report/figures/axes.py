"""Axes of all figures: labels with units, ticks at round numbers, lines over steps and compute.

Flops are multiply-adds, as the paper counts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from scaledit.report.figures.style import INK, QUIET, SMALL, TEXT
from scaledit.scaling.table import Row

PREFIXES = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
APART = 0.02
"""Least distance between the markers of a line, as a share of the axes' diagonal."""
END = "_end"
"""Label of the marker at the end of a line."""
TICK = {"x": 0.4, "y": 0.25}  # inches per tick and its number
LEAST_SPAN = 2.0
"""Least ratio of the ends of a logarithmic axis: on less, chance looks like a difference."""
SUBS = (((1,), 3), ((1,), 2), ((1,), 1), ((1, 3), 1), ((1, 2, 5), 1), ((1, 1.5, 2, 3, 4, 5, 7), 1))
"""Choices of ticks, from the fewest to the most: (multiples of a power of ten, step between the powers)."""


class Unit(NamedTuple):
    """An axis shows value / divisor."""

    divisor: float
    name: str


def unit(values: Iterable[float], of: str) -> Unit:
    """The largest prefix with which the smallest value is at least 0.1 (Mflops, Gflops)."""
    least = min(values)
    return next(Unit(size, name + of) for size, name in PREFIXES if least / size >= 0.1 or size == 1)


def steps_unit(rows: Sequence[Row]) -> Unit:
    """Training steps, in thousands if there are many, with the batch size."""
    batches = sorted({row.batch_size for row in rows})
    batch = f"batch {' or '.join(map(str, batches))}"
    if max(row.steps for row in rows) >= 20_000:
        return Unit(1000, f"training steps (thousands, {batch})")
    return Unit(1, f"training steps ({batch})")


def number(value: float) -> str:
    """0.05, 2.5, 40, 1,500"""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def set_labels(plot: Axes, xlabel: str, ylabel: str) -> None:
    """Sets the labels, ticks at print size, no box."""
    plot.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    plot.set_ylabel(ylabel, fontsize=TEXT, color=INK)
    plot.spines[["top", "right"]].set_visible(False)
    for spine in plot.spines.values():
        spine.set_linewidth(0.6)
        spine.set_color(INK)
    plot.tick_params(which="both", labelsize=SMALL, width=0.6, color=INK, labelcolor=INK, pad=2)
    plot.tick_params(which="major", length=3)
    plot.tick_params(which="minor", length=1.6)


def error_bar(row: Row) -> tuple[float, float]:
    """fd minus and plus its deviation, at least a tenth of fd because its axes are logarithmic."""
    spread = row.fd_std or 0.0
    return max(row.distance - spread, row.distance / 10), row.distance + spread


def line(plot: Axes, x: Sequence[float], rows: Sequence[Row], runs: int, **style: Any) -> None:
    """Plots fd over x, with a band of one standard deviation if there are several runs."""
    y = [row.distance for row in rows]
    plot.plot(x, y, **{"markevery": APART, **style})
    if style.get("marker"):  # which APART may have left out at the end
        plot.plot(x[-1:], y[-1:], **{**style, "linestyle": "", "label": END})
    if runs > 1:
        low, high = zip(*map(error_bar, rows), strict=True)
        plot.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def mark_real(plot: Axes, value: float | None, name: str = "real images") -> None:
    """Marks the value of held-out real images, named at the left, where all lines are far from it."""
    if value is not None:
        plot.axhline(value, color=QUIET, linestyle=(0, (3, 2)), linewidth=0.8, zorder=0)
        plot.annotate(
            name,
            (0.005, value),
            xycoords=("axes fraction", "data"),
            annotation_clip=True,
            xytext=(3, 1.5),
            textcoords="offset points",
            va="bottom",
            fontsize=SMALL,
            color=QUIET,
        )


def set_title(plot: Axes, text: str) -> None:
    plot.set_title(text, loc="left", fontsize=SMALL, color=INK, pad=4)


def legend(plot: Axes, handles: Sequence[Any]) -> None:
    """Places a legend beside the axes, if there are handles."""
    if handles:
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "handlelength": 2.6}
        plot.legend(handles=handles, frameon=False, fontsize=SMALL, **place)


def linear(plot: Axes, axis: str, most: int) -> None:
    """Sets at most `most` plain numbers on the axis."""
    ticks = plot.xaxis if axis == "x" else plot.yaxis
    ticks.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def logarithmic(plot: Axes, axis: str, inches: float) -> None:
    """Sets a log scale with plain numbers at round values, as many as fit into `inches`. Called last, because
    it fixes the limits."""
    plot.set(**{f"{axis}scale": "log"})
    low, high = plot.get_xlim() if axis == "x" else plot.get_ylim()
    wider = max(1.0, LEAST_SPAN * low / high) ** 0.5
    low, high = low / wider, high * wider
    plot.set(**{f"{axis}lim": (low, high)})
    ticks = plot.xaxis if axis == "x" else plot.yaxis
    ticks.set_major_locator(FixedLocator(round_values(low, high, max(2, int(inches / TICK[axis])))))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    ticks.set_minor_locator(LogLocator(subs=tuple(range(1, 10)), numticks=50))
    ticks.set_minor_formatter(NullFormatter())


def round_values(low: float, high: float, most: int) -> list[float]:
    """Multiples of powers of ten in [low, high], as many as `most` allows, evenly in the logarithm."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    chosen: list[float] = []
    for subs, every in SUBS:
        values = [float(f"{sub}e{power}") for power in powers if power % every == 0 for sub in subs]
        values = [value for value in values if low <= value <= high]
        if len(values) > most and len(chosen) >= 2:
            break
        chosen = values
    return chosen
