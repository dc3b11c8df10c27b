"""Derivatives in time, through the denoiser and guidance, against differences in float64; and EDM's table."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scaledit.diffusion import (
    EDM,
    X0,
    ClassifierFree,
    CosineBeta,
    Denoiser,
    Epsilon,
    LearnedRange,
    LinearBeta,
    LinearFlow,
    NetDenoiser,
    Parameterization,
    Schedule,
    Simple,
    Velocity,
    diffuse,
)
from scaledit.diffusion.schedule import as_time
from scaledit.errors import UsageError

SHAPE = (2, 3, 3)
CLASSES = 3
PARAMETERIZATIONS: tuple[Parameterization, ...] = (
    Epsilon(),
    Velocity(),
    X0(),
    EDM(),
    Velocity(tells="alpha"),
    LearnedRange(Velocity()),
)
every_parameterization = pytest.mark.parametrize(
    "parameterization", PARAMETERIZATIONS, ids=lambda p: p.label()
)


class Smooth(nn.Module):
    """A network in float64 that depends smoothly on everything it is given, its time above all."""

    null_label = CLASSES

    def __init__(self, channels: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(
                torch.randn(shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5
            )

        self.channels = channels
        size = math.prod(SHAPE)
        self.enter, self.leave = weight(size, 16), weight(16, channels * 9)
        self.time, self.labels = weight(4, 16), weight(CLASSES + 1, 16)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert t.dtype == x.dtype == torch.float64
        waves = torch.stack([(t / 700).cos(), (t / 90).sin(), (t / 25).cos(), (t / 300).sin()], dim=-1)
        hidden = torch.tanh(x.flatten(1) @ self.enter + waves @ self.time + self.labels[y])
        return (hidden @ self.leave).reshape(len(x), self.channels, 3, 3)


def denoiser_of(schedule: Schedule, parameterization: Parameterization) -> NetDenoiser:
    return NetDenoiser(Smooth(parameterization.channels(SHAPE[0])), schedule, parameterization)


torch.manual_seed(0)
X = torch.randn(3, *SHAPE, dtype=torch.float64)
T = torch.tensor([0.2, 0.55, 0.9], dtype=torch.float64)
Y = torch.tensor([0, 2, 1])
STEP = 3e-6


def functions(denoiser: NetDenoiser) -> dict[str, Callable[[Tensor], Tensor]]:
    def both(made: Denoiser) -> Callable[[Tensor], Tensor]:
        return lambda t: torch.cat(made(X, t, Y)[:2], dim=1)

    return {
        "output": lambda t: denoiser.output(X, t, Y),
        "denoiser": both(denoiser),
        "guided": both(ClassifierFree(denoiser, 2.5)),
        "guided on some": both(ClassifierFree(denoiser, 2.5, channels=1)),
        "x_t and all": lambda t: denoiser(diffuse(denoiser.schedule, X, X.flip(0), t), t, Y).x0,
    }


@every_parameterization
def test_derivatives_in_time_are_those_of_differences(parameterization: Parameterization):
    """Forward and reverse mode, each row's own time. It was a silent zero: times were detached."""
    denoiser = denoiser_of(LinearFlow(), parameterization)
    for name, function in functions(denoiser).items():
        with torch.no_grad():
            wanted = (function(T + STEP) - function(T - STEP)) / (2 * STEP)
        value, tangent = torch.func.jvp(function, (T,), (torch.ones_like(T),))
        assert torch.equal(value, function(T)), name
        scale = float(wanted.abs().max())
        assert scale > 1e-3, name
        assert torch.allclose(tangent, wanted, rtol=0, atol=1e-7 * scale), name
        weight = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).reshape(wanted.shape)
        t = T.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((function(t) * weight).sum(), t)
        expected = (wanted * weight).flatten(1).sum(1)
        assert torch.allclose(gradient, expected, rtol=0, atol=1e-6 * float(expected.abs().max())), name
        again = torch.func.grad(lambda t, f=function, w=weight: (f(t) * w).sum())(T)
        assert torch.allclose(again, gradient, rtol=0, atol=1e-9 * float(gradient.abs().max())), name


def test_derivatives_along_a_direction_in_image_and_time():
    """What MeanFlow asks: d/dt u(x_t, t) along (v, 1)."""
    denoiser = denoiser_of(LinearFlow(), Velocity())
    v = X.flip(0)

    def output(x: Tensor, t: Tensor) -> Tensor:
        return denoiser.output(x, t, Y)

    _, tangent = torch.func.jvp(output, (X, T), (v, torch.ones_like(T)))
    with torch.no_grad():
        wanted = (output(X + STEP * v, T + STEP) - output(X - STEP * v, T - STEP)) / (2 * STEP)
    assert torch.allclose(tangent, wanted, rtol=0, atol=1e-7 * float(wanted.abs().max()))


def test_one_time_for_all_rows_has_a_derivative_too():
    denoiser = denoiser_of(LinearFlow(), Epsilon())
    one = torch.tensor(0.4, dtype=torch.float64)
    function = functions(denoiser)["guided"]
    _, tangent = torch.func.jvp(function, (one,), (torch.ones_like(one),))
    _, by_row = torch.func.jvp(function, (one.repeat(3),), (torch.ones(3, dtype=torch.float64),))
    assert torch.allclose(tangent, by_row, rtol=1e-12)
    assert bool(tangent.any())


def test_derivatives_at_the_ends_are_finite():
    """The branch that is not taken, at sigma = 0 or alpha = 0, must not make them nan."""
    for parameterization in PARAMETERIZATIONS:
        denoiser = denoiser_of(LinearFlow(), parameterization)
        for end in (0.0, 1.0):
            t = torch.full((3,), end, dtype=torch.float64, requires_grad=True)
            made = denoiser(X, t, Y)
            usable = made.x0.isfinite().all() and made.eps.isfinite().all()
            assert usable, (parameterization, end)
            (gradient,) = torch.autograd.grad(made.x0.sum() + made.eps.sum(), t)
            assert bool(gradient.isfinite().all()), (parameterization, end)


@pytest.mark.parametrize("schedule", [LinearBeta(), CosineBeta(100)], ids=lambda s: s.label())
@every_parameterization
def test_a_chain_says_that_it_has_no_derivative_in_time(
    schedule: Schedule, parameterization: Parameterization
):
    denoiser = denoiser_of(schedule, parameterization)
    t = torch.tensor([3.0, 40.0, 90.0], dtype=torch.float64)
    for function in functions(denoiser).values():
        value = function(t)  # asked for nothing, it is as before
        assert bool(value.isfinite().all())
        with pytest.raises(UsageError, match=r"whole times only.*LinearFlow"):
            torch.func.jvp(function, (t,), (torch.ones_like(t),))
        with pytest.raises(UsageError, match=r"whole times only.*LinearFlow"):
            function(t.clone().requires_grad_()).sum().backward()
        with pytest.raises(UsageError, match=r"whole times only.*LinearFlow"):
            torch.func.grad(lambda t, f=function: f(t).sum())(t)
        for jacobian in (torch.func.jacfwd, torch.func.jacrev):
            with pytest.raises(UsageError, match=r"whole times only.*LinearFlow"):
                jacobian(function)(t)
    # In the image there is one, in both modes.
    _, tangent = torch.func.jvp(lambda x: denoiser(x, t, Y).x0, (X,), (torch.ones_like(X),))
    assert bool(tangent.any())
    x = X.clone().requires_grad_()
    denoiser(x, t, Y).x0.sum().backward()
    assert x.grad is not None and bool(x.grad.any())


def test_times_are_float64_on_the_cpu_and_keep_their_derivative():
    t = torch.tensor([0.25], dtype=torch.float32, requires_grad=True)
    made = as_time(t)
    assert (made.dtype, made.device.type) == (torch.float64, "cpu")
    made.sum().backward()
    assert t.grad is not None and t.grad.tolist() == [1.0]
    assert as_time(3).tolist() == 3.0


def test_networks_are_told_float64_for_float64_images_alone():
    told = []

    class Records:
        null_label = 0

        def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            told.append(t)
            return x

    denoiser = NetDenoiser(Records(), LinearFlow(), Velocity())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        denoiser.output(X.to(dtype), T, Y)
    assert [t.dtype for t in told] == [torch.float64, torch.float32, torch.float32]
    assert torch.equal(told[0], 1000 * T)


def test_a_second_time_and_hidden_states_are_asked_for_by_name():
    """Who does not ask calls the network as before."""
    from collections import namedtuple

    Output = namedtuple("Output", "out hidden")
    calls = []

    class Takes:
        null_label = 0

        def __call__(self, x: Tensor, t: Tensor, y: Tensor, **given) -> Tensor | Output:
            calls.append(given)
            return Output(x.float(), dict.fromkeys(given["hidden"], x)) if "hidden" in given else x

    denoiser = NetDenoiser(Takes(), LinearFlow(), Velocity())
    denoiser.output(X, T, Y)
    out = denoiser.output(X, T, Y, second=T / 2, hidden=[1, 3])
    assert calls[0] == {}
    assert torch.equal(calls[1]["second"], 500 * T)
    assert (calls[1]["hidden"], set(out.hidden), out.out.dtype) == ((1, 3), {1, 3}, X.dtype)


# ---- EDM -------------------------------------------------------------------------------------------------


class Given:
    """A network that answers with one tensor and remembers what it was given."""

    null_label = 0

    def __init__(self, out: Tensor):
        self.out = out

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.x, self.t = x, t
        return self.out


@pytest.mark.parametrize("data", [0.5, 1.3])
@pytest.mark.parametrize("schedule", [LinearFlow(), LinearBeta(), CosineBeta()], ids=lambda s: s.label())
def test_edm_is_table_1(schedule: Schedule, data: float):
    """Karras et al. 2022: D = c_skip x + c_out F(c_in x, c_noise), x = x_t / alpha, s = sigma / alpha."""
    u = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64)
    t = schedule.time_at(u)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    s = sigma / alpha
    c_skip, c_out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
    c_in, c_noise = 1 / (s**2 + data**2).sqrt(), s.log() / 4
    torch.manual_seed(0)
    x_t, out = torch.randn(2, 4, *SHAPE, dtype=torch.float64)
    net, rows = Given(out), (-1, 1, 1, 1)
    made = NetDenoiser(net, schedule, EDM(sigma_data=data))(x_t, t, None)
    x = x_t / alpha.reshape(rows)
    close = {"rtol": 1e-12, "atol": 1e-12}
    assert torch.allclose(net.x, c_in.reshape(rows) * x, **close)
    assert torch.allclose(net.t, c_noise, **close)
    assert torch.allclose(made.x0, c_skip.reshape(rows) * x + c_out.reshape(rows) * out, **close)
    assert torch.allclose(alpha.reshape(rows) * made.x0 + sigma.reshape(rows) * made.eps, x_t, **close)


@pytest.mark.parametrize("schedule", [LinearFlow(), LinearBeta()], ids=lambda s: s.label())
def test_edm_has_nothing_left_to_say_of_a_gaussian(schedule: Schedule):
    """Of images N(0, sigma_data^2) the exact posterior mean is F = 0; input and target have unit variance."""
    edm, n = EDM(sigma_data=0.7), 200_000
    torch.manual_seed(0)
    x0, eps = 0.7 * torch.randn(n, 1, 1, 1, dtype=torch.float64), torch.randn(n, 1, 1, 1, dtype=torch.float64)
    for u in (0.02, 0.3, 0.7, 0.99):
        t = schedule.time_at(torch.tensor(u, dtype=torch.float64))
        x_t = diffuse(schedule, x0, eps, t)
        made = edm.decode(schedule, torch.zeros_like(x_t), x_t, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        exact = 0.49 * alpha / (0.49 * alpha**2 + sigma**2) * x_t
        assert torch.allclose(made.x0, exact, rtol=1e-12)
        target = edm.target(schedule, x0, eps, t)
        scale = edm.input_scale(schedule, t)
        for unit in (target, scale * x_t):
            assert float(unit.var()) == pytest.approx(1, abs=0.02)
        correlation = float((target * x_t).mean() / x_t.std())
        assert abs(correlation) < 0.01  # what x_t tells of x_0 is in c_skip already


def test_edm_is_finite_at_both_ends_of_a_flow():
    """There c_noise is held at the paper's ends of sigma / alpha, 0.002 and 80."""
    t = torch.tensor([0.0, 0.001, 0.5, 0.999, 1.0], dtype=torch.float64)
    told = EDM().network_time(LinearFlow(), t)
    low, high = math.log(0.002) / 4, math.log(80) / 4
    assert told.tolist() == pytest.approx([low, low, 0, high, high], abs=1e-12)
    made = EDM().decode(LinearFlow(), torch.ones(5, *SHAPE), torch.ones(5, *SHAPE), t)
    assert bool(made.x0.isfinite().all()) and bool(made.eps.isfinite().all())
    assert torch.equal(made.x0[0], torch.ones(SHAPE))  # all of x_t, where there is no noise


def test_edm_trains_and_can_learn_its_variance():
    for parameterization in (EDM(), LearnedRange(EDM())):
        denoiser = denoiser_of(LinearFlow(), parameterization)
        assert parameterization.channels(2) == (4 if isinstance(parameterization, LearnedRange) else 2)
        losses = Simple()(denoiser, X, Y, T, X.flip(0))
        losses.total.sum().backward()
        assert bool(losses.total.isfinite().all())
        told = parameterization.network_time(LinearFlow(), T)
        assert torch.equal(told, EDM().network_time(LinearFlow(), T))
        assert torch.equal(parameterization.input_scale(LinearFlow(), T), EDM().input_scale(LinearFlow(), T))


def test_what_a_network_is_told():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    for part in (Epsilon, X0, Velocity):
        assert part().network_time(LinearFlow(), t).tolist() == [0, 250, 1000]
        assert part(tells="alpha").network_time(LinearFlow(), t).tolist() == [1, 0.75, 0]
        assert part().network_time(LinearBeta(200), torch.tensor([7.0])).tolist() == [35]
        assert LearnedRange(part(tells="alpha")).network_time(LinearFlow(), t).tolist() == [1, 0.75, 0]
        with pytest.raises(UsageError, match="tells is 'beta'"):
            part(tells="beta")
