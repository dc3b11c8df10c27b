"""What to train with a budget, from a study's own results, and how far beyond them that reaches.

budget  = hours * 3600 * peak * devices * utilisation / 2            multiply-adds of training
fd(C)   = a power law, with a floor if the AICc is lower, through the staircase: the results that no
          result of the same or less compute beats
N_opt   = the law of the iso-FLOP minima at the budget               steps = budget / (3 N_opt batch)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scaledit.errors import UsageError
from scaledit.models.flops import TRAIN_FORWARDS
from scaledit.scaling import comparable
from scaledit.scaling.devices import terse
from scaledit.scaling.fits import Estimate, Miss, PowerLaw, best_law, held_out
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
from scaledit.scaling.plan import FLOPS_PER_MAC, Hardware, duration, prefixed, scientific
from scaledit.scaling.table import Row, Table

FAR = 10.0  # times the measured compute, beyond which an answer warns of itself
PRECISION = "tf32"  # that a peak is of unless it is said: the ImageNet recipes'
FEWEST = 3  # results of the staircase that a law needs


class Optimum(NamedTuple):
    """The compute-optimal model at a budget.

    macs: of a forward pass. steps: of the study's batch, for the whole budget. exponent: how macs grow with
    the budget. minima: how many budgets have their best model between the study's sizes, which is what this
    is fitted to; smallest, largest: those budgets' ends.
    """

    macs: Estimate
    steps: int
    exponent: Estimate
    minima: int
    smallest: float
    largest: float


@dataclass(frozen=True)
class Answer:
    """What a study says of a training budget.

    study: its title. distance: what `fd` is. budget: multiply-adds of training. batch_size: the study's.
    smallest, largest: the training compute of its results. best: the measured result of the smallest
    distance within the budget, None below all of them; best_steps: how many steps of that model the budget
    would pay for. law, predicted: the power law of the staircase and what it says at the budget, None with
    fewer than three results on it; missed: how the same law without its largest result predicts that.
    optimum: None where no_optimum says why. hours, cost: of the budget on the hardware, where known;
    peak: of one device, in `precision`; of_hardware: what does not fit there.
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
    missed: Miss | None
    optimum: Optimum | None
    no_optimum: str | None
    hours: float | None
    cost: float | None
    peak: float | None = None
    precision: str = PRECISION
    of_hardware: tuple[str, ...] = ()

    @property
    def extrapolation(self) -> float:
        """How many times the budget lies beyond the most measured compute, or below the least; 1 within."""
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
        said = [*self.of_hardware]
        if self.extrapolation > FAR:
            said.append(f"the budget is {self.reach}: no result tells whether the fit holds there")
        best = self.optimum
        if best is not None and (times := _outside(self.budget, best.smallest, best.largest)) > FAR:
            said.append(f"the budget is {times:,.3g} times outside of those that tell the optimal model")
        return said

    def to_json(self) -> dict[str, Any]:
        best, miss, optimum = self.best, self.missed, self.optimum
        measured = ("name", "size", "patch_size", "params", "macs", "steps", "train_macs", "fd", "fd_std")
        return {
            "study": self.study,
            "distance": self.distance,
            "budget": self.budget,
            "batch_size": self.batch_size,
            "measured_compute": [self.smallest, self.largest],
            "extrapolation": self.extrapolation,
            "reach": self.reach,
            "best": None if best is None else {name: getattr(best, name) for name in measured},
            "best_steps": self.best_steps,
            "law": None if self.law is None else self.law.to_json(),
            "predicted": None if self.predicted is None else self.predicted._asdict(),
            "held_out": None if miss is None else {**miss._asdict(), "predicted": miss.predicted._asdict()},
            "optimum": None
            if optimum is None
            else {
                **optimum._asdict(),
                "macs": optimum.macs._asdict(),
                "exponent": optimum.exponent._asdict(),
            },
            "no_optimum": self.no_optimum,
            "hours": self.hours,
            "cost": self.cost,
            "peak": self.peak,
            "precision": self.precision,
            "warnings": self.warnings,
        }

    def describe(self) -> list[tuple[str, str]]:
        """Label and value, with units, of all that a reader wants to know."""
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
        trained = f"{best.model} after {best.steps:,} steps of batch {best.batch_size:,}"
        return [
            (
                "best measured",
                f"{trained}: {self.distance} {best.fd:.4g}, {scientific(best.train_macs)} multiply-adds",
            ),
            ("  all spent on it", f"{self.best_steps:,} steps"),
        ]

    def _describe_law(self) -> list[tuple[str, str]]:
        if self.law is None or self.predicted is None:
            return [("predicted", f"nothing: fewer than {FEWEST} results that no cheaper one beats")]
        floor = "no floor" if self.law.floor is None else f"floor {_between(self.law.floor)}"
        rows = [
            ("predicted", f"{self.distance} {_between(self.predicted)}"),
            ("  by", f"{self.law.n} results, exponent {_between(self.law.exponent)}, {floor}"),
        ]
        miss = self.missed
        if miss is not None:
            said = f"{miss.actual:.3g} was measured where the others predict {_between(miss.predicted)}"
            rows.append(("  largest held out", said))
        return rows

    def _describe_optimum(self) -> list[tuple[str, str]]:
        best = self.optimum
        if best is None:
            return [("optimal model", f"cannot be told: {self.no_optimum}")]
        low, high = prefixed(best.macs.low), prefixed(best.macs.high)
        return [
            ("optimal model", f"{prefixed(best.macs.value)} multiply-adds an image (95 %: {low} to {high})"),
            ("  all spent on it", f"{best.steps:,} steps of batch {self.batch_size:,}"),
            (
                "  by",
                f"{best.minima} minima from {scientific(best.smallest)} to {scientific(best.largest)}, "
                f"exponent {_between(best.exponent)}",
            ),
        ]


def macs_in(hours: float, hardware: Hardware) -> float:
    """Multiply-adds of training that fit into so many hours. Raises UsageError without a peak."""
    if not 0 < hours < math.inf:
        raise UsageError(f"hours must be positive, got {hours}")
    if hardware.peak is None:
        raise UsageError("hours need the peak of a device to become multiply-adds: --gpu a100, --peak 312e12")
    return hours * _macs_per_hour(hardware, hardware.peak)


def answer(
    table: Table, budget: float, hardware: Hardware | None = None, precision: str = PRECISION
) -> Answer:
    """What the study says of `budget` multiply-adds of training, and their hours where hardware has a peak.
    precision: that the peak is of.

    Raises UsageError for a budget that is not positive and for a study without results.
    """
    if not 0 < budget < math.inf:
        raise UsageError(f"a budget is a positive number of multiply-adds, such as 1e18; got {budget}")
    results = comparable.finished(table)
    points = comparable.points(results)
    found = best_within(points, budget)
    best = None if found is None else points[found]
    batch_size = comparable.usual(results, lambda row: row.batch_size)
    law, missed = _law(staircase(points))
    optimum = _optimum(comparable.curves(comparable.over_training(table)), budget, batch_size)
    hours = cost = None
    if hardware is not None and hardware.peak is not None:
        hours = budget / _macs_per_hour(hardware, hardware.peak)
        cost = None if hardware.price is None else hours * hardware.devices * hardware.price
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
        missed=missed,
        optimum=optimum if isinstance(optimum, Optimum) else None,
        no_optimum=optimum if isinstance(optimum, str) else None,
        hours=hours,
        cost=cost,
        peak=None if hardware is None else hardware.peak,
        precision=precision,
        of_hardware=() if hardware is None else hardware.warnings(precision),
    )


def _macs_per_hour(hardware: Hardware, peak: float) -> float:
    return 3600 * peak * hardware.devices * hardware.utilisation / FLOPS_PER_MAC


def _steps(budget: float, macs: float, batch_size: int) -> int:
    return int(budget / (TRAIN_FORWARDS * macs * batch_size))


def _outside(budget: float, smallest: float, largest: float) -> float:
    """How many times beyond or below a range; 1 within."""
    return max(budget / largest, smallest / budget, 1.0)


def _law(steps: Sequence[Point]) -> tuple[PowerLaw | None, Miss | None]:
    """The law through a staircase, and its miss of the largest result if it is fitted without that."""
    if len(steps) < FEWEST:
        return None, None
    compute, distances = [point.compute for point in steps], [point.distance for point in steps]
    law = best_law(compute, distances)
    floored = law.floor is not None
    if len(steps) == FEWEST:
        return law, None
    return law, held_out(compute, distances, floor=floored).misses[0]


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
        f"that needs {MINIMA} budgets whose best model lies between the sizes; of {len(profiles)} budgets "
        f"{len(interior)} are such; at {edges[0]} the smallest model is best, at {edges[1]} the largest"
    )


def _between(given: Estimate) -> str:
    """0.36 (95 %: 0.26 to 0.46)"""
    return f"{given.value:.3g} (95 %: {given.low:.3g} to {given.high:.3g})"
