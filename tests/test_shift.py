"""Shifted times: one formula for training and sampling."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledit import assemble
from scaledit.diffusion import (
    Euler,
    LinearBeta,
    LinearFlow,
    LogitNormal,
    LossSecondMoment,
    NetDenoiser,
    Noise,
    Shifted,
    ShiftedTimes,
    Uniform,
    Velocity,
    sample,
)
from scaledit.diffusion.shift import auto_shift, shifted, unshifted
from scaledit.errors import UsageError
from scaledit.models.dit import DiT
from tiny import tiny

U = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
SHIFTS = st.floats(0.05, 20)


@given(s=SHIFTS, mean=st.floats(-1, 1), std=st.floats(0.3, 2))
@settings(max_examples=30, deadline=None)
def test_a_shift_adds_its_log_to_the_logit(s: float, mean: float, std: float):
    """So a shifted logit-normal is a logit-normal, and shifted uniform times have P(t' <= c) = the share of u
    below c's inverse; on the flow alpha / sigma is divided by s."""
    moved = ShiftedTimes(s, LogitNormal(mean, std)).draw(U)
    torch.testing.assert_close(moved.fraction, LogitNormal(mean + math.log(s), std).draw(U).fraction)
    assert torch.equal(moved.weight, torch.ones_like(U))
    uniform = ShiftedTimes(s, Uniform()).draw(U).fraction
    torch.testing.assert_close(unshifted(uniform, s), U)
    flow = LinearFlow()
    torch.testing.assert_close(flow.log_snr(uniform), flow.log_snr(U) - math.log(s))
    assert bool((uniform > U).all()) == (s > 1) or s == 1


@given(s=SHIFTS, steps=st.integers(2, 50))
@settings(max_examples=30, deadline=None)
def test_sampling_visits_the_times_of_training(s: float, steps: int):
    inner = Shifted(s).grid(LinearFlow(), steps)[1:-1]
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1]
    assert torch.equal(inner, ShiftedTimes(s).draw(even).fraction)
    assert torch.equal(inner, shifted(even, s))


def test_auto_follows_the_shape_and_never_shifts_towards_the_data():
    assert auto_shift((768, 16, 16)) == pytest.approx(math.sqrt(48))
    assert auto_shift((4, 32, 32)) == auto_shift((1, 8, 8)) == 1
    assert auto_shift((4, 64, 64)) == 2
    times = ShiftedTimes(times=LogitNormal(0.3)).chosen_for((4, 64, 64))
    assert times == ShiftedTimes(2.0, LogitNormal(0.3))
    assert ShiftedTimes(times=ShiftedTimes()).chosen_for((4, 64, 64)) == ShiftedTimes(2.0, ShiftedTimes(2.0))
    assert Uniform().chosen_for((4, 64, 64)) == Uniform()
    config = tiny(
        "diffusion.times=shifted",
        "diffusion.times.times=logit_normal",
        "diffusion.times.times.mean=0.8",
        "sample.sampler.times=shifted",
        "sample.sampler.times.shift=auto",
        "model.input_size=192",  # a gray image of 9 times 4,096 pixels
    )
    assert assemble.times(config.diffusion, config.model.shape) == ShiftedTimes(3.0, LogitNormal(0.8))
    protocol = assemble.sampler_json(config.sample.sampler, config.diffusion.schedule, config.model.shape)
    assert protocol["times"] == {"name": "shifted", "shift": 3.0}
    assert config.to_json()["diffusion"]["times"]["shift"] == "auto"  # what the recipe says
    for wrong in ("automatic", "-1", "0"):
        with pytest.raises(UsageError, match=r"diffusion.times.shift"):
            tiny("diffusion.times=shifted", f"diffusion.times.shift={wrong}")
    with pytest.raises(UsageError, match=r"depends on the shape of the inputs"):
        Shifted("auto").grid(LinearFlow(), 3)


def test_a_sampler_takes_auto_from_the_images_that_it_makes():
    net = DiT(tiny("model.input_size=96", "model.depth=1").model).eval()
    denoiser, shape = NetDenoiser(net, LinearFlow(), Velocity()), (1, 96, 96)
    torch.nn.init.normal_(net.final.linear.weight)
    made = [
        sample(denoiser, Euler(steps=3, times=times), Noise(0, range(1), shape), torch.tensor([1]))
        for times in (Shifted("auto"), Shifted(1.5), "even")
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("s", [0.5, 3.0])
def test_importance_sampling_learns_through_a_shift(s: float):
    """Its bins are those of the times before the shift, and its weights stay exact."""
    inner = LossSecondMoment(bins=8, history=2)
    outer = ShiftedTimes(s, inner)
    a, b = inner.begin(), outer.begin()
    for step in range(40):
        u = torch.rand(16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        plain, moved = inner.draw(u, a), outer.draw(u, b)
        torch.testing.assert_close(moved.fraction, shifted(plain.fraction, s), rtol=0, atol=0)
        assert torch.equal(moved.weight, plain.weight)
        losses = plain.fraction + 0.1
        inner.update(a, plain.fraction, losses)
        outer.update(b, moved.fraction, losses)
    assert torch.equal(a["counts"], b["counts"]) and torch.equal(a["losses"], b["losses"])
    assert float(inner.probabilities(a).std()) > 0.01  # it has learned


def test_a_chain_is_shifted_in_fractions_of_its_length():
    chain = LinearBeta(steps=1000)
    times = chain.time_at(ShiftedTimes(3.0).draw(U).fraction)
    assert torch.equal(times, (1000 * shifted(U, 3.0)).floor())
