"""The paper's figure 13: training loss, over all of training and over the last part, enlarged.

loss at s = mean of the losses logged in (0.8 s, s], each weighted by the steps it is the mean of
"""

from __future__ import annotations

from collections.abc import Sequence

from scaledit.report.figures import axes, labels, style
from scaledit.report.figures.curves import grid
from scaledit.scaling.table import Loss, Row, Table, grouped

WINDOW = 0.2
"""A point is the mean over this share of the steps so far: constant width on a logarithmic axis."""
LAST = 0.25
"""The second panel begins at this share of training."""
HEIGHT = 3.0


def losses(table: Table) -> style.Plot | None:
    logged = grouped(table.losses, lambda loss: loss.name)
    runs: dict[tuple[str, int], Row] = {}
    for row in sorted(grid(table.rows), key=lambda row: row.seed):
        if len(logged.get(row.name, [])) > 1:
            runs.setdefault((row.size, row.patch_size), row)
    if len(runs) < 2:
        return None
    look = style.Look.of(table)
    figure = style.figure(style.TWO_COLUMNS, HEIGHT)
    left, right = figure.subplots(1, 2)
    models = sorted(runs.values(), key=lambda row: row.macs)
    longest = max(loss.steps for row in models for loss in logged[row.name])
    unit = axes.steps_unit(models)
    tails, last = [], []
    for row in models:
        steps, values = smoothed(logged[row.name])
        for plot in (left, right):
            plot.plot(
                [s / unit.divisor for s in steps], values, **{**look.line(row), "marker": "", "linewidth": 1}
            )
        last.append((values[-1], row.model, look.color(row.size)))
        tails += [v for s, v in zip(steps, values, strict=True) if s >= LAST * longest]
    for plot, name in ((left, "all of training"), (right, f"last {1 - LAST:.0%} of training")):
        plot.set_xscale("log")
        axes.set_labels(plot, unit.name, "training loss (mean over a batch)" if plot is left else "")
        axes.set_title(plot, name)
    if tails:
        right.set_xlim(LAST * longest / unit.divisor, 1.02 * longest / unit.divisor)
        edge = 0.06 * (max(tails) - min(tails))
        right.set_ylim(min(tails) - edge, max(tails) + edge)
    left.set_yscale("log")
    for plot, axis in ((left, "x"), (left, "y"), (right, "x")):
        axes.logarithmic(plot, axis, 2.2)
    axes.linear(right, "y", 6)
    labels.ends(right, last)
    caption = (
        f"Training loss of {len(models)} models, one run each. Each point is the mean over the last "
        f"{WINDOW:.0%} of the steps up to it. Right: the last {1 - LAST:.0%} of training, enlarged."
    )
    return style.finish("13-losses", "Training loss", caption, figure)


def smoothed(logged: Sequence[Loss]) -> tuple[list[int], list[float]]:
    """(steps, losses), smoothed as above. A loss is the mean over the steps since the previous one."""
    ordered = sorted(logged, key=lambda loss: loss.steps)
    begins = [0, *(loss.steps for loss in ordered)]
    values = []
    for point in ordered:
        within = [
            (loss.loss, loss.steps - begin)
            for loss, begin in zip(ordered, begins, strict=False)
            if (1 - WINDOW) * point.steps < loss.steps <= point.steps
        ]
        values.append(sum(value * weight for value, weight in within) / sum(weight for _, weight in within))
    return [loss.steps for loss in ordered], values
