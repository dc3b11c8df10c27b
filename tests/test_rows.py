"""Rows of one batch at different steps: each job's images are what they are alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from scaledit import DiT, DiTConfig
from scaledit.conditions.labels import Labels
from scaledit.diffusion import (
    DDIM,
    DDPM,
    EDM,
    Batch,
    ClassifierFree,
    DPMSolver,
    Epsilon,
    Euler,
    Guidance,
    Heun,
    Job,
    Karras,
    LearnedRange,
    LinearBeta,
    LinearFlow,
    NetDenoiser,
    Noise,
    NonFiniteError,
    OfficialNoise,
    Parameterization,
    Prediction,
    Sampler,
    Schedule,
    UniPC,
    Velocity,
    guided,
    sample,
    sample_many,
)
from scaledit.errors import UsageError

SHAPE = (3, 4, 4)
GRAY = 1 / 127.5
"""One gray level of images in [-1, 1]."""
SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "ddpm": DDPM,
    "ddpm_small": partial(DDPM, variance="small"),
    "ddim": DDIM,
    "ddim_eta": partial(DDIM, eta=0.7),
    "dpm": DPMSolver,
    "unipc": UniPC,
    "unipc_karras": partial(UniPC, times=Karras()),
    "heun": Heun,
    "euler": Euler,
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
every_schedule = pytest.mark.parametrize("schedule", [LinearBeta(), LinearFlow()], ids=["chain", "flow"])


def denoiser_of(schedule: Schedule, parameterization: Parameterization) -> NetDenoiser:
    torch.manual_seed(0)
    learned = isinstance(parameterization, LearnedRange)
    net = DiT(DiTConfig(4, 2, 3, hidden_size=16, depth=1, num_heads=2, num_classes=3, learn_sigma=learned))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return NetDenoiser(net.eval(), schedule, parameterization)


class Spec(NamedTuple):
    steps: int
    seed: int
    scale: float
    labels: list[int]


SPECS = (Spec(5, 0, 1.0, [0, 2]), Spec(1, 1, 2.5, [1]), Spec(9, 2, 3.0, [2, 1, 0]), Spec(2, 3, 0.0, [1, 1]))


def jobs_of(sampler: Callable[[int], Sampler]) -> list[Job]:
    return [
        Job(
            sampler(spec.steps),
            Noise(spec.seed, range(10, 10 + len(spec.labels)), SHAPE),
            torch.tensor(spec.labels),
            (ClassifierFree(scale=spec.scale),),
        )
        for spec in SPECS
    ]


def alone(denoiser: NetDenoiser, job: Job) -> Tensor:
    return sample(guided(denoiser, job.guidance), job.sampler, job.noise, job.y)


@every_schedule
@every_sampler
@pytest.mark.parametrize(
    "parameterization", [LearnedRange(Epsilon()), EDM()], ids=lambda one: type(one).__name__
)
def test_jobs_together_are_as_alone(
    schedule: Schedule, sampler: Callable[[int], Sampler], parameterization: Parameterization
):
    """Of different steps, seeds, scales and labels, in one batch: to a thousandth of a gray level of what
    the images' own range is."""
    denoiser, jobs = denoiser_of(schedule, parameterization), jobs_of(sampler)
    together = sample_many(denoiser, jobs)
    for job, images in zip(jobs, together, strict=True):
        wanted = alone(denoiser, job)
        assert images.dtype == wanted.dtype == torch.float32
        assert images.shape == wanted.shape
        assert (images - wanted).abs().max() <= 1e-3 * GRAY * max(1, float(wanted.abs().max()))
    assert max(float(images.std()) for images in together) > 0.1
    assert (together[0][1] - together[2][0]).abs().max() > GRAY  # other noise, other steps: another image


class Counted:
    """A denoiser that counts its calls and the rows of each."""

    def __init__(self, inside: NetDenoiser):
        self.inside, self.rows, self.times = inside, [], []

    @property
    def schedule(self) -> Schedule:
        return self.inside.schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        self.rows.append(len(x_t))
        self.times.append(t.tolist())
        return self.inside(x_t, t, y)


@every_sampler
def test_jobs_share_their_evaluations(sampler: Callable[[int], Sampler]):
    """One call a step for all rows, and none for rows that are done: 9 + 1 calls of 8 rows and fewer."""
    counted = Counted(denoiser_of(LinearFlow(), Velocity()))
    jobs = [Job(job.sampler, job.noise, job.y) for job in jobs_of(sampler)]
    sample_many(counted, jobs)
    rows = [8, 7] + [5] * 3 + [3] * 4
    if isinstance(jobs[0].sampler, Heun):  # two a step; where all rows are at their last, one
        rows = [2 for _ in rows for _ in range(2)]
        assert len(counted.rows) == 17
    else:
        assert counted.rows == rows
        assert len(set(counted.times[1])) > 1


def test_a_job_can_join_while_others_are_under_way():
    """Rows at different numbers of steps in one call: also the noise of each is that of its own step."""
    for sampler in (DDPM, UniPC, Heun):
        denoiser = denoiser_of(LinearBeta(), LearnedRange(Epsilon()))
        jobs, batch, images = jobs_of(sampler), Batch(denoiser), {}
        for number, job in enumerate(jobs):
            batch.add(job, number)
            images.update(batch.advance())
        seen: list[tuple[int, int]] = []
        while batch.running:
            images.update(batch.advance(lambda number, i, x, seen=seen: seen.append((number, i))))
        assert seen[:2] == [(0, 4), (2, 2)]
        for number, job in enumerate(jobs):
            wanted = alone(denoiser, job)
            assert (images[number] - wanted).abs().max() <= 1e-3 * GRAY * max(1, float(wanted.abs().max()))


def test_jobs_of_other_kinds_are_batches_of_their_own():
    denoiser = denoiser_of(LinearFlow(), Velocity())
    counted = Counted(denoiser)
    noise, y = Noise(0, [0], SHAPE), torch.tensor([1])
    jobs = [
        Job(DDIM(3), noise, y),
        Job(DDIM(3, eta=0.5), noise, y),
        Job(DPMSolver(4), noise, y),
        Job(DDIM(2), noise),  # without labels
        Job(DDIM(2), noise, y),
        Job(DDIM(2), Noise(0, [0, 1], SHAPE), Labels(torch.tensor([1, 2]), 3)),
    ]
    images = sample_many(counted, jobs)
    assert sum(counted.rows) == 3 + 3 + 4 + 2 + 2 + 4
    assert len(counted.rows) == 3 + 3 + 4 + 2 + 2
    for job, image in zip(jobs, images, strict=True):
        assert (image - sample(denoiser, job.sampler, job.noise, job.y)).abs().max() <= 1e-3 * GRAY
    assert torch.allclose(images[4], images[5][:1], atol=1e-5)  # a label and a Condition of it
    batch = Batch(denoiser)
    batch.add(jobs[0])
    for other in (1, 2, 3, 5):
        with pytest.raises(ValueError, match="cannot be batched with them"):
            batch.add(jobs[other])
    batch.add(jobs[4])


def test_guidance_that_differs_in_more_than_its_scale_is_not_mixed():
    denoiser = denoiser_of(LinearFlow(), Velocity())
    noise, y = Noise(0, [0], SHAPE), torch.tensor([1])
    parts = (
        ClassifierFree(scale=3.0),
        ClassifierFree(scale=3.0, channels=1),
        ClassifierFree(scale=2.0, channels=1),
    )
    jobs = [Job(Euler(3), noise, y, (one,)) for one in parts]
    for job, image in zip(jobs, sample_many(denoiser, jobs), strict=True):
        assert (image - alone(denoiser, job)).abs().max() <= 1e-3 * GRAY


@dataclass(frozen=True)
class Swap(Guidance, name="swap"):
    """A guidance of one's own."""

    def __call__(self, x_t: Tensor, t: Tensor, y) -> Prediction:
        made = self.denoiser(x_t, t, y)
        return made._replace(x0=made.x0.flip(-1))


def test_guidance_is_bound_in_order():
    denoiser = denoiser_of(LinearFlow(), Velocity())
    inner, outer = (
        guided(denoiser, [ClassifierFree(scale=1.0)]),
        guided(denoiser, [Swap(), ClassifierFree(scale=2.0, channels=2)]),
    )
    assert inner is denoiser  # a scale of 1 costs nothing
    assert outer == ClassifierFree(Swap(denoiser), 2.0, 2)
    assert ClassifierFree(scale=2.0).to_json() == {"name": "classifier_free", "scale": 2.0, "channels": "all"}
    with pytest.raises(UsageError, match="has no denoiser to guide yet"):
        ClassifierFree(scale=2.0)(torch.zeros(1, *SHAPE), torch.tensor(0.5), torch.tensor([1]))
    noise, y = Noise(0, [0, 1], SHAPE), torch.tensor([1, 2])
    jobs = [
        Job(Euler(steps), noise, y, (Swap(), ClassifierFree(scale=scale)))
        for steps, scale in ((3, 2), (2, 4))
    ]
    for job, image in zip(jobs, sample_many(denoiser, jobs), strict=True):
        assert (image - alone(denoiser, job)).abs().max() <= 1e-3 * GRAY


# ---- noise -----------------------------------------------------------------------------------------------


class Logged(OfficialNoise):
    def __init__(self, n: int):
        super().__init__(0, n, SHAPE)
        self.drawn: list[int] = []

    def step(self, i: int) -> Tensor:
        self.drawn.append(i)
        return super().step(i)


@every_schedule
@pytest.mark.parametrize(("sampler", "last"), [(DDPM, -1), (partial(DDIM, eta=0.7), -1), (DDIM, None)])
def test_noise_that_nobody_needs_is_not_drawn(schedule: Schedule, sampler: Callable[[int], Sampler], last):
    """Official noise is drawn in order, none in the last step: in a mixed batch too, each job its own."""
    denoiser = denoiser_of(schedule, LearnedRange(Epsilon()))
    noises = [Logged(2), Logged(1), Logged(1)]
    jobs = [Job(sampler(n), noise, torch.arange(noise.n)) for n, noise in zip((6, 3, 1), noises, strict=True)]
    together = sample_many(denoiser, jobs)
    expected = [list(range(n - 1)) if last else [] for n in (6, 3, 1)]
    assert [noise.drawn for noise in noises] == expected
    for job, image in zip(jobs, together, strict=True):
        wanted = sample(denoiser, job.sampler, job.noise, job.y)
        assert (image - wanted).abs().max() <= 1e-3 * GRAY * max(1, float(wanted.abs().max()))
    assert [noise.drawn for noise in noises] == [2 * one for one in expected]


def test_a_job_whose_numbers_are_not_finite_is_named():
    class Breaks:
        schedule = LinearFlow()

        def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
            x0 = torch.zeros_like(x_t)
            x0[(t < 0.5) & (torch.arange(len(x_t)) == 3)] = torch.nan
            return Prediction(x0, x_t)

    jobs = [Job(Euler(4), Noise(0, range(2), SHAPE)), Job(Euler(8), Noise(0, range(3), SHAPE))]
    with pytest.raises(
        NonFiniteError, match=r"first in step 6 of 8, from time 0\.375 to 0\.25, in row 0"
    ) as error:
        sample_many(Breaks(), [*jobs, Job(Euler(8), Noise(1, range(3), SHAPE))])
    assert (error.value.job, error.value.rows) == (2, [0])
