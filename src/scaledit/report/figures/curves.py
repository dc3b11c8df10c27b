"""Which rows of a table make a line: of one model, over training or over what a part of the study varies.

The grid is the sizes and patches with the block design, input size and settings that most rows have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from scaledit.scaling.comparable import finished
from scaledit.scaling.table import TRAINING, Row, Table, over_seeds


class Curve(NamedTuple):
    """rows: along the line, runs averaged (fd_std then is the deviation over them). runs: how many."""

    rows: list[Row]
    runs: int

    @property
    def first(self) -> Row:
        return self.rows[0]


def fd(row: Row) -> float:
    """Of a row that was judged."""
    assert row.fd is not None
    return row.fd


def grid(rows: Sequence[Row]) -> list[Row]:
    """The rows of the usual block design, input size and settings, as `Table.models` chooses them."""
    kept = list(rows)
    for of in (lambda row: row.conditioning, area, lambda row: dict(row.settings)):
        values = [of(row) for row in kept]
        usual = max(values, key=values.count, default=None)
        kept = [row for row, value in zip(kept, values, strict=True) if value == usual]
    return kept


def area(row: Row) -> int:
    """Pixels, or latents, of an input: in a study of several input sizes, only equal ones compare."""
    return row.tokens * row.patch_size**2


def curves(
    rows: Sequence[Row], along: Callable[[Row], float], by: Callable[[Row], tuple[Any, ...]]
) -> list[Curve]:
    """A curve for each value of `by`, in the order of compute, its rows in the order of `along`. Averaged are
    the runs that have most rows: one that ended early would bend the line where it ends."""
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if row.fd is not None:
            groups.setdefault(by(row), {}).setdefault(row.name, []).append(row)
    found = []
    for runs in groups.values():
        most = max(len(run) for run in runs.values())
        full = [run for run in runs.values() if len(run) == most]
        mean = over_seeds([row for run in full for row in run], lambda row: (along(row),))
        found.append(Curve(sorted(mean, key=along), len(full)))
    return sorted(found, key=lambda curve: curve.first.macs)


def over_training(table: Table, longest: float = math.inf) -> list[Curve]:
    """The grid during training up to so many steps, a curve a model."""
    rows = grid(table.part(TRAINING, lambda row: row.steps <= longest))
    return curves(rows, lambda row: row.steps, lambda row: (row.size, row.patch_size))


def at_ends(table: Table) -> list[Curve]:
    """The grid at the ends of trainings of different lengths; a model trained once is a single point."""
    if not ends_of_training(table):
        return []
    return curves(finished(table), lambda row: row.steps, lambda row: (row.size, row.patch_size))


def ends_of_training(table: Table) -> list[Row]:
    """`Table.models`, those that were judged."""
    return [row for row in table.models() if row.fd is not None]
