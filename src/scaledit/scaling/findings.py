"""What a study's numbers say together: correlations, laws and what they predict, what to train.

    table  ->  r(log Gflops, log fd), fd = c + a C^-b, the largest model held out, frontier, iso-FLOP minima

All of a part that the table holds nothing on is None or empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scaledit.errors import UsageError
from scaledit.scaling import comparable, fits, frontier
from scaledit.scaling.fits import Correlation, HeldOut, PowerLaw
from scaledit.scaling.frontier import IsoFlop, OptimalSize, Point, Sampled, SamplingAgainstModel
from scaledit.scaling.table import SAMPLING, Table

FEWEST = 5
"""Models for a fit that is worth showing."""


@dataclass(frozen=True)
class Findings:
    """Over the models of the grid (`Table.models`). by_gflops, by_params: correlations of logarithms with the
    distance. law: of the distance over multiply-adds, without a floor; floored: with one; held_out: the law
    without the largest model, and what it says of that one. staircase: results that no cheaper one beats.
    profiles: all models at budgets that several reached, and optimal: how their minima grow. sampling: models
    against smaller ones with more sampling compute."""

    by_gflops: Correlation | None
    by_params: Correlation | None
    law: PowerLaw | None
    floored: PowerLaw | None
    by_params_law: PowerLaw | None
    held_out: HeldOut | None
    staircase: tuple[Point, ...]
    profiles: tuple[IsoFlop, ...]
    optimal: OptimalSize | None
    sampling: SamplingAgainstModel

    def to_json(self) -> dict[str, Any]:
        miss = self.held_out.misses[-1] if self.held_out is not None else None
        return {
            "correlation_gflops": None if self.by_gflops is None else self.by_gflops._asdict(),
            "correlation_params": None if self.by_params is None else self.by_params._asdict(),
            "power_law": None if self.law is None else self.law.to_json(),
            "power_law_with_floor": None if self.floored is None else self.floored.to_json(),
            "held_out": None
            if miss is None
            else {**miss._asdict(), "predicted": miss.predicted._asdict(), "inside": miss.inside},
            "frontier": [point._asdict() for point in self.staircase],
            "iso_flop": [one._asdict() for one in self.profiles],
            "optimal_size_exponent": None if self.optimal is None else self.optimal.exponent._asdict(),
            "sampling": {
                "compared": len(self.sampling.compared),
                "counterexamples": [
                    {"small": pair.small._asdict(), "large": pair.large._asdict()}
                    for pair in self.sampling.counterexamples
                ],
            },
        }


def findings(table: Table) -> Findings:
    """All fits of a study's table; the same table gives the same numbers."""
    models = [row for row in table.models() if row.fd is not None]
    macs = np.array([row.macs for row in models], np.float64)
    params = np.array([row.params for row in models], np.float64)
    fd = np.array([row.fd for row in models], np.float64)
    enough = len(models) >= FEWEST
    try:
        finished, training = comparable.finished(table), comparable.over_training(table)
    except UsageError:  # no model finished
        finished, training = [], []
    curves = comparable.curves(training)
    profiles = frontier.iso_flop(curves, frontier.common_budgets(curves))
    sampled = [
        Sampled(row.name, float(row.macs), float(row.sampling_macs), row.fd)
        for row in table.part(SAMPLING)
        if row.fd is not None
    ]
    return Findings(
        by_gflops=fits.correlation(macs, fd) if enough else None,
        by_params=fits.correlation(params, fd) if enough else None,
        law=fits.power_law(macs, fd) if enough else None,
        floored=fits.power_law_with_floor(macs, fd) if enough else None,
        by_params_law=fits.power_law(params, fd) if enough else None,
        held_out=fits.held_out(macs, fd) if enough else None,
        staircase=tuple(frontier.staircase(comparable.points(finished))),
        profiles=tuple(profiles),
        optimal=frontier.optimal_size(profiles),
        sampling=frontier.sampling_against_model(sampled),
    )
