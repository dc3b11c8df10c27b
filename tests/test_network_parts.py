"""The parts of the network that are not the paper's: each against its equation, and all of them together."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import network_table
from networks import EVERY_SWITCH, overrides, trained
from scaledit import DiT, DiTConfig, config, load, part
from scaledit.cli import main
from scaledit.config import RunConfig
from scaledit.config import trained as trained_names
from scaledit.data.sets import digits
from scaledit.errors import UsageError
from scaledit.interop import diffusers_layout, official, onnx_file, program
from scaledit.models import flops, layers, variants
from scaledit.models.blocks import Block, Embedded
from scaledit.models.blocks.context_tokens import ContextTokens
from scaledit.models.description import LAYER_NORM_EPS, Description
from scaledit.models.mlps import MLP
from scaledit.models.mlps.swiglu import SwiGLU
from scaledit.models.norms import Norm
from scaledit.models.patch_embeds import PatchEmbed
from scaledit.models.positions import Places, Position
from scaledit.models.shapes import shapes
from scaledit.models.time_embeddings import TimeEmbedding
from scaledit.models.time_embeddings.fourier import frequencies
from scaledit.scaling.plan import activation_bytes, plan
from scaledit.training import parallel, start
from scaledit.training.ranks import Ranks
from scaledit.training.state import TrainState
from test_scaling import saved_bytes
from tiny import TINY, tiny

DESIGNS = part.names(Block)
every_design = pytest.mark.parametrize("design", DESIGNS)


def small(**changes: object) -> DiTConfig:
    made = DiTConfig((4, 6), 2, in_channels=3, hidden_size=16, depth=3, num_heads=4, num_classes=5)
    return replace(made, **changes)  # type: ignore[arg-type]


def inputs(made: DiTConfig, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, *made.shape), torch.linspace(30, 900, n), torch.arange(n)


def loaded(made: DiTConfig, weights: dict[str, Tensor]) -> DiT:
    net = DiT(made).eval()
    net.load_state_dict(weights)
    return net


# Each part against its equation.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("affine", [False, True])
def test_rms_norm_is_its_equation(dtype: torch.dtype, affine: bool):
    norm = variants.RMSNorm(12, affine).to(dtype)
    if affine:
        nn.init.normal_(norm.weight)
    x = (3 * torch.randn(2, 5, 12)).to(dtype)
    wide = x if dtype == torch.float64 else x.float()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + LAYER_NORM_EPS).sqrt()
    wanted = wanted * norm.weight.to(wide) if affine else wanted
    with torch.autograd.forward_ad.dual_level():
        plain = norm(x)  # by another way
    assert torch.allclose(plain, norm(x), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert norm(x).dtype == dtype
    assert torch.allclose(norm(x), wanted.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)


@every_design
def test_every_norm_becomes_the_configs_and_is_affine_where_it_was(design: str):
    of = {norm: DiT(small(conditioning=design, norm=norm, early_output=1)) for norm in ("layer", "rms")}

    def norms(net: DiT, kind: type[nn.Module]) -> dict[str, bool]:
        return {
            name: module.elementwise_affine  # type: ignore[union-attr]
            for name, module in net.named_modules()
            if isinstance(module, kind)
        }

    assert not norms(of["rms"], nn.LayerNorm)
    assert norms(of["rms"], variants.RMSNorm) == norms(of["layer"], nn.LayerNorm)


def test_swiglu_is_its_equation():
    mlp = variants.SwiGLU(6, 5)
    x = torch.randn(2, 3, 6)
    w1, w3 = mlp.fc1.weight[:5], mlp.fc1.weight[5:]
    b1, b3 = mlp.fc1.bias[:5], mlp.fc1.bias[5:]
    a = x @ w1.T + b1
    wanted = (a * torch.sigmoid(a) * (x @ w3.T + b3)) @ mlp.fc2.weight.T + mlp.fc2.bias
    assert torch.allclose(mlp(x), wanted, atol=1e-6)


@given(st.integers(1, 300), st.floats(0.2, 6), st.integers(1, 64))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_swiglu_has_the_parameters_of_the_papers_mlp_within_its_rounding(d: int, ratio: float, multiple: int):
    hidden = max(1, int(d * ratio))
    made = SwiGLU(multiple).layer(d, hidden, rows=1)
    paper = 2 * hidden / 3
    assert made.hidden % multiple == 0 or made.hidden < multiple
    assert abs(made.hidden - paper) <= max(multiple / 2, 1)
    matrices = made.params - 2 * made.hidden - d
    assert abs(matrices - 2 * d * hidden) <= 3 * d * max(multiple / 2, 1)
    assert SwiGLU().layer(1152, 4608, 1).hidden == 3072  # of XL exactly


def test_qk_norm_is_its_equation():
    attn = layers.SelfAttention(12, 3, qk_norm=True)
    nn.init.normal_(attn.q_norm.weight)  # type: ignore[arg-type]
    nn.init.normal_(attn.k_norm.weight)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 12)
    q, k, v = (part.reshape(2, 5, 3, 4).transpose(1, 2) for part in attn.qkv(x).chunk(3, dim=-1))

    def normalized(a: Tensor, norm: Any) -> Tensor:
        return a / (a.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    scores = normalized(q, attn.q_norm) @ normalized(k, attn.k_norm).transpose(2, 3) / 2
    wanted = attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 12))
    assert torch.allclose(attn(x), wanted, atol=1e-5)
    with torch.no_grad():  # larger queries and keys change nothing, which keeps the scores bounded
        for values in (attn.qkv.weight, attn.qkv.bias):
            values[:24] *= 1000
    assert torch.allclose(attn(x), wanted, atol=1e-4)


@every_design
def test_a_value_residual_of_no_share_is_the_plain_block(design: str):
    net = trained(small(conditioning=design, value_residual=True))
    mixes = {name for name, _ in net.named_parameters() if name.endswith("mix")}
    assert mixes == {"blocks.1.attn.mix", "blocks.2.attn.mix"}  # the first block has nothing to mix
    assert {float(p) for n, p in DiT(net.config).named_parameters() if n in mixes} == {0.5}
    x, t, y = inputs(net.config)
    mixed = net(x, t, y)
    for name in mixes:
        nn.init.zeros_(net.get_parameter(name))
    weights = {key: value for key, value in net.state_dict().items() if key not in mixes}
    assert torch.equal(net(x, t, y), loaded(small(conditioning=design), weights)(x, t, y))
    assert not torch.allclose(mixed, net(x, t, y), atol=1e-3)


def test_a_value_residual_is_its_equation():
    """By hand, from the values that each block computes itself."""
    net = trained(small(conditioning="in_context", value_residual=True, depth=2))
    own: list[Tensor] = []
    for block in net.blocks:
        block.attn.qkv.register_forward_hook(  # type: ignore[union-attr]
            lambda _, args, out: own.append(out[..., 32:].reshape(3, 8, 4, 4).transpose(1, 2))
        )
    seen: list[Tensor] = []
    attend = layers.attend

    def recorded(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        seen.append(v)
        return attend(q, k, v, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "attend", recorded)
        net(*inputs(net.config))
    share = net.get_parameter("blocks.1.attn.mix")
    assert torch.equal(seen[0], own[0])
    assert torch.allclose(seen[1], share * own[0] + (1 - share) * own[1], atol=1e-6)


def test_adaln_single_is_adaln_zero_with_one_modulation():
    """S + E_i is a modulation of block i with the shared weight, and E_i in its bias."""
    net = trained(small(conditioning="adaln_single"))
    weights = net.state_dict()
    shared = {key: weights.pop(f"modulation.{key}") for key in ("weight", "bias")}
    for i in range(3):
        key = f"blocks.{i}.modulation"
        vectors = weights[f"{key}.weight"]
        weights |= {f"{key}.weight": shared["weight"], f"{key}.bias": shared["bias"] + vectors}
    same = loaded(small(conditioning="adaln_zero"), weights)
    assert torch.allclose(net(*inputs(net.config)), same(*inputs(net.config)), atol=1e-5)
    d, depth = 1152, 28
    counts = [flops.count(DiTConfig.named("DiT-XL/2", conditioning=name)) for name in DESIGNS[1:3]]
    modulations = 6 * d * (d + 1)
    assert counts[1].params - counts[0].params == (depth - 1) * modulations - depth * 6 * d
    assert counts[1].macs - counts[0].macs == (depth - 1) * 6 * d * d


def test_context_tokens_without_their_vectors_are_the_tokens_of_in_context():
    net = trained(small(conditioning=ContextTokens(class_tokens=1, time_tokens=1)))
    for name in ("class_tokens", "time_tokens"):
        nn.init.zeros_(net.get_parameter(f"{name}.weight"))
    weights = {key: value for key, value in net.state_dict().items() if "_tokens" not in key}
    same = loaded(small(conditioning="in_context"), weights)
    assert torch.equal(net(*inputs(net.config)), same(*inputs(net.config)))
    net = trained(small(conditioning="context_tokens"))
    told = net.design.prepare(net, Embedded(torch.randn(2, 16), torch.randn(2, 16)))
    entered = net.design.enter(torch.zeros(2, 6, 16), told)
    assert entered.shape == (2, 6 + 4 + 8, 16)
    assert torch.equal(entered[1, 6], told.time[1] + net.get_parameter("time_tokens.weight")[0])
    assert torch.equal(entered[1, -1], told.pooled[1] + net.get_parameter("class_tokens.weight")[7])


def test_a_register_is_a_token_that_depends_on_nothing():
    """[x, r, t, c] of in-context with a register, and [x, (r - t) + t, 0 + t, c] of context tokens, at one
    time."""
    net = trained(small(conditioning="in_context", registers=1, depth=2))
    x, t, y = inputs(net.config)
    t = t[:1].repeat(3)
    weights = net.state_dict()
    time, register = net.time_embed(t)[0], weights.pop("registers.weight")
    weights |= {
        "time_tokens.weight": torch.stack([register[0] - time, torch.zeros(16)]),
        "class_tokens.weight": torch.zeros(1, 16),
    }
    same = loaded(small(conditioning=ContextTokens(class_tokens=1, time_tokens=2), depth=2), weights)
    assert torch.allclose(net(x, t, y), same(x, t, y), atol=1e-5)


@every_design
def test_registers_reach_the_output_and_are_dropped_from_hidden_states(design: str):
    net = trained(small(conditioning=design, registers=2, early_output=1))
    x, t, y = inputs(net.config)
    out = net(x, t, y, hidden=(0, 2), early=True)
    assert {tokens.shape for tokens in out.hidden.values()} == {(3, 6, 16)}
    assert out.out.shape == out.early.shape == (3, 6, 4, 6)
    with torch.no_grad():
        net.registers.weight += torch.randn(2, 16)
    moved = net(x, t, y, hidden=(0, 2), early=True)
    assert all((a - b).abs().max() > 1e-4 for a, b in ((out.out, moved.out), (out.early, moved.early)))


def test_a_bottleneck_is_the_product_of_two_matrices():
    net = trained(small(patch_embed={"name": "bottleneck", "width": 5}))
    weights = net.state_dict()
    expand, reduce = weights.pop("patch_embed.expand.weight"), weights.pop("patch_embed.reduce.weight")
    weights |= {
        "patch_embed.weight": expand @ reduce,
        "patch_embed.bias": weights.pop("patch_embed.expand.bias"),
    }
    assert torch.allclose(net(*inputs(net.config)), loaded(small(), weights)(*inputs(net.config)), atol=1e-5)


def test_a_table_of_times_holds_whole_times_and_lines_between_them():
    net = trained(small(time_embedding="table", second_time=True))
    table = net.time_embed.weight
    assert table.shape == (1001, 16)
    whole = torch.arange(1001)
    for times in (whole.float(), whole.double(), whole):
        assert torch.equal(net.time_embed(times), table)
    between = net.time_embed(torch.tensor([0.25, 999.5]))
    assert torch.allclose(between, torch.stack([table[0].lerp(table[1], 0.25), table[999:].mean(0)]))
    coarse = variants.TimeTable(5, 16, 1000)
    assert torch.equal(coarse(torch.tensor([0.0, 250.0, 1000.0])), coarse.weight[[0, 1, 4]])
    outside = net.time_embed(torch.tensor([-1e-3, 1000.5, math.nan, math.inf]))
    assert bool(outside.isnan().all())
    t = torch.tensor([3.5, 712.25], dtype=torch.float64)
    _, slope = torch.func.jvp(net.double().time_embed, (t,), (torch.ones_like(t),))
    assert torch.allclose(slope, net.time_embed.weight[[4, 713]] - net.time_embed.weight[[3, 712]])


def test_fourier_features_are_their_equation_and_the_same_in_every_network():
    made = small(time_embedding={"name": "fourier", "bandwidth": 7.0, "seed": 3})
    net = trained(made)
    b = frequencies(7.0, 3).double() * 1000 / (2 * math.pi)
    assert float(b.std()) == pytest.approx(7, rel=0.2) and abs(float(b.mean())) < 2
    torch.manual_seed(8)
    for k in range(200):  # of 25,600 numbers the deviation is known to half a percent
        assert k != 0 or not torch.equal(frequencies(1.0, 0), frequencies(1.0, 1))
    many = torch.cat([frequencies(1000 / (2 * math.pi), seed) for seed in range(200)]).double()
    ordered = torch.special.ndtr(many).sort().values
    assert (ordered - (torch.arange(len(many)) + 0.5) / len(many)).abs().max() < 2 / math.sqrt(len(many))
    t = torch.tensor([0.0, 31.5, 1000.0])
    angles = 2 * math.pi * b * t.double()[:, None] / 1000
    features = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    mlp = net.time_embed
    wanted = mlp.fc2(F.silu(mlp.fc1(features)))
    assert torch.allclose(net.time_embed(t), wanted, atol=1e-4)
    assert not any("frequencies" in key for key in net.state_dict())
    with torch.device("meta"):
        empty = DiT(made)
    empty.to_empty(device="cpu").load_state_dict(net.state_dict())
    for other in (empty, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.eval()(*inputs(made)), net(*inputs(made)))
    assert torch.equal(copy.deepcopy(net).bfloat16().time_embed.frequencies, net.time_embed.frequencies)


# Counting.

PATCHES = ("linear", "bottleneck")


@st.composite
def configs(draw: st.DrawFn) -> DiTConfig:
    heads, design = draw(st.integers(1, 3)), draw(st.sampled_from(DESIGNS))
    switches: dict[str, Any] = {
        "norm": draw(st.sampled_from(part.names(Norm))),
        "mlp": draw(st.sampled_from(["gelu", "swiglu", {"name": "swiglu", "multiple": 3}])),
        "qk_norm": draw(st.booleans()),
        "registers": draw(st.integers(0, 3)),
        "patch_embed": draw(st.sampled_from(["linear", {"name": "bottleneck", "width": 2}])),
        "time_embedding": draw(st.sampled_from(["sinusoidal", "fourier", {"name": "table", "entries": 7}])),
        "second_time": draw(st.booleans()),
    }
    depth = draw(st.integers(1, 3))
    return DiTConfig(
        input_size=(2 * draw(st.integers(1, 3)), 2 * draw(st.integers(1, 3))),
        patch_size=2,
        in_channels=draw(st.integers(1, 3)),
        hidden_size=4 * heads * draw(st.integers(1, 3)),
        depth=depth,
        num_heads=heads,
        num_classes=draw(st.integers(1, 7)),
        conditioning=design,
        mlp_ratio=draw(st.sampled_from([0.5, 2.7, 4.0])),
        early_output=draw(st.sampled_from([0, depth - 1])),
        value_residual=depth > 1 and draw(st.booleans()),
        position=draw(st.sampled_from(part.names(Position))),
        **switches,
    )


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(configs())
def test_any_combination_is_what_its_description_says(made: DiTConfig):
    net = DiT(made)
    state = net.state_dict()
    assert list(shapes(made).items()) == [(key, tuple(value.shape)) for key, value in state.items()]
    x, t, y = inputs(made, 1)
    asked: dict[str, Any] = {"second": t} if made.second_time else {}
    if made.early_output:
        asked["early"] = True
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x, t, y, **asked)
    per_module = {
        name.removeprefix("DiT."): sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()
    }
    for name, layer in Description.of(made).named():
        assert layer.macs() == per_module.get(name, 0), name
        for weight, count in layer.matrices().items():  # those that an optimizer of matrices may update
            outputs, _ = layer.weights()[weight]
            assert outputs % count == 0
    assert flops.count(made) == (sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2)
    assert DiTConfig(**made.to_json()) == made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("switch", [*EVERY_SWITCH, "everything"])
def test_activation_memory_against_autograd(switch: str, precision: str):
    values = EVERY_SWITCH if switch == "everything" else {switch: EVERY_SWITCH[switch]}
    for design in ("adaln_single", "context_tokens"):
        odd = DiTConfig((24, 16), 2, 3, 64, 5, 4, 10, conditioning=design, mlp_ratio=2.0, learn_sigma=False)
        made = replace(odd, **values)
        measured = saved_bytes(made, 6, precision)
        # Without a GPU's fused norm, autograd also keeps float32 copies of bf16 queries and keys.
        close = 0.15 if made.qk_norm and precision == "bf16" else 0.05
        assert activation_bytes(made, 6, precision) == pytest.approx(measured, rel=close), design


def test_the_table_of_the_documentation_is_what_the_descriptions_say():
    page = Path(__file__).parents[1] / "docs" / "concepts" / "network.md"
    assert network_table.table() in page.read_text(encoding="utf-8")


# Everything together.


@every_design
def test_everything_starts_as_it_is_documented(design: str):
    torch.manual_seed(0)
    made = small(hidden_size=64, conditioning=design, **{**EVERY_SWITCH, "time_embedding": "table"})
    net = DiT(made)
    x, t, y = inputs(made)
    assert torch.equal(net(x, t, y), torch.zeros(3, 6, 4, 6))
    scale = {"time_embed.weight": 0.02, "registers.weight": 0.02}
    scale |= dict.fromkeys(("time_tokens.weight", "class_tokens.weight"), 1 / 8)
    for name, values in net.named_parameters():
        if name in scale:
            assert float(values.std()) == pytest.approx(scale[name], rel=0.2), name
        elif "norm" in name and name.endswith("weight"):
            assert bool((values == 1).all()), name
        elif name.endswith("bias") or "modulation" in name or name.startswith("final.linear"):
            assert not bool(values.any()), name
        elif values.ndim == 2 and name != "label_embed.weight":
            bound = math.sqrt(6 / sum(values.shape))
            assert 0.9 * bound < float(values.abs().max()) <= bound, name


@every_design
def test_everything_reaches_the_output_of_its_own_image_only(design: str):
    net = trained(small(conditioning=design, **EVERY_SWITCH))
    x, t, y = inputs(net.config)
    before = net(x, t, y)
    for moved in (net(x, t + torch.tensor([0, 7, 0]), y), net(x, t, torch.tensor([0, 4, 2]))):
        difference = (moved - before).abs().amax(dim=(1, 2, 3))
        assert difference[1] > 1e-3 and difference[[0, 2]].max() < 1e-5


@pytest.mark.parametrize("position", part.names(Position))
@every_design
def test_everything_works_with_every_position_and_on_another_grid(design: str, position: str):
    """Recomputed as kept: the first block's values and the places are inputs of the blocks."""
    net = trained(small(conditioning=design, position=position, **EVERY_SWITCH))
    x, t, y = inputs(net.config)
    assert net(torch.randn(2, 3, 8, 2), t[:2], y[:2]).shape == (2, 6, 8, 2)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(net(x, t, y).square().mean(), list(net.parameters()))

    kept = gradients()
    for block in net.blocks:
        parallel.recompute(block, "blocks")
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(), strict=True))


@every_design
def test_everything_has_derivatives_in_time_in_both_modes(design: str):
    """Against central differences in float64."""
    net = trained(small(conditioning=design, second_time=True, **EVERY_SWITCH)).double()
    x, t, y = inputs(net.config)
    x, t = x.double(), t.double()
    at, moving = (x, t, t / 2), (torch.randn_like(x), torch.ones_like(t), -torch.ones_like(t))

    def out(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return net(x, t, y, second=s)

    def along(step: float) -> Tensor:
        return out(*(value + step * tangent for value, tangent in zip(at, moving, strict=True)))

    with torch.no_grad():
        wanted = (along(1e-5) - along(-1e-5)) / 2e-5
    _, forward = torch.func.jvp(out, at, moving)
    assert torch.allclose(forward, wanted, rtol=1e-6, atol=1e-8)
    weight = torch.randn_like(wanted)
    _, pull = torch.func.vjp(out, *at)
    reverse = sum((g * m).sum() for g, m in zip(pull(weight), moving, strict=True))
    assert torch.allclose(torch.as_tensor(reverse), (weight * wanted).sum(), rtol=1e-6)


def test_everything_is_one_graph():
    made = small(conditioning="context_tokens", depth=2, early_output=1)
    net = trained(replace(made, **{**EVERY_SWITCH, "time_embedding": "table"}))
    x, t, y = inputs(net.config)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    found, wanted = (call(x, t, y, hidden=(0, 1), early=True) for call in (compiled, net))
    assert torch.equal(found.out, wanted.out) and torch.equal(found.early, wanted.early)
    assert torch.equal(found.hidden[0], wanted.hidden[0])
    for asked in ((1,), (0,)):  # of another call of the same graph
        assert [*compiled(x, t, y, hidden=asked).hidden] == [*asked]


SWITCHES = overrides(EVERY_SWITCH)


def steps(*overrides: str) -> tuple[list[float], dict[str, Tensor]]:
    run = tiny(*SWITCHES, *overrides)
    state = TrainState.create(run, digits(), Ranks(torch.device("cpu")))
    return [state.train_step().loss for _ in range(4)], state.net.state_dict()


@pytest.mark.parametrize("design", ["adaln_single", "context_tokens"])
def test_everything_trains_and_recomputing_changes_nothing(design: str):
    losses, weights = steps(f"model.conditioning={design}")
    assert losses[-1] < losses[0]
    for how in ("blocks", "selective"):
        again, same = steps(f"model.conditioning={design}", f"engine.recompute={how}")
        assert again == losses
        assert all(torch.equal(same[key], value) for key, value in weights.items())


@pytest.mark.slow
@torch.no_grad()
def test_everything_is_exported(tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net = trained(small(conditioning="adaln_single", **EVERY_SWITCH))
    x, t, y = inputs(net.config)
    program.save(net, tmp_path / "net.pt2")
    made = program.load(tmp_path / "net.pt2", trusted=True)
    assert made.config == net.config
    assert torch.allclose(made(x, t, y), net(x, t, y), atol=1e-5)
    net = trained(small(conditioning="context_tokens", **{**EVERY_SWITCH, "time_embedding": "table"}))
    onnx_file.save(net, tmp_path / "net.onnx")
    session: Any = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    feed = dict(zip(names, (x.numpy(), t.numpy(), y.numpy()), strict=True))
    assert torch.allclose(torch.from_numpy(session.run(None, feed)[0]), net(x, t, y), atol=1e-4)


def test_everything_is_in_the_config_and_defaults_are_not():
    run = tiny(*SWITCHES, "model.conditioning=context_tokens", "model.conditioning.class_tokens=3")
    said = run.to_json()
    assert RunConfig.from_json(said) == run
    assert said["model"]["norm"] == "rms" and said["model"]["registers"] == 2
    assert not {*EVERY_SWITCH} & tiny().model.to_json().keys()
    assert "blocks.0.mlp.fc1.weight" in trained_names.shapes(run)
    assert plan_params(run) == sum(p.numel() for p in DiT(run.model).parameters())


def test_a_run_that_starts_from_a_model_must_have_its_switches():
    """The error names the overrides that give them."""
    ours, theirs = tiny(), tiny(*SWITCHES, "model.time_embedding.bandwidth=7")
    wrong = list(start._shape(ours, theirs))
    words = [word for one in wrong for word in one.overrides]
    assert tiny(*words).model == theirs.model
    assert not list(start._shape(tiny(*words), theirs))


@pytest.mark.slow
def test_a_run_with_everything_is_sampled_exported_and_resumed(tmp_path: Path):
    said = [*SWITCHES, "model.conditioning=context_tokens", "evaluate.num=10", "evaluate.seeds=1"]
    run = ["train", "digits", "--out", str(tmp_path / "run"), *TINY, *said]
    assert main([*run, "train.steps=2"]) == 0
    assert main(["train", str(tmp_path / "run"), "--until", "3"]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "scaledit"]) == 0
    first, second = (load(str(tmp_path / name))([3, 1], seed=4) for name in ("run", "out"))
    assert (first == second).all()


def plan_params(run: RunConfig) -> int:
    from scaledit.scaling.plan import Hardware

    return plan(run, Hardware()).params


def test_tables_of_vectors_are_no_linear_layers():
    """LoRA adapts matrices that are multiplied, not learned tokens."""
    adapted = ["train.init=x", "lora.rank=2", 'lora.targets=["*"]']
    table = ["model.time_embedding=table", "model.conditioning=context_tokens"]
    run = tiny(*SWITCHES[:-1], *table, *adapted)
    net = DiT(run.model)
    names = trained_names.adapted(run)
    linears = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(names) == sorted(linears)


# What is refused.

REFUSED = """
from dataclasses import dataclass

from scaledit.models.blocks import Block, attention, mlp, norm
from scaledit.models.description import MLP, LayerNorm, Linear, SelfAttention


@dataclass(frozen=True)
class Own(Block):
    def layers(self, config):
        d, rows = config.hidden_size, config.tokens
        return {
            "norm": LayerNorm(d, rows),
            "attn": SelfAttention(d, config.num_heads, rows),
            "mlp": MLP(d, config.mlp_hidden, rows),
        }

    def forward(self, m, x, embedded):
        return x + m.attn(m.norm(x) + embedded.vector.unsqueeze(1)) + m.mlp(x)


@dataclass(frozen=True)
class Half(Own):
    def layers(self, config):
        return {**super().layers(config), "norm2": norm(config, config.tokens), "mlp": Linear(16, 16, 6)}


@dataclass(frozen=True)
class Two(Own):
    def layers(self, config):
        return {"norm": norm(config, 8), "attn": attention(config, 8), "other": attention(config, 8)}


@dataclass(frozen=True)
class Placeless(Own):
    def layers(self, config):
        rows = config.sequence
        return {"norm": norm(config, rows), "attn": attention(config, rows), "mlp": mlp(config, rows)}
"""


OWN_NORM = """
from dataclasses import dataclass

from scaledit.models.description import LayerNorm
from scaledit.models.norms import Norm


@dataclass(frozen=True)
class Bare(Norm):
    def layer(self, width, rows, affine=True):
        return LayerNorm(width, rows, affine=False)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_blocks.py").write_text(REFUSED)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_blocks", None)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "Own",
            {"norm": "rms"},
            r"own_blocks:Own has layers that ignore model\.norm=rms; build them with norm",
        ),
        ("Half", {"norm": "rms"}, r"own_blocks:Half has layers that ignore model\.norm=rms"),
        ("Own", {"mlp": "swiglu"}, r"ignore model\.mlp=swiglu; build them with mlp\(config, rows\)"),
        ("Half", {"mlp": "swiglu"}, r"ignore model\.mlp=swiglu"),
        ("Own", {"qk_norm": True}, r"ignore model\.qk_norm=true; build them with attention"),
        ("Own", {"value_residual": True}, r"ignore model\.value_residual=true"),
        ("Two", {"value_residual": True}, r"needs one self-attention in each block, but .*Two has 2"),
        ("Own", {"registers": 2}, r"counts config\.tokens tokens, but with model\.registers"),
    ],
)
def test_a_block_that_ignores_a_switch_is_refused(
    own: None, name: str, changes: dict[str, Any], message: str
):
    small(conditioning=f"own_blocks:{name}")
    with pytest.raises(UsageError, match=message):
        small(conditioning=f"own_blocks:{name}", **changes)


def test_a_norm_of_ones_own_reaches_every_design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_norms.py").write_text(OWN_NORM)
    monkeypatch.chdir(tmp_path)
    for design in DESIGNS:
        net = DiT(small(conditioning=design, norm="own_norms:Bare"))
        assert not any("norm" in key for key in net.state_dict())
    said = tiny("model.norm=own_norms:Bare")
    assert said.modules() == {"own_norms"}
    sys.modules.pop("own_norms", None)


def test_a_block_that_does_not_hand_on_its_values_is_refused(own: None):
    made = small(conditioning="own_blocks:Placeless", norm="rms", mlp="swiglu", qk_norm=True, registers=1)
    assert DiT(made)(*inputs(made)).shape == (3, 6, 4, 6)
    net = DiT(replace(made, value_residual=True))
    with pytest.raises(UsageError, match=r"does not pass embedded\.places to its attention; call m\.attn"):
        net(*inputs(made))
    with pytest.raises(UsageError, match=r"needs the values of the first block"):
        net.blocks[1].attn(torch.zeros(1, 6, 16), Places())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "rmsnorm"}, r"model\.norm: unknown norm 'rmsnorm'.*did you mean 'rms'"),
        ({"mlp": "swigelu"}, r"model\.mlp: unknown MLP 'swigelu'.*did you mean 'swiglu'"),
        ({"mlp": 3}, r"model\.mlp must be the name of an MLP"),
        ({"mlp": {"name": "swiglu", "multiple": 0}}, r"model\.mlp\.multiple must be at least 1"),
        ({"qk_norm": 1}, r"model\.qk_norm must be true or false"),
        ({"qk_norm": True, "num_heads": 16}, r"leaves only the signs of queries and keys"),
        ({"value_residual": True, "depth": 1}, r"model\.depth is 1; leave it out"),
        ({"registers": -1}, r"model\.registers must be at least 0"),
        ({"registers": 1.0}, r"model\.registers must be a whole number"),
        ({"patch_embed": "bottleneck"}, r"width 128 is no bottleneck between the 12 numbers of a patch .*12"),
        ({"time_embedding": {"name": "table", "entries": 1}}, r"time_embedding\.entries must be at least 2"),
        ({"time_embedding": "sinusoid"}, r"unknown time embedding 'sinusoid'.*did you mean 'sinusoidal'"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        small(**changes)


OWN_TIMES = """
from dataclasses import dataclass

from scaledit.diffusion.parameterization import Velocity


@dataclass(frozen=True)
class Logs(Velocity):
    def network_time(self, schedule, t):
        return schedule.alpha(t).log()
"""


def test_a_time_embedding_is_refused_where_the_times_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own_times.py").write_text(OWN_TIMES)
    monkeypatch.chdir(tmp_path)
    flow = ("diffusion.schedule=flow", "diffusion.objective=simple")
    table = "model.time_embedding=table"
    for prediction in ("epsilon", "velocity", "x0"):
        tiny(table, *flow, f"diffusion.prediction={prediction}")
    tiny(table)  # the paper's, with a learned variance
    for prediction, times in {
        "edm": r"are -1\.55 to 1\.1; use",
        "velocity diffusion.prediction.tells=alpha": "are 0 to 1",
        "own_times:Logs": "are unknown",
    }.items():
        with pytest.raises(UsageError, match=f"table of the times 0 to 1000, but .*{times}"):
            tiny(table, *flow, *f"diffusion.prediction={prediction}".split())
    edm = ("model.time_embedding=fourier", *flow, "diffusion.prediction=edm")
    with pytest.raises(UsageError, match=r"bandwidth 10 cannot tell .* use 1000"):
        tiny(*edm)
    tiny(*edm, "model.time_embedding.bandwidth=1000")
    sys.modules.pop("own_times", None)


@pytest.mark.parametrize("switch", EVERY_SWITCH)
def test_other_layouts_refuse_each_switch_by_name(switch: str):
    made = small(**{switch: EVERY_SWITCH[switch]})
    with pytest.raises(UsageError, match=rf"official layout does not support this model's {switch} "):
        official.export(DiT(made))
    with pytest.raises(UsageError, match=rf"diffusers layout does not support this model's {switch} "):
        diffusers_layout.to_diffusers({}, made)


def test_the_parts_are_listed():
    assert part.names(Norm) == ["layer", "rms"]
    assert part.names(MLP) == ["gelu", "swiglu"]
    assert part.names(PatchEmbed) == ["bottleneck", "linear"]
    assert part.names(TimeEmbedding) == ["fourier", "sinusoidal", "table"]
    assert {"adaln_single", "context_tokens"} < set(DESIGNS)
    assert config.load("digits", ["model.norm=rms"]).model.norm == "rms"
