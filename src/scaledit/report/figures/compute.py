"""The paper's figure 8: distance against Gflops, beside distance against parameters, which predict less.

A law is a line in these axes: fd = a C^-b.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scaledit.report.figures import axes, labels, style, words
from scaledit.report.figures.curves import ends_of_training, fd
from scaledit.scaling.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 3.2
COUNTS = {"": "", "k": " (thousands)", "M": " (millions)", "G": " (billions)"}
WRAP = 56
"""Letters of a note in a panel's width."""


class Fit(NamedTuple):
    """What is drawn of a fit. law: x -> fd; band: x -> (low, high). note: in words, above the panel."""

    law: Callable[[np.ndarray], np.ndarray] | None = None
    band: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    note: str = ""


NONE = Fit()


def compute(table: Table, by_gflops: Fit = NONE, by_params: Fit = NONE) -> style.Plot | None:
    """by_gflops: of x in Gflops (1e9 multiply-adds). by_params: of x in parameters."""
    models = ends_of_training(table)
    if len(models) < 3:
        return None
    look = style.Look.of(table)
    figure = style.figure(style.TWO_COLUMNS, HEIGHT)
    left, right = figure.subplots(1, 2, sharey=True)
    flops, params = (
        axes.unit([row.macs for row in models], "flops"),
        axes.unit([row.params for row in models], ""),
    )
    _panel(left, look, models, [row.gflops for row in models], flops.divisor / 1e9, by_gflops)
    _panel(right, look, models, [row.params for row in models], params.divisor, by_params)
    axes.dress(left, f"model compute ({flops.name} of a forward pass)", words.distance(table, models))
    axes.dress(right, f"parameters{COUNTS[params.name]}", "")
    for plot in (left, right):
        axes.real(plot, table.about.floor)
        axes.logarithmic(plot, "x", HEIGHT - 0.9)
        axes.logarithmic(plot, "y", HEIGHT - 0.9)
    axes.key(right, look.keys(models, lines=False))
    for plot, x in (
        (left, [r.macs / flops.divisor for r in models]),
        (right, [r.params / params.divisor for r in models]),
    ):
        labels.place(plot, [labels.Label(at, fd(r), r.model) for at, r in zip(x, models, strict=True)])
    spread = (
        " Bars: one standard deviation over training seeds, or over sample seeds where one was trained."
        if any(row.fd_std for row in models)
        else ""
    )
    fitted = " Line: power law fitted to the points, with its band." if by_gflops.law else ""
    caption = (
        f"{len(models)} models after {words.trained(models)}: against the compute of a forward pass (left) "
        f"and against parameters (right).{fitted}{spread}{words.floor(table)} {words.FLOPS} "
        f"{words.protocol(table, models)}"
    )
    return style.finished("08-compute", "Distance over model compute and over parameters", caption, figure)


def _panel(
    plot: Axes, look: style.Look, models: Sequence[Row], x: Sequence[float], divisor: float, fit: Fit
) -> None:
    """x in the fit's unit; shown in `divisor` of them."""
    plot.set_xscale("log")
    plot.set_yscale("log")
    for at, row in zip(x, models, strict=True):
        if row.fd_std:
            plot.plot([at / divisor] * 2, axes.around(row), color=look.colour(row.size), linewidth=0.8)
        plot.plot([at / divisor], [fd(row)], **{**look.dots(row), "markersize": 5})
    line = np.geomspace(min(x) / 1.4, max(x) * 1.4, 100)
    if fit.band is not None:
        low, high = fit.band(line)
        plot.fill_between(line / divisor, low, high, color=style.FAINT, alpha=0.6, linewidth=0, zorder=0)
    if fit.law is not None:
        plot.plot(line / divisor, fit.law(line), color=style.QUIET, linewidth=1, zorder=1)
    if fit.note:
        axes.heading(plot, textwrap.fill(fit.note, WRAP))
    plot.margins(x=0.06, y=0.08)
