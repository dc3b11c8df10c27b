"""Comparison of models by their distance, relative to the noise of training.

    d = ln fd_b - ln fd_a      se = s sqrt(1/n_a + 1/n_b)      for: d > 2 se   against: d < -2 se   else a tie

s is the standard deviation of ln fd over training seeds, pooled over all models that were trained with
several seeds; n_a and n_b are their numbers of seeds. If nothing was trained twice, s is unknown and taken as
0: any difference counts, and the verdict says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from scaledit.scaling.table import FINAL, Row, Table, evaluated, grouped, training_key

Outcome = Literal["holds", "does not hold", "undecided", "not measured"]
SIGMAS = 2.0


class Mean(NamedTuple):
    """A model's distance: the geometric mean over `seeds` training runs."""

    name: str
    fd: float
    seeds: int


class Comparison(NamedTuple):
    """better: the model that should have the lower distance. ratio: distance of worse / distance of better,
    above 1 if so. sided: 1 for, -1 against, 0 within the noise."""

    better: str
    worse: str
    ratio: float
    sided: int


def noise(table: Table) -> float | None:
    """s: the standard deviation of ln fd over training seeds; None if nothing was trained twice."""
    groups = grouped(evaluated(table.part(FINAL)), training_key).values()
    several = [[math.log(row.distance) for row in rows] for rows in groups if len(rows) > 1]
    if not several:
        return None
    squares = sum((value - sum(values) / len(values)) ** 2 for values in several for value in values)
    return math.sqrt(squares / sum(len(values) - 1 for values in several))


def means(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, Mean]:
    """By `key`, in the order of the rows; rows without a distance are left out."""
    groups = grouped(evaluated(rows), key)
    logs = {name: [math.log(row.distance) for row in group] for name, group in groups.items()}
    return {name: Mean(name, math.exp(sum(v) / len(v)), len(v)) for name, v in logs.items()}


def compare(better: Mean, worse: Mean, s: float | None) -> Comparison:
    d = math.log(worse.fd / better.fd)
    se = (s or 0.0) * math.sqrt(1 / better.seeds + 1 / worse.seeds)
    sided = 0 if abs(d) <= SIGMAS * se or d == 0 else (1 if d > 0 else -1)
    return Comparison(better.name, worse.name, math.exp(d), sided)


def outcome(comparisons: Sequence[Comparison]) -> Outcome:
    """holds: none is against, and at least half are for. does not hold: more are against than for."""
    if not comparisons:
        return "not measured"
    sides = [pair.sided for pair in comparisons]
    if -1 not in sides and 2 * sides.count(1) >= len(sides):
        return "holds"
    return "does not hold" if sides.count(-1) > sides.count(1) else "undecided"


def counted(comparisons: Sequence[Comparison]) -> str:
    """'14 of 18 pairs for, 1 against (L/1 over B/1: 0.93), 3 within the noise'"""
    sides = [pair.sided for pair in comparisons]
    against = [f"{pair.better} over {pair.worse}: {pair.ratio:.2f}" for pair in comparisons if pair.sided < 0]
    named = f" ({'; '.join(against)})" if against else ""
    pro, con, ties = (sides.count(side) for side in (1, -1, 0))
    return f"{pro} of {len(sides)} pairs for, {con} against{named}, {ties} within the noise"
