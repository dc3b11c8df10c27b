"""Terms of the loss beside the objective: what each of them is, and that nothing but the loss depends on
them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from among import ALONE, Job, across, alone
from saved import identical, weights
from scaledit import assemble, load
from scaledit.autoencoders.encoded import EncodedImages
from scaledit.config import RunConfig
from scaledit.data.latents import Latents
from scaledit.data.order import paired, samples_at
from scaledit.data.sets import digits
from scaledit.diffusion import X0, LinearFlow, NetDenoiser, Simple, Velocity, VelocityLoss
from scaledit.diffusion.noise import training_draws
from scaledit.diffusion.objectives import Context, Objective
from scaledit.diffusion.teachers import Teacher
from scaledit.diffusion.terms import (
    Alignment,
    Contrastive,
    Early,
    Seen,
    Term,
    extra_macs,
    logged_names,
    losses,
)
from scaledit.errors import UsageError
from scaledit.evaluation import efficientnet
from scaledit.evaluation.teachers.dinov2 import DINOv2Teacher
from scaledit.evaluation.teachers.efficientnet import EfficientNetTeacher
from scaledit.models.dit import DiT
from scaledit.training.dit import train
from scaledit.training.events import Saved, Stepped
from scaledit.training.state import TrainState
from tiny import tiny

FLOW = ("diffusion.schedule=flow", "diffusion.prediction=velocity", "diffusion.objective=simple")
LITE = '{name="efficientnet-lite0", side=32, stage=3}'
ALIGNED = f'{{name="alignment", teacher={LITE}, after=1, width=24, until=12}}'
MODULE = "my_own_term"
SOURCE = '''
from dataclasses import dataclass

from torch import nn

from scaledit.diffusion.terms import Term


@dataclass(frozen=True)
class Told(Term, name="told"):
    """A head on block 0 tells a random number and the label of another sample."""

    hidden = (0,)
    partner = True
    draws = {"s": "uniform"}

    def modules(self, config):
        return nn.Linear(config.hidden_size, 2)

    def __call__(self, seen):
        told = seen.modules(seen.hidden[0].float()).mean(1)
        return (told[:, 0] - seen.draws["s"]) ** 2 + (told[:, 1] - seen.partner.y / 10) ** 2
'''
TERMS = f'diffusion.terms=["early", "contrastive", {ALIGNED}, "{MODULE}:Told"]'


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def batch(config: RunConfig, n: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, y, t, eps."""
    numbers = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, *config.model.shape, generator=numbers)
    return x0, torch.arange(n), torch.linspace(0.1, 0.9, n, dtype=torch.float64), eps


@dataclass(eq=False)
class Counted:
    """A network that counts its evaluations."""

    net: DiT
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def null_label(self) -> int:
        return self.net.null_label

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls.append(options)
        return self.net(*args, **options)


def lively(config: RunConfig) -> DiT:
    """A network none of whose weights is zero."""
    torch.manual_seed(1)
    net = DiT(config.model)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    return net


def total(
    objective: Objective, terms: list[Term], net: Any, config: RunConfig, **more: Any
) -> dict[str, Tensor]:
    x0, y, t, eps = batch(config)
    denoiser = assemble.denoiser(config.diffusion, net)
    context = Context({}, None, denoiser)
    return losses(objective, terms, denoiser, x0, y, t, eps, context, **more)


# One forward pass


@dataclass(frozen=True)
class Reads(Term):
    """The mean square of a block's tokens."""

    block: int = 0

    @property
    def hidden(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.block,)

    def __call__(self, seen: Seen) -> Tensor:
        assert set(seen.hidden) == {self.block} and seen.early is None
        return seen.hidden[self.block].square().mean((1, 2))


@dataclass(frozen=True)
class Hidden(Simple):
    """An objective that asks for hidden states itself, and gets those alone."""

    def __call__(self, denoiser, x0, y, t, eps, *, context=None):
        out, hidden = denoiser.output(x0, t, y, hidden=(1,))
        assert list(hidden)[-1] == 1
        later = denoiser.output(x0, t, y)
        return {"total": (out - x0 + later).square().flatten(1).mean(1) + hidden[1].mean((1, 2))}


def test_one_forward_pass_serves_all_terms():
    """The objective's own terms keep their bits; each term gets what it asked for; they sum to the total."""
    config = tiny(*FLOW, "model.early_output=1", "diffusion.terms=early")
    net = Counted(lively(config))
    plain = total(Simple(), [], net, config)
    assert (list(plain), net.calls) == (["total", "mse"], [{}])
    terms = [Early(weight=0.5), Reads(weight=2.0, block=1), Reads(weight=-1.0, block=0)]
    assert logged_names(terms) == ["early", "Reads", "Reads_2"]
    found = total(Simple(), terms, net, config)
    assert net.calls[1:] == [{"hidden": (0, 1), "early": True}]
    assert list(found) == ["total", "mse", "early", "Reads", "Reads_2"]
    assert torch.equal(found["mse"], plain["mse"])
    summed = found["mse"] + 0.5 * found["early"] + 2 * found["Reads"] - found["Reads_2"]
    torch.testing.assert_close(found["total"], summed)
    alone = total(Hidden(), [], net, config)
    beside = total(Hidden(), [Reads(block=0), Early()], net, config)
    assert net.calls[-2:] == [{"hidden": (0, 1), "early": True}, {}]  # only the first evaluation is shared
    torch.testing.assert_close(beside["total"], alone["total"] + beside["Reads"] + beside["early"])


@pytest.mark.parametrize("objective", ["simple", "hybrid", "velocity", "min_snr"])
def test_the_early_term_is_the_objective_of_the_early_head(objective: str):
    """Equal to the objective of a network that ends there, and its gradient reaches nothing behind."""
    kind = ("diffusion.schedule=flow", "diffusion.prediction=x0", f"diffusion.objective={objective}")
    config = tiny(*kind, "model.early_output=1", "diffusion.terms=early")
    net = lively(config)
    found = total(config.diffusion.objective, [Early()], net, config)
    short = DiT(replace(config.model, depth=1, early_output=0))
    kept = {name: value for name, value in net.state_dict().items() if name in short.state_dict()}
    short.load_state_dict(
        {name: net.state_dict().get(f"early_{name}", value) for name, value in kept.items()}
    )
    direct = total(config.diffusion.objective, [], short, config)
    torch.testing.assert_close(found["early"], direct["total"])
    torch.testing.assert_close(
        found["total"], total(config.diffusion.objective, [], net, config)["total"] + direct["total"]
    )
    found["early"].sum().backward()
    reached = reached_by_gradients(net)
    assert {"blocks.0", "early_final.linear"} < reached
    assert not [name for name in reached if name.startswith(("blocks.1", "final"))]


def reached_by_gradients(net: nn.Module) -> set[str]:
    """The modules, by the first two words of their names, with a gradient that is not zero."""
    return {
        ".".join(name.split(".")[:2])
        for name, weight in net.named_parameters()
        if weight.grad is not None and bool(weight.grad.any())
    }


# Contrastive


def test_the_contrastive_minimum_is_the_papers():
    """Of || u - target ||^2 - w || u - other ||^2 over one u: (mean target - w mean other) / (1 - w)."""
    n, w = 8, 0.05
    numbers = torch.Generator().manual_seed(0)
    x0, eps, other_x0, other_eps = torch.randn(4, n, 1, 2, 2, generator=numbers, dtype=torch.float64)
    u = (((eps - x0).mean(0) - w * (other_eps - other_x0).mean(0)) / (1 - w)).requires_grad_()
    denoiser = NetDenoiser(lambda x, t, y: u.expand(n, -1, -1, -1), LinearFlow(), Velocity())  # type: ignore[arg-type]
    t, y = torch.linspace(0.1, 0.9, n, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)
    partner = (other_x0, y, other_eps)
    context = Context({}, None, denoiser)
    found = losses(Simple(), [Contrastive()], denoiser, x0, y, t, eps, context, partner=partner)  # type: ignore[arg-type]
    torch.testing.assert_close(found["contrastive"], -((u - (other_eps - other_x0)) ** 2).flatten(1).mean(1))
    torch.testing.assert_close(found["total"], found["mse"] + w * found["contrastive"])
    found["total"].sum().backward()
    assert float(u.grad.abs().max()) < 1e-12  # type: ignore[union-attr]
    clamped = VelocityLoss().error(
        replace(denoiser, parameterization=X0()),
        x0,
        x0,
        eps,
        (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * eps,
        t,
    )
    assert float(clamped.abs().max()) < 1e-20


SEEN: list[Seen] = []


@dataclass(frozen=True)
class Spy(Term):
    partner: ClassVar[bool] = True
    images: ClassVar[bool] = True

    def __call__(self, seen: Seen) -> Tensor:
        SEEN.append(seen)
        return seen.out.square().flatten(1).mean(1)


@dataclass
class Halving:
    """An autoencoder whose latents are half of each pixel, and noise."""

    channels, downsampling, scale = 1, 1, 2.0

    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([images / 2, torch.full_like(images, -2.0)], dim=1)


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize(("size", "accumulate"), [(16, 1), (15, 5)])
def test_the_partner_of_a_position_is_its_neighbor(encoded: bool, size: int, accumulate: int):
    """p XOR 1, with its own image, label, flip, posterior noise and eps, in whatever micro-batch they are;
    and the images are those that were encoded."""
    SEEN.clear()
    data: Any = replace(digits(), flip=True)
    if encoded:
        data = EncodedImages(data, Halving())  # type: ignore[arg-type]
    batches = (f"train.batch_size={size}", f"train.accumulate={accumulate}")
    state = TrainState.create(tiny(*FLOW, *batches, f"diffusion.terms={__name__}:Spy"), data, ALONE)
    for _ in range(3):
        state.train_step()
    assert len(SEEN) == 3 * accumulate
    every = range(3 * size + 1)
    indices = samples_at(every, len(data), 0)
    whole = data.batch(indices, every, 0)
    images = whole.x0 if not encoded else data.images.batch(indices, every, 0).x0
    eps = training_draws(0, every, data.shape).eps
    others = np.arange(3 * size) ^ 1
    for name, expected, found in (
        ("x0", whole.x0[:-1], [seen.x0 for seen in SEEN]),
        ("images", images[:-1], [seen.images for seen in SEEN]),
        ("partner", whole.x0[others], [seen.partner.x0 for seen in SEEN]),  # type: ignore[union-attr]
        ("its label", whole.y[others], [seen.partner.y for seen in SEEN]),  # type: ignore[union-attr]
        ("its noise", eps[others], [seen.partner.eps for seen in SEEN]),  # type: ignore[union-attr]
    ):
        assert torch.equal(torch.cat(found), expected), name  # type: ignore[arg-type]
    assert (paired(range(3, 8)), paired(range(4, 8))) == (range(2, 8), range(4, 8))


# Alignment


@dataclass(frozen=True)
class Twelve(Teacher):
    """Twelve maps of an image: its three channels, rolled."""

    def width(self) -> int:
        return 12

    def load(self, device):
        return lambda x: torch.cat([x.roll(k, dims=3) for k in range(4)], dim=1)

    def macs(self, height, width) -> int:
        return 7 * height * width


def seen_by(term: Alignment, net: DiT, config: RunConfig, modules: nn.Module) -> dict[str, Tensor]:
    frozen = {"alignment": term.frozen(config.model, torch.device("cpu"))}
    images = torch.rand(6, *config.model.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return total(Simple(), [term], net, config, images=images, modules={"alignment": modules}, frozen=frozen)


@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_alignment_reaches_the_blocks_before_it_only(projector: Any):
    config = tiny(*FLOW, "model.depth=3")
    term, net = Alignment(teacher=Twelve(side=16), after=2, projector=projector, width=20), lively(config)
    modules = term.modules(config.model)
    shapes = [tuple(weight.shape) for weight in modules.parameters()]
    if projector == "mlp":
        assert shapes == [(20, 16), (20,), (20, 20), (20,), (12, 20), (12,)]
        assert [type(layer) for layer in modules][1::2] == [nn.SiLU, nn.SiLU]  # type: ignore[attr-defined]
    else:
        assert shapes == [(12, 16, 3, 3), (12,)]
    inner = 4 * (20 * (16 + 20 + 12) if projector == "mlp" else 9 * 16 * 12)  # 4 tokens
    assert term.extra_macs(config.model) == 3 * inner + 7 * 16 * 16
    value = seen_by(term, net, config, modules)["alignment"]
    assert value.shape == (6,) and bool((value.abs() <= 1).all())
    value.sum().backward()
    reached = reached_by_gradients(net)
    assert {"patch_embed.weight", "blocks.0", "blocks.1"} < reached
    assert not [name for name in reached if name.startswith(("blocks.2", "final"))]
    assert all(weight.grad is not None for weight in modules.parameters())


def test_the_teachers_tokens_are_those_of_the_tokens_own_places():
    """A projector that returns the teacher's tokens has the loss -1; normalized tokens have mean 0 and
    deviation 1 over an image; a map that fits the grid is not touched, and
    a constant one stays constant on any grid."""
    config = tiny(*FLOW)
    term = Alignment(teacher=Twelve(side=2), after=1)
    features = torch.randn(6, 12, 2, 2, generator=torch.Generator().manual_seed(0))

    class Knows(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return 3 * features.flatten(2).transpose(1, 2) + 0 * tokens.sum()

    frozen = {"alignment": lambda x: features}
    images = torch.zeros(6, *config.model.shape)
    net, modules = lively(config), {"alignment": Knows()}
    found = total(Simple(), [term], net, config, images=images, modules=modules, frozen=frozen)["alignment"]
    torch.testing.assert_close(found, -torch.ones(6))
    z = term.target(features, 2, 2)
    for row in range(2):
        for column in range(2):
            assert torch.equal(z[:, 2 * row + column], features[:, :, row, column])
    flat = term.target(torch.ones(1, 12, 8, 8), 3, 5)
    torch.testing.assert_close(flat, torch.ones(1, 15, 12))
    z = replace(term, normalize=True).target(features, 2, 2)
    torch.testing.assert_close(z.mean(1), torch.zeros(6, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1, unbiased=False), torch.ones(6, 12), atol=1e-4, rtol=0)
    partly = replace(term, normalize=True, gamma=0.5).target(features, 2, 2)
    tokens = features.flatten(2).transpose(1, 2)
    expected = (tokens - tokens.mean(1, keepdim=True) / 2) / tokens.std(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(partly, expected, atol=1e-4, rtol=1e-4)


def lite_macs(side: int) -> int:
    """Of EfficientNet-Lite0 up to its feature map of 320 channels, layer by layer."""
    side //= 2
    macs, width = side**2 * 27 * efficientnet.STEM, efficientnet.STEM
    for stage in efficientnet.STAGES:
        for number in range(stage.blocks):
            inner = width * stage.expansion
            macs += side**2 * width * inner * (stage.expansion > 1)
            side //= stage.stride if number == 0 else 1
            macs += side**2 * inner * (stage.kernel**2 + stage.width)
            width = stage.width
    return macs


def test_efficientnet_as_a_teacher():
    """Its input is the extractor's, its map that of the stage; nothing is trained; its cost is exact."""
    teacher = EfficientNetTeacher(side=64, stage=4)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        bytes_ = (images + 1) * 127.5
        expected = efficientnet.pretrained().stages((bytes_ - 127) / 128, 4)[-1]
    found = teacher.load(torch.device("cpu"))(teacher.resized(images))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.shape == (2, teacher.width(), 4, 4) and not found.requires_grad
    assert EfficientNetTeacher(stage=7).macs(224, 224) == lite_macs(224)
    assert teacher.resized(torch.zeros(1, 1, 24, 36)).shape == (1, 3, 64, 96)
    assert bool((teacher.resized(torch.full((1, 1, 8, 8), -1.0)) == 0).all())


@pytest.mark.slow  # transformers takes seconds to import
def test_dinov2_as_a_teacher(tmp_path: Path):
    """The normalized tokens of the patches of a local model, in rows."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    model = Dinov2Model(small).eval()
    model.save_pretrained(tmp_path / "dino")
    teacher = DINOv2Teacher(folder=str(tmp_path / "dino"), side=30)
    assert (teacher.width(), teacher.size(8, 8), teacher.size(8, 16)) == (24, (28, 28), (28, 56))
    x = torch.rand(2, 3, 28, 56, generator=torch.Generator().manual_seed(0))
    maps = teacher.load(torch.device("cpu"))(x)
    assert maps.shape == (2, 24, 2, 4) and not maps.requires_grad
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        tokens = model(pixel_values=(x - mean) / deviation).last_hidden_state
    torch.testing.assert_close(maps[:, :, 1, 2], tokens[:, 1 + 4 + 2])
    patches, width = 8, 24
    layers = (patches + 1) * width * width * (4 + 2 * 4) + 2 * (patches + 1) ** 2 * width
    assert teacher.macs(28, 56) == patches * 3 * 14 * 14 * width + layers
    with pytest.raises(UsageError, match=r"needs its folder; set diffusion.terms.alignment.teacher.folder"):
        DINOv2Teacher().ready()


def test_an_aligned_run_saves_the_projector_and_not_the_teacher(monkeypatch: pytest.MonkeyPatch):
    state = TrainState.create(tiny(*FLOW, f"diffusion.terms=[{ALIGNED}]"), digits(), ALONE)
    plain = TrainState.create(tiny(*FLOW), digits(), ALONE)
    assert identical(dict(state.net.state_dict()), dict(plain.net.state_dict()))  # the same start
    saved = state.state_dict()
    assert {name.rpartition(".")[0] for name in saved["objective"]} == {
        f"terms.alignment.{k}" for k in (0, 2, 4)
    }
    assert len(state.trained_parameters()) == len(list(plain.net.parameters())) + 6
    before = {name: value.clone() for name, value in saved["objective"].items()}
    results = [state.train_step() for _ in range(13)]
    assert not any(
        torch.equal(value, before[name]) for name, value in state.state_dict()["objective"].items()
    )
    assert [set(result.terms) for result in results[10:]] == [{"mse", "alignment"}] * 2 + [{"mse"}]
    config, term = state.config, state.config.diffusion.terms[0]
    step = term.extra_macs(config.model)
    assert extra_macs([term], config.model, 100) == 12 * step > 0
    monkeypatch.setattr(efficientnet, "weights_file", lambda: None)
    with pytest.raises(UsageError, match=r"^the weights of EfficientNet-Lite0 are not installed"):
        next(train(state.config, Path("nowhere"), device="cpu"))
    assert not Path("nowhere").exists()


def test_alignment_needs_the_images():
    config = tiny(*FLOW, f"diffusion.terms=[{ALIGNED}]")
    with pytest.raises(UsageError, match=r"alignment needs images, but data.name=digits gives latents only"):
        assemble.check_terms(config, object.__new__(Latents))


# Nothing but the loss depends on them


def run(out: Path, steps: int = 24, saves: int = 0) -> list[Any]:
    """To its end, or abandoned after so many checkpoints, as a kill would."""
    saving = ("checkpoint.every=5", "checkpoint.background=false", "ema.decay=0.9")
    events = []
    config = tiny(*FLOW, TERMS, "model.early_output=1", f"train.steps={steps}", *saving)
    for event in train(config, out, resume="auto", device="cpu"):
        events.append(event)
        saves -= isinstance(event, Saved)
        if saves == 0 and isinstance(event, Stepped):
            break
    return events


def test_a_resumed_run_has_the_same_bits(tmp_path: Path):
    """Also across the step at which a term is dropped, and what is loaded knows nothing of the terms."""
    whole = run(tmp_path / "whole", saves=-1)
    names = [set(event.terms) for event in whole if isinstance(event, Stepped)]
    assert (
        names
        == [{"mse", "early", "contrastive", "alignment", "told"}] * 12
        + [{"mse", "early", "contrastive", "told"}] * 12
    )
    for saves in (1, 2, -1):
        run(tmp_path / "parts", saves=saves)
    kept = weights(tmp_path / "parts")
    assert {"objective/terms.told.weight", "optimizer/exp_avg/objective.terms.told.bias"} < kept.keys()
    assert identical(weights(tmp_path / "whole"), kept)
    assert load(tmp_path / "parts", allow_import=[MODULE])([1]).shape == (1, 8, 8, 3)
    with pytest.raises(UsageError, match=f"--allow-import {MODULE}"):
        load(tmp_path / "parts")


def step(*overrides: str) -> dict[str, Tensor]:
    """The gradients of one step, with a network that is no longer at its start."""
    config = tiny(*FLOW, TERMS, "model.early_output=1", "train.batch_size=15", *overrides)
    state = TrainState.create(config, digits(), ALONE)
    numbers = torch.Generator().manual_seed(0)
    for weight in state.net.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=numbers)
    state.train_step()
    return {name: weight.grad for name, weight in state.trained_parameters().items()}  # type: ignore[misc]


def test_micro_batches_and_recomputation_change_nothing():
    whole = step()
    for parts in (("train.accumulate=5",), ("train.accumulate=15", "engine.recompute=blocks")):
        split = step(*parts)
        for name, gradient in whole.items():
            torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=1e-6, msg=f"{name} {parts}")


@pytest.mark.slow
def test_two_ranks_train_terms_as_one_process(tmp_path: Path):
    """Copies, shards, and uneven shards with micro-batches."""
    paper = ("optimizer.learning_rate=1e-4", "optimizer.warmup_steps=0", "ema.decay=0.9")
    common = (*FLOW, TERMS, "model.early_output=1", *paper)
    jobs = {
        "ddp": Job(common, 10),
        "fsdp": Job((*common, "engine.parallel=fsdp"), 10),
        "uneven": Job((*common, "engine.parallel=fsdp", "train.batch_size=15", "train.accumulate=5"), 5),
    }
    two = across(2, jobs, tmp_path)
    for name, job in jobs.items():
        one = alone(job)
        assert max(abs(a - b) for a, b in zip(one.losses, two[name].losses, strict=True)) < 1e-6, name
        assert float((one.tables - two[name].tables).abs().max()) < 2e-6, name
        assert one.weights.keys() == two[name].weights.keys()
        off = max(float((one.weights[key] - two[name].weights[key]).abs().max()) for key in one.weights)
        assert off < 1e-6, name


# What is refused


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["diffusion.terms=early"], r"early needs a second final layer; set model.early_output"),
        (
            ["diffusion.terms=contrastive", "diffusion.prediction=epsilon"],
            r"set diffusion.prediction=velocity",
        ),
        (["diffusion.terms=alignment"], r"alignment needs teacher"),
        (["diffusion.terms=aligned"], r"unknown loss term 'aligned'.*did you mean 'alignment'"),
        (["diffusion.terms.alignment.teacher=dino"], r"unknown teacher 'dino'.*did you mean 'dinov2'"),
        (
            ["diffusion.terms.alignment.teacher=efficientnet-lite0"],
            r"alignment.after is 8, but the model has 2 blocks; use 1",
        ),
        ([f"diffusion.terms=[{ALIGNED}]", "diffusion.terms.0.projector=linear"], r"projector is 'linear'"),
        ([f"diffusion.terms={MODULE}:Told", "diffusion.terms.0.wight=1"], r"diffusion.terms.0.wight"),
        ([f"diffusion.terms={__name__}:Hidden"], r"is not a loss term; derive it from"),
        ([f"diffusion.terms={__name__}:Reads", "diffusion.terms.0.block=2"], r"reads block 2.*0 to 1"),
    ],
)
def test_terms_that_make_no_sense_are_refused(overrides: list[str], said: str):
    with pytest.raises(UsageError, match=said):
        tiny(*FLOW, *overrides)


@dataclass(frozen=True)
class Wrong(Term):
    def __call__(self, seen: Seen) -> Tensor:
        return seen.out


@dataclass(frozen=True)
class MSE(Reads, name="mse"):
    """Named as a term of the objectives."""


@dataclass(frozen=True)
class NoNetwork(Objective):
    def __call__(self, denoiser, x0, y, t, eps, *, context=None):
        return {"total": x0.flatten(1).mean(1)}


def test_terms_that_cannot_be_computed_are_refused():
    config = tiny(*FLOW)
    net = lively(config)
    for objective, term, said in (
        (Simple(), Wrong(), r"Wrong returned the shape \(6, 1, 8, 8\); .*\(6,\)"),
        (Simple(), MSE(), r"simple and diffusion.terms both log mse; give your term another name"),
        (
            NoNetwork(),
            Reads(),
            r"NoNetwork does not evaluate the network on its batch first, so the terms Reads",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            total(objective, [term], net, config)


def test_an_early_head_that_nothing_trains_is_refused():
    config = tiny(*FLOW, "model.early_output=1")
    with pytest.raises(UsageError, match=r"which nothing trains; .*diffusion.terms=early"):
        TrainState.create(config, digits(), ALONE)


def test_configs_without_terms_are_those_of_before():
    config = tiny()
    assert "terms" not in config.to_json()["diffusion"]
    with_terms = tiny(*FLOW, TERMS, "model.early_output=1")
    assert RunConfig.from_json(with_terms.to_json(), allowed=_mine()) == with_terms
    assert math.isclose(with_terms.diffusion.terms[1].weight, 0.05)


def _mine() -> Any:
    from scaledit.part import Allowed

    return Allowed.only([MODULE], "this test")
