"""All fits of a study's table: correlations, laws and their predictions, the frontier.

    table  ->  r(log Gflops, log fd), fd = c + a C^-b, the largest model held out, frontier, iso-FLOP minima

A fit is None or empty if the table has too few results for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scaledit.errors import UsageError
from scaledit.scaling import comparable, fits, frontier
from scaledit.scaling.fits import Correlation, HeldOut, PowerLaw, as_dict
from scaledit.scaling.frontier import IsoFlop, OptimalSize, Point, Sampled, SamplingAgainstModel
from scaledit.scaling.table import SAMPLING, Table, evaluated

FEWEST = 5
"""Models that a fit needs."""


@dataclass(frozen=True)
class Findings:
    """Fits over the models of the grid (`Table.models`).

    by_gflops, by_params: correlations of logarithms with the distance. law, floored: of the distance over
    multiply-adds, without and with a floor; by_params_law: over parameters. held_out: the law without the
    largest model, and its prediction for it. staircase: results that no cheaper one beats. profiles: all
    models at budgets that several reached; optimal: the growth of their minima. sampling: models against
    smaller ones with more sampling compute."""

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
            "correlation_gflops": as_dict(self.by_gflops),
            "correlation_params": as_dict(self.by_params),
            "power_law": None if self.law is None else self.law.to_json(),
            "power_law_with_floor": None if self.floored is None else self.floored.to_json(),
            "held_out": None if miss is None else {**as_dict(miss), "inside": miss.inside},
            "frontier": [as_dict(point) for point in self.staircase],
            "iso_flop": [as_dict(profile) for profile in self.profiles],
            "optimal_size_exponent": None if self.optimal is None else as_dict(self.optimal.exponent),
            "sampling": {
                "compared": len(self.sampling.compared),
                "counterexamples": [as_dict(pair) for pair in self.sampling.counterexamples],
            },
        }


def findings(table: Table) -> Findings:
    """All fits of a study's table, deterministic."""
    models = evaluated(table.models())
    macs = np.array([row.macs for row in models], np.float64)
    params = np.array([row.params for row in models], np.float64)
    fd = np.array([row.fd for row in models], np.float64)
    enough = len(models) >= FEWEST
    try:
        finished, training = comparable.finished(table), comparable.over_training(table)
    except UsageError:  # no model finished training
        finished, training = [], []
    curves = comparable.curves(training)
    profiles = frontier.iso_flop(curves, frontier.common_budgets(curves))
    sampled = [
        Sampled(row.name, float(row.macs), float(row.sampling_macs), row.distance)
        for row in evaluated(table.part(SAMPLING))
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
