"""What a study will take on this machine, from a timed step and a timed sampling pass of each of its models.

    seconds = steps * t(training step) + passes * ceil(images / batch) * t(forward pass of a batch)

with evaluations in training counted like all others. Left out, being small: reading
data, judging, saving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from scaledit import assemble
from scaledit.callbacks import Progress
from scaledit.config import RunConfig
from scaledit.machine import seconds as fastest
from scaledit.machine import wait
from scaledit.models import flops
from scaledit.models.config import DiTConfig
from scaledit.scaling.study import Study
from scaledit.scaling.work import measurement_job, sampling_macs, training_job

MOST_MACS = 2e10
"""Of one timed pass: of a larger batch only a part is timed."""


class Rates(NamedTuple):
    """Seconds a multiply-add, in training and in sampling."""

    training: float
    sampling: float


class Cost(NamedTuple):
    """train_macs, sampling_macs: multiply-adds of all trainings and of all drawing. seconds: of each job on
    one worker, by its key. longest: the run that takes most, its name and seconds."""

    train_macs: int
    sampling_macs: int
    seconds: Mapping[str, float]
    longest: tuple[str, float]

    def hours(self, workers: int) -> float:
        """At best: as the jobs share out over so many workers, and never less than the longest."""
        total = sum(self.seconds.values())
        return max(total / workers, max(self.seconds.values(), default=0.0)) / 3600


def estimate(study: Study, device: torch.device, progress: Progress) -> Cost:
    """Times every model of `study` on `device`, with the threads of this moment."""
    models = list(dict.fromkeys((run.config.model, run.config.train.batch_size) for run in study.runs))
    rates: dict[tuple[DiTConfig, int], Rates] = {}
    for done, (model, batch) in enumerate(models):
        rates[model, batch] = timed(model, batch, device)
        progress(done + 1, len(models))
    seconds: dict[str, float] = {}
    train_macs, sampled, longest = 0, 0.0, ("", 0.0)
    for run in study.runs:
        config, rate = run.config, _rate(run.config, rates)
        own = flops.train_macs(flops.count(config.model).macs, config.train.batch_size * config.train.steps)
        sampling = training_job(run).macs - own
        train_macs += own
        sampled += sampling
        took = own * rate.training + sampling * rate.sampling
        seconds[run.key] = took
        longest = max(longest, (run.name, took), key=lambda pair: pair[1])
    for measurement in study.measurements:
        sampling = sampling_macs(measurement.config)
        sampled += sampling
        seconds[measurement_job(measurement).key] = sampling * _rate(measurement.run.config, rates).sampling
    return Cost(train_macs, int(sampled), seconds, longest)


def _rate(config: RunConfig, rates: Mapping[tuple[DiTConfig, int], Rates]) -> Rates:
    return rates[config.model, config.train.batch_size]


def timed(model: DiTConfig, batch: int, device: torch.device) -> Rates:
    """One training step (forward, backward, AdamW) and one forward pass without gradients."""
    macs = flops.count(model).macs
    size = max(1, min(batch, math.floor(MOST_MACS / (macs * flops.TRAIN_FORWARDS))))
    net = assemble.network(model, seed=0).to(device)
    x = torch.randn(size, *model.shape, device=device)
    t, y = torch.full((size,), 500.0, device=device), torch.zeros(size, dtype=torch.int64, device=device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        net(x, t, y).square().mean().backward()
        optimizer.step()
        wait(device)

    @torch.no_grad()
    def forward() -> None:
        net(x, t, y)
        wait(device)

    step()  # the first one sets things up
    return Rates(fastest(step, 2) / (size * macs * flops.TRAIN_FORWARDS), fastest(forward, 2) / (size * macs))
