"""Named values as bars, the value at each bar's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from scaledit.report.figures.axes import linear, set_labels
from scaledit.report.figures.style import FAINT, INK, OKABE_ITO, SMALL

HEIGHT = 0.2
"""Inches per bar."""


class Bar(NamedTuple):
    """highlighted: dark instead of gray."""

    name: str
    value: float
    std: float | None = None
    highlighted: bool = True


def plot_bars(plot: Axes, bars: Sequence[Bar], xlabel: str) -> None:
    """Plots the bars from top to bottom, with std as an error bar."""
    places = range(len(bars))
    plot.barh(
        places,
        [bar.value for bar in bars],
        xerr=[bar.std or 0.0 for bar in bars],
        height=0.68,
        color=[OKABE_ITO[0] if bar.highlighted else FAINT for bar in bars],
        error_kw={"linewidth": 0.8, "ecolor": INK},
    )
    for place, bar in zip(places, bars, strict=True):
        plot.annotate(
            f"{bar.value:#.3g}".rstrip("."),
            (bar.value + (bar.std or 0.0), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=INK,
        )
    plot.set_xlim(0, max(bar.value + (bar.std or 0.0) for bar in bars) * 1.16)  # room for the number
    plot.set_ylim(len(bars) - 0.5, -0.5)
    set_labels(plot, xlabel, "")
    linear(plot, "x", 5)
    plot.set_yticks(list(places), [bar.name for bar in bars])
    plot.tick_params(axis="y", length=0)
    plot.spines["left"].set_visible(False)
