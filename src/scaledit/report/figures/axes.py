"""Axes of every figure: labels with units, ticks at round numbers, what is drawn over steps and compute.

Flops are multiply-adds, as the paper counts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from scaledit.report.figures.curves import fd
from scaledit.report.figures.style import INK, QUIET, SMALL, TEXT
from scaledit.scaling.table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREFIXES = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
APART = 0.02
"""Of the axes' diagonal, between two markers of a line: closer results are on the line without one."""
TICK = {"x": 0.4, "y": 0.25}  # inches that a tick needs, with its number
LEAST_SPAN = 2.0
"""A logarithmic axis goes over this factor at least: on less, chance looks like a difference."""
SUBS = (((1,), 3), ((1,), 2), ((1,), 1), ((1, 3), 1), ((1, 2, 5), 1), ((1, 1.5, 2, 3, 4, 5, 7), 1))
"""(multiples of a power of ten, every how many powers): from the fewest ticks to the most."""


class Unit(NamedTuple):
    """value / divisor is what an axis shows."""

    divisor: float
    name: str


def unit(values: Iterable[float], of: str) -> Unit:
    """The largest prefix with which the smallest value is at least 0.1: Mflops, Gflops."""
    least = min(values)
    return next(Unit(size, name + of) for size, name in PREFIXES if least / size >= 0.1 or size == 1)


def steps_unit(rows: Sequence[Row]) -> Unit:
    """Training steps as they are or in thousands, and of which batch."""
    batches = sorted({row.batch_size for row in rows})
    batch = f"batch {' or '.join(map(str, batches))}"
    if max(row.steps for row in rows) >= 20_000:
        return Unit(1000, f"training steps (thousands, {batch})")
    return Unit(1, f"training steps ({batch})")


def number(value: float) -> str:
    """0.05, 2.5, 40, 1,500"""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def dress(plot: Axes, xlabel: str, ylabel: str) -> None:
    """Labels with their units, ticks at print size, no box."""
    plot.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    plot.set_ylabel(ylabel, fontsize=TEXT, color=INK)
    plot.spines[["top", "right"]].set_visible(False)
    for spine in plot.spines.values():
        spine.set_linewidth(0.6)
        spine.set_color(INK)
    plot.tick_params(which="both", labelsize=SMALL, width=0.6, color=INK, labelcolor=INK, pad=2)
    plot.tick_params(which="major", length=3)
    plot.tick_params(which="minor", length=1.6)


def around(row: Row) -> tuple[float, float]:
    """fd less and plus its deviation; not below a tenth, since axes of fd are logarithmic."""
    spread = row.fd_std or 0.0
    return max(fd(row) - spread, fd(row) / 10), fd(row) + spread


def line(plot: Axes, x: Sequence[float], rows: Sequence[Row], runs: int, **style: Any) -> None:
    """fd of the rows over x, with a band of one standard deviation over several runs."""
    plot.plot(x, [fd(row) for row in rows], **{"markevery": APART, **style})
    if runs > 1:
        low, high = zip(*map(around, rows), strict=True)
        plot.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def real(plot: Axes, value: float | None, name: str = "real images") -> None:
    """What real held-out images score; named at the left, where every line is far from it."""
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


def heading(plot: Axes, text: str) -> None:
    plot.set_title(text, loc="left", fontsize=SMALL, color=INK, pad=4)


def key(plot: Axes, handles: Sequence[Any], **where: Any) -> None:
    """A legend beside the axes, where it covers nothing."""
    if handles:
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "handlelength": 2.6}
        plot.legend(handles=handles, frameon=False, fontsize=SMALL, **{**place, **where})


def linear(plot: Axes, axis: str, most: int) -> None:
    """At most so many plain numbers on the axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    chosen = plot.xaxis if axis == "x" else plot.yaxis
    chosen.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    chosen.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def logarithmic(plot: Axes, axis: str, inches: float) -> None:
    """A log scale with plain numbers at round values, as many as fit into so many inches. Called when all is
    drawn: it settles the limits."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    scale, limits, chosen = (
        (plot.set_xscale, plot.set_xlim, plot.xaxis)
        if axis == "x"
        else (plot.set_yscale, plot.set_ylim, plot.yaxis)
    )
    scale("log")
    low, high = plot.get_xlim() if axis == "x" else plot.get_ylim()
    wider = max(1.0, LEAST_SPAN * low / high) ** 0.5
    low, high = low / wider, high * wider
    limits(low, high)
    chosen.set_major_locator(FixedLocator(round_values(low, high, max(2, int(inches / TICK[axis])))))
    chosen.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    chosen.set_minor_locator(LogLocator(subs=tuple(range(2, 10)), numticks=50))
    chosen.set_minor_formatter(NullFormatter())


def round_values(low: float, high: float, most: int) -> list[float]:
    """As many of 1, 2, 3, 5 times powers of ten in [low, high] as `most` allows, evenly in the logarithm."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    chosen: list[float] = []
    for subs, every in SUBS:
        values = [float(f"{sub}e{power}") for power in powers if power % every == 0 for sub in subs]
        values = [value for value in values if low <= value <= high]
        if len(values) > most and len(chosen) >= 2:
            break
        chosen = values
    return chosen
