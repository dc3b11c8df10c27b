"""Agreement with the official DiT and ADM programs: every entry of tests/oracle/dit.npz."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from oracle.formulas import array, dit_weight
from scaledit import DiT, DiTConfig
from scaledit.diffusion import (
    DDIM,
    DDPM,
    ClassifierFree,
    CosineBeta,
    Epsilon,
    Hybrid,
    LearnedRange,
    LinearBeta,
    NetDenoiser,
    Sampler,
    Simple,
    diffuse,
    sample,
)
from scaledit.diffusion.parameterization import posterior_log_variance
from scaledit.diffusion.schedule import transition
from scaledit.diffusion.times import Even, ddim_stride
from scaledit.interop import official
from scaledit.models.layers import position_table, time_frequencies, timestep_embedding

ORACLE = np.load(Path(__file__).parent / "oracle" / "dit.npz")
CASES = json.loads(str(ORACLE["meta"]))["cases"]
CHECKED: set[str] = {"meta"}

FORWARD, LOSS, SAMPLES = 2e-6, 1e-5, 2e-5


def agrees(entry: str, ours: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the oracle's entry, relative to the entry's largest absolute value."""
    CHECKED.add(entry)
    theirs = torch.from_numpy(ORACLE[entry])
    assert ours.shape == theirs.shape
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error <= tolerance, f"{entry}: relative error {error:.2e} above {tolerance:.0e}"


class Case(NamedTuple):
    config: DiTConfig
    denoiser: NetDenoiser
    t: Tensor
    y: Tensor
    steps: int
    cfg_scale: float
    draw: Callable[[str], Tensor]


def load_case(i: int) -> Case:
    meta = CASES[i]
    config = DiTConfig(**meta["config"])
    keys = official.export(DiT(config))
    weights = {
        key: value if key == "pos_embed" else torch.from_numpy(dit_weight(key, tuple(value.shape)))
        for key, value in keys.items()
    }
    assert sum(value.numel() for value in weights.values()) == meta["params"]
    net = official.load(config, weights).eval()
    parameterization = LearnedRange(Epsilon()) if config.learn_sigma else Epsilon()
    shape = (meta["n"], *config.shape)
    return Case(
        config=config,
        denoiser=NetDenoiser(net, LinearBeta(steps=1000), parameterization),
        t=torch.tensor(meta["t"]),
        y=torch.tensor(meta["y"]),
        steps=meta["steps"],
        cfg_scale=meta["cfg_scale"],
        draw=lambda name: torch.from_numpy(array(f"case{i}/{name}", shape)),
    )


class Replay:
    """The oracle's own noise."""

    def __init__(self, case: Case):
        self.draw = case.draw

    def initial(self) -> Tensor:
        return self.draw("z")

    def step(self, i: int) -> Tensor:
        return self.draw(f"step{i}")


@pytest.mark.parametrize("i", range(len(CASES)))
@torch.no_grad()
def test_forward(i: int):
    case = load_case(i)
    net, x = case.denoiser.net, case.draw("x")
    agrees(f"case{i}/forward", net(x, case.t, case.y), FORWARD)
    agrees(f"case{i}/forward_null", net(x, case.t, torch.full_like(case.y, net.null_label)), FORWARD)


@pytest.mark.parametrize("i", range(len(CASES)))
@torch.no_grad()
def test_losses(i: int):
    case = load_case(i)
    x0, eps = case.draw("x0").clamp(-1, 1), case.draw("noise")
    agrees(f"case{i}/x_t", diffuse(case.denoiser.schedule, x0, eps, case.t), LOSS)
    objective = Hybrid() if case.config.learn_sigma else Simple()
    losses = objective(case.denoiser, x0, case.y, case.t, eps)
    agrees(f"case{i}/loss_mse", losses.mse, LOSS)
    agrees(f"case{i}/loss_loss", losses.total, LOSS)
    if losses.vlb is not None:
        agrees(f"case{i}/loss_vb", losses.vlb, LOSS)


@pytest.mark.parametrize("i", range(len(CASES)))
@pytest.mark.parametrize(("name", "sampler"), [("ddpm", DDPM), ("ddim", DDIM), ("ddim_eta1", DDIM)])
def test_samplers(i: int, name: str, sampler: type[DDPM] | type[DDIM]):
    case = load_case(i)
    part: Sampler = sampler(case.steps, eta=1.0) if name == "ddim_eta1" else sampler(case.steps)
    agrees(f"case{i}/{name}", sample(case.denoiser, part, Replay(case), case.y), SAMPLES)
    guided = f"case{i}/{name}_cfg"
    if guided in ORACLE.files:
        denoiser = ClassifierFree(case.denoiser, scale=case.cfg_scale, channels=3)
        agrees(guided, sample(denoiser, part, Replay(case), case.y), SAMPLES)


def test_embeddings():
    t = torch.tensor([0, 1, 37, 500, 999])
    agrees("timestep_embedding_256", timestep_embedding(t, time_frequencies()), FORWARD)
    agrees("pos_embed_1152_16", position_table(1152, 16, 16)[::17], FORWARD)
    agrees("pos_embed_96_5", position_table(96, 5, 5), FORWARD)


def test_schedules():
    linear, every, tight = LinearBeta(steps=1000), slice(None, None, 37), 1e-12
    t = torch.arange(1000)
    chain = transition(linear, t, t - 1)
    agrees("linear1000/betas", linear.betas[every], tight)
    agrees("linear1000/alphas_cumprod", (linear.alpha(t) ** 2)[every], tight)
    agrees("linear1000/posterior_variance", chain.variance[every], tight)
    log_variance = posterior_log_variance(linear, t, t - 1)
    agrees("linear1000/posterior_log_variance_clipped", log_variance[every], tight)
    agrees("linear1000/posterior_mean_coef1", chain.x0_weight[every], tight)
    agrees("linear1000/posterior_mean_coef2", chain.xt_weight[every], tight)
    agrees("cosine1000/betas", CosineBeta(steps=1000).betas[every], tight)


@pytest.mark.parametrize("name", ["250", "128", "100", "16", "7", "ddim50", "ddim25"])
def test_respacing(name: str):
    entry = f"timesteps/{name}"
    CHECKED.add(entry)
    if name.startswith("ddim"):
        ours = ddim_stride(1000, int(name.removeprefix("ddim")))
    else:
        grid = Even().grid(LinearBeta(steps=1000), int(name))
        assert grid[-1] == -1
        ours = grid[:-1].flip(0).long().tolist()
    assert ours == ORACLE[entry].tolist()


def test_every_entry_of_the_oracle_is_checked():
    """Runs the checks above again, so that it holds whichever tests a worker was given."""
    CHECKED.clear()
    CHECKED.add("meta")
    for i in range(len(CASES)):
        test_forward(i)
        test_losses(i)
        for name, sampler in (("ddpm", DDPM), ("ddim", DDIM), ("ddim_eta1", DDIM)):
            test_samplers(i, name, sampler)
    test_embeddings()
    test_schedules()
    for entry in ORACLE.files:
        if entry.startswith("timesteps/"):
            test_respacing(entry.removeprefix("timesteps/"))
    assert set(ORACLE.files) == CHECKED
