"""What is done with a network: solvers against exact solutions, chains against recomputed ones, keyed noise,
and every part with every other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaledit import DiT, DiTConfig, Pipeline, config
from scaledit.data.order import samples_at
from scaledit.data.sets import Images, digits
from scaledit.diffusion import (
    DDIM,
    DDPM,
    EDM,
    X0,
    ClassifierFree,
    CosineBeta,
    Denoiser,
    DPMSolver,
    Epsilon,
    Euler,
    Even,
    Heun,
    Hybrid,
    LearnedRange,
    LinearBeta,
    LinearFlow,
    LogitNormal,
    LossSecondMoment,
    NetDenoiser,
    Noise,
    Parameterization,
    Prediction,
    QuadraticBeta,
    Sampler,
    Schedule,
    Simple,
    Uniform,
    UniPC,
    Velocity,
    diffuse,
    sample,
)
from scaledit.diffusion.noise import Stream, normal
from scaledit.diffusion.noise import uniform as uniform_numbers
from scaledit.diffusion.objectives import discretized_log_likelihood
from scaledit.diffusion.schedule import broadcast_like, transition
from scaledit.diffusion.times import respaced
from scaledit.errors import UsageError
from scaledit.images import to_uint8

SCHEDULES: tuple[Schedule, ...] = (LinearBeta(), CosineBeta(), QuadraticBeta(), LinearFlow())
PREDICTIONS = (Epsilon(), Velocity(), X0(), EDM())
SAMPLERS = (DDPM, DDIM, DPMSolver, UniPC, Heun, Euler)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)
examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)

TINY = DiTConfig(4, 2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=3)


def tiny(parameterization: Parameterization, changes: float = 0.2) -> DiT:
    """A small DiT with weights away from the zeros of its initialization."""
    torch.manual_seed(0)
    learned = isinstance(parameterization, LearnedRange)
    dit = DiT(DiTConfig(**{**TINY.__dict__, "learn_sigma": learned}))
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(torch.randn(parameter.shape) * changes)
    return dit


def even(schedule: Schedule, steps: int) -> Tensor:
    return Even().grid(schedule, steps)


def fractions_to_times(schedule: Schedule, *fractions: float) -> Tensor:
    return schedule.time_at(torch.tensor(fractions, dtype=torch.float64))


# ---- exact solutions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of pixels N(mean, std^2): x0 is the posterior mean. With `exact`, also the exact
    log variance of q(x_s | x_t)."""

    schedule: Schedule
    mean: float = 0.4
    std: float = 0.5
    exact: bool = False

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        alpha, sigma = (
            broadcast_like(self.schedule.alpha(t), x_t),
            broadcast_like(self.schedule.sigma(t), x_t),
        )
        x0 = (self.mean * sigma**2 + self.std**2 * alpha * x_t) / (alpha**2 * self.std**2 + sigma**2)
        return Prediction(x0, (x_t - alpha * x0) / sigma, self.log_variance if self.exact else None)

    def left(self, t: Tensor) -> Tensor:
        """Var(x_0 | x_t)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (self.std * sigma) ** 2 / ((self.std * alpha) ** 2 + sigma**2)

    def log_variance(self, t: Tensor, s: Tensor) -> Tensor:
        chain = transition(self.schedule, t, s)
        return (chain.variance + chain.x0_weight**2 * self.left(t)).log()

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The probability flow's solution at s from x_t: the map between the two normal distributions."""
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        variance_t = (alpha_t * self.std) ** 2 + self.schedule.sigma(t) ** 2
        variance_s = (alpha_s * self.std) ** 2 + self.schedule.sigma(s) ** 2
        return self.mean * alpha_s + (x_t - self.mean * alpha_t) * (variance_s / variance_t).sqrt()


class Given:
    """A start of the test's own; no noise in the steps, and none may be asked for."""

    def __init__(self, start: Tensor):
        self.start = start

    def initial(self) -> Tensor:
        return self.start

    def step(self, i: int) -> Tensor:
        raise AssertionError("a deterministic sampler asked for noise")


STARTS = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)


def error(denoiser: Gaussian, sampler: Sampler) -> float:
    """Largest distance from the probability flow: at the clean end for the linear flow, and for the chains
    at the last time with noise (their last step is not refined with the grid)."""
    seen = [STARTS]
    sample(denoiser, sampler, Given(STARTS), on_step=lambda _, x: seen.append(x))
    grid, last = (
        sampler.grid(denoiser.schedule),
        -1 if isinstance(denoiser.schedule, LinearFlow) else -2,
    )
    return float((seen[last] - denoiser.flow(STARTS, grid[0], grid[last])).abs().max())


def even_times(sampler: type[DPMSolver | UniPC]) -> Callable[[int], Sampler]:
    """On times even in t, as the others are."""
    return partial(sampler, times="even")


@pytest.mark.parametrize(
    "schedule", [LinearFlow(), LinearBeta(), CosineBeta()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DDIM, 1), (Euler, 1), (Heun, 2), (even_times(DPMSolver), 2), (even_times(UniPC), 2)],
)
def test_order_of_convergence(schedule: Schedule, sampler: Callable[[int], Sampler], order: int):
    # The chains have 999 = 27 x 37 gaps: strides of 27, 9 and 3 exactly.
    flow = isinstance(schedule, LinearFlow)
    gaps = (160, 320, 640) if flow else (37, 111, 333)
    errors = [error(Gaussian(schedule), sampler(n if flow else n + 1)) for n in gaps]
    for i in (0, 1):
        measured = math.log(errors[i] / errors[i + 1]) / math.log(gaps[i + 1] / gaps[i])
        low, high = (0.85, 1.2) if order == 1 else (1.75, 2.4)
        assert low <= measured <= high, (errors, measured)


@pytest.mark.parametrize(("sampler", "order"), [(DPMSolver, 2), (UniPC, 3)])
def test_order_of_convergence_on_times_even_in_log_snr(sampler: type[Sampler], order: int):
    """On a chain so fine that whole times are even there. UniPC's corrector adds one to its predictor's."""
    denoiser = Gaussian(LinearBeta(steps=1_000_000))
    errors = [error(denoiser, sampler(n)) for n in (40, 80, 160, 320)]
    for coarse, fine in itertools.pairwise(errors):
        assert order - 0.15 <= math.log2(coarse / fine) <= order + 0.15, errors


class Probes:
    """Zero but for one unit number a row, so that one batch shows an affine sampler's every coefficient."""

    def __init__(self, steps: int):
        self.rows = torch.eye(steps + 2, dtype=torch.float64).reshape(steps + 2, steps + 2, 1, 1, 1)

    def initial(self) -> Tensor:
        return self.rows[1]

    def step(self, i: int) -> Tensor:
        return self.rows[2 + i]


def law(denoiser: Gaussian, sampler: Sampler) -> tuple[float, float]:
    """Mean and variance of sample() over standard normal noise: x = a + b z + sum_i c_i z_i, exactly."""
    x = sample(denoiser, sampler, Probes(sampler.steps)).flatten()
    return float(x[0]), float(((x[1:] - x[0]) ** 2).sum())


@pytest.mark.parametrize("variance", ["large", "small"])
def test_the_law_of_ddpm_samples_tends_to_the_truth(variance: str):
    flow = Gaussian(LinearFlow())
    errors = []
    for steps in (50, 100, 200):
        mean, measured = law(flow, DDPM(steps, variance=variance))  # type: ignore[arg-type]
        errors.append(abs(measured - 0.25))
        assert mean == pytest.approx(0.4, abs=1e-12)
    assert all(1.7 < coarse / fine < 2.3 for coarse, fine in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.05 * 0.25
    chain = Gaussian(LinearBeta())
    few, many = (law(chain, DDPM(n, variance=variance)) for n in (100, 1000))  # type: ignore[arg-type]
    assert abs(many[1] - 0.25) < 0.15 * abs(few[1] - 0.25)
    assert abs(many[1] - 0.25) < 0.02 * 0.25
    assert abs(many[0] - 0.4) < 0.02


@examples
@given(st.integers(1, 30), st.floats(-1, 1), st.floats(0.1, 2))
def test_ddpm_with_the_exact_variance_is_exact_in_any_number_of_steps(steps: int, mean: float, std: float):
    """All but the last step, which returns a mean: its variance is short by what is left to know."""
    denoiser = Gaussian(LinearFlow(), mean, std, exact=True)
    left = float(denoiser.left(even(denoiser.schedule, steps)[-2]))
    measured = law(denoiser, DDPM(steps))
    assert measured == pytest.approx((mean, std**2 - left), rel=1e-9, abs=1e-9)


def test_ddpm_samples_have_their_law_with_the_real_noise():
    denoiser, sampler = Gaussian(LinearFlow()), DDPM(10)
    mean, variance = law(denoiser, sampler)
    x = sample(denoiser, sampler, Noise(0, range(16), (1, 64, 64)))
    n = x.numel()
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / n))


@every_schedule
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_one_step_of_ddim_has_the_variance_it_says(schedule: Schedule, eta: float):
    """eta^2 of the posterior's; with eta = 1 also DDPM's mean, that is, DDPM (small) itself."""
    denoiser, x = Gaussian(schedule), torch.tensor([0.7, 0.7, -0.2], dtype=torch.float64).reshape(-1, 1, 1, 1)
    z = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    grid = even(schedule, 7)
    for i, pair in enumerate(itertools.pairwise(grid)):
        (t, s), rows = pair, [time.expand(3) for time in (*pair, torch.tensor(i))]
        at = (*rows[:2], None, None, lambda needed: z * needed.reshape(-1, 1, 1, 1), rows[2])
        ddim, _ = DDIM(7, eta=eta).step(denoiser, x, *at)
        scale = eta * float(transition(schedule, t, s).variance.sqrt())
        assert float(ddim[1] - ddim[0]) == pytest.approx(scale, abs=1e-12)
        if eta == 1:
            ddpm, _ = DDPM(7, variance="small").step(denoiser, x, *at)
            assert torch.allclose(ddim, ddpm, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_euler_on_the_linear_flow_is_ddim(steps: int):
    net = NetDenoiser(tiny(Velocity()), LinearFlow(), Velocity())
    noise, y = Noise(0, range(4), TINY.shape), torch.arange(4) % 3
    euler, ddim = (sample(net, part(steps), noise, y) for part in (Euler, DDIM))
    assert (euler - noise.initial()).abs().max() > 0.1
    assert torch.allclose(euler, ddim, rtol=1e-6, atol=1e-6)


# ---- chains ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 7, 100, 250, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=lambda s: type(s).__name__)
def test_a_transition_on_a_respaced_grid_is_the_respaced_chain(schedule: LinearBeta, steps: int):
    """ADM's recipe: new betas from the kept alphas_cumprod, then DDPM's posterior from those."""
    kept = schedule.betas.numpy()
    kept = np.cumprod(1 - kept)[respaced(1000, steps)]
    before = np.append(1.0, kept[:-1])
    betas = 1 - kept / before
    grid = even(schedule, steps).flip(0)
    chain = transition(schedule, grid[1:], grid[:-1])
    close = {"rtol": 1e-9, "atol": 1e-15}
    np.testing.assert_allclose(chain.beta, betas, **close)
    np.testing.assert_allclose(chain.variance, betas * (1 - before) / (1 - kept), **close)
    np.testing.assert_allclose(chain.x0_weight, betas * np.sqrt(before) / (1 - kept), **close)
    np.testing.assert_allclose(chain.xt_weight, (1 - before) * np.sqrt(1 - betas) / (1 - kept), **close)


@pytest.mark.parametrize("total", [10, 1000])
def test_every_respacing_descends_from_the_noisiest_time_to_the_clean_one(total: int):
    schedule = LinearBeta(steps=total)
    for steps in range(1, total + 1):
        grid = even(schedule, steps)
        assert (len(grid), grid[0], grid[-1]) == (steps + 1, total - 1, -1)
        assert bool((grid.diff() < 0).all())
        assert steps == 1 or grid[-2] == 0
    for steps in (0, total + 1):
        with pytest.raises(UsageError, match=f"steps must be from 1 to {total}"):
            even(schedule, steps)


@examples
@given(st.sampled_from(SCHEDULES), st.integers(3, 1000), st.data(), st.floats(-1, 1))
def test_a_learned_variance_lies_between_its_bounds(
    schedule: Schedule, steps: int, data: st.DataObject, v: float
):
    """Posterior variance at v = -1, beta at v = 1, geometric between, for the pair of times stepped."""
    grid = even(schedule, steps)
    i = data.draw(st.integers(0, steps - 2))
    t, s = grid[i], grid[i + 1]
    out = torch.zeros(3, 2, 1, 1, dtype=torch.float64)
    out[:, 1] = torch.tensor([-1, v, 1], dtype=out.dtype).reshape(-1, 1, 1)
    predicted = LearnedRange(Epsilon()).decode(schedule, out, torch.zeros(3, 1, 1, 1, dtype=torch.float64), t)
    assert predicted.log_variance is not None
    low, between, high = predicted.log_variance(t, s).flatten()
    chain = transition(schedule, t, s)
    assert float(low) == pytest.approx(float(chain.variance.log()), abs=1e-9)
    assert float(high) == pytest.approx(float(chain.beta.log()), abs=1e-9)
    assert low < high
    assert float(between) == pytest.approx(float(low + (v + 1) / 2 * (high - low)), abs=1e-9)


@examples
@given(st.sampled_from(SCHEDULES), st.sampled_from(PREDICTIONS), st.floats(0.002, 0.97), st.booleans())
def test_decoding_the_target_gives_back_image_and_noise(
    schedule: Schedule, prediction: Parameterization, fraction: float, learned: bool
):
    t = fractions_to_times(schedule, fraction, 0.5)
    torch.manual_seed(0)
    x0, eps, v = torch.randn(3, 2, 3, 2, 2, dtype=torch.float64)
    x_t = diffuse(schedule, x0, eps, t)
    out = prediction.target(schedule, x0, eps, t)
    assert prediction.channels(3) == 3
    if learned:
        prediction = LearnedRange(prediction)
        assert prediction.channels(3) == 6
        out = torch.cat([prediction.target(schedule, x0, eps, t), v], dim=1)
    found = prediction.decode(schedule, out, x_t, t)
    assert (found.log_variance is not None) == learned
    assert torch.allclose(found.x0, x0, rtol=0, atol=1e-9)
    assert torch.allclose(found.eps, eps, rtol=0, atol=1e-9)


@every_schedule
@every_prediction
def test_image_and_noise_make_up_x_t_also_at_the_noisy_end(schedule: Schedule, prediction: Parameterization):
    """Whatever the network says, and also where alpha is zero: samplers count on it."""
    t = even(schedule, 10)[:1]
    torch.manual_seed(0)
    out, x_t = torch.randn(2, 1, 3, 2, 2, dtype=torch.float64)
    found = prediction.decode(schedule, out, x_t, t)
    made = diffuse(schedule, found.x0, found.eps, t)
    assert torch.isfinite(found.x0).all()
    assert torch.allclose(made, x_t, rtol=0, atol=1e-9)


@every_schedule
def test_schedules_go_from_image_to_noise(schedule: Schedule):
    t = even(schedule, 100)
    alpha, sigma, rates = schedule.alpha(t), schedule.sigma(t), schedule.rates(t)
    assert (alpha[-1], sigma[-1], t[-1]) == (1, 0, schedule.clean)
    assert sigma[0] > 0.999
    assert bool((alpha.diff() > 0).all())
    assert bool((sigma.diff() < 0).all())
    assert torch.allclose(alpha * rates.sigma - sigma * rates.alpha, torch.ones(101, dtype=torch.float64))
    told = Epsilon().network_time(schedule, t[:-1])
    assert bool(((told >= 0) & (told <= 1000)).all())
    assert told[0] >= 999
    assert torch.equal(Epsilon(tells="alpha").network_time(schedule, t), alpha)


# ---- composition -----------------------------------------------------------------------------------------


@every_schedule
@every_prediction
@pytest.mark.parametrize("learned", [False, True])
def test_every_sampler_and_guidance_runs_on_every_denoiser(
    schedule: Schedule, prediction: Parameterization, learned: bool
):
    parameterization = LearnedRange(prediction) if learned else prediction
    plain = NetDenoiser(tiny(parameterization), schedule, parameterization)
    guided = ClassifierFree(plain, 2.0, channels=3), ClassifierFree(plain, 2.0)
    noise, y = Noise(0, range(2), TINY.shape), torch.tensor([0, 2])
    for part in SAMPLERS:
        drawn = []
        for denoiser in (plain, *guided):
            drawn.append(sample(denoiser, part(steps=4), noise, y))
            assert drawn[-1].shape == (2, *TINY.shape)
            assert bool(drawn[-1].isfinite().all())
        for a, b in itertools.combinations(drawn, 2):
            assert (a - b).abs().max() > 1e-4 * a.abs().max()
        unlabelled = [sample(denoiser, part(steps=4), noise) for denoiser in (plain, *guided)]
        assert torch.equal(unlabelled[0], unlabelled[1])
        assert torch.equal(unlabelled[0], unlabelled[2])


@every_schedule
@every_prediction
@pytest.mark.parametrize(("objective", "learned"), [(Simple(), False), (Simple(), True), (Hybrid(), True)])
def test_every_objective_trains_every_denoiser(
    schedule: Schedule, prediction: Parameterization, objective: Simple | Hybrid, learned: bool
):
    """Finite losses at times from every distribution, and a gradient for every parameter."""
    parameterization = LearnedRange(prediction) if learned else prediction
    net = tiny(parameterization)
    denoiser = NetDenoiser(net, schedule, parameterization)
    u = torch.tensor([0.0005, 0.3, 0.6, 0.97], dtype=torch.float64)
    torch.manual_seed(1)
    x0, eps = torch.rand(4, *TINY.shape) * 2 - 1, torch.randn(4, *TINY.shape)
    for times in (Uniform(), LogitNormal(), LossSecondMoment()):
        t = schedule.time_at(times.draw(u).fraction)
        losses = objective(denoiser, x0, torch.tensor([0, 1, 2, 3]), t, eps)
        assert losses.total.shape == losses.mse.shape == (4,)
        assert bool(losses.total.isfinite().all())
        assert (losses.vlb is not None) == isinstance(objective, Hybrid)
        net.zero_grad()
        losses.total.sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert bool(parameter.grad.any()), name


class Fixed:
    """A network that answers with one tensor, whatever it is asked."""

    null_label = 0

    def __init__(self, out: Tensor):
        self.out = out

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.out


@every_schedule
@every_prediction
def test_hybrid_trains_the_mean_by_mse_and_the_variance_by_the_bound(
    schedule: Schedule, prediction: Parameterization
):
    torch.manual_seed(0)
    x0, eps, out = torch.rand(3, 1, 2, 2), torch.randn(3, 1, 2, 2), torch.randn(3, 2, 2, 2)
    out.requires_grad_()
    denoiser = NetDenoiser(Fixed(out), schedule, LearnedRange(prediction))
    t = fractions_to_times(schedule, 0.0005, 0.4, 0.8)  # the first is the discretized likelihood
    losses = Hybrid()(denoiser, x0, None, t, eps)
    assert losses.vlb is not None
    assert torch.equal(losses.total, losses.mse + losses.vlb)
    for loss, trained, frozen in ((losses.mse, 0, 1), (losses.vlb, 1, 0)):
        (gradient,) = torch.autograd.grad(loss.sum(), out, retain_graph=True)
        assert not bool(gradient[:, frozen].any())
        assert bool((gradient[1:, trained] != 0).all())
    target = prediction.target(schedule, x0, eps, t)
    assert torch.allclose(losses.mse, ((target - out[:, :1]) ** 2).mean(dim=(1, 2, 3)))


@every_schedule
@every_prediction
def test_the_bound_is_a_divergence_and_at_the_first_time_a_likelihood(
    schedule: Schedule, prediction: Parameterization
):
    torch.manual_seed(0)
    x0, eps, v = torch.randn(3, 4, 1, 2, 2, dtype=torch.float64).clamp(-1, 1)
    t = fractions_to_times(schedule, 0.0005, 0.01, 0.3, 0.9)
    s = torch.cat([torch.tensor([schedule.clean]), t[1:] - schedule.dt]).double()
    x_t, right = diffuse(schedule, x0, eps, t), prediction.target(schedule, x0, eps, t)

    def bound(out: Tensor) -> Tensor:
        vlb = Hybrid()(NetDenoiser(Fixed(out), schedule, LearnedRange(prediction)), x0, None, t, eps).vlb
        assert vlb is not None
        return vlb

    out = torch.cat([right + 0.1 * torch.randn_like(right), v], dim=1)
    predicted = LearnedRange(prediction).decode(schedule, out, x_t, t)
    assert predicted.log_variance is not None
    scale = (0.5 * predicted.log_variance(t, s)).exp()
    chain = [broadcast_like(value, x0) for value in transition(schedule, t, s)]
    _, variance, x0_weight, xt_weight = chain
    truth = torch.distributions.Normal(x0_weight * x0 + xt_weight * x_t, variance.sqrt().clamp_min(1e-99))
    model = torch.distributions.Normal(x0_weight * predicted.x0 + xt_weight * x_t, scale)
    expected = torch.distributions.kl_divergence(truth, model)
    expected[0] = -discretized_log_likelihood(x0[0], predicted.x0[0], scale[0].log())
    bits = expected.mean(dim=(1, 2, 3)) / math.log(2)
    assert torch.allclose(bound(out), bits, rtol=1e-6, atol=1e-9)
    exact = bound(torch.cat([right, torch.full_like(right, -1)], dim=1))[1:]
    assert torch.allclose(exact, torch.zeros(3, dtype=torch.float64), atol=1e-9)


def test_the_bound_stays_bounded_at_continuous_times_just_above_the_first():
    """Ending just short of clean, a step's posterior variance tends to zero, its divergence to infinity."""
    flow, shape = LinearFlow(), (1, *TINY.shape)
    denoiser = NetDenoiser(tiny(LearnedRange(Velocity())), flow, LearnedRange(Velocity()))
    torch.manual_seed(0)
    x0, eps = torch.rand(shape) * 2 - 1, torch.randn(shape)
    bits = [
        float(Hybrid()(denoiser, x0, None, torch.tensor([ticks * flow.dt]), eps).vlb.detach())
        for ticks in (0.5, 1, 1 + 1e-6, 1.001, 1.01, 1.5, 1.99, 2)
    ]
    assert max(bits) < 2 * max(bits[0], bits[-1])


def test_hybrid_without_a_variance_says_what_to_do():
    denoiser = NetDenoiser(tiny(Epsilon()), LinearBeta(), Epsilon())
    x = torch.zeros(1, *TINY.shape)
    with pytest.raises(UsageError, match="wrap its parameterization in LearnedRange"):
        Hybrid()(denoiser, x, None, torch.tensor([3]), x)


@examples
@given(st.floats(-1.5, 1.5), st.floats(-7, 1))
def test_the_discretized_likelihood_sums_to_one_and_peaks_at_the_mean(mean: float, log_scale: float):
    pixels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    bins = discretized_log_likelihood(pixels, torch.full_like(pixels, mean), torch.tensor(log_scale)).exp()
    assert float(bins.sum()) == pytest.approx(1, abs=1e-6)
    if log_scale < -3:
        assert (pixels[bins.argmax()] - max(-1, min(1, mean))).abs() < 0.01


class Counting:
    """A network that remembers the sizes and labels of the batches it was asked for."""

    def __init__(self, net: DiT):
        self.net, self.null_label, self.asked = net, net.null_label, []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.asked.append((len(x), t.tolist(), y.tolist()))
        return self.net(x, t, y)


@dataclass(frozen=True)
class Wrapped:
    """Any denoiser that is not a NetDenoiser."""

    inside: Denoiser

    @property
    def schedule(self) -> Schedule:
        return self.inside.schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        return self.inside(x_t, t, y)


@torch.no_grad()
def test_classifier_free_guidance():
    parameterization = LearnedRange(Epsilon())
    net = Counting(tiny(parameterization))
    inside = NetDenoiser(net, LinearBeta(), parameterization)
    x, t, y = Noise(0, range(3), TINY.shape).initial(), torch.tensor([5, 500, 900]), torch.tensor([0, 1, 2])

    def read(denoiser: Denoiser, y: Tensor | None = y) -> tuple[Tensor, Tensor, Tensor]:
        x0, eps, log_variance = denoiser(x, t, y)
        assert log_variance is not None
        return x0, eps, log_variance(t, t - 1)

    conditional, null = read(inside), read(inside, None)
    net.asked.clear()
    guided = read(ClassifierFree(inside, 3.0, channels=3))
    assert net.asked == [(6, [5.0, 500.0, 900.0] * 2, [0, 1, 2, 3, 3, 3])]
    every = read(ClassifierFree(inside, 3.0))

    def near(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))

    for k in (0, 1):  # x0 and eps
        wanted = null[k] + 3 * (conditional[k] - null[k])
        assert not near(wanted, conditional[k])
        assert near(every[k], wanted)
        assert near(guided[k][:, :3], wanted[:, :3])
        assert near(guided[k][:, 3:], conditional[k][:, 3:])
        assert near(read(ClassifierFree(inside, 1.0))[k], conditional[k])
        assert near(read(ClassifierFree(inside, 0.0))[k], null[k])
    for drawn in (guided, every, read(ClassifierFree(inside, 0.0))):
        assert near(drawn[2], conditional[2])
    # On denoisers of any kind, and without a label.
    for a, b in zip(read(ClassifierFree(Wrapped(inside), 3.0, channels=3)), guided, strict=True):
        assert near(a, b)
    for a, b in zip(read(ClassifierFree(inside, 3.0), None), null, strict=True):
        assert torch.equal(a, b)


@every_schedule
def test_guidance_keeps_image_and_noise_consistent(schedule: Schedule):
    """x_t = alpha x0 + sigma eps holds after guiding, on some channels or on all."""
    denoiser = NetDenoiser(tiny(Velocity()), schedule, Velocity())
    x, t, y = (
        Noise(0, range(2), TINY.shape).initial(),
        fractions_to_times(schedule, 0.3, 0.9),
        torch.arange(2),
    )
    for channels in (3, None):
        x0, eps, _ = ClassifierFree(denoiser, 4.0, channels)(x, t, y)
        assert torch.allclose(diffuse(schedule, x0, eps, t), x, atol=1e-4)


# ---- noise, times, data ----------------------------------------------------------------------------------


@examples
@given(st.integers(-(2**63), 2**64 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=8), st.data())
def test_the_noise_of_an_image_is_the_same_in_every_batch(seed: int, indices: list[int], data: st.DataObject):
    cut = data.draw(st.integers(0, len(indices)))
    whole, parts = (
        Noise(seed, indices, (2, 3)),
        [Noise(seed, part, (2, 3)) for part in (indices[:cut], indices[cut:])],
    )
    assert torch.equal(whole.initial(), torch.cat([part.initial() for part in parts]))
    step = data.draw(st.integers(0, 1000))
    assert torch.equal(whole.step(step), torch.cat([part.step(step) for part in parts]))


def test_noise_of_other_keys_is_other_noise():
    """Independent, so far as correlations of 4,096 numbers show, in seed, index, step and stream."""
    keys = itertools.product((0, 1), (0, 1, 2**33), (Stream.SAMPLE_STEP, Stream.TRAIN_LATENT), (0, 1, 255))
    drawn = torch.cat([normal(seed, [i], (4096,), stream, step) for seed, i, stream, step in keys])
    correlations = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert correlations.abs().max() < 5 / math.sqrt(4096)
    # Nor is one a shifted copy of another: no two share more numbers than chance has them share.
    for a, b in itertools.combinations(drawn.numpy(), 2):
        assert len(np.intersect1d(a, b)) < 40
    noise = Noise(0, np.array([3]), (4096,))
    assert torch.equal(noise.initial(), Noise(0, [3], (4096,)).initial())
    assert not torch.equal(noise.initial(), noise.step(0))


def test_noise_is_standard_normal():
    z = torch.special.ndtr(Noise(0, range(4), (1 << 15,)).initial().double()).flatten().sort().values
    n = len(z)
    assert (z - (torch.arange(n) + 0.5) / n).abs().max() < 2 / math.sqrt(n)
    u = uniform_numbers(0, range(2000), Stream.TRAIN_FLIP).sort().values
    assert (u - (torch.arange(2000) + 0.5) / 2000).abs().max() < 2 / math.sqrt(2000)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.4)])
def test_logit_normal_times_have_the_quantiles_of_their_name(mean: float, std: float):
    z = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    fraction, weight = LogitNormal(mean, std).draw(torch.special.ndtr(z))
    assert torch.allclose(fraction, 1 / (1 + (-(mean + std * z)).exp()), rtol=1e-9)
    assert bool((weight == 1).all())
    ends = LogitNormal(mean, std).draw(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).fraction
    assert 0 < ends[0] < ends[1] < 1


def test_loss_second_moment_samples_by_loss_and_keeps_the_expectation():
    times = LossSecondMoment(bins=4, history=3, uniform=0.01)
    state = times.begin()
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    middles = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for loss in (1000 * losses.flip(0), losses, losses):
        times.update(state, middles, loss)
        if int(state["counts"].min()) < 3:  # one bin not full: uniform still
            assert torch.allclose(times.draw(u, state).fraction, u, atol=1e-6)
            assert bool((times.draw(u, state).weight == 1).all())
    times.update(state, middles, losses)  # and the first, a thousand times too large, is forgotten
    p = times.probabilities(state)
    assert torch.allclose(p, losses.double() / 10 * 0.99 + 0.01 / 4)
    fraction, weight = times.draw(u, state)
    found = torch.bincount((fraction * 4).long(), minlength=4) / len(u)
    assert torch.allclose(found.double(), p, atol=1e-4)
    assert float((weight * fraction.square()).mean()) == pytest.approx(1 / 3, abs=1e-4)
    assert float(weight.mean()) == pytest.approx(1, abs=1e-4)


def test_what_a_time_distribution_has_learned_can_be_put_back():
    times = LossSecondMoment(bins=2, history=1)
    seen, fresh = times.begin(), times.begin()
    times.update(seen, torch.tensor([0.2, 0.7], dtype=torch.float64), torch.tensor([1.0, 9.0]))
    assert not fresh["counts"].any()  # the states of one distribution are apart
    assert torch.equal(times.probabilities(fresh), torch.tensor([0.5, 0.5], dtype=torch.float64))
    for name, tensor in fresh.items():
        tensor.copy_(seen[name])
    assert torch.equal(times.probabilities(fresh), times.probabilities(seen))
    assert float(times.probabilities(seen)[1]) > 0.89
    assert seen.keys() == {"losses", "counts"}  # as the checkpoints of 0.1 have them


@examples
@given(st.integers(1, 30), st.integers(0, 2**32), st.integers(0, 5), st.lists(st.integers(1, 40), max_size=6))
def test_the_order_of_training_is_whole_epochs_whatever_the_batch_size(
    size: int, seed: int, epoch: int, batches: list[int]
):
    order = samples_at(range(epoch * size, (epoch + 1) * size), size, seed)
    assert sorted(order.tolist()) == list(range(size))
    ends = [0, *itertools.accumulate(batches)]
    parts = [samples_at(range(a, b), size, seed) for a, b in itertools.pairwise(ends)]
    assert np.concatenate([[], *parts]).tolist() == samples_at(range(ends[-1]), size, seed).tolist()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [samples_at(range(first, first + 500), 500, seed) for first, seed in ((0, 0), (500, 0), (0, 1))]
    assert all((a == b).mean() < 0.05 for a, b in itertools.combinations(orders, 2))


def test_digits_are_split_for_good():
    train, held_out = digits(), digits(held_out=True)
    assert (len(train), len(held_out), train.shape) == (1438, 359, (1, 8, 8))
    rows = [{image.numpy().tobytes() for image in part.images} for part in (train, held_out)]
    assert not rows[0] & rows[1]
    for part in (train, held_out):
        assert (float(part.images.min()), float(part.images.max())) == (-1, 1)
        assert set(part.labels.tolist()) == set(range(10))
        assert part.images.dtype == torch.float32
    straight = train.batch(np.arange(64), range(64), seed=0)
    assert torch.equal(straight.x0, train.images[:64])


def test_flips_are_keyed_by_position():
    torch.manual_seed(0)
    images = Images(torch.randn(5, 1, 2, 3), torch.arange(5), ("a",) * 5, flip=True)
    indices = np.arange(400) % 5
    whole = images.batch(indices, range(1000, 1400), seed=7)
    part = images.batch(indices[130:150], range(1130, 1150), seed=7)
    assert torch.equal(part.x0, whole.x0[130:150])
    straight = images.images[torch.from_numpy(indices)]
    kept = (whole.x0 == straight).all(dim=(1, 2, 3))
    assert torch.equal(whole.x0[~kept], straight.flip(-1)[~kept])
    assert 150 < int(kept.sum()) < 250
    assert torch.equal(whole.y, torch.from_numpy(indices))
    assert not torch.equal(images.batch(indices, range(400), seed=7).x0, whole.x0)
    assert not torch.equal(images.batch(indices, range(1000, 1400), seed=8).x0, whole.x0)


@pytest.mark.parametrize(
    ("sampler", "changes"),
    [
        ("ddpm", ["diffusion.schedule=linear", "diffusion.objective=hybrid"]),
        ("heun", []),
        ("dpm", []),
        ("unipc", ["diffusion.schedule=linear"]),
    ],
)
def test_an_image_is_the_same_from_every_batch_size(sampler: str, changes: list[str]):
    size = ["model.hidden_size=32", "model.depth=2", "model.num_heads=2"]
    run = config.load("digits", [*size, "diffusion.times=uniform", *changes])
    torch.manual_seed(0)
    net = DiT(run.model).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    pipeline = Pipeline(run, net, torch.device("cpu"), tuple("0123456789"), {})
    classes = [i % 10 for i in range(64)]
    given = {"seed": 5, "sampler": sampler, "steps": 6, "cfg_scale": 2.0}
    settings = pipeline.settings(**given)
    whole = pipeline.latents(classes, settings, start=100, batch_size=64)
    assert whole.shape == (64, 1, 8, 8)
    assert whole.std() > 0.1
    images = to_uint8(whole).astype(int)
    for batch_size in (16, 1):
        again = pipeline.latents(classes, settings, start=100, batch_size=batch_size)
        assert (again - whole).abs().max() <= 1e-4
        assert np.abs(to_uint8(again).astype(int) - images).max() <= 1
    one = pipeline(classes[37:38], start=137, **given)
    assert np.abs(one[0].astype(int) - images[37]).max() <= 1
    assert np.abs(images[0] - images[10]).max() > 1  # another index, the same class
    other = pipeline.latents([3], settings, start=100)
    assert (other[0] - whole[0]).abs().max() > 1e-3  # another class, the same index
