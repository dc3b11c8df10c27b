"""What to train with a budget, from the results of a study, and how far the answer extrapolates from them.

budget  = hours * 3600 * peak * devices * utilization / 2            multiply-adds of training
fd(C)   = a power law, with a floor if the AICc is lower, through the staircase: the results that no
          result of the same or less compute beats
N_opt   = the law of the iso-FLOP minima at the budget               steps = budget / (3 N_opt batch)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scaledit.errors import UsageError
from scaledit.models.flops import TRAIN_FORWARDS
from scaledit.scaling import comparable
from scaledit.scaling.devices import terse
from scaledit.scaling.fits import Estimate, Miss, PowerLaw, as_dict, best_law, held_out
from scaledit.scaling.frontier import (
    MINIMA,
    Curve,
    Point,
    best_within,
    common_budgets,
    iso_flop,
    optimal_size,
    staircase,
)
from scaledit.scaling.plan import Hardware, duration, prefixed, scientific
from scaledit.scaling.table import Row, Table

FAR = 10.0  # an answer warns beyond this many times the measured compute
PRECISION = "tf32"  # the precision of the ImageNet recipes
FEWEST = 3  # results on the staircase that a law needs


class Optimum(NamedTuple):
    """The compute-optimal model at a budget.

    macs: multiply-adds of a forward pass. steps: with the study's batch, for the full budget. exponent: of
    the growth of macs with the budget. minima: number of budgets whose best model lies between the study's
    sizes; the law is fitted to these, from the budget `smallest` to `largest`.
    """

    macs: Estimate
    steps: int
    exponent: Estimate
    minima: int
    smallest: float
    largest: float


@dataclass(frozen=True)
class Answer:
    """What a study predicts for a training budget.

    study: its title. distance: the name of `fd`. budget: multiply-adds of training. batch_size: the study's.
    smallest, largest: range of the training compute of its results. best: the measured result with the
    smallest distance within the budget, None if all cost more; best_steps: the steps of that model that the
    budget pays for. law, predicted: the power law of the staircase and its prediction at the budget, None
    with fewer than three results on the staircase; held_out: the prediction of the same law for the largest
    result when fitted without it. optimum: None if there is none, for the reason no_optimum. hours, cost: of
    the budget on the hardware, where known; peak: FLOP/s of one device in `precision`; hardware_warnings: of
    that peak.
    """

    study: str
    distance: str
    budget: float
    batch_size: int
    smallest: float
    largest: float
    best: Row | None
    best_steps: int | None
    law: PowerLaw | None
    predicted: Estimate | None
    held_out: Miss | None
    optimum: Optimum | None
    no_optimum: str | None
    hours: float | None
    cost: float | None
    peak: float | None = None
    precision: str = PRECISION
    hardware_warnings: tuple[str, ...] = ()

    @property
    def extrapolation(self) -> float:
        """The factor by which the budget lies above or below the measured compute; 1 within its range."""
        return _outside(self.budget, self.smallest, self.largest)

    @property
    def reach(self) -> str:
        """The extrapolation in words."""
        if self.extrapolation == 1:
            return "within the measured range"
        side = "beyond the most" if self.budget > self.largest else "below the least"
        return f"{self.extrapolation:,.3g} times {side} compute in the study"

    @property
    def warnings(self) -> list[str]:
        warnings = [*self.hardware_warnings]
        if self.extrapolation > FAR:
            warnings.append(f"the budget is {self.reach}: no result shows whether the fit holds there")
        best = self.optimum
        if best is not None and (times := _outside(self.budget, best.smallest, best.largest)) > FAR:
            warnings.append(f"the budget is {times:,.3g} times outside the range of the optimal model's fit")
        return warnings

    def to_json(self) -> dict[str, Any]:
        measured = ("name", "size", "patch_size", "params", "macs", "steps", "train_macs", "fd", "fd_std")
        return {
            "study": self.study,
            "distance": self.distance,
            "budget": self.budget,
            "batch_size": self.batch_size,
            "measured_compute": [self.smallest, self.largest],
            "extrapolation": self.extrapolation,
            "reach": self.reach,
            "best": None if self.best is None else {name: getattr(self.best, name) for name in measured},
            "best_steps": self.best_steps,
            "law": None if self.law is None else self.law.to_json(),
            "predicted": as_dict(self.predicted),
            "held_out": as_dict(self.held_out),
            "optimum": as_dict(self.optimum),
            "no_optimum": self.no_optimum,
            "hours": self.hours,
            "cost": self.cost,
            "peak": self.peak,
            "precision": self.precision,
            "warnings": self.warnings,
        }

    def describe(self) -> list[tuple[str, str]]:
        """Labels and values with units, to print."""
        measured = f"{scientific(self.smallest)} to {scientific(self.largest)} multiply-adds"
        rows = [
            ("study", self.study),
            ("budget", f"{scientific(self.budget)} multiply-adds of training"),
            ("measured", f"{measured}; the budget is {self.reach}"),
        ]
        if self.hours is not None:
            at = "" if self.peak is None else f", devices of {terse(self.peak)} FLOP/s in {self.precision}"
            rows.append(("time", duration(self.hours) + at))
        if self.cost is not None:
            rows.append(("cost", f"{self.cost:,.2f}"))
        rows += [*self._describe_best(), *self._describe_law(), *self._describe_optimum()]
        return [*rows, *(("warning", text) for text in self.warnings)]

    def _describe_best(self) -> list[tuple[str, str]]:
        best = self.best
        if best is None:
            return [("best measured", "none: every result of the study cost more")]
        training = f"{best.model} after {best.steps:,} steps of batch {best.batch_size:,}"
        result = f"{self.distance} {best.fd:.4g}, {scientific(best.train_macs)} multiply-adds"
        return [
            ("best measured", f"{training}: {result}"),
            ("  in the full budget", f"{self.best_steps:,} steps"),
        ]

    def _describe_law(self) -> list[tuple[str, str]]:
        if self.law is None or self.predicted is None:
            return [("predicted", f"nothing: fewer than {FEWEST} results that no cheaper one beats")]
        floor = "no floor" if self.law.floor is None else f"floor {self.law.floor}"
        rows = [
            ("predicted", f"{self.distance} {self.predicted}"),
            ("  by", f"{self.law.n} results, exponent {self.law.exponent}, {floor}"),
        ]
        if self.held_out is not None:
            rows.append(("  largest held out", self.held_out.describe()))
        return rows

    def _describe_optimum(self) -> list[tuple[str, str]]:
        best = self.optimum
        if best is None:
            return [("optimal model", f"unknown: {self.no_optimum}")]
        value, low, high = map(prefixed, best.macs)
        budgets = f"{scientific(best.smallest)} to {scientific(best.largest)}"
        return [
            ("optimal model", f"{value} multiply-adds per image (95 %: {low} to {high})"),
            ("  in the full budget", f"{best.steps:,} steps of batch {self.batch_size:,}"),
            ("  by", f"{best.minima} minima from {budgets}, exponent {best.exponent}"),
        ]


def macs_in(hours: float, hardware: Hardware) -> float:
    """Multiply-adds of training in so many hours. Raises UsageError if hours are not positive or `hardware`
    has no peak."""
    if not 0 < hours < math.inf:
        raise UsageError(f"hours must be positive, got {hours}")
    if hardware.macs_per_hour is None:
        raise UsageError(
            "a budget in hours also needs the speed of a device, such as --gpu a100 or --peak 312e12"
        )
    return hours * hardware.macs_per_hour


def answer(
    table: Table, budget: float, hardware: Hardware | None = None, precision: str = PRECISION
) -> Answer:
    """What the study predicts for `budget` multiply-adds of training, and the hours they take if `hardware`
    has a peak. precision: of that peak.

    Raises UsageError for a budget that is not positive and for a study without results.
    """
    if not 0 < budget < math.inf:
        raise UsageError(f"a budget must be a positive number of multiply-adds, such as 1e18; got {budget}")
    hardware = hardware or Hardware()
    results = comparable.finished(table)
    points = comparable.points(results)
    point = best_within(points, budget)
    best = None if point is None else points[point]
    batch_size = statistics.mode(row.batch_size for row in results)
    law, miss = _law(staircase(points))
    optimum = _optimum(comparable.curves(comparable.over_training(table)), budget, batch_size)
    hours = None if hardware.macs_per_hour is None else budget / hardware.macs_per_hour
    return Answer(
        study=table.about.title,
        distance=table.about.distance,
        budget=budget,
        batch_size=batch_size,
        smallest=min(point.compute for point in points),
        largest=max(point.compute for point in points),
        best=best,
        best_steps=None if best is None else _steps(budget, best.macs, best.batch_size),
        law=law,
        predicted=None if law is None else law.predict(budget),
        held_out=miss,
        optimum=optimum if isinstance(optimum, Optimum) else None,
        no_optimum=optimum if isinstance(optimum, str) else None,
        hours=hours,
        cost=None if hours is None or hardware.price is None else hours * hardware.devices * hardware.price,
        peak=hardware.peak,
        precision=precision,
        hardware_warnings=hardware.warnings(precision),
    )


def _steps(budget: float, macs: float, batch_size: int) -> int:
    return int(budget / (TRAIN_FORWARDS * macs * batch_size))


def _outside(budget: float, smallest: float, largest: float) -> float:
    return max(budget / largest, smallest / budget, 1.0)


def _law(steps: Sequence[Point]) -> tuple[PowerLaw | None, Miss | None]:
    """The law through a staircase, and its miss of the largest result when fitted without it."""
    if len(steps) < FEWEST:
        return None, None
    compute, distances = [point.compute for point in steps], [point.distance for point in steps]
    law = best_law(compute, distances)
    if len(steps) == FEWEST:
        return law, None
    return law, held_out(compute, distances, floor=law.floor is not None).misses[0]


def _optimum(curves: Sequence[Curve], budget: float, batch_size: int) -> Optimum | str:
    """The optimum, or why there is none."""
    budgets = common_budgets(curves)
    if not budgets:
        return "no three models of different sizes were measured at the same compute"
    profiles = iso_flop(curves, budgets)
    interior = [profile.budget for profile in profiles if profile.where == "interior"]
    fitted = optimal_size(profiles)
    if fitted is not None:
        macs = fitted.at(budget)
        steps = _steps(budget, macs.value, batch_size)
        return Optimum(macs, steps, fitted.exponent, len(interior), interior[0], interior[-1])
    edges = [sum(profile.where == edge for profile in profiles) for edge in ("smallest", "largest")]
    return (
        f"it takes {MINIMA} budgets whose best model lies between the sizes, and {len(interior)} of "
        f"{len(profiles)} are such; the smallest model is best at {edges[0]}, the largest at {edges[1]}"
    )
