"""The time that a study takes on this machine, from a timed training step and forward pass of each of its
models.

    seconds = steps * t(training step) + passes * ceil(images / batch) * t(forward pass of a batch)

Evaluations during training are included. Reading data, computing metrics and saving are small and left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from scaledit import assemble
from scaledit.callbacks import Progress
from scaledit.machine import seconds as fastest
from scaledit.machine import wait
from scaledit.models import flops
from scaledit.models.config import DiTConfig
from scaledit.scaling.compute import train_macs_of
from scaledit.scaling.study import Study
from scaledit.scaling.work import measurement_job, sampling_macs, training_job

MAX_TIMED_MACS = 2e10
"""Of one timed pass; of a larger batch only a part is timed."""


class Rates(NamedTuple):
    """Seconds per multiply-add, in training and in sampling."""

    training: float
    sampling: float


class Cost(NamedTuple):
    """train_macs, sampling_macs: multiply-adds of all training and all sampling. seconds: of each job on one
    worker, by its key. longest: name and seconds of the run that takes longest."""

    train_macs: int
    sampling_macs: int
    seconds: Mapping[str, float]
    longest: tuple[str, float]

    def hours(self, workers: int) -> float:
        """At best: the jobs divided evenly over the workers, but no less than the longest job."""
        total = sum(self.seconds.values())
        return max(total / workers, max(self.seconds.values(), default=0.0)) / 3600


def estimate(study: Study, device: torch.device, progress: Progress) -> Cost:
    """Times every model of `study` on `device`, with the current number of threads."""
    models = list(dict.fromkeys((run.config.model, run.config.train.batch_size) for run in study.runs))
    rates: dict[tuple[DiTConfig, int], Rates] = {}
    for done, (model, batch) in enumerate(models):
        rates[model, batch] = measure_rates(model, batch, device)
        progress(done + 1, len(models))
    seconds: dict[str, float] = {}
    train_macs, sampled, longest = 0, 0.0, ("", 0.0)
    for run in study.runs:
        model, train = run.config.model, run.config.train
        rate = rates[model, train.batch_size]
        own = train_macs_of(run.config)
        sampling = training_job(run).macs - own
        train_macs += own
        sampled += sampling
        seconds[run.key] = own * rate.training + sampling * rate.sampling
        longest = max(longest, (run.name, seconds[run.key]), key=lambda pair: pair[1])
    for measurement in study.measurements:
        config = measurement.run.config
        sampling = sampling_macs(measurement.config)
        sampled += sampling
        rate = rates[config.model, config.train.batch_size]
        seconds[measurement_job(measurement).key] = sampling * rate.sampling
    return Cost(train_macs, int(sampled), seconds, longest)


def measure_rates(model: DiTConfig, batch: int, device: torch.device) -> Rates:
    """Times one training step (forward, backward, AdamW) and one forward pass without gradients."""
    macs = flops.count(model).macs
    size = max(1, min(batch, math.floor(MAX_TIMED_MACS / (macs * flops.TRAIN_FORWARDS))))
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

    step()  # allocates the optimizer state
    return Rates(fastest(step, 2) / (size * macs * flops.TRAIN_FORWARDS), fastest(forward, 2) / (size * macs))
