"""The lines of a figure: the rows of one model, over training or over what a part of the study varies.

The grid is the sizes and patches with the block design, input size and settings that most rows have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from scaledit.scaling.comparable import finished
from scaledit.scaling.table import TRAINING, Row, Table, evaluated, grouped, over_seeds, usual


class Curve(NamedTuple):
    """rows: along the line, averaged over `runs` runs, whose deviation fd_std then is."""

    rows: list[Row]
    runs: int

    @property
    def first(self) -> Row:
        return self.rows[0]


def grid(rows: Iterable[Row]) -> list[Row]:
    """The rows of the usual block design, input size and settings, as in `Table.models`."""
    return usual(rows, lambda row: row.conditioning, lambda row: row.area, lambda row: dict(row.settings))


def curves(rows: Iterable[Row], along: Callable[[Row], float], by: Callable[[Row], Hashable]) -> list[Curve]:
    """A curve for each value of `by`, by rising compute, with its rows by rising `along`. Only the runs with
    the most rows are averaged: one that ended early would bend the line at its end."""
    lines = []
    for group in grouped(evaluated(rows), by).values():
        runs = grouped(group, lambda row: row.name).values()
        most = max(map(len, runs))
        full = [run for run in runs if len(run) == most]
        mean = over_seeds([row for run in full for row in run], along)
        lines.append(Curve(sorted(mean, key=along), len(full)))
    return sorted(lines, key=lambda curve: curve.first.macs)


def over_training(table: Table, longest: float = math.inf) -> list[Curve]:
    """The grid during training, up to `longest` steps: one curve per model."""
    rows = grid(table.part(TRAINING, lambda row: row.steps <= longest))
    return curves(rows, lambda row: row.steps, lambda row: (row.size, row.patch_size))


def at_ends(table: Table) -> list[Curve]:
    """The grid at the ends of training runs of different lengths; a model trained once is a single point."""
    if not evaluated(table.models()):
        return []
    return curves(finished(table), lambda row: row.steps, lambda row: (row.size, row.patch_size))
