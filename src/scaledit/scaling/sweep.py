"""What a sweep found: results by the values that it varied, and the best of them.

    results at the end of training  --by value, over training seeds-->  Point: mean, deviation, seeds
    best = the best mean;  it differs from another value if p < 0.05 in Welch's t-test (1947) over the seeds

The metric that decides is the first of the evaluation, and the training loss where nothing was evaluated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scaledit.evaluation.metric import Column, columns
from scaledit.scaling.table import FINAL, Row, Table

LOSS = Column("loss", "training loss", digits=4)
P = 0.05
"""Two results are distinguishable if Welch's t-test gives less."""
POINTS = 4_000
"""Of an integral by the midpoint rule: p is exact to 1e-4."""
DECADES = 10.0
"""Values whose ratio is at least this are shown on a logarithmic axis."""
RULE = (
    "The best value is the one with the best mean over the training seeds. It is distinguishable from "
    f"another one if Welch's t-test over the seeds of both gives p < {P}."
)


class Spread(NamedTuple):
    """mean, std: over training seeds; std is None if there is only one. values: of each seed."""

    mean: float
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        mean, count = sum(values) / len(values), len(values)
        variance = sum((value - mean) ** 2 for value in values) / (count - 1) if count > 1 else None
        return cls(mean, None if variance is None else math.sqrt(variance), tuple(values))

    def text(self, digits: int) -> str:
        """6.5 ± 0.9"""
        return f"{self.mean:.{digits}g}" + ("" if self.std is None else f" ± {self.std:.2g}")


@dataclass(frozen=True)
class Point:
    """The runs with the same values. values: by the key that was varied. runs: their names, the first seed
    first. metrics: by column, of the runs that have finished. failed: why runs have no result."""

    values: Mapping[str, Any]
    runs: tuple[str, ...]
    metrics: Mapping[str, Spread]
    failed: tuple[str, ...]

    @property
    def title(self) -> str:
        """learning_rate=0.001, batch_size=64"""
        return ", ".join(f"{short(key)}={worded(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Sweep:
    """keys: what was varied. points: in the order in which the values were declared. columns: of the metrics,
    the one that decides first."""

    keys: tuple[str, ...]
    points: tuple[Point, ...]
    columns: tuple[Column, ...]

    @property
    def main(self) -> Column:
        return self.columns[0]

    def ranked(self) -> list[Point]:
        """The points with a result, the best first."""
        known = [point for point in self.points if self.main.key in point.metrics]
        return sorted(known, key=lambda point: badness(self.main, point.metrics[self.main.key].mean))

    def alike(self) -> list[Point]:
        """The points that are not distinguishable from the best one; none if the spread is unknown."""
        key, ranked = self.main.key, self.ranked()
        best = ranked[0].metrics[key] if ranked else None
        if best is None or best.std is None:
            return []
        others = [(point, point.metrics[key]) for point in ranked[1:]]
        return [point for point, spread in others if spread.std is None or not differ(best, spread)]

    def verdict(self) -> str:
        """Which value is best, with its margin and what that is worth."""
        ranked, title = self.ranked(), self.main.title
        if not ranked:
            return "No run has a result."
        best = ranked[0].metrics[self.main.key]
        said = f"{ranked[0].title}: {title} {best.text(self.main.digits)}"
        if len(ranked) == 1:
            return f"{said}. It is the only value with a result."
        second = ranked[1].metrics[self.main.key]
        said += f"; the next is {ranked[1].title} with {second.text(self.main.digits)}"
        margin = f"{abs(best.mean - second.mean):.2g}"
        if best.std is None:
            return (
                f"{said}. The best value has the result of one seed, so the margin of {margin} cannot be "
                "compared with chance; set seeds = 3."
            )
        if not (alike := self.alike()):
            return f"{said}. With a margin of {margin}, it is distinguishable from all others."
        return f"{said}. Not distinguishable from it: {'; '.join(point.title for point in alike)}."


def badness(column: Column, value: float) -> float:
    """Smaller is better."""
    match column.better:
        case "higher":
            return -value
        case "near 1":
            return abs(value - 1)
    return value


def differ(a: Spread, b: Spread) -> bool:
    """Whether two results of several seeds each are further apart than chance explains."""
    if a.std == b.std == 0:
        return a.mean != b.mean
    return welch(a, b) < P


def welch(a: Spread, b: Spread) -> float:
    """The p-value of Welch's t-test (Biometrika 34, 1947), two-sided: how often two groups of these sizes and
    spreads with one mean would differ as much.

        t = |m_a - m_b| / sqrt(e_a + e_b)     e = s^2 / n     d = (e_a + e_b)^2 / (e_a^2 / (n_a - 1) + ...)
        p = 1 - I(atan(t / sqrt(d))) / I(pi / 2)              I(x) = integral from 0 to x of cos(u)^(d - 1) du
    """
    errors = [(spread.std or 0.0) ** 2 / len(spread.values) for spread in (a, b)]
    t = abs(a.mean - b.mean) / math.sqrt(sum(errors))
    own = (error**2 / (len(spread.values) - 1) for error, spread in zip(errors, (a, b), strict=True))
    return p_value(t, sum(errors) ** 2 / sum(own))


def p_value(t: float, d: float) -> float:
    """The two-sided p-value of Student's t with d degrees of freedom; the formula is in `welch`."""

    def integral(end: float) -> float:
        u = (np.arange(POINTS) + 0.5) / POINTS * end
        return end * float(np.mean(np.cos(u) ** (d - 1)))

    return 1 - integral(math.atan(t / math.sqrt(d))) / integral(math.pi / 2)


def sweep(table: Table) -> Sweep:
    """The results of a table whose study varied something (`About.varied`)."""
    varied, failed = table.about.varied, table.about.failed
    rows = {row.name: row for row in table.part(FINAL)}
    points: dict[str, list[str]] = {}
    for name, values in varied.items():
        points.setdefault(json.dumps(values), []).append(name)
    shown = _columns(table, list(rows.values()))
    keys = tuple(dict.fromkeys(key for values in varied.values() for key in values))
    return Sweep(
        keys, tuple(_point(varied[names[0]], names, rows, failed, shown) for names in points.values()), shown
    )


def _columns(table: Table, rows: Sequence[Row]) -> tuple[Column, ...]:
    """The metric that decides, the training loss, and the other metrics of short tables."""
    present = [
        column
        for column in columns(*table.about.protocols.values()).values()
        if any(column.key in row.metrics for row in rows)
    ]
    return (*present[:1], LOSS, *(column for column in present[1:] if column.brief))


def _point(
    values: Mapping[str, Any],
    names: Sequence[str],
    rows: Mapping[str, Row],
    failed: Mapping[str, str],
    shown: Sequence[Column],
) -> Point:
    finished = [rows[name] for name in names if name in rows]
    metrics = {}
    for column in shown:
        known = [row.loss if column is LOSS else row.metric(column.key) for row in finished]
        numbers = [value for value in known if value is not None]
        metrics |= {column.key: Spread.of(numbers)} if numbers else {}
    return Point(values, tuple(names), metrics, tuple(failed[name] for name in names if name in failed))


def short(key: str) -> str:
    """optimizer.learning_rate -> learning_rate"""
    return key.rpartition(".")[2]


def worded(value: Any) -> str:
    """A value as a recipe would have it, short."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers; None if one is none."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return None
    return [float(value) for value in values]


def spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= DECADES
