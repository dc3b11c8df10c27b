"""The times that samplers visit: each part's formula, on flows and on chains, and what is refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from scaledit import part
from scaledit.diffusion import (
    DDIM,
    DDPM,
    Auto,
    CosineBeta,
    DPMSolver,
    Euler,
    Even,
    Heun,
    Karras,
    LinearBeta,
    LinearFlow,
    Listed,
    LogSNR,
    Quadratic,
    QuadraticBeta,
    Sampler,
    Schedule,
    Shifted,
    Sine,
    Stride,
    Times,
    UniPC,
)
from scaledit.diffusion.times import ddim_stride, respaced
from scaledit.errors import UsageError

CHAINS = (LinearBeta(), CosineBeta(), QuadraticBeta(), LinearBeta(20))
FLOW = LinearFlow()
SPREAD: tuple[Times, ...] = (
    Auto(),
    Even(),
    LogSNR(),
    LogSNR(low=-3.0, high=2.0),
    Karras(),
    Karras(rho=3.0, sigma_min=0.01, sigma_max=20.0),
    Shifted(),
    Shifted(0.3),
    Quadratic(),
    Sine(),
)
every_spread = pytest.mark.parametrize("times", SPREAD, ids=lambda one: one.label())


def ratio(schedule: Schedule, t: Tensor) -> Tensor:
    return schedule.sigma(t) / schedule.alpha(t)


def test_all_times_are_parts_under_their_names():
    assert set(part.names(Times)) == {
        *("auto", "even", "log_snr", "karras", "shifted", "quadratic", "sine", "stride", "list")
    }
    assert part.build(Times, {"name": "karras", "rho": 5}, "x") == Karras(rho=5.0)
    for times in (*SPREAD, Listed((0.5, 0.25))):
        assert part.build(Times, times.to_json(), "x") == times


@every_spread
def test_a_grid_on_a_flow_descends_from_noise_to_the_image(times: Times):
    for steps in (1, 2, 3, 20, 300):
        grid = times.grid(FLOW, steps)
        assert grid.dtype == torch.float64
        assert (len(grid), float(grid[0]), float(grid[-1])) == (steps + 1, 1.0, 0.0)
        assert bool((grid.diff() < 0).all())
    with pytest.raises(UsageError, match="steps must be at least 1, got 0"):
        times.grid(FLOW, 0)


@every_spread
@pytest.mark.parametrize("schedule", CHAINS, ids=lambda one: one.label())
def test_a_grid_on_a_chain_spends_exactly_the_steps_that_were_asked_for(schedule: Schedule, times: Times):
    """Rounded times would repeat (Karras' from some 20 steps on): all are whole, and no two the same."""
    total = int(schedule.horizon)
    for steps in {1, 2, 3, 8, 19, 20, *((50, 250, 999, 1000) if total == 1000 else ())}:
        grid = times.grid(schedule, steps)
        assert (len(grid), grid[0], grid[-1]) == (steps + 1, total - 1, -1)
        assert torch.equal(grid, grid.round())
        assert bool((grid.diff() < 0).all())
    for steps in (0, total + 1):
        with pytest.raises(UsageError, match=rf"steps must be from 1 to {total}, .* got {steps}"):
            times.grid(schedule, steps)


def test_rounded_times_that_would_repeat_are_moved_to_their_free_neighbors():
    chain, steps = LinearBeta(), 100
    roots = np.linspace(80 ** (1 / 7), float(ratio(chain, torch.tensor(0))) ** (1 / 7), steps)
    ratios = ratio(chain, torch.arange(1000)).numpy()
    rounded = np.interp(np.log(roots**7), np.log(ratios), np.arange(1000)).round()
    assert len(set(rounded.tolist())) < steps  # what rounding alone would leave
    grid = Karras().grid(chain, steps)[:-1].numpy()
    assert len(set(grid.tolist())) == steps
    assert np.abs(grid - rounded)[1:].max() <= 10  # and the first is the noisiest time, not that of 80
    assert grid[rounded > 50][1:].tolist() == rounded[rounded > 50][1:].tolist()  # where there is room


@pytest.mark.parametrize("steps", [1, 7, 12, 50, 250, 1000])
def test_even_times_are_the_official_ones(steps: int):
    for chain in CHAINS[:3]:
        assert Even().grid(chain, steps).tolist() == [*reversed(respaced(1000, steps)), -1]
    assert torch.equal(Even().grid(FLOW, steps), torch.linspace(1, 0, steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("schedule", [FLOW, LinearBeta(1_000_000)], ids=["flow", "chain"])
@pytest.mark.parametrize(("rho", "low", "high"), [(7.0, 0.02, 60.0), (3.0, 0.05, 20.0)])
def test_karras_times_are_equation_5(schedule: Schedule, rho: float, low: float, high: float):
    """sigma_i = (max^(1/rho) + i / (n - 1) (min^(1/rho) - max^(1/rho)))^rho, of sigma / alpha, i < n."""
    n = 18
    grid = Karras(rho, low, high).grid(schedule, n)
    i = np.arange(1, n)  # in place of i = 0 stands the noisiest time
    wanted = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    tolerance = 1e-9 if schedule is FLOW else 2e-3  # a chain has whole times
    np.testing.assert_allclose(ratio(schedule, grid[1:-1]), wanted, rtol=tolerance)


def test_karras_cut_offs():
    """The paper's own, 0.002 and 80; on a chain its ends where they lie inside."""
    t = Karras().grid(FLOW, 18)
    assert float(ratio(FLOW, t[-2])) == pytest.approx(0.002, rel=1e-9)
    second = (80 ** (1 / 7) + 1 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(ratio(FLOW, t[1])) == pytest.approx(second, rel=1e-9)
    assert Karras().grid(LinearBeta(), 18)[-2] == 0
    with pytest.raises(UsageError, match="sigma_min must be below sigma_max"):
        Karras(sigma_min=3.0, sigma_max=2.0)


def test_log_snr_times_are_even_between_their_cut_offs():
    for times, low, high in ((LogSNR(), -5.1, 4.6), (LogSNR(low=-3.0, high=2.0), -3.0, 2.0)):
        inner = FLOW.log_snr(times.grid(FLOW, 20)[1:-1])
        np.testing.assert_allclose(inner, np.linspace(low, high, 21)[1:-1], atol=1e-9)
    with pytest.raises(UsageError, match="low must be below high"):
        LogSNR(low=5.0)


@pytest.mark.parametrize(
    ("times", "map_u"),
    [
        (Shifted(3.0), lambda u: 3 * u / (1 + 2 * u)),
        (Shifted(0.5), lambda u: 0.5 * u / (1 - 0.5 * u)),
        (Quadratic(), lambda u: u**2),
        (Sine(), lambda u: np.sin(math.pi * u / 2) ** 2),
    ],
)
def test_maps_of_even_times(times: Times, map_u):
    u = np.linspace(1, 0, 21)
    np.testing.assert_allclose(times.grid(FLOW, 20), map_u(u), atol=1e-15)
    fine = LinearBeta(100_000)
    np.testing.assert_allclose((times.grid(fine, 20) + 1) / 100_000, map_u(u), atol=2e-5)
    assert torch.equal(Shifted(1.0).grid(FLOW, 20), Even().grid(FLOW, 20))


def test_stride_is_the_ddim_codes():
    assert Stride().grid(LinearBeta(), 50).tolist() == [*range(980, -1, -20), -1]
    assert Stride().grid(LinearBeta(), 20).tolist() == [*reversed(ddim_stride(1000, 20)), -1]
    with pytest.raises(UsageError, match="no integer stride over 1000 times gives exactly 70 steps"):
        Stride().grid(LinearBeta(), 70)
    with pytest.raises(UsageError, match="whole times; use even"):
        Stride().grid(FLOW, 50)


def test_listed_times():
    assert Listed((999, 10, 0)).grid(LinearBeta(), 3).tolist() == [999, 10, 0, -1]
    assert Listed((0.9, 0.1)).grid(FLOW, 2).tolist() == [0.9, 0.1, 0]
    assert DPMSolver(2, times=[0.9, 0.1]).grid(FLOW).tolist() == [0.9, 0.1, 0]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="steps is 5, but values lists 2 times; set steps=2"):
        Listed((0.9, 0.1)).grid(FLOW, 5)
    for values in ((), (0.1, 0.9), (0.5, 0.5), (0.5, math.nan)):
        with pytest.raises(
            UsageError, match="values must be a list of at least one time, in descending order"
        ):
            Listed(values)
    for values, schedule in (
        ((1.5, 0.5), FLOW),
        ((0.5, 0.0), FLOW),
        ((0.5,), LinearBeta()),
        ((math.nan,), FLOW),
    ):
        with pytest.raises(UsageError, match=r"values must be (whole )?times above"):
            Listed(values).grid(schedule, len(values))
    with pytest.raises(UsageError, match="at most 999"):
        Listed((1000,)).grid(LinearBeta(), 1)


def test_auto_is_log_snr_on_chains_and_even_elsewhere():
    assert (Auto().chosen(FLOW), Auto().chosen(LinearBeta())) == (Even(), LogSNR())
    assert Karras().chosen(FLOW) == Karras()
    for steps, schedule in itertools.product((5, 20), (FLOW, LinearBeta())):
        assert torch.equal(Auto().grid(schedule, steps), Auto().chosen(schedule).grid(schedule, steps))


@dataclass(frozen=True)
class Circle(Schedule):
    """A continuous schedule of one's own: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    def alpha(self, t: Tensor) -> Tensor:
        return (self.time(t) * (math.pi / 2)).cos()

    def sigma(self, t: Tensor) -> Tensor:
        return (self.time(t) * (math.pi / 2)).sin()


def test_a_schedule_of_ones_own_has_all_grids():
    """It says alpha and sigma alone; its times at given lambda are found by bisection."""
    for times in SPREAD:
        grid = times.grid(Circle(), 12)
        assert (float(grid[0]), float(grid[-1])) == (1, 0)
        assert bool((grid.diff() < 0).all())
    inner = Circle().log_snr(LogSNR().grid(Circle(), 12)[1:-1])
    np.testing.assert_allclose(inner, np.linspace(-5.1, 4.6, 13)[1:-1], atol=1e-9)
    by_bisection = Schedule.at_log_snr(FLOW, torch.tensor([-4.0, 0.0, 3.0], dtype=torch.float64))
    assert torch.allclose(by_bisection, FLOW.at_log_snr(torch.tensor([-4.0, 0.0, 3.0], dtype=torch.float64)))


def test_a_samplers_times_are_a_field():
    """By part, by name, by table; and from a recipe's table. A sampler keeps its times as a part."""
    wanted = DPMSolver(8, times=Karras(rho=5.0))
    assert wanted.grid(FLOW).tolist() == Karras(rho=5.0).grid(FLOW, 8).tolist()
    assert DPMSolver(8, times={"name": "karras", "rho": 5}) == wanted  # type: ignore[arg-type]
    table = {"name": "dpm", "steps": 8, "times": {"name": "karras", "rho": 5}}
    assert part.build(Sampler, table, "sample.sampler") == wanted
    assert part.build(Sampler, wanted.to_json(), "sample.sampler") == wanted
    assert part.build(Sampler, {"name": "ddim", "times": "shifted"}, "x") == DDIM(times=Shifted())
    for sampler in (DDPM, DDIM, Euler, Heun):
        assert sampler().times == Even()
    for sampler in (DPMSolver, UniPC):
        assert sampler().times == Auto()
    with pytest.raises(UsageError, match=r"unknown times 'karas'.*; did you mean 'karras'"):
        Euler(times="karas")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"sample\.sampler\.times\.rho must be above 0"):
        part.build(Sampler, {"name": "dpm", "times": {"name": "karras", "rho": 0}}, "sample.sampler")


@pytest.mark.parametrize("sampler", [DDPM, DDIM, Euler, DPMSolver, UniPC, Heun])
def test_a_sampler_states_its_evaluations(sampler: type[Sampler]):
    assert sampler(10).total_evaluations() == (19 if sampler is Heun else 10)
    assert sampler.evaluations == (2 if sampler is Heun else 1)
