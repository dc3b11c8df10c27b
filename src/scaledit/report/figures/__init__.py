"""All figures of a study, numbered like the paper's.

    Table --all_figures--> {"08-compute.png": Plot(name, title, caption, figure), ...}

A figure is a function of a table that returns None if the table lacks the results it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from scaledit.callbacks import Progress
from scaledit.report.figures.best import best
from scaledit.report.figures.blocks import blocks
from scaledit.report.figures.compute import NONE, Fit, compute
from scaledit.report.figures.efficiency import efficiency
from scaledit.report.figures.guidance import guidance
from scaledit.report.figures.losses import losses
from scaledit.report.figures.metrics import metrics
from scaledit.report.figures.samples import samples
from scaledit.report.figures.sampling import sampling
from scaledit.report.figures.style import Plot
from scaledit.report.figures.training import training
from scaledit.scaling.table import Table

__all__ = [
    "Fit",
    "Plot",
    "all_figures",
    "best",
    "blocks",
    "compute",
    "efficiency",
    "guidance",
    "losses",
    "metrics",
    "samples",
    "sampling",
    "training",
]


def all_figures(
    table: Table,
    rivals: Mapping[str, float] | None = None,
    by_gflops: Fit = NONE,
    by_params: Fit = NONE,
    progress: Progress = lambda done, total: None,
) -> dict[str, Plot]:
    """The figures that the table has enough results for, by file name, in the paper's order. rivals: results
    by name to show instead of the table's best. by_gflops, by_params: fits for the figure of compute.
    progress: called with (done, total) after each figure."""
    figures: tuple[Callable[[], Plot | None], ...] = (
        lambda: best(table, rivals),
        lambda: blocks(table),
        lambda: training(table),
        lambda: samples(table),
        lambda: compute(table, by_gflops, by_params),
        lambda: efficiency(table),
        lambda: sampling(table),
        lambda: metrics(table),
        lambda: losses(table),
        lambda: guidance(table),
    )
    plots = {}
    for done, figure in enumerate(figures):
        plot = figure()
        if plot is not None:
            plots[f"{plot.name}.png"] = plot
        progress(done + 1, len(figures))
    return plots
