"""The network's parts: one list of layers that builds and counts, designs of one's own, the call's extras."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import made_tables
from networks import trained
from scaledit import DiT, DiTConfig, assemble, config, part
from scaledit.conditions import Condition
from scaledit.conditions.labels import Labels
from scaledit.data.sets import Batch, Images, digits
from scaledit.diffusion.noise import training_draws
from scaledit.errors import UsageError
from scaledit.interop import infer, official, program
from scaledit.models import conditioners, flops
from scaledit.models.blocks import Block, Embedded
from scaledit.models.blocks.adaln_zero import AdaLNZero
from scaledit.models.conditioners import Conditioner, EmbeddedCondition
from scaledit.models.description import Description, Layers, Linear
from scaledit.models.dit import Output
from scaledit.models.positions import Position
from scaledit.models.shapes import shapes
from scaledit.part import Allowed
from scaledit.report import figures
from scaledit.scaling import paper
from scaledit.scaling.plan import activation_bytes
from scaledit.scaling.verdicts import DESIGNS, verdicts
from scaledit.training.learner import StepResult
from scaledit.training.ranks import Ranks
from scaledit.training.state import TrainState
from test_scaling import saved_bytes
from tiny import tiny

every_design = pytest.mark.parametrize("design", part.names(Block))

PARALLEL = '''
"""x + Attn(LN x + c) + MLP(LN x + c), as in the 22-billion ViT (Dehghani et al. 2023)."""

from dataclasses import dataclass

from scaledit.models.blocks import Block
from scaledit.models.description import MLP, LayerNorm, Linear, SelfAttention
from scaledit.part import field


@dataclass(frozen=True)
class Parallel(Block):
    """Attention and MLP beside each other."""

    ratio: int = field(2, ge=1, doc="of the MLP's width to the model's")

    def layers(self, config):
        d, rows = config.hidden_size, config.tokens
        return {
            "norm": LayerNorm(d, rows),
            "told": Linear(d, d, 1),
            "attn": SelfAttention(d, config.num_heads, rows),
            "mlp": MLP(d, self.ratio * d, rows),
        }

    def forward(self, m, x, embedded):
        y = m.norm(x) + m.told(embedded.vector).unsqueeze(1)
        return x + m.attn(y) + m.mlp(y)
'''


def small(**changes: object) -> DiTConfig:
    made = DiTConfig((4, 6), 2, in_channels=3, hidden_size=16, depth=3, num_heads=4, num_classes=5)
    return replace(made, **changes)  # type: ignore[arg-type]


def inputs(made: DiTConfig, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, *made.shape), torch.linspace(30, 900, n), torch.arange(n)


@pytest.fixture
def parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a design in a file of one's own, in the current folder."""
    (tmp_path / "my_blocks.py").write_text(PARALLEL)
    monkeypatch.chdir(tmp_path)
    yield "my_blocks:Parallel"
    sys.modules.pop("my_blocks", None)


def drawn_weights(made: DiTConfig) -> dict[str, Tensor]:
    """The initialization by hand, in plain PyTorch: what is drawn, and in which order. Torch's modules draw
    weights of their own when they are made; then come all linears in their order, then the label table, then
    the timestep embedding."""
    d, hidden = made.hidden_size, int(made.hidden_size * made.mlp_ratio)
    area, outputs = made.patch_size**2 * made.in_channels, made.patch_size**2 * made.out_channels
    block = {"attn.qkv": (d, 3 * d), "attn.proj": (d, d)}
    if made.conditioning == "cross_attention":
        block |= {"cross.q": (d, d), "cross.kv": (d, 2 * d), "cross.proj": (d, d)}
    block |= {"mlp.fc1": (d, hidden), "mlp.fc2": (hidden, d)}
    vectors = {"adaln": 4, "adaln_zero": 6}.get(str(made.conditioning))
    block |= {"modulation": (d, vectors * d)} if vectors else {}
    before = {"patch_embed": (area, d), "time_embed.fc1": (256, d), "time_embed.fc2": (d, d)}
    after = {f"blocks.{i}.{name}": size for i in range(made.depth) for name, size in block.items()}
    after |= {"final.linear": (d, outputs), **({"final.modulation": (d, 2 * d)} if vectors else {})}
    linears = {name: nn.Linear(*size) for name, size in before.items()}
    table = nn.Embedding(made.num_classes + 1, d)
    linears |= {name: nn.Linear(*size) for name, size in after.items()}
    for linear in linears.values():
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    for module in (table, linears["time_embed.fc1"], linears["time_embed.fc2"]):
        nn.init.normal_(module.weight, std=0.02)
    weights: dict[str, Tensor] = {"label_embed.weight": table.weight}
    for name, linear in linears.items():
        if "modulation" in name or name == "final.linear":
            nn.init.zeros_(linear.weight)
        weights |= {f"{name}.weight": linear.weight, f"{name}.bias": linear.bias}
    return weights


@pytest.mark.parametrize("design", paper.designs())
@pytest.mark.parametrize("ratio", [4.0, 2.7])
def test_the_same_random_numbers_become_the_same_weights_as_ever(design: str, ratio: float):
    made = small(conditioning=design, mlp_ratio=ratio)
    torch.manual_seed(5)
    wanted, after = drawn_weights(made), torch.rand(3)
    torch.manual_seed(5)
    state = DiT(made).state_dict()
    assert torch.equal(torch.rand(3), after)  # and not one number more
    assert {key for key in state if "norm" not in key} == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(state[key], value), key


def held_against(made: DiTConfig) -> None:
    """The network as built, and as described."""
    net = DiT(made)
    state = net.state_dict()
    assert list(shapes(made).items()) == [(key, tuple(value.shape)) for key, value in state.items()]
    x, t, y = inputs(made, 1)
    second = t if made.second_time else None
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x, t, y, second=second)
    described = {name: layer.macs() for name, layer in Description.of(made).named()}
    per_module = {
        name.removeprefix("DiT."): sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()
    }
    for name, macs in described.items():
        assert macs == per_module.get(name, 0), name
    assert flops.count(made) == (sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2)


@every_design
@pytest.mark.parametrize("second_time", [False, True])
def test_each_layer_is_what_its_description_says(design: str, second_time: bool):
    held_against(small(conditioning=design, mlp_ratio=2.7, second_time=second_time))


def test_describing_a_network_loads_no_torch(parallel: str):
    code = (
        "import sys; from scaledit.models import flops; from scaledit.models.config import DiTConfig; "
        "from scaledit.models.shapes import shapes; from scaledit.scaling.plan import activation_bytes; "
        f"c = DiTConfig.named('DiT-S/8', conditioning={parallel!r}); flops.count(c); shapes(c); "
        "activation_bytes(c, 2, 'bf16'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_design_of_ones_own_is_built_trained_and_counted(parallel: str):
    assert PARALLEL.strip().count("\n") < 40
    run = config.load(
        "digits", [f'model.conditioning={{name = "{parallel}", ratio = 3}}', "train.batch_size=4"]
    )
    assert run.model.block.label() == "my_blocks:Parallel, ratio 3"
    held_against(run.model)
    odd = replace(run.model, input_size=(24, 16), in_channels=3, num_classes=10)
    for precision in ("fp32", "bf16"):  # an estimate: the design says nothing of what its own sums keep
        measured = saved_bytes(odd, 6, precision)
        assert activation_bytes(odd, 6, precision) == pytest.approx(measured, rel=0.1)
    state = TrainState.create(run, assemble.dataset(run.data), Ranks(torch.device("cpu")))
    before = {key: value.clone() for key, value in state.net.state_dict().items()}
    for _ in range(3):  # the last layer starts at zero: only then do the blocks learn
        state.train_step()
    after = state.net.state_dict()
    assert all(not torch.equal(after[key], before[key]) for key in after if key.startswith("blocks.0.mlp"))
    copied = copy.deepcopy(state.net)
    assert {type(block) for block in copied.blocks} == {type(block) for block in state.net.blocks}


def test_a_design_of_ones_own_is_recorded_whole_and_not_imported_unasked(parallel: str):
    run = config.load("digits", [f"model.conditioning={parallel}"])
    said = json.loads(json.dumps(run.to_json()))
    assert said["model"]["conditioning"] == {"name": parallel, "ratio": 2}
    assert config.RunConfig.from_json(said, part.YOURS) == run
    assert DiTConfig(**said["model"]) == run.model
    del sys.modules["my_blocks"]
    with pytest.raises(UsageError, match=r"a model names 'my_blocks:Parallel'.*--allow-import my_blocks"):
        config.RunConfig.from_json(said, Allowed.only([], "a model"))
    assert "my_blocks" not in sys.modules
    allowed = Allowed.only(["my_blocks"], "a model")
    assert config.RunConfig.from_json(said, allowed).model.block.to_json() == {"name": parallel, "ratio": 2}


def test_a_design_that_lacks_something_is_refused_before_anything_is_built(tmp_path: Path, parallel: str):
    (tmp_path / "half_blocks.py").write_text(PARALLEL.replace("def forward", "def forwards"))
    with pytest.raises(UsageError, match="half_blocks:Parallel lacks the method forward"):
        small(conditioning="half_blocks:Parallel")
    with pytest.raises(UsageError, match=r"model.conditioning.ratio must be at least 1, got 0"):
        small(conditioning={"name": parallel, "ratio": 0})
    with pytest.raises(UsageError, match=r"unknown key model.conditioning.rate.*has the field ratio"):
        config.load("digits", [f'model.conditioning={{name = "{parallel}", rate = 3}}'])
    (tmp_path / "taken_blocks.py").write_text(PARALLEL.replace('"norm"', '"design"'))
    with pytest.raises(UsageError, match="cannot be called 'design'"):
        DiT(small(conditioning="taken_blocks:Parallel"))


def test_a_config_holds_names_where_they_say_all():
    assert small(conditioning=AdaLNZero()) == small() == small(conditioning={"name": "adaln_zero"})
    assert small().conditioning == "adaln_zero" and small().block == AdaLNZero()
    said = small().to_json()
    assert said["conditioning"] == "adaln_zero" and said["position"] == "sincos"
    assert "conditioner" not in said and "second_time" not in said  # as configs were before these were there
    assert small(second_time=True).to_json()["second_time"] is True
    assert DiTConfig(**json.loads(json.dumps(small(second_time=True).to_json()))) == small(second_time=True)
    with pytest.raises(UsageError, match=r"model.conditioning must be a block, got the part 'sincos'"):
        small(conditioning=part.build(Position, "sincos", "x"))
    with pytest.raises(UsageError, match="second_time must be true or false"):
        small(second_time=1)


def with_a_fifth(table: Any, name: str) -> Any:
    """The table, with another design beside each row of adaLN, a little better."""
    more = [
        replace(row, conditioning=name, name=f"{row.name} {name}", fd=row.fd * 0.9)
        for row in table.rows
        if row.conditioning == "adaln" and row.fd is not None
    ]
    assert more
    return replace(table, rows=(*table.rows, *more))


def test_a_fifth_design_is_drawn_and_changes_no_verdict_of_the_papers():
    name = "my_blocks:Parallel, ratio 3"
    table = made_tables.study()
    more = with_a_fifth(table, name)
    drawn = figures.blocks(more)
    assert drawn is not None
    [axes] = drawn.figure.axes
    lines = [line for line in axes.get_lines() if line.get_marker() not in ("", "None", None)]
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == 5
    assert name in [text.get_text() for text in axes.texts]
    ends = figures.blocks(with_a_fifth(table_at_ends(table), name))
    assert ends is not None
    [bars] = ends.figure.axes
    assert len(bars.patches) == 5 and name in [label.get_text() for label in bars.get_yticklabels()]
    assert figures.best(more) is not None

    def said(table: Any) -> str:
        return next(verdict.said for verdict in verdicts(table) if verdict.key == "blocks")

    assert said(more) == said(table)


def table_at_ends(table: Any) -> Any:
    """Without what was measured during training."""
    return replace(table, rows=tuple(row for row in table.rows if row.part != "training"))


def test_the_papers_order_of_designs_comes_out_of_its_table():
    assert DESIGNS == paper.designs() == ("adaln_zero", "adaln", "cross_attention", "in_context")


@every_design
@pytest.mark.parametrize("second_time", [False, True])
def test_a_state_dict_says_its_design(design: str, second_time: bool):
    made = small(conditioning=design, second_time=second_time, mlp_ratio=2.0)
    said = {key: tuple(value.shape) for key, value in DiT(made).state_dict().items()}
    hints = infer.Hints(heads=4, input_size=(4, 6), patch_size=2, num_classes=5)
    assert infer.config_of(said, hints) == made


def test_other_layouts_refuse_what_they_cannot_hold():
    with pytest.raises(
        UsageError, match="the official layout does not support this model's second_time True"
    ):
        official.export(DiT(small(second_time=True)))


# The call.


@every_design
def test_hidden_states_are_what_a_hook_sees(design: str):
    made = small(conditioning=design)
    net = trained(made)
    x, t, y = inputs(made)
    seen: dict[int, Tensor] = {}
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(lambda _, args, out, i=i: seen.__setitem__(i, out))
    output = net(x, t, y, hidden=(0, 2))
    assert isinstance(output, Output)
    assert torch.equal(output.out, net(x, t, y))
    assert output.hidden.keys() == {0, 2}
    for i, tokens in output.hidden.items():
        assert tokens.shape == (3, 6, 16)
        assert torch.equal(tokens, seen[i][:, :6])  # in-context: without the condition's own tokens
    gradient = torch.autograd.grad(output.hidden[2].square().sum(), net.blocks[0].attn.qkv.weight)  # type: ignore[union-attr]
    assert gradient[0].abs().max() > 0
    for wrong in (3, -1):
        with pytest.raises(UsageError, match=f"no block {wrong}; this model has blocks 0 to 2"):
            net(x, t, y, hidden=(wrong,))


@every_design
def test_a_second_time_reaches_the_output_of_its_own_image(design: str):
    made = small(conditioning=design, second_time=True)
    net = trained(made)
    x, t, y = inputs(made)
    before = net(x, t, y, second=t / 2)
    moved = net(x, t, y, second=t / 2 + torch.tensor([0.0, 9.0, 0.0]))
    difference = (moved - before).abs().amax(dim=(1, 2, 3))
    assert difference[1] > 1e-3 and difference[[0, 2]].max() < 1e-5
    assert (net(x, t / 2, y, second=t) - before).abs().max() > 1e-3  # two times, not their sum
    told = net.time_embed(t) + net.second_time_embed(t / 2)
    plain = trained(small(conditioning=design))
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "second" not in k})
    plain.time_embed.forward = lambda _: told  # type: ignore[method-assign]
    assert torch.equal(plain(x, t, y), before)
    with pytest.raises(UsageError, match="needs two times"):
        net(x, t, y)
    with pytest.raises(UsageError, match=r"model\.second_time=true"):
        trained(small())(x, t, y, second=t)


def test_the_call_takes_labels_conditions_and_none():
    made = small()
    net = trained(made)
    x, t, y = inputs(made)
    assert torch.equal(net(x, t, Labels(y, 5)), net(x, t, y))
    assert torch.equal(net(x, t, None), net(x, t, torch.full((3,), 5)))
    assert net.condition(y).describe() == [0, 1, 2]
    assert net.condition(None, 2).describe() == [5, 5]
    held = Labels(y, 5)
    assert net.condition(held) is held
    assert net.condition(y, device=torch.device("meta")).device.type == "meta"
    with pytest.raises(UsageError, match="labels have 4 classes, but this model has 5"):
        net(x, t, Labels(y, 4))
    with pytest.raises(UsageError, match="this model accepts class labels, got list"):
        net.condition(cast(Any, [1, 2]))


def test_dropping_a_condition_is_dropping_its_labels():
    net = DiT(small(class_dropout=0.3))
    y, u = torch.arange(5).repeat(100), torch.arange(500, dtype=torch.float64) / 500
    dropped = net.drop(Labels(y, 5), u)
    assert isinstance(dropped, Labels)
    assert torch.equal(dropped.values, net.drop_labels(y, u))
    assert int((dropped.values == 5).sum()) == 150


@pytest.mark.parametrize("asked", ["tensor", "labels", "none", "hidden", "second"])
def test_the_call_is_one_graph(asked: str):
    """torch.compile of the whole network finds nothing that it cannot trace."""
    made = small(second_time=asked == "second", conditioning="in_context")
    net = trained(made)
    x, t, y = inputs(made)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    given: dict[str, Any] = {"hidden": (1,)} if asked == "hidden" else {}
    given |= {"second": t / 2} if asked == "second" else {}
    condition = {"labels": Labels(y, 5), "none": None}.get(asked, y)
    out, plain = compiled(x, t, condition, **given), net(x, t, condition, **given)
    if asked == "hidden":
        assert torch.equal(out.hidden[1], plain.hidden[1])
        out, plain = out.out, plain.out
    assert torch.equal(out, plain)


def test_an_exported_program_holds_a_design_of_ones_own(parallel: str, tmp_path: Path):
    made = small(conditioning={"name": parallel, "ratio": 3})
    net = trained(made)
    program.save(net, tmp_path / "net.pt2")
    loaded = program.load(tmp_path / "net.pt2", trusted=True)
    assert loaded.config == made
    x, t, y = inputs(made, 5)
    assert torch.allclose(loaded(x, t, y), net(x, t, y), atol=1e-5)


WRAPPED = """
import sys, torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from scaledit import DiT, DiTConfig
from scaledit.conditions.labels import Labels
from scaledit.config import EngineConfig
from scaledit.training.parallel import Parallel
from scaledit.training.ranks import Ranks

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
def made():
    torch.manual_seed(0)
    net = DiT(DiTConfig((4, 6), 2, 3, 16, 3, 4, 5, conditioning="cross_attention", second_time=True))
    with torch.no_grad():
        [parameter.add_(torch.randn(parameter.shape) * 0.2) for parameter in net.parameters()]
    return net
def seen(call):
    x = torch.linspace(-1, 1, 2 * 72).reshape(2, 3, 4, 6)
    t = torch.tensor([30.0, 600.0])
    out, hidden = call(x, t, Labels(torch.tensor([1, 5]), 5), second=t / 2, hidden=(1,))
    (out.square().mean() + hidden[1].square().mean()).backward()
    return out.detach(), hidden[1].detach()
def gradients(net):
    grads = {name: p.grad for name, p in net.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in grads.items()}
plain = made()
wanted = seen(plain)
for how, kind in {"none": DiT, "ddp": DistributedDataParallel, "fsdp": FSDPModule}.items():
    net = made()
    engine = EngineConfig(parallel="ddp" if how == "none" else how, recompute="blocks")
    ranks = Ranks(torch.device("cpu"), grouped=how != "none")
    wrapped = Parallel(net, net.blocks, engine, "fp32", ranks)
    assert isinstance(wrapped._wrapped, kind)
    found = seen(wrapped)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted)), how
    for name, gradient in gradients(net).items():
        assert torch.allclose(gradient, gradients(plain)[name], atol=1e-6), (how, name)
print("equal")
"""


def test_the_call_is_the_same_copied_sharded_and_recomputed():
    done = subprocess.run([sys.executable, "-c", WRAPPED], capture_output=True, text=True, timeout=300)
    assert done.stdout == "equal\n", done.stderr


# Derivatives in time.


@every_design
def test_derivatives_in_time_are_right_in_both_modes(design: str):
    """Against central differences in float64."""
    made = small(conditioning=design, second_time=True)
    net = trained(made).double()
    x, t, y = inputs(made)
    x, t, s = x.double(), t.double(), t.double() / 2
    at, moving = (x, t, s), (torch.randn_like(x), torch.ones_like(t), -torch.ones_like(t))

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
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(*pair) for pair in zip(at, moving, strict=True)]
        tangent = torch.autograd.forward_ad.unpack_dual(out(*duals)).tangent
    assert torch.allclose(tangent, wanted, rtol=1e-6, atol=1e-8)


def test_the_plain_products_are_taken_under_forward_mode_only(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []

    def recorded(*backends: object) -> Any:
        asked.append(backends)
        return sdpa_kernel(*backends)  # type: ignore[arg-type]

    monkeypatch.setattr("scaledit.models.layers.sdpa_kernel", recorded)
    made = small()
    net, (x, t, y) = trained(made), inputs(made)
    net(x, t, y).sum().backward()
    assert not asked
    primal, _ = torch.func.jvp(lambda t: net(x, t, y), (t,), (torch.ones_like(t),))
    assert len(asked) == made.depth
    assert torch.allclose(primal, net(x, t, y), atol=1e-5)


def test_a_time_in_float32_is_embedded_as_ever():
    net = trained(small())
    t = torch.tensor([0.0, 37.5, 999.0])
    frequencies = net.time_embed.frequencies
    angles = t[:, None] * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    assert torch.equal(
        net.time_embed(t), net.time_embed.fc2(nn.functional.silu(net.time_embed.fc1(embedding)))
    )
    assert torch.equal(net.time_embed(t.half()), net.time_embed(t.half().float()))
    assert torch.equal(
        net.time_embed(torch.tensor([0, 37, 999])), net.time_embed(torch.tensor([0.0, 37, 999]))
    )
    near = net.double().time_embed(torch.tensor([500.0, 500.0 + 1e-9], dtype=torch.float64))
    assert (near[1] - near[0]).abs().max() > 0  # float32 would round the two to one


# A conditioner of one's own.


@dataclass(frozen=True)
class Words(Condition):
    """Tokens (N, S, 4) with a mask (N, S)."""

    values: Tensor
    mask: Tensor

    def null(self) -> Words:
        return Words(torch.zeros_like(self.values), self.mask)

    def describe(self) -> list[Any]:
        return self.values.tolist()


@dataclass(frozen=True)
class EmbedWords(Conditioner):
    """Of texts: tokens with a mask, and their mean."""

    longest: int = part.field(3, ge=1)

    def layers(self, config: DiTConfig) -> Layers:
        return {"words": Linear(4, config.hidden_size, self.longest)}

    def tokens(self, config: DiTConfig) -> int:
        return self.longest

    def condition(self, config: DiTConfig, asked: object, n: int, device: torch.device) -> Words:
        if asked is None:
            return Words(torch.zeros(n, self.longest, 4), torch.ones(n, self.longest, dtype=torch.bool))
        assert isinstance(asked, Words)
        return asked

    def embed(self, net: Any, condition: Words) -> EmbeddedCondition:
        tokens = net.words(condition.values)
        counted = condition.mask.unsqueeze(2).to(tokens)
        return EmbeddedCondition((tokens * counted).sum(1) / counted.sum(1), tokens, condition.mask)


@every_design
def test_another_kind_of_condition_is_one_class(design: str):
    """Its tokens with a mask reach every design, those that only fill up do not, and the counts hold."""
    made = small(conditioning=design, conditioner=EmbedWords(3))
    assert made.to_json()["conditioner"] == {"name": f"{__name__}:EmbedWords", "longest": 3}
    net = trained(made)
    x, t, _ = inputs(made)
    words = Words(torch.randn(3, 3, 4), torch.tensor([[True, True, True], [True, True, False], [True] * 3]))
    out = net(x, t, words)

    def changed(row: int, token: int) -> float:
        values = words.values.clone()
        values[row, token] += 1
        moved = net(x, t, replace(words, values=values))
        return float((moved - out)[row].detach().abs().max())

    assert changed(1, 1) > 1e-4 and changed(0, 2) > 1e-4
    assert changed(1, 2) == 0
    assert list(shapes(made)) == list(net.state_dict())
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x[:1], t[:1], words[:1])
    assert flops.count(made).macs == counter.get_total_flops() / 2
    assert net.drop(words, torch.tensor([0.0, 0.5, 0.9])).describe()[0] == [[0.0] * 4] * 3


@dataclass
class Conditioned:
    """The digits, with what `conditions` makes of their labels as conditions."""

    conditions: Callable[[Tensor], Any]
    images: Images = field(default_factory=digits)
    class_names = tuple("0123456789")
    shape = (1, 8, 8)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray, positions: range, seed: int) -> Batch:
        x0, y = self.images.batch(indices, positions, seed)
        return Batch(x0, self.conditions(y))


def of_labels(y: Tensor) -> Words:
    return Words((y + 1).reshape(-1, 1, 1).expand(-1, 3, 4).float(), torch.ones(len(y), 3, dtype=torch.bool))


def steps(conditions: Callable[[Tensor], Any], **model: Any) -> tuple[list[Condition], list[StepResult]]:
    """What the network is asked for in three training steps, and their results."""
    run = tiny("model.class_dropout=0.5")
    run = replace(run, model=replace(run.model, **model))
    state = TrainState.create(run, Conditioned(conditions), Ranks(torch.device("cpu")))
    asked: list[Any] = []
    state.net.register_forward_pre_hook(lambda _, args: asked.append(args[2]))
    return asked, [state.train_step() for _ in range(3)]


def test_training_drops_any_condition_by_the_same_random_numbers():
    """A data set may give a `Condition`, which is replaced by its own null."""
    labels, results = steps(lambda y: y)
    conditions, same = steps(lambda y: Labels(y, 10))
    assert [(one.loss, one.grad_norm) for one in results] == [(one.loss, one.grad_norm) for one in same]
    words, others = steps(of_labels, conditioner=EmbedWords(3))
    assert all(one.grad_norm > 0 for one in others)
    for step, (label, condition, word) in enumerate(zip(labels, conditions, words, strict=True)):
        positions = range(16 * step, 16 * step + 16)
        dropped = training_draws(0, positions, (1, 8, 8)).label_drop < 0.5
        assert torch.equal(label, condition) and torch.equal(label == 10, dropped)
        expected = torch.where(dropped, 0, label + 1).reshape(-1, 1, 1).expand(-1, 3, 4)
        assert torch.equal(word.values, expected.float())


def test_built_in_conditioners_say_what_they_need():
    assert part.names(Conditioner) == ["labels"]
    assert conditioners.Conditioner.NEEDS == ("layers", "condition", "embed")
    with pytest.raises(UsageError, match=r"unknown conditioner 'label'.*; did you mean 'labels'"):
        small(conditioner="label")


@every_design
def test_what_a_block_is_told_is_a_vector_or_tokens(design: str):
    time, label = torch.randn(2, 16), torch.randn(2, 16)
    embedded = Embedded(time, label)
    assert torch.equal(embedded.tokens, torch.stack([time, label], 1)) and embedded.token_mask is None
    as_tokens = Embedded(time, label, label.unsqueeze(1), torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(as_tokens.tokens, embedded.tokens)
    net, x = trained(small(conditioning=design)), torch.randn(2, 6, 16)
    embedded, as_tokens = (net.design.prepare(net, told) for told in (embedded, as_tokens))
    out = net.blocks[0](net.design.enter(x, embedded), embedded)
    masked = net.blocks[0](net.design.enter(x, as_tokens), as_tokens)
    assert torch.allclose(out, masked, atol=1e-5)
