"""Muon against its equations, torch's own and separate matrices; rates that follow the width (muP).

That ranks and resumed runs agree is in tests/test_ranks.py and tests/test_training.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from saved import identical
from scaledit import assemble, part
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import RunConfig, load
from scaledit.config.updates import matrix_weights, updates
from scaledit.data.sets import digits
from scaledit.errors import UsageError
from scaledit.optimizers import Muon, Optimizer
from scaledit.optimizers.updates.muon import newton_schulz, scale
from scaledit.scaling.plan import Hardware, plan
from scaledit.training.ranks import Ranks
from scaledit.training.state import TrainState
from tiny import tiny

ALONE = Ranks(torch.device("cpu"))
MUON = "optimizer.algorithm=muon"
BLOCK_MATRICES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "modulation")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


sides = st.integers(1, 24)


@settings(deadline=None, max_examples=25)
@given(rows=sides, columns=sides, seed=st.integers(0, 1000))
def test_newton_schulz_keeps_the_singular_vectors(rows: int, columns: int, seed: int):
    """U^T X V is diagonal, and each of its entries is the polynomial, five times, of a singular value."""
    matrix = normal(rows, columns, seed=seed, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    expected = s / s.norm()
    begun = expected >= 0.002
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    inside = u.T @ newton_schulz(matrix) @ vt.T
    assert torch.allclose(inside, torch.diag(expected), rtol=0, atol=1e-9)
    assert bool(((expected > 0.68) & (expected < 1.21))[begun].all())
    orthogonal = scale(rows, columns) * (u @ vt)  # Liu et al. 2025, eq. 4 and lemma 1
    assert float(orthogonal.square().mean().sqrt()) == pytest.approx(0.2)


def made(weight: nn.Parameter, matrices: int = 1, **fields: Any) -> torch.optim.Optimizer:
    return Muon(**fields).make([{"params": [weight], "matrices": matrices}], 0.01)


def descended(optimizers: Sequence[torch.optim.Optimizer], gradients: Sequence[Sequence[Tensor]]) -> None:
    """Makes a step with each row of gradients, one of which belongs to each weight of each optimizer."""
    for row in gradients:
        for optimizer, gradient in zip(optimizers, row, strict=True):
            optimizer.param_groups[0]["params"][0].grad = gradient.clone()
            optimizer.step()


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12)])
def test_muon_is_torchs(shape: tuple[int, int]):
    """Bit for bit, in torch's bf16; in float32 the same up to the rounding of bf16. Updates have an RMS of
    about 0.2 times the rate."""
    start = normal(*shape)
    weights = [nn.Parameter(start.clone()) for _ in range(3)]
    torchs = torch.optim.Muon([weights[0]], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ours = [
        made(weights[1], precision="bf16", weight_decay=0.1),
        made(weights[2], precision="auto", weight_decay=0.1),
    ]
    descended([torchs, *ours], [[normal(*shape, seed=i)] * 3 for i in range(6)])
    assert torch.equal(weights[0], weights[1])
    assert torch.allclose(weights[0], weights[2], rtol=0, atol=6 * 0.01 * 0.02)
    assert not torch.equal(weights[0], weights[2])
    one = nn.Parameter(torch.zeros(shape))
    descended([made(one)], [[normal(*shape)]])
    assert 0.68 < float(one.detach().square().mean().sqrt()) / (0.2 * 0.01) < 1.21


def test_a_fused_weight_is_its_matrices():
    """The weight of q, k and v, with gradients of very different sizes, against three of their own."""
    start, sizes = normal(36, 12), torch.tensor([1e-3, 1.0, 10.0]).repeat_interleave(12)[:, None]
    fused, apart = nn.Parameter(start.clone()), [nn.Parameter(one.clone()) for one in start.chunk(3)]
    whole = nn.Parameter(start.clone())
    gradients = [normal(36, 12, seed=i) * sizes for i in range(4)]
    descended([made(fused, 3)], [[gradient] for gradient in gradients])
    descended([made(weight) for weight in apart], [list(gradient.chunk(3)) for gradient in gradients])
    assert torch.equal(fused, torch.cat(apart))
    descended([made(whole, 1)], [[gradient] for gradient in gradients])
    moved = [(weight - start).detach()[:12].square().mean().sqrt() for weight in (fused, whole)]
    assert float(moved[1] / moved[0]) < 0.1  # q would hardly move: k and v would set the scale


DESIGNS = {
    "conditioning=adaln_zero": {"attn.qkv.weight": 3, "attn.proj.weight": 1, "modulation.weight": 6},
    "conditioning=cross_attention": {"attn.qkv.weight": 3, "cross.q.weight": 1, "cross.kv.weight": 2},
    "mlp=swiglu": {"mlp.fc1.weight": 2, "mlp.fc2.weight": 1},
    "registers=2": {"attn.qkv.weight": 3},
}


@pytest.mark.parametrize("design", DESIGNS)
def test_matrices_are_those_of_the_blocks(design: str):
    """The names and how each is split; the rest follows AdamW, whose first step has the size of the rate; and
    the plan counts bytes and multiply-adds."""
    config = tiny(MUON, f"model.{design}", "optimizer.warmup_steps=0")
    found = updates(config)
    assert all(name.startswith("blocks.") and update.matrices for name, update in found.items())
    expected = {"mlp.fc1.weight": 1, "mlp.fc2.weight": 1} | DESIGNS[design]
    assert {f"blocks.1.{name}": count for name, count in expected.items()}.items() <= {
        name: update.matrices for name, update in found.items()
    }.items()
    state = TrainState.create(config, digits(), ALONE)
    before = {name: value.clone() for name, value in state.net.state_dict().items()}
    state.train_step()
    kinds = {name: set(state.optimizer.state[weight]) for name, weight in state.trained_parameters().items()}
    assert {name for name, kept in kinds.items() if kept == {"momentum_buffer"}} == found.keys()
    assert all(kept == {"step", "exp_avg", "exp_avg_sq"} for name, kept in kinds.items() if name not in found)
    moved = (state.net.state_dict()["final.linear.weight"] - before["final.linear.weight"]).abs()
    assert float(moved.median()) == pytest.approx(config.optimizer.learning_rate, rel=1e-3)
    tensors = [*state.net.parameters(), *state.ema.parameters()]
    tensors += [weight.grad for weight in state.net.parameters() if weight.grad is not None]
    kept = [item for kinds in state.optimizer.state.values() for item in kinds.items()]
    tensors += [value for kind, value in kept if kind != "step"]
    planned = plan(config, Hardware(), 1.0)
    assert planned.state_bytes == sum(tensor.nbytes for tensor in tensors)
    with FlopCounterMode(display=False) as counter:
        state.optimizer.step()
    assert 2 * planned.optimizer_macs == counter.get_total_flops()


def test_frozen_matrices_are_left_out_and_muon_without_any_is_refused(tmp_path: Path):
    some = tiny(MUON, 'train.freeze=["blocks.*.attn.*", "patch_embed.*"]')
    assert not [name for name in updates(some) if "attn" in name]
    assert matrix_weights(some) == 2 * (6 + 4 + 4) * 16 * 16
    state = TrainState.create(some, digits(), ALONE)
    before = {name: value.clone() for name, value in state.net.state_dict().items()}
    for _ in range(3):
        state.train_step()
    after = state.net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == state.trained_parameters().keys()
    none = tiny(MUON, 'train.freeze=["blocks.*"]')
    with pytest.raises(UsageError, match=r"muon has no matrix to update: train.freeze leaves none .*adamw"):
        updates(none)
    with pytest.raises(UsageError, match=r"muon has no matrix to update: no group .*adamw"):
        Muon().make([{"params": [nn.Parameter(torch.zeros(2, 2))]}], 0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"momentum": 1.0}, r"optimizer.algorithm.momentum must be below 1, got 1.0"),
        ({"iterations": 0}, r"optimizer.algorithm.iterations must be at least 1, got 0"),
        ({"precision": "fp8"}, r"optimizer.algorithm.precision is 'fp8'"),
        ({"betas": [0.9, 1.0]}, r"optimizer.algorithm.betas must be in \[0, 1\)"),
        ({"nesterov": True}, r"unknown key optimizer.algorithm.nesterov: muon has the fields momentum"),
    ],
)
def test_fields_out_of_bounds_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        part.build(Optimizer, {"name": "muon", **values}, "optimizer.algorithm")


def wide(width: int, *overrides: str) -> RunConfig:
    """Heads of one width, as muP asks for."""
    sizes = (f"model.hidden_size={width}", f"model.num_heads={width // 24}", "train.batch_size=8")
    return tiny(*sizes, "optimizer.warmup_steps=0", *overrides)


def test_rates_and_initial_weights_follow_the_table():
    """Yang et al. 2022, table 8, at four times the base width; at the base width nothing changes."""
    hidden = {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in BLOCK_MATRICES}
    rest = {"time_embed.fc2.weight", "final.linear.weight", "final.modulation.weight"}
    config = wide(192, "optimizer.base_width=48", "optimizer.algorithm.weight_decay=0.1")
    scales = {name: update.lr_scale for name, update in updates(config).items()}
    assert scales == dict.fromkeys(hidden | rest, 0.25)
    muon = updates(wide(192, "optimizer.base_width=48", MUON))
    assert {name: update.lr_scale for name, update in muon.items()} == {
        **dict.fromkeys(hidden, 0.5),
        **dict.fromkeys(rest, 0.25),
    }
    state = TrainState.create(config, digits(), ALONE)
    base = assemble.trainable(wide(48)).state_dict()
    for name, value in state.net.state_dict().items():
        expected = base[name].std() * (0.5 if name in hidden | rest else 1)  # the final linear is zero
        # Of n numbers the standard deviation is off by 1 / sqrt(2 n) of itself, a little less if uniform.
        assert float((value.std() - expected).abs()) <= 4 * float(expected) / math.sqrt(
            2 * base[name].numel()
        )
    state.train_step()
    decayed = {(group["lr"], group["lr"] * group["weight_decay"]) for group in state.optimizer.param_groups}
    assert decayed == {(5e-3, 5e-4), (1.25e-3, 5e-4)}
    plain, same = (TrainState.create(wide(48, f"optimizer.base_width={b}"), digits(), ALONE) for b in (0, 48))
    assert plain.train_step().loss == same.train_step().loss
    assert identical(plain.state_dict()["model"], same.state_dict()["model"])


def changes(config: RunConfig, steps: int) -> Tensor:
    """(2 + steps, 3): the mean absolute value of the states after both blocks and of the output at the start,
    and how far they have changed after each step."""
    state = TrainState.create(config, digits(), ALONE)
    x, t, y = normal(8, 1, 8, 8), torch.linspace(50, 950, 8), torch.arange(8)

    @torch.no_grad()
    def seen() -> list[Tensor]:
        out: Any = state.net(x, t, y, hidden=(0, 1))
        return [*out.hidden.values(), out.out]

    start = seen()
    rows = [[float(value.abs().mean()) for value in start]]
    for _ in range(steps):
        state.train_step()
        rows.append([float((a - b).abs().mean()) for a, b in zip(seen(), start, strict=True)])
    return torch.tensor(rows)


def spread(algorithm: str, base: int, widths: Sequence[int]) -> Tensor:
    """(2 + steps, 3): the largest of `changes` over the widths, divided by the smallest."""
    settings = (f"optimizer.algorithm={algorithm}", f"optimizer.base_width={base}")
    found = torch.stack([changes(wide(width, *settings), 3) for width in widths])
    return found.amax(0) / found.amin(0)


def test_activations_change_equally_at_all_widths():
    """The coordinate check (Yang et al. 2022, appendix D.1): equal with muP, within the noise of random
    weights; without it they grow with the width from the first step that can change them."""
    for algorithm, widths in (("adamw", (48, 96, 192, 384)), ("muon", (48, 192))):
        # 0 / 0: gates and output that are still zero.
        assert float(spread(algorithm, 48, widths).nan_to_num(1.0).max()) < 1.15, algorithm
    without = spread("adamw", 0, (48, 384))
    assert float(without[1, 2]) > 8  # the output, after one step
    assert float(without[3, :2].min()) > 10  # the states, after three
    square, more = scale(48, 48), scale(192, 192) * Muon().width_scale(4, 1)
    assert more == pytest.approx(square)  # the largest singular value of an update stays


def test_a_base_width_without_meaning_is_refused():
    with pytest.raises(UsageError, match=r"optimizer.base_width must be at least 0, got -1"):
        tiny("optimizer.base_width=-1")
    with pytest.raises(UsageError, match=r"base_width .* lora.rank .*leave optimizer.base_width out"):
        tiny("optimizer.base_width=48", "lora.rank=4", "train.init=runs/x")
    for override in (MUON, "optimizer.base_width=48"):
        with pytest.raises(UsageError, match=r"an autoencoder has none"):
            load("photos-ae", [override], kind=AutoencoderRun)
    assert "base_width" not in tiny().to_json()["optimizer"]  # configs of earlier versions stay equal
    config = tiny("optimizer.base_width=48")
    assert RunConfig.from_json(config.to_json()) == config
