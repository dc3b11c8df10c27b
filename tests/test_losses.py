"""The velocity objective and min-SNR weights, against their papers' formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaledit.diffusion import (
    EDM,
    X0,
    CosineBeta,
    Epsilon,
    Hybrid,
    LearnedRange,
    LinearBeta,
    LinearFlow,
    MinSNR,
    NetDenoiser,
    Objective,
    Parameterization,
    Schedule,
    Simple,
    Velocity,
    VelocityLoss,
    diffuse,
)
from scaledit.diffusion.schedule import broadcast_like
from scaledit.errors import UsageError
from tiny import tiny

FLOW = LinearFlow()


@dataclass
class Fixed:
    """A network whose output is given: what an objective does with it is all that is left."""

    out: Tensor
    null_label: int = 0

    def __call__(self, x: Tensor, t: Tensor, y: Any) -> Tensor:
        return self.out


def batch(n: int, c: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x0, eps and a guess of x0, float64."""
    numbers = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, n, c, 4, 4, generator=numbers, dtype=torch.float64))  # type: ignore[return-value]


def mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


# The velocity objective

TIMES = st.lists(st.floats(0.001, 0.999), min_size=3, max_size=3).map(
    lambda times: torch.tensor(times, dtype=torch.float64)
)


@given(t=TIMES, clamp=st.floats(0.01, 1))
@settings(max_examples=30, deadline=None)
def test_velocity_loss_of_an_image_is_its_error_over_the_clamped_time(t: Tensor, clamp: float):
    """|| x_0 - x_hat ||^2 / max(t, clamp)^2, and its gradient 2 (x_hat - x_0) / max(t, clamp)^2."""
    x0, eps, guess = batch(3)
    guess.requires_grad_()
    weight = 1 / t.clamp(min=clamp) ** 2
    loss = VelocityLoss(clamp)(NetDenoiser(Fixed(guess), FLOW, X0()), x0, None, t, eps)
    torch.testing.assert_close(loss.total, weight * mean((x0 - guess) ** 2), rtol=1e-9, atol=0)
    loss.total.sum().backward()
    expected = 2 * broadcast_like(weight, x0) * (guess - x0).detach() / x0[0].numel()
    torch.testing.assert_close(guess.grad, expected, rtol=1e-8, atol=1e-9)
    assert loss.mse is loss.total and loss.vlb is None


@given(t=TIMES)
@settings(max_examples=30, deadline=None)
def test_velocity_loss_of_a_velocity_is_the_simple_objective_above_the_clamp(t: Tensor):
    """Also of the velocity that a guess of the image stands for; below the clamp (t / clamp)^2 of it."""
    x0, eps, guess = batch(3)
    x_t = diffuse(FLOW, x0, eps, t)
    velocity = (x_t - guess) / broadcast_like(t, x0)
    simple = Simple()(NetDenoiser(Fixed(velocity), FLOW, Velocity()), x0, None, t, eps).total
    share = (t / t.clamp(min=0.05)) ** 2
    for out, parameterization in ((velocity, Velocity()), (guess, X0())):
        loss = VelocityLoss()(NetDenoiser(Fixed(out), FLOW, parameterization), x0, None, t, eps).total
        torch.testing.assert_close(loss, share * simple, rtol=1e-8, atol=0)


def test_velocity_loss_compares_with_another_samples_velocity():
    """eps~ - x~_0, not the velocity from x_t to the other image."""
    x0, eps, guess = batch(3)
    other_x0, other_eps, _ = batch(3, seed=1)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x_t = diffuse(FLOW, x0, eps, t)
    velocity = (x_t - guess) / broadcast_like(t, x0)
    denoiser = NetDenoiser(Fixed(guess), FLOW, X0())
    error = VelocityLoss().error(denoiser, guess, other_x0, other_eps, x_t, t)
    torch.testing.assert_close(error, mean((velocity - (other_eps - other_x0)) ** 2))


# Min-SNR


def out_for(parameterization: Parameterization, schedule: Schedule, guess: Tensor, x_t: Tensor, t: Tensor):
    """The output that stands for this guess of x0: the target for the noise that goes with it."""
    alpha, sigma = (broadcast_like(value, x_t) for value in schedule.coefficients(t))
    return parameterization.target(schedule, guess, (x_t - alpha * guess) / sigma, t)


CHAINS = (LinearBeta(steps=100), CosineBeta(steps=100))
OUTPUTS = (Epsilon(), X0(), Velocity(), EDM())


@pytest.mark.parametrize("schedule", [*CHAINS, FLOW])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_one_weight_on_the_image_for_all_parameterizations(schedule: Schedule, gamma: float):
    """min(SNR, gamma) || x_0 - x_hat ||^2, whatever the network predicts."""
    u = torch.linspace(0.02, 0.98, 20, dtype=torch.float64)
    t = schedule.time_at(u)
    x0, eps, guess = batch(20)
    x_t = diffuse(schedule, x0, eps, t)
    alpha, sigma = schedule.coefficients(t)
    expected = ((alpha / sigma) ** 2).clamp(max=gamma) * mean((x0 - guess) ** 2)
    assert 0 < int(((alpha / sigma) ** 2 > gamma).sum()) < 20  # both sides of the minimum
    for parameterization in OUTPUTS:
        out = out_for(parameterization, schedule, guess, x_t, t)
        denoiser = NetDenoiser(Fixed(out), schedule, parameterization)
        found = MinSNR(gamma)(denoiser, x0, None, t, eps).total
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("schedule", CHAINS)
def test_min_snr_has_the_papers_weights(schedule: Schedule):
    """Hang et al. 2023, section 3.4, on their variance-preserving chains, gamma 5."""
    t = torch.arange(100, dtype=torch.float64)
    alpha, sigma = schedule.coefficients(t)
    snr = (alpha / sigma) ** 2
    least = snr.clamp(max=5.0)
    papers = {Epsilon(): least / snr, X0(): least, Velocity(): least / (snr + 1)}
    for parameterization, weight in papers.items():
        for of in (parameterization, LearnedRange(parameterization)):
            torch.testing.assert_close(MinSNR().weight(schedule, of, t), weight, rtol=1e-9, atol=0)


def test_min_snr_leaves_the_bound_of_the_hybrid_objective_alone():
    t = torch.tensor([0.0, 5.0, 60.0], dtype=torch.float64)
    x0, eps, _ = batch(3)
    out = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    denoiser = NetDenoiser(Fixed(out), CHAINS[0], LearnedRange(Epsilon()))
    hybrid = Hybrid()(denoiser, x0, None, t, eps)
    weighted = MinSNR(of=Hybrid())(denoiser, x0, None, t, eps)
    assert hybrid.vlb is not None and torch.equal(weighted.vlb, hybrid.vlb)  # type: ignore[arg-type]
    weight = MinSNR().weight(CHAINS[0], denoiser.parameterization, t)
    assert weight[0] < 0.01 and weight[2] == pytest.approx(1)
    torch.testing.assert_close(weighted.total, weight * hybrid.mse + hybrid.vlb)
    assert tiny("diffusion.objective=min_snr", "diffusion.objective.of=hybrid").model.learn_sigma
    assert not tiny("diffusion.objective=min_snr").model.learn_sigma


# What makes no sense


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["diffusion.objective=velocity", "diffusion.schedule=linear"], "set diffusion.schedule=flow"),
        (["diffusion.objective=velocity", "diffusion.prediction=epsilon"], "set diffusion.prediction=x0"),
        (["diffusion.objective=min_snr", "diffusion.objective.of=velocity"], "use simple or hybrid"),
        (["diffusion.objective=min_snr", "diffusion.objective.gamma=0"], "gamma must be above 0"),
        (["diffusion.objective=velocity", "diffusion.objective.clamp=0"], "clamp must be above 0"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(overrides: list[str], said: str):
    with pytest.raises(UsageError, match=said):
        tiny(*overrides)


@dataclass(frozen=True)
class Own(Objective):
    """What a user wrote before losses had terms."""

    def __call__(self, denoiser, x0, y, t, eps, *, context=None):
        return {"total": mean(x0)}


def test_an_objective_of_ones_own_without_an_error_says_so():
    x0, eps, guess = batch(1)
    denoiser = NetDenoiser(Fixed(guess), FLOW, X0())
    with pytest.raises(UsageError, match=r"Own defines no error .* add a method error\("):
        Own().losses(denoiser, guess, x0, eps, x0, torch.tensor([0.5]))
