"""Position encodings: rotations, a learned bias, tables; on the grid of the training and on others."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from networks import trained
from scaledit import DiT, DiTConfig, part
from scaledit.errors import UsageError
from scaledit.models.blocks import Block, Embedded
from scaledit.models.blocks.in_context import InContext
from scaledit.models.layers import attend, position_table, rotated
from scaledit.models.positions import Position
from scaledit.models.positions.relative_bias import RelativeBias
from scaledit.models.positions.rotary import Rotary
from scaledit.models.positions.sincos import SinCos
from scaledit.models.shapes import shapes
from scaledit.scaling.plan import activation_bytes
from test_scaling import saved_bytes

every_design = pytest.mark.parametrize("design", part.names(Block))
RELATIVE = (Rotary(), Rotary("ntk", sincos=True), RelativeBias())
every_encoding = pytest.mark.parametrize("encoding", RELATIVE, ids=lambda one: one.label())


def small(**changes: Any) -> DiTConfig:
    made = DiTConfig((4, 6), 2, in_channels=3, hidden_size=16, depth=2, num_heads=2, num_classes=5)
    return replace(made, **changes)


def inputs(height: int, width: int, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 3, height, width), torch.linspace(30, 900, n), torch.arange(n)


def rotation(encoding: Rotary, config: DiTConfig, grid: tuple[int, int]) -> Tensor:
    found = encoding.places(None, config, grid, torch.zeros(1, dtype=torch.float64)).rotation
    assert found is not None
    return found


grids = st.tuples(st.integers(1, 4), st.integers(1, 4))


# Rotations.


@settings(max_examples=20, deadline=None)
@given(grids, st.sampled_from(["none", "interpolate", "ntk"]), st.floats(2, 1e5), st.integers(0, 99))
def test_a_rotation_is_a_product_with_complex_numbers(grid, scaling, theta: float, seed: int):
    config = small(hidden_size=48, position=Rotary(scaling, theta=theta))  # head 24: d = 12 per axis
    x = torch.randn(2, 2, grid[0] * grid[1] + 1, 24, dtype=torch.float64)  # one token has no place
    found = rotated(x, rotation(config.position_part, config, grid))  # type: ignore[arg-type]
    pairs = torch.view_as_complex(x.unflatten(-1, (12, 2)).contiguous())
    for i in range(grid[0] * grid[1]):
        for k in range(12):
            coordinate, axis, j = (divmod(i, grid[1])[k // 6], k // 6, k % 6)
            scale = grid[axis] / config.grid[axis]
            base = theta * scale ** (12 / 10) if scaling == "ntk" else theta
            angle = coordinate * base ** (-2 * j / 12) / (scale if scaling == "interpolate" else 1)
            pairs[:, :, i, k] *= complex(math.cos(angle), math.sin(angle))
    assert torch.allclose(found, torch.view_as_real(pairs).flatten(-2), atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(grids, grids, st.sampled_from(["none", "interpolate", "ntk"]))
def test_scores_depend_on_relative_offsets_only(grid, shift, scaling):
    """The same queries and keys on a window of a larger grid, wherever it is."""
    rows, columns = grid[0] + shift[0], grid[1] + shift[1]
    config = small(position=Rotary(scaling))
    turns = rotation(config.position_part, config, (rows, columns)).unflatten(1, (rows, columns))  # type: ignore[arg-type]
    q, k = torch.randn(2, 1, 2, grid[0] * grid[1], 8, dtype=torch.float64)

    def scores(top: int, left: int) -> Tensor:
        window = turns[:, top : top + grid[0], left : left + grid[1]].flatten(1, 2)
        return rotated(q, window) @ rotated(k, window).mT

    assert torch.allclose(scores(0, 0), scores(*shift), atol=1e-10)
    assert torch.allclose(scores(0, 0).diagonal(dim1=2, dim2=3), (q * k).sum(-1), atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 16), st.floats(0.25, 8), st.floats(2, 1e6))
def test_scaled_frequencies_meet_their_limits(pairs: int, scale: float, theta: float):
    plain, interpolated, ntk = (
        Rotary(scaling, theta=theta).frequencies(2 * pairs, scale)
        for scaling in ("none", "interpolate", "ntk")
    )
    assert ntk[0] == plain[0] == 1
    if pairs > 1:
        assert ntk[-1] == pytest.approx(interpolated[-1], rel=1e-12)
        base = theta * scale ** (2 * pairs / (2 * pairs - 2))
        assert ntk == pytest.approx([base ** (-k / pairs) for k in range(pairs)], rel=1e-9)
    assert interpolated == pytest.approx([w / scale for w in plain], rel=1e-15)


@every_design
def test_all_scalings_agree_on_the_training_grid_and_nowhere_else(design: str):
    nets = [trained(small(conditioning=design, position=Rotary(s))) for s in ("none", "interpolate", "ntk")]
    x, t, y = inputs(4, 6)
    outs = [net(x, t, y) for net in nets]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    x, t, y = inputs(8, 6)
    outs = [net(x, t, y) for net in nets]
    assert outs[0].shape == (2, 6, 8, 6)
    assert all((a - b).abs().max() > 1e-3 for a, b in ((outs[0], outs[1]), (outs[1], outs[2])))
    # A span makes another grid the one that coordinates are measured in.
    wide = replace(nets[1].config, input_size=(8, 6), position=Rotary("interpolate", span=(2, 3)))
    again = DiT(wide)
    again.load_state_dict(nets[1].state_dict())
    assert torch.equal(again(x, t, y), outs[1])


def test_a_rotary_model_sees_a_picture_wherever_it_is():
    """Without a table nothing else knows the place: a cyclic grid of equal tokens gives equal outputs."""
    net = trained(small(position=Rotary()))
    x = torch.randn(1, 3, 2, 2).repeat(1, 1, 3, 4)
    out = net(x, torch.tensor([30.0]), torch.tensor([1]))
    tokens = out.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)
    assert torch.allclose(tokens, tokens[:, :, :1].expand_as(tokens), atol=1e-5)
    with_table = trained(small(position=Rotary(sincos=True)))
    assert (with_table(x, torch.tensor([30.0]), torch.tensor([1])) - out).abs().max() > 1e-2


# A learned bias.


@settings(max_examples=20, deadline=None)
@given(grids, grids, st.sampled_from(["interpolate", "clamp"]))
def test_a_learned_bias_against_loops(known, grid, scaling):
    config = small(input_size=(2 * known[0], 2 * known[1]), position=RelativeBias(scaling))
    net = trained(config)
    table = net.position_bias.weight.detach().double()  # type: ignore[union-attr]
    found = config.position_part.places(net, config, grid, torch.zeros(1)).bias
    assert found is not None and found.shape == (2, grid[0] * grid[1], grid[0] * grid[1])

    def at(offset: int, axis: int) -> list[tuple[int, float]]:
        most = known[axis] - 1
        place = offset * known[axis] / grid[axis] if scaling == "interpolate" else float(offset)
        place = min(max(place, -most), most)
        low = math.floor(place)
        return [(low + most, 1 - (place - low)), (min(low + 1, most) + most, place - low)]

    for i in range(grid[0] * grid[1]):
        for j in range(grid[0] * grid[1]):
            row, column = i // grid[1] - j // grid[1], i % grid[1] - j % grid[1]
            wanted = sum(a * b * table[:, r, c] for r, a in at(row, 0) for c, b in at(column, 1))
            assert torch.allclose(found[:, i, j].double(), torch.as_tensor(wanted), atol=1e-5)


def test_a_bias_is_added_to_the_scores_of_patches_and_respects_the_mask():
    torch.manual_seed(0)
    q, k, v, bias = (torch.randn(2, 4, n, m) for n, m in ((5, 8), (5, 8), (5, 8), (3, 3)))
    mask = torch.tensor([[True] * 5, [True, True, True, True, False]])
    scores = q @ k.mT / math.sqrt(8)
    scores[:, :, :3, :3] += bias[0]
    wanted = scores.masked_fill(~mask[:, None, None], -math.inf).softmax(-1) @ v
    assert torch.allclose(attend(q, k, v, mask, bias[0]), wanted.transpose(1, 2).flatten(2), atol=1e-6)
    assert torch.allclose(
        attend(q, k, v, None, bias[0]), (scores.softmax(-1) @ v).transpose(1, 2).flatten(2), atol=1e-6
    )


def test_a_model_with_a_bias_begins_as_one_without_positions():
    torch.manual_seed(0)
    net, x = DiT(small(position=RelativeBias())), inputs(4, 6)
    assert not net.state_dict()["position_bias.weight"].any()
    assert net.state_dict()["position_bias.weight"].shape == (2, 3, 5)
    torch.manual_seed(0)
    plain = DiT(small()).state_dict()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in plain.items())
    out = trained(small(position=RelativeBias()))(*x)
    out.sum().backward()
    for config in (small(position=RelativeBias("clamp")), small(position=RelativeBias(span=(4, 5)))):
        assert list(shapes(config)) == list(DiT(config).state_dict())


# The table on other grids.


def test_a_table_continues_or_spans_the_coordinates_of_the_training():
    config = small(position=SinCos(scaling="none"))
    found = config.position_part.table_at(config, (3, 5))
    assert found is not None
    assert torch.equal(found, position_table(16, 3, 5))
    rows = found.unflatten(0, (3, 5))[:2, :3].flatten(0, 1)  # the training grid is a corner of it
    assert torch.equal(rows, position_table(16, 2, 3))
    spanning = small().position_part.table_at(small(), (4, 6))
    assert spanning is not None
    assert torch.equal(spanning.unflatten(0, (4, 6))[::2, ::2].flatten(0, 1), position_table(16, 2, 3))
    spanned = replace(config, position=SinCos((4, 6), "none"))  # trained at half the spacing
    assert torch.allclose(
        spanned.position_part.table_at(spanned, (4, 6)),  # type: ignore[arg-type]
        position_table(16, 4, 6, (8, 12)),
        atol=1e-6,
    )
    assert small(position=SinCos(2)).to_json()["position"] == {"name": "sincos", "span": 2}
    assert small(position="sincos").to_json()["position"] == "sincos"


# In the network.


@every_encoding
@every_design
def test_derivatives_through_places_are_right_in_both_modes(design: str, encoding: Position):
    """Against central differences in float64."""
    net = trained(small(conditioning=design, position=encoding)).double()
    x, t, y = inputs(4, 6)
    x, t = x.double(), t.double()
    moving = torch.randn_like(x), torch.ones_like(t)

    def out(x: Tensor, t: Tensor) -> Tensor:
        return net(x, t, y)

    def along(step: float) -> Tensor:
        return out(x + step * moving[0], t + step * moving[1])

    with torch.no_grad():
        wanted = (along(1e-5) - along(-1e-5)) / 2e-5
    primal, forward = torch.func.jvp(out, (x, t), moving)
    assert torch.allclose(forward, wanted, rtol=1e-6, atol=1e-8)
    _, pull = torch.func.vjp(out, x, t)
    weight = torch.randn_like(wanted)
    reverse = sum((g * m).sum() for g, m in zip(pull(weight), moving, strict=True))
    assert torch.allclose(torch.as_tensor(reverse), (weight * wanted).sum(), rtol=1e-6)
    assert torch.allclose(primal, out(x, t))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", RELATIVE[1:], ids=lambda one: one.label())
def test_the_call_with_places_is_one_graph_also_on_another_grid(encoding: Position):
    plain = trained(small(conditioning="in_context", position=encoding))
    compiled = torch.compile(plain, fullgraph=True, backend="eager")
    for size in ((4, 6), (6, 8)):
        batch = inputs(*size)
        assert torch.equal(compiled(*batch), plain(*batch))
    torch.compiler.reset()


@every_encoding
def test_places_are_in_no_state_dict_and_survive_every_way_to_make_a_network(encoding: Position):
    wanted = trained(small(position=encoding))
    keys = set(wanted.state_dict()) - set(trained(small()).state_dict())
    assert keys == ({"position_bias.weight"} if isinstance(encoding, RelativeBias) else set())
    batch = inputs(4, 6)
    with torch.device("meta"):
        assigned, emptied = DiT(wanted.config), DiT(wanted.config)
    assigned.load_state_dict(wanted.state_dict(), assign=True)
    emptied.to_empty(device="cpu").load_state_dict(wanted.state_dict())
    for net in (assigned, emptied):
        assert torch.equal(net(*batch), wanted(*batch))


SHARDED = """
import torch
import torch.distributed as dist
from scaledit import DiT, DiTConfig
from scaledit.config import EngineConfig
from scaledit.training.parallel import Parallel
from scaledit.training.ranks import Ranks

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for position in ("rotary", "relative_bias"):
    found = []
    for how in ("none", "ddp", "fsdp"):
        torch.manual_seed(0)
        net = DiT(DiTConfig((4, 6), 2, 3, 16, 3, 2, 5, conditioning="in_context", position=position))
        with torch.no_grad():
            [parameter.add_(torch.randn(parameter.shape) * 0.2) for parameter in net.parameters()]
        engine = EngineConfig(parallel="ddp" if how == "none" else how, recompute="blocks")
        wrapped = Parallel(net, net.blocks, engine, "fp32", Ranks(torch.device("cpu"), grouped=how != "none"))
        for h, w in ((4, 6), (8, 4)):
            x, t = torch.linspace(-1, 1, 2 * 3 * h * w).reshape(2, 3, h, w), torch.tensor([30.0, 600.0])
            out = wrapped(x, t, torch.tensor([1, 5]))
            out.square().mean().backward()
        grads = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in net.parameters()]
        found.append([out.detach(), *grads])
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[0], other, strict=True)), position
print("equal")
"""


@pytest.mark.slow
def test_sharded_and_recomputed_networks_have_the_same_places():
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, timeout=300)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("encoding", "error"), [(Rotary(), 0.02), (RelativeBias(), 0.1)])
def test_activation_memory_of_places_against_autograd(encoding: Position, error: float, precision: str):
    """Without a table the tokens are still summed in float32 under autocast."""
    config = DiTConfig((24, 16), 2, 3, 64, 3, 4, 10, position=encoding, learn_sigma=False)
    kept = saved_bytes(config, 6, precision)
    assert activation_bytes(config, 6, precision) == pytest.approx(kept, rel=error)


# Bad input.


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"num_heads 4 is 6; use model\.num_heads=3"):
        small(hidden_size=24, num_heads=4, position="rotary")
    with pytest.raises(UsageError, match=r"num_heads 2 is 7; use model\.hidden_size=16"):
        small(hidden_size=14, position="rotary")
    with pytest.raises(UsageError, match=r"model\.position\.span must be at least 1 on both sides"):
        small(position={"name": "relative_bias", "span": [0, 3]})
    clamped = small(position=RelativeBias("clamp"))
    with pytest.raises(UsageError, match=r"on 1x4 patches exceed .* 2x3 patches; set .*span=\[2, 4\]"):
        clamped.position_part.check_trained_at(clamped, (1, 4))
    for position in (clamped, small(position=RelativeBias()), small(position="rotary"), small()):
        position.position_part.check_trained_at(position, (2, 2))


@dataclass(frozen=True)
class Placeless(InContext):
    """A design that forgets the places."""

    def forward(self, m: Any, x: Tensor, embedded: Embedded) -> Tensor:
        x = x + m.attn(m.norm1(x))
        return x + m.mlp(m.norm2(x))


@every_encoding
def test_a_block_that_forgets_the_places_is_refused(encoding: Position):
    net = trained(small(conditioning=Placeless(), position=encoding))
    with pytest.raises(UsageError, match=r"call m\.attn\(h, embedded\.places\)"):
        net(*inputs(4, 6))
    assert trained(small(conditioning=Placeless()))(*inputs(4, 6)).shape == (2, 6, 4, 6)
