"""Few-step samplers on the paper's schedule: their times, and their error on an exact mixture of Gaussians
beside DDIM's and beside every grid that diffusers' schedulers offer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from scaledit import config, part
from scaledit.diffusion import (
    DDIM,
    DDPM,
    CosineBeta,
    DPMSolver,
    Euler,
    Even,
    Heun,
    Karras,
    LinearBeta,
    LinearFlow,
    Prediction,
    Quadratic,
    QuadraticBeta,
    Sampler,
    Schedule,
    Shifted,
    Sine,
    UniPC,
    sample,
)
from scaledit.diffusion.schedule import broadcast_like
from scaledit.diffusion.times import respaced
from scaledit.errors import UsageError

STARTS = torch.randn(2048, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MULTISTEP = (DPMSolver, UniPC)
multistep = pytest.mark.parametrize("sampler", MULTISTEP, ids=lambda s: s.__name__)


@dataclass(frozen=True)
class Mixture:
    """The exact denoiser of pixels from a mixture of four Gaussians of one deviation."""

    schedule: Schedule
    deviation: float = 0.15
    means: tuple[float, ...] = (-0.8, -0.1, 0.3, 0.9)
    weights: tuple[float, ...] = (0.3, 0.2, 0.3, 0.2)

    def x0(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t]: the components' posterior means, weighed by their posterior probabilities."""
        means, x = x_t.new_tensor(self.means), x_t.unsqueeze(-1)
        variance = (alpha * self.deviation) ** 2 + sigma**2
        of_each = (means * sigma**2 + self.deviation**2 * alpha * x) / variance
        odds = x_t.new_tensor(self.weights).log() - (x - alpha * means) ** 2 / (2 * variance)
        return (odds.softmax(-1) * of_each).sum(-1)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        t = t.reshape(-1)[0]  # all rows are at one time
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x0 = self.x0(x_t, alpha, sigma)
        return Prediction(x0, (x_t - broadcast_like(alpha, x_t) * x0) / broadcast_like(sigma, x_t), None)


class From:
    """A start of the test's own; no noise in the steps, and none may be asked for."""

    def __init__(self, start: Tensor):
        self.start = start

    def initial(self) -> Tensor:
        return self.start

    def step(self, i: int) -> Tensor:
        raise AssertionError("a deterministic sampler asked for noise")


def drawn(denoiser: Mixture, sampler: Sampler) -> Tensor:
    return sample(denoiser, sampler, From(STARTS))


def rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


@pytest.fixture(scope="module")
def chain() -> Mixture:
    return Mixture(LinearBeta(1000))


def exact_on_chain(chain: Mixture, steps: int) -> Tensor:
    """Where the flow takes STARTS: from t = 999 by Heun even in log-SNR, past t = 0 to hardly any noise."""
    first = torch.tensor(999)
    log_snr = float((chain.schedule.alpha(first) / chain.schedule.sigma(first)).log())
    at = torch.linspace(log_snr, 12, steps + 1, dtype=torch.float64)
    weights = list(zip(torch.sigmoid(2 * at).sqrt(), torch.sigmoid(-2 * at).sqrt(), strict=True))
    x = STARTS

    def slope(x: Tensor, here: tuple[Tensor, Tensor], d: tuple[Tensor, Tensor]) -> Tensor:
        x0 = chain.x0(x, *here)
        return d[0] * x0 + d[1] * (x - here[0] * x0) / here[1]

    for here, there in itertools.pairwise(weights):
        d = (there[0] - here[0], there[1] - here[1])
        euler = slope(x, here, d)
        x = x + (euler + slope(x + euler, there, d)) / 2
    return chain.x0(x, *weights[-1])


@pytest.fixture(scope="module")
def fine(chain: Mixture) -> Tensor:
    coarse, fine = exact_on_chain(chain, 500), exact_on_chain(chain, 1000)
    assert rms(coarse, fine) < 1e-4  # at least ten times smaller than what is measured with it
    return fine


# ---- times -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LinearBeta(), CosineBeta(), QuadraticBeta(), LinearBeta(20)])
@multistep
def test_times_even_in_log_snr_are_so_many_different_whole_ones(sampler: type[Sampler], schedule: Schedule):
    """Every number of steps spends itself: none is visited twice, the first is the noisiest, the last clean;
    and where the chain is fine enough for it, the steps in log-SNR are even."""
    total = schedule.steps  # type: ignore[attr-defined]
    for steps in {*range(1, min(total, 300) + 1), total - 1, total}:
        grid = sampler(steps).grid(schedule)
        assert (len(grid), grid[0], grid[-1]) == (steps + 1, total - 1, -1)
        assert bool((grid.diff() < 0).all())
        assert torch.equal(grid, grid.round())
    log_snr = (schedule.alpha(grid[:-1]) / schedule.sigma(grid[:-1])).log()
    assert bool((log_snr.diff() > 0).all())
    with pytest.raises(UsageError, match=rf"steps must be from 1 to {total}"):
        sampler(total + 1).grid(schedule)
    with pytest.raises(UsageError, match="steps must be at least 1, got 0"):
        sampler(0)


def test_steps_are_even_in_log_snr_up_to_the_chains_own_ends():
    schedule = LinearBeta()
    grid = DPMSolver(12).grid(schedule)
    log_snr = (schedule.alpha(grid[:-1]) / schedule.sigma(grid[:-1])).log()
    step = (4.60512 + 5.05884) / 12  # the chain's ends, t = 0 and t = 999, with the clean image for t = 0
    assert log_snr[0] == pytest.approx(-5.05884, abs=1e-4)
    assert (log_snr.diff() - step).abs().max() < 0.12  # as whole times allow: neighbors differ by up to 0.25
    # A chain that goes on to next to no signal is not followed there.
    cosine = CosineBeta()
    grid = DPMSolver(20).grid(cosine)
    log_snr = (cosine.alpha(grid[:-1]) / cosine.sigma(grid[:-1])).log()
    assert log_snr[0] < -9
    assert -5.1 < log_snr[1] < -4.3


@pytest.mark.parametrize("steps", [1, 12, 20, 100])
def test_who_keeps_the_schedules_own_grid(steps: int):
    official = [*reversed(respaced(1000, steps)), -1]
    for sampler in (DDPM, DDIM, Euler, Heun):
        assert sampler(steps).grid(LinearBeta()).tolist() == official
    for sampler in MULTISTEP:
        assert sampler(steps, times="even").grid(LinearBeta()).tolist() == official
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        assert torch.equal(sampler(steps).grid(LinearFlow()), even)  # studies and the demo rest on it
        cut = sampler(steps, times="log_snr").grid(LinearFlow())  # log-SNR is infinite at both its ends
        assert (len(cut), cut[0], cut[-1]) == (steps + 1, 1, 0)
        inner = ((1 - cut[1:-1]) / cut[1:-1]).log()
        assert inner.tolist() == pytest.approx(np.linspace(-5.1, 4.6, steps + 1)[1:-1].tolist())
        with pytest.raises(UsageError, match=r"times: unknown times 'karas'.*; did you mean 'karras'"):
            sampler(steps, times="karas")  # type: ignore[arg-type]


def test_every_sampler_that_a_recipe_can_name_is_there():
    made = part.members(Sampler)
    assert set(made) == {"ddpm", "ddim", "dpm", "unipc", "heun", "euler", "adaptive"}
    titles = {"DDPM", "DDIM", "DPM-Solver++", "UniPC", "Heun", "Euler", "Adaptive"}
    assert {one.TITLE for one in made.values()} == titles
    for name in made.keys() - {"adaptive"}:
        run = config.load("digits", [f"sample.sampler={name}", "sample.steps=4"])
        assert run.sample.sampler == made[name](4)


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [12, 20])
@multistep
def test_a_second_order_sampler_is_one_on_the_papers_schedule(
    sampler: type[Sampler], steps: int, chain: Mixture, fine: Tensor
):
    """At most a third of DDIM's error; the official grid alone made it more than DDIM's."""
    seen = []

    @dataclass(frozen=True)
    class Counted:
        schedule: Schedule

        def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
            seen.append(float(t[0]))
            return chain(x_t, t, y)

    ddim = rms(drawn(chain, DDIM(steps)), fine)
    ours = rms(sample(Counted(chain.schedule), sampler(steps), From(STARTS)), fine)
    assert len(seen) == steps
    assert ours <= ddim / 3
    assert rms(drawn(chain, sampler(steps, times="even")), fine) > ddim  # type: ignore[call-arg]


def test_unipc_gains_over_dpm_solver(chain: Mixture, fine: Tensor):
    for steps in (12, 16, 20, 30, 50):
        dpm, unipc = (rms(drawn(chain, sampler(steps)), fine) for sampler in MULTISTEP)
        assert unipc < dpm


GRIDS = (
    *({"timestep_spacing": spacing} for spacing in ("linspace", "leading", "trailing")),
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
)


def theirs(made: Callable, chain: Mixture, steps: int, **options: object) -> tuple[Tensor, Tensor]:
    """What a scheduler of diffusers makes of STARTS on the exact denoiser of its own sigmas, and these."""
    scheduler = made(beta_start=1e-4, beta_end=0.02, prediction_type="sample", **options)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()  # sigma / alpha, here
    x = STARTS
    for i, t in enumerate(scheduler.timesteps):
        scheduler._step_index = i  # where rounded times repeat, theirs would be the first of them
        alpha = (1 + sigmas[i] ** 2).rsqrt()
        x = scheduler.step(chain.x0(x, alpha, alpha * sigmas[i]), t, x).prev_sample
    return x, sigmas


theirs_warn = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@theirs_warn
@pytest.mark.parametrize("steps", [12, 20])
def test_no_grid_of_diffusers_is_better(steps: int, chain: Mixture, fine: Tensor):
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    for sampler, made in ((DPMSolver, DPMSolverMultistepScheduler), (UniPC, UniPCMultistepScheduler)):
        # UniPC's scheduler has no such grid; its exponential one is even in log sigma / alpha just so.
        grids = [grid for grid in GRIDS if sampler is DPMSolver or "use_lu_lambdas" not in grid]
        errors = {str(grid): rms(theirs(made, chain, steps, **grid)[0], fine) for grid in grids}
        assert rms(drawn(chain, sampler(steps)), fine) <= min(errors.values()), errors


@theirs_warn
@pytest.mark.parametrize("steps", [6, 20])
@multistep
def test_at_the_same_times_a_sampler_is_diffusers_own(sampler: type[Sampler], steps: int, chain: Mixture):
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    made = {DPMSolver: DPMSolverMultistepScheduler, UniPC: UniPCMultistepScheduler}[sampler]
    x, sigmas = theirs(made, chain, steps, timestep_spacing="linspace")

    class Same(sampler):  # type: ignore[misc, valid-type]
        def grid(self, schedule: Schedule) -> Tensor:
            times = torch.linspace(0, 999, steps + 1, dtype=torch.float64).round().flip(0)
            times[-1] = -1
            assert torch.allclose(schedule.sigma(times) / schedule.alpha(times), sigmas, rtol=1e-4)
            return times

    assert rms(drawn(chain, Same(steps)), x) < 2e-5  # they keep sigmas in float32


# ---- gains of other times --------------------------------------------------------------------------------


def test_what_other_times_gain_at_equal_evaluations(chain: Mixture, fine: Tensor):
    """The numbers of docs/log.md, roughly: on chains no grid is better for multistep methods than log-SNR at
    20 and more; on the flow, times that lean towards the image halve UniPC's error and more."""
    for steps in (20, 30):
        for sampler in MULTISTEP:
            ours = rms(drawn(chain, sampler(steps)), fine)
            for other in (Karras(), Shifted(3.0), Quadratic(), Sine(), Even()):
                assert ours < rms(drawn(chain, sampler(steps, times=other)), fine)
    flow = Mixture(LinearFlow())
    exact = drawn(flow, Heun(2000, times=Sine()))
    assert rms(drawn(flow, Heun(1000, times=Sine())), exact) < 1e-5
    for steps in (16, 20, 30):
        even = rms(drawn(flow, UniPC(steps)), exact)
        for leaning in (Shifted(1 / 3), Quadratic()):
            assert rms(drawn(flow, UniPC(steps, times=leaning)), exact) < even / 2
            assert rms(drawn(flow, Heun(steps, times=leaning)), exact) < 0.8 * rms(
                drawn(flow, Heun(steps)), exact
            )
        assert rms(drawn(flow, UniPC(steps, times=Karras())), exact) > even / 2
    # A first-order method spends its error otherwise: even times stay its best on the flow.
    assert rms(drawn(flow, DDIM(20)), exact) < min(
        rms(drawn(flow, DDIM(20, times=times)), exact)
        for times in (Karras(), Quadratic(), Sine(), Shifted(1 / 3))
    )
