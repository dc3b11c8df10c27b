"""Guidance parts against their papers' equations, and what each costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaledit import DiT, DiTConfig
from scaledit.conditions.labels import Labels
from scaledit.diffusion import (
    ClassifierFree,
    Epsilon,
    Heun,
    Interval,
    Job,
    LearnedRange,
    LinearBeta,
    LinearFlow,
    NetDenoiser,
    Noise,
    Parameterization,
    Prediction,
    Schedule,
    Velocity,
    guided,
    sample,
    sample_many,
)
from scaledit.diffusion.guidance.base import active, guide
from scaledit.errors import UsageError

SHAPE = (3, 4, 4)


class Counting:
    """A network that counts the rows it is evaluated on."""

    def __init__(self, net: DiT):
        self.net, self.rows, self.calls = net, 0, 0
        self.null_label = net.null_label

    def condition(self, *args):
        return self.net.condition(*args)

    def __call__(self, x: Tensor, t: Tensor, y, **options):
        self.rows += len(x)
        self.calls += 1
        return self.net(x, t, y, **options)


def denoiser_of(schedule: Schedule, parameterization: Parameterization) -> NetDenoiser:
    torch.manual_seed(0)
    learned = isinstance(parameterization, LearnedRange)
    net = DiT(DiTConfig(4, 2, 3, hidden_size=16, depth=2, num_heads=2, num_classes=3, learn_sigma=learned))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return NetDenoiser(Counting(net.eval()), schedule, parameterization)  # pyright: ignore[reportArgumentType]


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def same(a: Prediction, b: Prediction) -> bool:
    return near(a.x0, b.x0) and near(a.eps, b.eps)


FLOW = (LinearFlow(), Velocity())
CHAIN = (LinearBeta(), LearnedRange(Epsilon()))
both = pytest.mark.parametrize(("schedule", "parameterization"), [FLOW, CHAIN], ids=["flow", "chain"])


# ---- interval --------------------------------------------------------------------------------------------


@both
@torch.no_grad()
def test_an_interval_guides_its_times_and_evaluates_nothing_more_elsewhere(schedule, parameterization):
    """Rows at different times, one scale per row, conditions of both kinds; each row is what it is alone."""
    inside = denoiser_of(schedule, parameterization)
    fractions = torch.tensor([0.1, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    t = schedule.clean + schedule.horizon * fractions
    assert torch.allclose(schedule.fraction(t), fractions, rtol=0, atol=1e-15)
    x, y = Noise(0, range(5), SHAPE).initial(), torch.tensor([0, 1, 2, 0, 1])
    scales = torch.tensor([2.0, 3.0, 1.0, 4.0, 5.0], dtype=torch.float64)
    part = guided(inside, [ClassifierFree(scale=scales), Interval(low=0.2, high=0.8)])  # type: ignore[arg-type]
    inside.net.rows = 0
    made = part(x, t, y)
    assert inside.net.rows == 5 + 2  # 0.5 and 0.8 are guided: low < t <= high
    plain, full = inside(x, t, y), ClassifierFree(inside, scales)(x, t, y)  # type: ignore[arg-type]
    guided_rows = torch.tensor([False, False, True, True, False])
    mask = guided_rows.reshape(-1, 1, 1, 1)
    assert near(made.x0, torch.where(mask, full.x0, plain.x0))
    assert near(made.eps, torch.where(mask, full.eps, plain.eps))
    if made.log_variance is not None:
        assert plain.log_variance is not None
        assert near(made.log_variance(t, t - 1), plain.log_variance(t, t - 1))
    labels = part(x, t, Labels(y, 3))
    assert near(labels.x0, made.x0)
    assert same(part(x, t, None), inside(x, t, None))
    assert same(guide(part, x, t, y).plain, plain)


@both
def test_an_interval_saves_what_it_says(schedule, parameterization):
    """Jobs with different intervals and steps in one batch are as alone, and a network evaluates exactly the
    rows that `spent` counts."""
    denoiser = denoiser_of(schedule, parameterization)
    bounds = ((0.0, 0.9), (0.3, 0.6), (0.0, 1.0))
    jobs = [
        Job(Heun(steps), Noise(steps, [0, 1], SHAPE), torch.tensor([1, 2]),
            (ClassifierFree(scale=3.0), Interval(low=low, high=high)))
        for steps, (low, high) in zip((4, 7, 5), bounds, strict=True)
    ]  # fmt: skip
    alone, rows = [], []
    for job in jobs:
        denoiser.net.rows = 0
        alone.append(sample(guided(denoiser, job.guidance), job.sampler, job.noise, job.y))
        rows.append(denoiser.net.rows)
    denoiser.net.rows = 0
    together = sample_many(denoiser, jobs)
    # Heun's last step is evaluated once more in rows of a batch in which others are not at their last step.
    assert sum(rows) <= denoiser.net.rows <= sum(rows) + 2 * 2 * len(jobs)
    for a, b in zip(alone, together, strict=True):
        assert near(b, a)
    full = sample(ClassifierFree(denoiser, 3.0), jobs[2].sampler, jobs[2].noise, jobs[2].y)
    assert torch.equal(alone[2], full)  # an interval of all times changes no bit


def test_an_interval_needs_guidance_to_limit():
    denoiser = denoiser_of(*FLOW)
    assert guided(denoiser, [Interval()]) is denoiser
    assert guided(denoiser, [ClassifierFree(scale=1.0), Interval()]) is denoiser
    assert active([Interval(low=0.1), ClassifierFree(scale=2.0), Interval(low=0.0, high=1.0)]) == (
        ClassifierFree(scale=2.0),
    )
    with pytest.raises(UsageError, match=r"low must be below high, got 0\.9 and 0\.5"):
        Interval(low=0.9, high=0.5)
