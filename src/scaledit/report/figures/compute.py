"""The paper's figure 8: distance over Gflops, beside distance over parameters, which predict it less.

A power law, fd = a C^-b, is a straight line in these axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from scaledit.report.figures import axes, labels, style, words
from scaledit.scaling.table import Row, Table, evaluated

HEIGHT = 3.2
COUNTS = {"": "", "k": " (thousands)", "M": " (millions)", "G": " (billions)"}


class Fit(NamedTuple):
    """A fit to plot. law: x -> fd; band: x -> (low, high). note: text above the
    panel, with a line for each part that ends in a semicolon."""

    law: Callable[[np.ndarray], np.ndarray] | None = None
    band: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    note: str = ""


NONE = Fit()


def compute(table: Table, by_gflops: Fit = NONE, by_params: Fit = NONE) -> style.Plot | None:
    """by_gflops: of x in Gflops (1e9 multiply-adds). by_params: of x in parameters."""
    models = evaluated(table.models())
    if len(models) < 3:
        return None
    look = style.Look.of(table)
    figure = style.figure(style.TWO_COLUMNS, HEIGHT)
    left, right = figure.subplots(1, 2, sharey=True)
    flops = axes.unit([row.macs for row in models], "flops")
    params = axes.unit([row.params for row in models], "")
    _panel(left, look, models, [row.gflops for row in models], flops.divisor / 1e9, by_gflops)
    _panel(right, look, models, [row.params for row in models], params.divisor, by_params)
    axes.set_labels(left, f"model compute ({flops.name} of a forward pass)", words.distance(table, models))
    axes.set_labels(right, f"parameters{COUNTS[params.name]}", "")
    for plot in (left, right):
        axes.mark_real(plot, table.about.floor)
        axes.logarithmic(plot, "x", HEIGHT - 0.9)
        axes.logarithmic(plot, "y", HEIGHT - 0.9)
    axes.legend(right, look.handles(models, lines=False))
    for plot, x in (
        (left, [r.macs / flops.divisor for r in models]),
        (right, [r.params / params.divisor for r in models]),
    ):
        labels.place(plot, [labels.Label(at, r.distance, r.model) for at, r in zip(x, models, strict=True)])
    spread = (
        " Bars show one standard deviation over training seeds, or over sample seeds for models trained once."
        if any(row.fd_std for row in models)
        else ""
    )
    fitted = " The line is a power law fitted to the points, with its 95% band." if by_gflops.law else ""
    caption = (
        f"{len(models)} models after {words.trained(models)}: distance over the compute of a forward pass "
        f"(left) and over the number of parameters (right).{fitted}{spread}{words.floor(table)} "
        f"{words.FLOPS} {words.protocol(table, models)}"
    )
    return style.finish("08-compute", "Distance over model compute and over parameters", caption, figure)


def _panel(
    plot: Axes, look: style.Look, models: Sequence[Row], x: Sequence[float], divisor: float, fit: Fit
) -> None:
    """x: in the unit of the fit; the axis shows x / divisor."""
    plot.set_xscale("log")
    plot.set_yscale("log")
    for at, row in zip(x, models, strict=True):
        if row.fd_std:
            plot.plot([at / divisor] * 2, axes.error_bar(row), color=look.color(row.size), linewidth=0.8)
        plot.plot([at / divisor], [row.distance], **{**look.dots(row), "markersize": 5})
    line = np.geomspace(min(x) / 1.4, max(x) * 1.4, 100)
    if fit.band is not None:
        low, high = fit.band(line)
        plot.fill_between(line / divisor, low, high, color=style.FAINT, alpha=0.6, linewidth=0, zorder=0)
    if fit.law is not None:
        plot.plot(line / divisor, fit.law(line), color=style.QUIET, linewidth=1, zorder=1)
    if fit.note:
        axes.set_title(plot, fit.note.replace("; ", ";\n"))
    plot.margins(x=0.06, y=0.08)
