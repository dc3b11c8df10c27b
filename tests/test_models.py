"""The networks: what they cost, how they start, where their pixels go, what reaches their output."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from networks import trained
from scaledit import DiT, DiTConfig, part
from scaledit.errors import UsageError
from scaledit.interop import official
from scaledit.models import flops
from scaledit.models.blocks import Block, Embedded
from scaledit.models.layers import patchify, position_table, unpatchify
from scaledit.models.shapes import shapes

DESIGNS = part.names(Block)
every_design = pytest.mark.parametrize("design", DESIGNS)
examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def small(**changes: object) -> DiTConfig:
    """4x6 pixels in 2x3 patches: no two sizes are equal."""
    config = DiTConfig((4, 6), 2, in_channels=3, hidden_size=16, depth=2, num_heads=4, num_classes=5)
    return replace(config, **changes)  # type: ignore[arg-type]


def inputs(config: DiTConfig, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, *config.shape), torch.linspace(30, 900, n), torch.arange(n)


@st.composite
def configs(draw: st.DrawFn, design: str) -> DiTConfig:
    patch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sides = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return DiTConfig(
        input_size=draw(st.sampled_from([sides[0] * patch, (sides[0] * patch, sides[1] * patch)])),
        patch_size=patch,
        in_channels=draw(st.integers(1, 4)),
        hidden_size=4 * heads * draw(st.integers(1, 3)),
        depth=draw(st.integers(1, 3)),
        num_heads=heads,
        num_classes=draw(st.integers(1, 7)),
        learn_sigma=draw(st.booleans()),
        conditioning=design,
        mlp_ratio=draw(st.sampled_from([0.5, 2.7, 4.0])),
    )


@every_design
@settings(examples, max_examples=15)
@given(st.data())
def test_flops_count_is_what_pytorch_counts(design: str, data: st.DataObject):
    config = data.draw(configs(design))
    dit = DiT(config)
    x, t, y = inputs(config, n=1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = dit(x, t, y)
    assert out.shape == (1, config.out_channels, config.height, config.width)
    trainable = sum(p.numel() for p in dit.parameters() if p.requires_grad)
    assert flops.count(config) == (trainable, counter.get_total_flops() / 2)


@every_design
def test_an_untrained_model_predicts_zero_and_an_adaln_zero_block_is_the_identity(design: str):
    config = small(conditioning=design)
    torch.manual_seed(0)
    dit = DiT(config)
    assert torch.equal(dit(*inputs(config)), torch.zeros(2, 6, 4, 6))
    tokens, told = torch.randn(2, 6, 16), Embedded(torch.randn(2, 16), torch.randn(2, 16))
    other = Embedded(torch.randn(2, 16), torch.randn(2, 16))
    told, other = (dit.design.prepare(dit, embedded) for embedded in (told, other))
    for block in dit.blocks:
        out = block(tokens, told)
        assert torch.equal(out, tokens) == (design in ("adaln_zero", "adaln_single"))
        # Before training only cross-attention's blocks look at the condition at all.
        assert torch.equal(out, block(tokens, other)) == (design != "cross_attention")


def assert_uniform(values: Tensor, name: str) -> None:
    """Kolmogorov and Smirnov's test against the uniform distribution on [0, 1]."""
    ordered = values.detach().flatten().sort().values
    expected = (torch.arange(len(ordered)) + 0.5) / len(ordered)
    assert (ordered - expected).abs().max() < 2 / math.sqrt(len(ordered)), name


@every_design
def test_initialization(design: str):
    """initialize's docstring, tensor by tensor: Xavier-uniform, N(0, 0.02), zeros, and norms at one."""
    torch.manual_seed(0)
    dit = DiT(small(hidden_size=64, num_classes=100, conditioning=design))
    for name, module in dit.named_modules():
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            assert bool((module.weight == 1).all()), name
            assert not bool(module.bias.any()), name
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        if isinstance(module, nn.Linear):
            assert not bool(module.bias.any()), name
        if name == "final.linear" or name.endswith("modulation"):
            assert not bool(module.weight.any()), name
        elif name in ("label_embed", "time_embed.fc1", "time_embed.fc2"):
            assert_uniform(torch.special.ndtr(module.weight / 0.02), name)
        else:
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert_uniform((module.weight / bound + 1) / 2, name)


@every_design
def test_the_same_seed_gives_the_same_weights(design: str):
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(DiT(small(conditioning=design)).state_dict())
    for key, value in drawn[0].items():
        assert torch.equal(value, drawn[1][key])
        constant = bool((value == value.flatten()[0]).all())
        assert constant or not torch.equal(value, drawn[2][key])


@examples
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_patchify_layout_and_inverse(c: int, p: int, rows: int, columns: int):
    """Tokens in reading order, C,p,p going in and p,p,C coming out; the same pixels either way."""
    x = torch.arange(2 * c * rows * p * columns * p).reshape(2, c, rows * p, columns * p)
    tokens = patchify(x, p)
    assert tokens.shape == (2, rows * columns, c * p * p)
    r, k, i, j, channel = rows - 1, columns - 1, p - 1, 0, c - 1
    assert tokens[1, r * columns + k, (channel * p + i) * p + j] == x[1, channel, r * p + i, k * p + j]
    outward = tokens.reshape(2, -1, c, p, p).permute(0, 1, 3, 4, 2).reshape(2, rows * columns, -1)
    assert torch.equal(unpatchify(outward, p, rows * p, columns * p), x)


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 2), (1, 4)])
def test_position_table_row_by_row(rows: int, columns: int):
    """Against a scalar formula: column before row, sines before cosines, reading order."""
    width = 12
    expected = []
    for row in range(rows):
        for column in range(columns):
            entry = []
            for position in (column, row):
                angles = [position / 10000 ** (k / (width // 4)) for k in range(width // 4)]
                entry += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            expected.append(entry)
    assert torch.allclose(position_table(width, rows, columns), torch.tensor(expected), rtol=0, atol=1e-7)


def test_a_patch_and_its_position_come_out_where_they_went_in():
    """With blocks that are the identity, an input pixel reaches its own patch only; so does a position."""
    config = small()
    dit = trained(config)
    for block in dit.blocks:
        nn.init.zeros_(block.modulation.weight)  # type: ignore[union-attr]
        nn.init.zeros_(block.modulation.bias)  # type: ignore[union-attr]
    x, t, y = inputs(config, n=1)
    x, dit.position = x.round(), torch.zeros(6, 16)  # so that adding one and taking it away changes nothing
    before = dit(x, t, y)

    def touched() -> set[tuple[int, int]]:
        changed = (dit(x, t, y) != before)[0].any(dim=0)
        return {(int(row) // 2, int(column) // 2) for row, column in changed.nonzero()}

    for row in range(4):
        for column in range(6):
            x[0, 1, row, column] += 1
            assert touched() == {(row // 2, column // 2)}
            x[0, 1, row, column] -= 1
    for token in range(6):
        dit.position[token] += torch.arange(16)  # the same for all channels would vanish in the LayerNorm
        assert touched() == {divmod(token, 3)}
        dit.position[token] = 0


@every_design
def test_without_positions_the_order_of_patches_does_not_matter(design: str):
    config = small(conditioning=design)
    dit = trained(config)
    x, t, y = inputs(config)
    order = torch.tensor([4, 2, 0, 5, 1, 3])

    def shuffled(image: Tensor) -> Tensor:
        tokens = patchify(image, 2)[:, order]
        c = image.shape[1]
        outward = tokens.reshape(2, 6, c, 2, 2).permute(0, 1, 3, 4, 2).reshape(2, 6, -1)
        return unpatchify(outward, 2, 4, 6)

    assert not torch.allclose(dit(shuffled(x), t, y), shuffled(dit(x, t, y)), atol=1e-2)
    dit.position.zero_()
    assert torch.allclose(dit(shuffled(x), t, y), shuffled(dit(x, t, y)), atol=1e-5)


@every_design
def test_time_and_label_reach_the_output_of_their_own_image_only(design: str):
    config = small(conditioning=design)
    dit = trained(config)
    x, t, y = inputs(config, n=3)
    before = dit(x, t, y)
    for changed in (
        dit(x, t + torch.tensor([0, 7, 0]), y),
        dit(x, t, torch.tensor([0, 4, 2])),
        dit(x, t, torch.tensor([0, dit.null_label, 2])),
    ):
        difference = (changed - before).abs().amax(dim=(1, 2, 3))
        assert difference[1] > 1e-3
        assert difference[[0, 2]].max() < 1e-5


def test_labels_are_dropped_at_the_rate_asked_and_by_the_numbers_given():
    dit = DiT(small(num_classes=7, class_dropout=0.3))
    assert dit.null_label == 7
    assert len(dit.label_embed.weight) == 8
    y, u = torch.arange(7).repeat(1000), torch.arange(7000, dtype=torch.float64) / 7000
    dropped = dit.drop_labels(y, u)
    assert dropped.dtype == y.dtype
    assert torch.equal(dropped, torch.where(torch.arange(7000) < 2100, 7, y))
    never, always = DiT(small(class_dropout=0.0)), DiT(small(class_dropout=1.0))
    assert torch.equal(never.drop_labels(y, u), y)
    assert bool((always.drop_labels(y, u) == always.null_label).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_the_module_keeps_the_timestep_frequencies(dtype: torch.dtype):
    dit = DiT(small())
    seen = []
    dit.time_embed.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    t = torch.tensor([0.0, 37.0, 999.0])
    dit.time_embed(t)
    dit.to(dtype).time_embed(t)
    assert torch.equal(seen[1], seen[0].to(dtype))
    angles = t.double()[:, None] * 10000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    assert torch.allclose(seen[0].double(), torch.cat([angles.cos(), angles.sin()], dim=1), atol=1e-4)


def _to_empty(dit: DiT, state: dict[str, Tensor]) -> DiT:
    dit.to_empty(device="cpu")
    dit.load_state_dict(state)
    return dit


def _assigned(dit: DiT, state: dict[str, Tensor]) -> DiT:
    dit.load_state_dict(state, assign=True)
    return dit


def _module_by_module(dit: DiT, state: dict[str, Tensor]) -> DiT:
    """As FSDP's param_init_fn and its like do."""
    for module in dit.modules():
        module.to_empty(device="cpu", recurse=False)
    dit.load_state_dict(state)
    return dit


def _cast_on_the_way(dit: DiT, state: dict[str, Tensor]) -> DiT:
    return _to_empty(dit.bfloat16(), state).float()


def _copied(dit: DiT, state: dict[str, Tensor]) -> DiT:
    return _assigned(copy.deepcopy(pickle.loads(pickle.dumps(dit))), state)


def _in_a_wrapper(dit: DiT, state: dict[str, Tensor]) -> DiT:
    outer = nn.Sequential(dit)
    with torch.device("meta"):  # the context may still be there
        outer.to_empty(device="cpu")
    outer.load_state_dict({f"0.{key}": value for key, value in state.items()})
    return dit


@pytest.mark.parametrize(
    "materialize", [_to_empty, _assigned, _module_by_module, _cast_on_the_way, _copied, _in_a_wrapper]
)
def test_a_dit_of_the_meta_device_is_the_same_function_once_it_is_loaded(materialize, monkeypatch):
    """Its buffers are in no state dict, and `to_empty` fills them with anything: here with NaN."""
    config = small()
    dit = trained(config)
    state = dict(dit.state_dict())
    if materialize is _cast_on_the_way:  # whose weights are rounded on the way
        state = {key: value.bfloat16().float() for key, value in state.items()}
        dit.load_state_dict(state)
    with torch.device("meta"):
        built = DiT(config)
    assert {value.device.type for value in (*built.parameters(), *built.buffers())} == {"meta"}
    empty_like = torch.empty_like

    def poisoned(tensor: Tensor, **settings: Any) -> Tensor:
        out = empty_like(tensor, **settings)
        return out if out.is_meta else out.fill_(torch.nan)

    monkeypatch.setattr(torch, "empty_like", poisoned)
    loaded = materialize(built, state).eval()
    assert torch.equal(loaded(*inputs(config)), dit(*inputs(config)))
    assert loaded.state_dict().keys() == dit.state_dict().keys()


def test_a_cast_and_back_leaves_the_position_table_exact():
    dit = DiT(small())
    assert dit.bfloat16().position.dtype == torch.bfloat16
    assert torch.equal(dit.float().position, position_table(16, 2, 3))


def test_official_round_trip_is_bit_identical():
    config = small()
    dit = trained(config)
    exported = official.export(dit)
    assert exported["x_embedder.proj.weight"].shape == (16, 3, 2, 2)
    assert exported["pos_embed"].shape == (1, 6, 16)
    again = official.load(config, exported)
    assert torch.equal(again(*inputs(config)), dit(*inputs(config)))
    twice = official.export(again)
    assert twice.keys() == exported.keys()
    assert all(torch.equal(twice[key], exported[key]) for key in exported)


def _without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda s: _without(s, "t_embedder.mlp.0.bias"), "missing: t_embedder.mlp.0.bias"),
        (lambda s: {**s, "blocks.9.attn.qkv.bias": torch.zeros(48)}, "unknown: blocks.9.attn.qkv.bias"),
        (
            lambda s: {**s, "y_embedder.embedding_table.weight": torch.zeros(5, 16)},
            r"embedding_table.weight has the shape \(5, 16\), but this config needs \(6, 16\)",
        ),
        (
            lambda s: {**s, "x_embedder.proj.weight": torch.zeros(16, 3, 4, 4)},
            r"x_embedder.proj.weight has the shape \(16, 3, 4, 4\), but this config needs \(16, 3, 2, 2\)",
        ),
        (  # as many numbers, of another patch size
            lambda s: {**s, "x_embedder.proj.weight": torch.zeros(16, 12, 1, 1)},
            r"x_embedder.proj.weight has the shape \(16, 12, 1, 1\), but this config needs \(16, 3, 2, 2\)",
        ),
        (lambda s: {**s, "pos_embed": torch.zeros(1, 5, 7)}, "pos_embed is not the sin-cos table"),
        (lambda s: {**s, "pos_embed": position_table(16, 3, 2)[None]}, "pos_embed is not the sin-cos table"),
        (lambda s: {**s, "pos_embed": position_table(16, 2, 2)[None]}, "pos_embed is not the sin-cos table"),
        (lambda s: {**s, "pos_embed": s["pos_embed"] + 1e-3}, "pos_embed is not the sin-cos table"),
    ],
)
def test_official_weights_that_do_not_fit_are_refused_by_name(damage, named: str):
    config = small()
    with pytest.raises(UsageError, match=named):
        official.load(config, damage(official.export(trained(config))))


def test_official_layout_holds_adaln_zero_only():
    weights = official.export(DiT(small()))
    for design in set(DESIGNS) - {"adaln_zero"}:
        with pytest.raises(UsageError, match=design):
            official.load(small(conditioning=design), weights)
        with pytest.raises(UsageError, match=design):
            official.export(DiT(small(conditioning=design)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_size": 3}, "patch_size 3 does not divide the input size 4x6"),
        ({"patch_size": 4}, "patch_size 4 does not divide the input size 4x6"),
        ({"input_size": (6, 4), "patch_size": 4}, "patch_size 4 does not divide the input size 6x4"),
        ({"num_heads": 3}, "num_heads 3 does not divide model.hidden_size 16"),
        ({"hidden_size": 6, "num_heads": 2}, "hidden_size 6 is not divisible by 4"),
        ({"depth": 0}, "model.depth must be at least 1, got 0"),
        ({"num_classes": 2.0}, "model.num_classes must be a whole number"),
        ({"conditioning": "adaln-zero"}, "adaln-zero.*did you mean 'adaln_zero'"),
        ({"conditioning": "incontext"}, "incontext.*did you mean 'in_context'"),
        ({"position": "sincos2d"}, "sincos2d.*did you mean 'sincos'"),
        ({"class_dropout": 1.5}, "class_dropout must be at most 1,"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be above 0"),
        ({"input_size": (8, 8, 2)}, "input_size must be a whole number or"),
        ({"input_size": 8.0}, "input_size must be a whole number or"),
    ],
)
def test_a_config_that_does_not_fit_together_names_the_culprit(changes: dict[str, object], named: str):
    with pytest.raises(UsageError, match=named):
        small(**changes)


def test_named_models():
    with pytest.raises(UsageError, match="did you mean 'DiT-XL/2'"):
        DiTConfig.named("DiT-XL2")
    with pytest.raises(UsageError, match="image_size 300 is not divisible by 8"):
        DiTConfig.named("DiT-S/2", image_size=300)
    assert DiTConfig.named("DiT-B/4", image_size=512, num_classes=3).shape == (4, 64, 64)


def test_an_input_of_another_shape_is_refused():
    dit = DiT(small())
    for shape in [(1, 4, 4, 6), (1, 3, 5, 6), (1, 3, 4), (1, 3, 0, 6)]:
        with pytest.raises(UsageError, match=rf"\(N, 3, 4, 6\), or of another .* got \({str(shape)[1:-1]}\)"):
            dit(torch.zeros(shape), torch.zeros(1), torch.zeros(1, dtype=torch.int64))


def test_an_input_of_another_size_gets_the_interpolated_table():
    """A model of 4x6 applied at 8x12 is the model of 8x12 whose coordinates span the grid of 4x6."""
    dit = trained(small())
    large = DiT(replace(dit.config, input_size=(8, 12), position={"name": "sincos", "span": dit.config.grid}))
    large.load_state_dict(dit.state_dict())
    x, t, y = torch.randn(2, 3, 8, 12), torch.tensor([3.0, 500.0]), torch.tensor([0, 1])
    assert torch.equal(dit(x, t, y), large(x, t, y))


@pytest.mark.parametrize("conditioning", DESIGNS)
def test_the_early_head_is_the_final_layer_after_fewer_blocks(conditioning: str):
    dit = trained(small(conditioning=conditioning, depth=3, early_output=2))
    x, t, y = torch.randn(2, 3, 4, 6), torch.tensor([3.0, 500.0]), torch.tensor([0, 1])
    short = DiT(replace(dit.config, depth=2, early_output=0))
    weights = dit.state_dict()
    final = {key.replace("early_final", "final"): value for key, value in weights.items() if "early" in key}
    rest = {key: weights[key] for key in short.state_dict() if not key.startswith("final")}
    short.load_state_dict({**rest, **final})
    out = dit(x, t, y, early=True)
    assert torch.equal(out.early, short(x, t, y))
    assert torch.equal(out.out, dit(x, t, y))
    assert shapes(dit.config) == {key: tuple(value.shape) for key, value in weights.items()}


def test_an_early_head_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match=r"must be less than model\.depth 2"):
        small(depth=2, early_output=2)
    with pytest.raises(UsageError, match=r"no early head; train one with model\.early_output"):
        DiT(small())(torch.zeros(1, 3, 4, 6), torch.zeros(1), torch.zeros(1, dtype=torch.int64), early=True)


@pytest.mark.parametrize("conditioning", DESIGNS)
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_shapes_in_closed_form(conditioning: str, learn_sigma: bool):
    config = DiTConfig((8, 4), 2, 3, 16, 2, 2, 7, learn_sigma, conditioning, mlp_ratio=2.5)
    assert shapes(config) == {key: tuple(value.shape) for key, value in DiT(config).state_dict().items()}
