"""Objectives of a user's own: named terms and draws, trainable modules, the average network."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from among import ALONE, Job, Trained, across, alone
from own_objective import MODULE, OWN, OWN_HIDDEN, SOURCE, chosen, has_hidden, written
from saved import identical, weights
from scaledit import checkpoint, load
from scaledit.data.sets import digits
from scaledit.diffusion import Epsilon, Hybrid, LearnedRange, LinearBeta, NetDenoiser, Simple
from scaledit.diffusion.noise import named_draws, training_draws
from scaledit.diffusion.objectives import Objective, named_terms
from scaledit.errors import RunError, UsageError
from scaledit.models.dit import DiT
from scaledit.report import run as report
from scaledit.training import log
from scaledit.training.dit import train
from scaledit.training.events import Event, Saved, Stepped, is_term
from scaledit.training.log import JsonLog
from scaledit.training.state import TrainState
from scaledit.training.trackers import trackers
from scaledit.training.trackers.base import scalars
from test_trackers import curves_of_log, curves_of_tensorboard, same
from tiny import tiny
from tracked import shown_training

FSDP = "engine.parallel=fsdp"
TERMS = {"mse", "head", "agree"}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, monkeypatch)


def own_weights(state: TrainState) -> dict[str, torch.Tensor]:
    assert state.replicated is not None
    return {name: value.clone() for name, value in state.replicated.state_dict().items()}


def test_an_objective_of_ones_own_trains_its_modules(monkeypatch: pytest.MonkeyPatch):
    """In the optimizer, in the norm, under the clip; the same start for the same seed, and the network starts
    as in a run without them."""
    assert len(SOURCE.strip().splitlines()) <= 40
    overrides = ("optimizer.learning_rate=1e-2", "ema.decay=0.9")
    plain = TrainState.create(tiny(*overrides), digits(), ALONE)
    config = tiny(*overrides, chosen(OWN))
    state = TrainState.create(config, digits(), ALONE)
    again = TrainState.create(config, digits(), ALONE)
    before = own_weights(state)
    assert before.keys() == {"head.weight", "head.bias"}
    assert identical(before, own_weights(again))
    other = TrainState.create(tiny("train.seed=5", chosen(OWN)), digits(), ALONE)
    assert not identical(before, own_weights(other))
    assert identical(dict(state.net.state_dict()), dict(plain.net.state_dict()))
    results = [state.train_step() for _ in range(60)]
    assert all(result.terms.keys() == TERMS for result in results)
    assert not any(torch.equal(value, before[name]) for name, value in own_weights(state).items())
    first, last = (sum(one.terms["head"] for one in part) for part in (results[:10], results[-10:]))
    assert last < 0.8 * first
    gradients = [weight.grad for weight in (*state.weights, *state.replicated_weights)]
    assert len(state.replicated_weights) == 2
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert results[-1].grad_norm == pytest.approx(float(norm), rel=1e-5)
    for result in results:
        total = result.terms["mse"] + 0.5 * (result.terms["head"] + result.terms["agree"])
        assert result.loss == pytest.approx(total, rel=1e-6)
    clipped = TrainState.create(tiny("optimizer.clip=1e-3", chosen(OWN)), digits(), ALONE)
    clipped.train_step()
    weights = (*clipped.weights, *clipped.replicated_weights)
    norm = torch.stack([weight.grad.norm() for weight in weights]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_the_average_is_the_moving_average(monkeypatch: pytest.MonkeyPatch):
    """It is that of the step before, and gets no gradient."""
    config = tiny("ema.decay=0.5", "optimizer.learning_rate=1e-2", chosen(OWN))
    state = TrainState.create(config, digits(), ALONE)
    for _ in range(3):
        state.train_step()
    x = torch.randn(2, *state.config.model.shape, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([300.0, 500.0], dtype=torch.float64), torch.tensor([1, 2])
    with torch.no_grad():
        average, ema, now = (
            one(x, t, y).x0
            for one in (
                state.ema_denoiser,
                replace(state.ema_denoiser, net=state.ema),
                replace(state.ema_denoiser, net=state.net),
            )
        )
    assert torch.equal(average, ema)
    assert not torch.allclose(average, now)
    assert all(parameter.grad is None for parameter in state.ema.parameters())


def off(a: Trained, b: Trained, prefix: str = "") -> float:
    found = [
        float((value - b.weights[name]).abs().max())
        for name, value in a.weights.items()
        if name.startswith(prefix)
    ]
    assert found and a.weights.keys() == b.weights.keys()
    return max(found)


@pytest.mark.slow
def test_two_ranks_train_an_objective_as_one_process(tmp_path: Path):
    """Copies, shards, uneven shards with micro-batches; at the paper's rate, as in test_ranks."""
    paper = (
        "optimizer.learning_rate=1e-4",
        "optimizer.warmup_steps=0",
        "ema.decay=0.9",
        "optimizer.clip=0.5",
    )
    jobs = {
        "ddp": Job(paper, objective=OWN),
        "fsdp": Job((FSDP, *paper), objective=OWN),
        "uneven": Job((*paper, "train.batch_size=15", "train.accumulate=5", FSDP), steps=10, objective=OWN),
        "copies in parts": Job((*paper, "train.accumulate=4"), steps=10, objective=OWN),
    }
    common = ("checkpoint.every=10", *paper)
    folder = {
        f"{kind} to {steps}": Job(
            (*common, f"engine.parallel={kind}", f"train.steps={steps}"),
            out=str(tmp_path / kind),
            objective=OWN,
        )
        for steps in (10, 20)
        for kind in ("ddp", "fsdp")
    }
    two, one = across(2, jobs | folder, tmp_path), {name: alone(job) for name, job in jobs.items()}
    for name in jobs:
        a, b = one[name], two[name]
        assert max(abs(x - y) for x, y in zip(a.losses, b.losses, strict=True)) < 1e-6, name
        assert max(abs(x - y) for x, y in zip(a.norms, b.norms, strict=True)) < 2e-6, name
        assert float((a.tables - b.tables).abs().max()) < 2e-6, name  # every term of every sample
        assert off(a, b, "objective.") < 2e-7, name
    assert off(one["fsdp"], two["fsdp"]) < 2e-7
    # Checkpoints of either kind, resumed on two ranks and then on one.
    assert not [trained.error for trained in two.values() if trained.error]
    alone(Job((*common, "train.steps=30"), out=str(tmp_path / "whole"), objective=OWN))
    for kind in ("ddp", "fsdp"):
        last = alone(Job((*common, "train.steps=30"), out=str(tmp_path / kind), objective=OWN))
        assert (last.events[0].step, last.error) == (20, "")
        a, b = (weights(tmp_path / name, 30) for name in (kind, "whole"))
        assert a.keys() == b.keys()
        assert any(key.startswith("objective/head") for key in a)
        assert {
            "optimizer/exp_avg/objective.head.bias",
            "optimizer/exp_avg_sq/objective.head.bias",
        } < a.keys()
        assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-6, kind


def run(out: Path, steps: int = 24, saves: int = 0) -> list[Event]:
    """To its end, or abandoned after so many checkpoints, as a kill would."""
    saving = ("checkpoint.every=5", "checkpoint.background=false")
    config = tiny(f"train.steps={steps}", *saving, "ema.decay=0.9", chosen(OWN))
    events, listen = [], JsonLog(out)
    for event in train(config, out, resume="auto", device="cpu"):
        listen(event)
        events.append(event)
        saves -= isinstance(event, Saved)
        if saves == 0 and isinstance(event, Stepped):
            return events
    return events


def test_a_resumed_run_has_the_same_bits_in_the_modules_too(tmp_path: Path):
    whole = run(tmp_path / "whole", saves=-1)
    for saves in (1, 2, -1):
        events = run(tmp_path / "parts", saves=saves)
    assert events[0].step == 15
    kept = weights(tmp_path / "parts")
    assert {"objective/head.weight", "optimizer/exp_avg_sq/objective.head.weight"} < kept.keys()
    assert identical(weights(tmp_path / "whole"), kept)
    ours, theirs = (
        [
            {"loss": line["loss"], **log.terms(line)}
            for line in log.read(tmp_path / out)
            if line["event"] == "stepped"
        ]
        for out in ("whole", "parts")
    )
    assert ours == theirs
    assert [one["loss"] for one in ours] == [event.loss for event in whole if isinstance(event, Stepped)]
    # What is sampled and exported is the network alone.
    folder = checkpoint.find(tmp_path / "parts" / "checkpoints")[-1]
    assert set(checkpoint.open_checkpoint(folder).files) == {
        f"{part}.safetensors" for part in ("model", "ema", "optimizer", "times", "objective")
    }
    loaded = load(tmp_path / "parts", allow_import=[MODULE])
    assert not [name for name in loaded.net.state_dict() if "head" in name]
    # A checkpoint without the modules is refused, before anything is changed.
    opened = checkpoint.open_checkpoint(folder)
    (folder / "objective.safetensors").unlink()
    state = TrainState.create(tiny(chosen(OWN)), digits(), ALONE)
    before = own_weights(state)
    with pytest.raises(RunError, match=r"objective\.safetensors is missing"):
        state.restore(opened)
    assert identical(before, own_weights(state))


def test_terms_are_named_in_the_log_and_trackers(tmp_path: Path):
    out = tmp_path / "run"
    config = tiny("train.steps=4", "log.tensorboard=true", chosen(OWN))
    last = shown_training(train(config, out, device="cpu"), out, trackers(config, out))
    assert last[Stepped].terms.keys() == TERMS  # pyright: ignore
    lines = [json.loads(line) for line in (out / log.LOG).read_text().splitlines()]
    stepped = [line for line in lines if line["event"] == "stepped"]
    assert all(
        list(line)[:7] == ["event", "step", "loss", "mse", "head", "agree", "grad_norm"] for line in stepped
    )
    assert all(log.terms(line).keys() == TERMS for line in stepped)
    truth = curves_of_log(out)
    assert {f"train/{name}" for name in TERMS} < truth.keys()
    assert same(truth, curves_of_tensorboard(out))
    assert report.loss_terms(log.read(out)).keys() == TERMS


def test_the_keys_of_the_papers_objectives(tmp_path: Path):
    """As in 0.1, but for the vlb of an objective that has none."""
    for name, keys in (("hybrid", ["mse", "vlb"]), ("simple", ["mse"])):
        out = tmp_path / name
        config = tiny("train.steps=1", f"diffusion.objective={name}")
        listen = JsonLog(out)
        for event in train(config, out, device="cpu"):
            listen(event)
        line = next(line for line in log.read(out) if line["event"] == "stepped")
        assert list(line) == [
            *("event", "step", "loss", *keys, "grad_norm", "learning_rate", "seconds", "images_per_second"),
            *("macs_per_second", "mfu", "data_wait", "memory", "ema_distance"),
        ]


OLD = (
    '{"event": "stepped", "step": 1, "loss": 1.5, "mse": 1.25, "vlb": 0.25, "grad_norm": 1.0, '
    '"learning_rate": 0.1, "seconds": 1.0, "images_per_second": 9.0, "macs_per_second": 9.0, '
    '"share_of_roof": 0.5, "data_wait": 0.0, "memory": 100, "ema_distance": 0.1}',
    '{"event": "stepped", "step": 2, "loss": 1.5, "mse": 1.5, "vlb": null, "grad_norm": "nan", "seconds": 2}',
    '{"event": "fitted", "step": 3, "loss": 1.0, "l1": 0.5, "kl": 9.0, "gradient": 0.25, "seconds": 3}',
)
RENAMED = (
    '{"event": "rolledback", "step": 5, "spiked": 9, "passed_over": 4}',
    '{"event": "passedover", "step": 5, "path": "checkpoints/damaged-step-00000009", "why": "cut"}',
)
NO_TERMS = (
    '{"event": "stepped", "step": 4, "loss": 1.0, "seconds": 4, "mse": "high"}',
    '{"event": "stepped", "step": 4, "loss": 1.0, "seconds": 4, "mse": [1.0]}',
    '{"event": "stepped", "step": 4, "loss": 1.0, "seconds": 4, "mse": true}',
    '{"event": "stepped", "step": 4, "loss": 1.0, "seconds": 4, "terms": {"mse": 1.0}}',
    '{"event": "stepped", "step": 4, "loss": 1.0, "seconds": 4, "$x$": 1.0}',
)


def test_lines_of_old_logs_are_read(tmp_path: Path):
    (tmp_path / log.LOG).write_text("\n".join([*OLD, *NO_TERMS, *RENAMED, ""]))
    found = log.lines(tmp_path)
    expected = [json.loads(line) for line in OLD]
    expected[0]["mfu"] = expected[0].pop("share_of_roof")
    expected += [json.loads(line) for line in RENAMED]
    expected[-2]["skipped_batches"] = expected[-2].pop("passed_over")
    expected[-1]["event"] = "corruptcheckpoint"
    assert found.records == expected
    assert [line.decode().strip() for line in found.corrupt] == list(NO_TERMS)
    assert [log.terms(line) for line in found.records] == [
        {"mse": 1.25, "vlb": 0.25},
        {"mse": 1.5},
        {"l1": 0.5, "kl": 9.0, "gradient": 0.25},
        {},
        {},
    ]
    assert scalars(found.records[0])["train/vlb"] == 0.25
    assert log.terms({"event": "saved", "step": 1, "path": "x"}) == {}
    assert report.loss_curve(found.records) is not None
    assert list(report.loss_terms(found.records)) == ["mse", "vlb"]
    assert report.loss_terms(found.records[1:2]) == {}  # the one term is the loss


def test_what_cannot_be_a_term():
    assert all(is_term(name) for name in ("mse", "vlb", "l1", "L_2"))
    assert not any(
        is_term(name) for name in ("loss", "step", "event", "terms", "a b", "", "µ", "a" * 65, "grad_norm")
    )


# Draws


def test_named_draws_depend_on_seed_position_and_name_alone():
    kinds = {"s": "uniform", "eps_2": "normal", "u": "uniform"}
    shape = (2, 3, 3)
    together = named_draws(7, range(40, 48), shape, kinds)
    assert {name: (tuple(draw.shape), draw.dtype) for name, draw in together.items()} == {
        "s": ((8,), torch.float64),
        "eps_2": ((8, 2, 3, 3), torch.float32),
        "u": ((8,), torch.float64),
    }
    parts = [
        named_draws(7, part, shape, dict(reversed(kinds.items()))) for part in (range(40, 41), range(41, 48))
    ]
    alone = {name: named_draws(7, range(40, 48), shape, {name: kind})[name] for name, kind in kinds.items()}
    for name, draw in together.items():
        assert torch.equal(draw, torch.cat([part[name] for part in parts])), name
        assert torch.equal(draw, alone[name]), name
    others = [*training_draws(7, range(40, 48), shape)[:2], together["s"], together["u"]]
    others += [
        named_draws(8, range(40, 48), shape, kinds)["s"],
        named_draws(7, range(48, 56), shape, kinds)["s"],
    ]
    assert len({float(value) for one in others for value in one}) == 8 * len(others)  # none is another
    many = named_draws(0, range(4000), (1, 1, 1), kinds)
    assert float(many["s"].mean()) == pytest.approx(0.5, abs=0.02)
    assert float(many["eps_2"].std()) == pytest.approx(1, abs=0.05)
    assert abs(float(torch.corrcoef(torch.stack([many["s"], many["u"]]))[0, 1])) < 0.06


def test_the_numbers_of_named_draws_stay_what_they_are():
    """Part of the format: a run that resumes must draw the same."""
    found = named_draws(3, [5], (1, 1, 2), {"s": "uniform", "eps_2": "normal"})
    assert found["s"].tolist() == [PINNED_UNIFORM]
    assert found["eps_2"].flatten().tolist() == PINNED_NORMAL


PINNED_UNIFORM, PINNED_NORMAL = 0.10523095350345046, [0.3317281901836395, 0.08426917344331741]


# What is refused


@dataclass(frozen=True)
class Unusual(Objective):
    """Returns, builds or draws what a test says."""

    what: str = "fine"

    def modules(self, config: object) -> nn.Module | None:
        kinds = {"dropout": nn.Dropout(0.1), "norm": nn.BatchNorm2d(1)}
        found = kinds.get(self.what)
        return None if found is None else nn.Sequential(nn.Conv2d(1, 1, 1), found)

    def __call__(self, denoiser, x0, y, t, eps, *, context=None):
        total = Simple()(denoiser, x0, y, t, eps).total
        return {
            "fine": {"total": total, "extra": total},
            "no total": {"mse": total, "total": total},
            "none": {"total": None},
            "mean": {"total": total.mean()},
            "pixels": {"total": total, "map": x0},
            "tensor": total,
            "taken": {"total": total, "grad_norm": total},
            "changing": {"total": total, f"from_{int(1e6 * t[0])}": total},
        }.get(self.what, {"total": total})


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("no total", UsageError, r'Unusual must return "total".* as its first term'),
        ("none", UsageError, r'Unusual must return "total"'),
        (
            "mean",
            UsageError,
            r"Unusual: the term total has the shape \(\); .*each of the 16 samples, \(16,\)",
        ),
        ("pixels", UsageError, r"Unusual: the term map has the shape \(16, 1, 8, 8\)"),
        ("tensor", UsageError, r"Unusual must return a dict or a named tuple of terms, got Tensor"),
        ("taken", UsageError, r"a term 'grad_norm', which cannot be a key of the log"),
        ("changing", RunError, r"the loss has the terms from_\d+ at step 2, but had from_\d+ before"),
        ("dropout", UsageError, r"Unusual: 1 is a dropout.*draws"),
        ("norm", UsageError, r"Unusual: 1 keeps running statistics.*LayerNorm"),
    ],
)
def test_objectives_that_are_refused(what: str, error: type[Exception], said: str):
    config = tiny(f"diffusion.objective={__name__}:Unusual", f"diffusion.objective.what={what}")
    with pytest.raises(error, match=said):
        state = TrainState.create(config, digits(), ALONE)
        for _ in range(2):
            state.train_step()


def test_declarations_that_are_refused():
    def made(draws: dict[str, str]) -> Objective:
        return dataclass(frozen=True)(type("Drawing", (Unusual,), {"draws": draws}))()

    made({"s": "uniform"})
    with pytest.raises(
        UsageError, match=r"Drawing.draws: s is 'gaussian'; known: normal, uniform|did you mean"
    ):
        made({"s": "gaussian"})
    with pytest.raises(UsageError, match=r"Drawing.draws: 'a b' is not a name"):
        made({"a b": "normal"})
    with pytest.raises(UsageError, match="two names have the same CRC-32"):
        made({"plumless": "normal", "buckeroo": "normal"})

    @dataclass(frozen=True)
    class Plain(Objective):
        def __call__(self, denoiser, x0, y, t, eps):  # pyright: ignore
            return {}

    with pytest.raises(UsageError, match=r"Plain.__call__ accepts no context"):
        Plain()


def test_terms_of_the_built_in_objectives():
    net = DiT(tiny("diffusion.objective=hybrid").model)
    denoiser = NetDenoiser(net, LinearBeta(), LearnedRange(Epsilon()))
    x0, eps = torch.zeros(2, *net.config.shape), torch.ones(2, *net.config.shape)
    t, y = torch.tensor([10.0, 500.0], dtype=torch.float64), torch.tensor([1, 2])
    assert (Simple.learns_variance, Hybrid.learns_variance) == (False, True)
    hybrid = Hybrid()(denoiser, x0, y, t, eps)
    assert list(named_terms(Hybrid(), hybrid, 2)) == ["total", "mse", "vlb"]
    simple = Simple()(denoiser, x0, y, t, eps)
    assert simple.vlb is None
    assert list(named_terms(Simple(), simple, 2)) == ["total", "mse"]


# Hidden states


@pytest.mark.skipif(not has_hidden, reason="this network gives no hidden states")
def test_a_head_on_hidden_states(tmp_path: Path):
    """Alone and on two ranks, as copies and as shards."""
    paper = ("optimizer.learning_rate=1e-4", "optimizer.warmup_steps=0")
    jobs = {
        "ddp": Job(paper, 10, objective=OWN_HIDDEN),
        "fsdp": Job((FSDP, *paper), 10, objective=OWN_HIDDEN),
    }
    two = across(2, jobs, tmp_path)
    for name, job in jobs.items():
        one = alone(job)
        assert off(one, two[name], "objective.") < 2e-7, name
        assert max(abs(x - y) for x, y in zip(one.losses, two[name].losses, strict=True)) < 1e-6, name
