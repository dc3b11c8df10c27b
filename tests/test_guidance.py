"""Guidance parts against their papers' equations, and what each costs."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from scaledit import DiT, DiTConfig, assemble, load
from scaledit.cli import main
from scaledit.conditions.labels import Labels
from scaledit.config import check_guidance, with_values
from scaledit.config.short import scaled, short
from scaledit.diffusion import (
    Autoguidance,
    Batch,
    CFGZeroStar,
    ClassifierFree,
    Epsilon,
    Euler,
    Guidance,
    Heun,
    Internal,
    Interval,
    Job,
    LearnedRange,
    LinearBeta,
    LinearFlow,
    NetDenoiser,
    Noise,
    Parameterization,
    Prediction,
    Rescale,
    Sampler,
    Schedule,
    Scheduled,
    Velocity,
    diffuse,
    guided,
    sample,
    sample_many,
)
from scaledit.diffusion.guidance import active, guide, spent
from scaledit.errors import UsageError
from scaledit.part import build
from scaledit.report.run import _guidances
from scaledit.scaling import printed_table
from scaledit.scaling.plan import evaluations
from scaledit.scaling.table import cell
from scaledit.training.dit import train
from tiny import tiny

SHAPE = (3, 4, 4)


class Counting:
    """A network that counts the rows it is evaluated on."""

    def __init__(self, net: DiT):
        self.net, self.rows = net, 0
        self.config, self.null_label = net.config, net.null_label

    def condition(self, *args):
        return self.net.condition(*args)

    def __call__(self, x: Tensor, t: Tensor, y, **options):
        self.rows += len(x)
        return self.net(x, t, y, **options)


def denoiser_of(
    schedule: Schedule, parameterization: Parameterization, seed: int = 0, early_output: int = 0
) -> tuple[Counting, NetDenoiser]:
    torch.manual_seed(seed)
    learned = isinstance(parameterization, LearnedRange)
    sizes = {"hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    net = DiT(DiTConfig(4, 2, 3, learn_sigma=learned, early_output=early_output, **sizes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    counting = Counting(net.eval())
    return counting, NetDenoiser(counting, schedule, parameterization)


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b.to(a.dtype), rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def same(a: Prediction, b: Prediction) -> bool:
    return near(a.x0, b.x0) and near(a.eps, b.eps)


FLOW = (LinearFlow(), Velocity())
CHAIN = (LinearBeta(), LearnedRange(Epsilon()))
both = pytest.mark.parametrize(("schedule", "parameterization"), [FLOW, CHAIN], ids=["flow", "chain"])


# ---- interval --------------------------------------------------------------------------------------------


@both
@torch.no_grad()
def test_an_interval_guides_its_times_and_evaluates_nothing_more_elsewhere(schedule, parameterization):
    """Rows at different times, one scale per row, conditions of both kinds; each row is what it is alone."""
    net, inside = denoiser_of(schedule, parameterization)
    fractions = torch.tensor([0.1, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    t = schedule.clean + schedule.horizon * fractions
    assert torch.allclose(schedule.fraction(t), fractions, rtol=0, atol=1e-15)
    x, y = Noise(0, range(5), SHAPE).initial(), torch.tensor([0, 1, 2, 0, 1])
    scales = torch.tensor([2.0, 3.0, 1.0, 4.0, 5.0], dtype=torch.float64)
    part = guided(inside, [ClassifierFree(scale=scales), Interval(low=0.2, high=0.8)])  # type: ignore[arg-type]
    net.rows = 0
    made = part(x, t, y)
    assert net.rows == 5 + 2  # 0.5 and 0.8 are guided: low < t <= high
    plain, full = inside(x, t, y), ClassifierFree(inside, scales)(x, t, y)  # type: ignore[arg-type]
    guided_rows = torch.tensor([False, False, True, True, False])
    mask = guided_rows.reshape(-1, 1, 1, 1)
    assert near(made.x0, torch.where(mask, full.x0, plain.x0))
    assert near(made.eps, torch.where(mask, full.eps, plain.eps))
    if made.log_variance is not None:
        assert plain.log_variance is not None
        assert near(made.log_variance(t, t - 1), plain.log_variance(t, t - 1))
    labels = part(x, t, Labels(y, 3))
    assert near(labels.x0, made.x0)
    assert same(part(x, t, None), inside(x, t, None))
    assert same(guide(part, x, t, y).plain(), plain)


@both
def test_an_interval_saves_what_it_says(schedule, parameterization):
    """Jobs with different intervals and steps in one batch are as alone, and a network evaluates exactly the
    rows that `spent` counts."""
    net, denoiser = denoiser_of(schedule, parameterization)
    bounds = ((0.0, 0.9), (0.3, 0.6), (0.0, 1.0))
    jobs = [
        Job(Heun(steps), Noise(steps, [0, 1], SHAPE), torch.tensor([1, 2]),
            (ClassifierFree(scale=3.0), Interval(low=low, high=high)))
        for steps, (low, high) in zip((4, 7, 5), bounds, strict=True)
    ]  # fmt: skip
    alone, rows = [], []
    for job in jobs:
        net.rows = 0
        alone.append(sample(guided(denoiser, job.guidance), job.sampler, job.noise, job.y))
        rows.append(net.rows)
    net.rows = 0
    together = sample_many(denoiser, jobs)
    # Heun's last step is evaluated once more in rows of a batch in which others are not at their last step.
    assert sum(rows) <= net.rows <= sum(rows) + 2 * 2 * len(jobs)
    for a, b in zip(alone, together, strict=True):
        assert near(b, a)
    full = sample(ClassifierFree(denoiser, 3.0), jobs[2].sampler, jobs[2].noise, jobs[2].y)
    assert torch.equal(alone[2], full)  # an interval of all times changes no bit


def test_an_interval_needs_guidance_to_limit():
    _, denoiser = denoiser_of(*FLOW)
    assert guided(denoiser, [Interval()]) is denoiser
    assert guided(denoiser, [ClassifierFree(scale=1.0), Interval()]) is denoiser
    assert active([Interval(low=0.1), ClassifierFree(scale=2.0), Interval(low=0.0, high=1.0)]) == (
        ClassifierFree(scale=2.0),
    )
    with pytest.raises(UsageError, match=r"low must be below high, got 0\.9 and 0\.5"):
        Interval(low=0.9, high=0.5)


# ---- a scale over time -----------------------------------------------------------------------------------


@both
@torch.no_grad()
def test_a_scheduled_scale_is_a_scale_of_each_row(schedule, parameterization):
    """Around classifier-free guidance it is the scale 1 + f (scale - 1) of the row's time."""
    net, inside = denoiser_of(schedule, parameterization)
    u = torch.tensor([0.0625, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    if schedule.discrete:
        u = torch.tensor([0.063, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    t = schedule.clean + schedule.horizon * u
    x, y = Noise(0, range(5), SHAPE).initial(), torch.tensor([0, 1, 2, 0, 1])
    factors = {
        Scheduled(shape="linear"): 1 - u,
        Scheduled(shape="linear", toward="noise", power=2.0): u**2,
        Scheduled(shape="cosine", power=3.0): (1 - torch.cos(math.pi * (1 - u) ** 3)) / 2,
        Scheduled(shape="linear", floor=0.5): (1 - u).clamp(min=0.5),
    }
    for part, f in factors.items():
        net.rows = 0
        made = guided(inside, [ClassifierFree(scale=3.0), part])(x, t, y)
        assert net.rows == 5 + int((f != 0).sum())
        assert same(made, ClassifierFree(inside, 1 + f * 2)(x, t, y))
    assert active([ClassifierFree(scale=3.0), Scheduled(shape="constant")]) == (ClassifierFree(scale=3.0),)


# ---- rescaled guidance -----------------------------------------------------------------------------------


@both
@torch.no_grad()
def test_rescaled_guidance_has_the_deviation_of_the_conditional_prediction(schedule, parameterization):
    """Equations 15 and 16, in between for phi in between, and x_t = alpha x0 + sigma eps throughout."""
    net, inside = denoiser_of(schedule, parameterization)
    t, y = schedule.time_at(torch.tensor([0.2, 0.6, 0.95])), torch.tensor([0, 1, 2])
    x = Noise(0, range(3), SHAPE).initial()
    free = ClassifierFree(inside, 4.0)(x, t, y)
    deviations = [prediction.x0.flatten(1).std(1) for prediction in (inside(x, t, y), free)]
    phi = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    for part in (Rescale(phi=0.25), Rescale(phi=phi)):  # pyright: ignore[reportArgumentType]
        net.rows = 0
        made = guided(inside, [ClassifierFree(scale=4.0), part])(x, t, y)
        assert net.rows == 6  # no evaluation more
        share = torch.as_tensor(part.phi)
        assert near(made.x0.flatten(1).std(1), share * deviations[0] + (1 - share) * deviations[1])
        assert near(diffuse(schedule, made.x0, made.eps, t), x)
    some = guided(inside, [ClassifierFree(scale=4.0), Rescale(phi=1.0, channels=2)])(x, t, y)
    assert torch.equal(some.x0[:, 2:], free.x0[:, 2:])
    assert torch.equal(some.eps[:, 2:], free.eps[:, 2:])
    first = (some.x0[:, :2].flatten(1).std(1), inside(x, t, y).x0[:, :2].flatten(1).std(1))
    assert near(*first)
    limited = guided(inside, [ClassifierFree(scale=4.0), Interval(high=0.1), Rescale(phi=1.0)])(x, t, y)
    assert torch.equal(limited.x0, inside(x, t, y).x0)  # nothing to rescale


# ---- CFG-Zero* -------------------------------------------------------------------------------------------


class Velocities(NamedTuple):
    """A denoiser on the linear flow with given velocities, (N, C, H, W), with and without a class."""

    conditional: Tensor
    null: Tensor
    schedule: Schedule = LinearFlow()

    def __call__(self, x_t: Tensor, t: Tensor, y) -> Prediction:
        v, t = self.null if y is None else self.conditional, t.reshape(-1, 1, 1, 1).to(x_t.dtype)
        return Prediction(x_t - t * v, x_t + (1 - t) * v)


@torch.no_grad()
def test_cfg_zero_star_projects_the_null_velocity():
    """v = s v_null + scale (v_y - s v_null), s = <v_y, v_null> / |v_null|^2 of each image. Hence v - v_y is
    orthogonal to v_null, and v = v_y at every scale where v_null is a multiple of v_y."""
    torch.manual_seed(0)
    x, conditional, null = torch.randn(3, 4, *SHAPE, dtype=torch.float64).unbind()
    t, y, scale = torch.tensor([0.1, 0.4, 0.7, 0.9]), torch.arange(4), 3.0
    made = CFGZeroStar(Velocities(conditional, null), scale)(x, t, y)
    v = made.eps - made.x0
    s = (conditional * null).flatten(1).sum(1) / null.square().flatten(1).sum(1)
    projected = s.reshape(-1, 1, 1, 1) * null
    assert torch.allclose(v, projected + scale * (conditional - projected))
    assert torch.allclose(((v - conditional) * null).flatten(1).sum(1), torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(diffuse(LinearFlow(), made.x0, made.eps, t), x)
    multiple = CFGZeroStar(Velocities(conditional, -0.3 * conditional), 7.0)(x, t, y)
    assert torch.allclose(multiple.eps - multiple.x0, conditional)
    rows = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    several = CFGZeroStar(Velocities(conditional, null), rows)(x, t, y)  # pyright: ignore[reportArgumentType]
    assert torch.allclose((several.eps - several.x0)[0], conditional[0])
    assert torch.allclose((several.eps - several.x0)[2], v[2])


@torch.no_grad()
def test_cfg_zero_star_stands_still_at_first_and_evaluates_nothing_there():
    net, inside = denoiser_of(*FLOW)
    noise, y = Noise(0, range(2), SHAPE), torch.tensor([1, 2])
    part, states = CFGZeroStar(scale=2.0, zero=0.1), []
    sampler = Euler(20)
    x = sample(guided(inside, [part]), sampler, noise, y, on_step=lambda i, x: states.append(x))
    assert net.rows == 2 * 18 * 2 == 2 * spent([part], LinearFlow(), sampler.evaluated(LinearFlow())).sum()
    assert torch.allclose(states[1], noise.initial(), atol=1e-6)  # 10 % of the steps
    assert not torch.allclose(states[2], states[1], atol=1e-3)
    assert torch.isfinite(x).all()
    assert active([CFGZeroStar(zero=0.0)]) == ()
    for schedule, parameterization in (CHAIN, (LinearFlow(), LearnedRange(Velocity()))):
        with pytest.raises(UsageError, match=r"defined for velocities.*use classifier_free"):
            CFGZeroStar(denoiser_of(schedule, parameterization)[1], 2.0)


# ---- other models and heads ------------------------------------------------------------------------------


@both
@torch.no_grad()
def test_autoguidance_moves_away_from_a_weaker_model(schedule, parameterization):
    (net, inside), (weak_net, weak) = (denoiser_of(schedule, parameterization, seed) for seed in (0, 1))
    t, y = schedule.time_at(torch.tensor([0.2, 0.6])), torch.tensor([0, 1])
    x = Noise(0, range(2), SHAPE).initial()
    full, weaker, null = inside(x, t, y), weak(x, t, y), weak(x, t, None)
    part = Autoguidance(scale=2.5, weaker=weak)
    made = guided(inside, [part])(x, t, y)
    assert near(made.x0, weaker.x0 + 2.5 * (full.x0 - weaker.x0))
    assert near(made.eps, weaker.eps + 2.5 * (full.eps - weaker.eps))
    by_null = guided(inside, [dataclasses.replace(part, null=True, channels=1)])(x, t, y)
    assert near(by_null.x0[:, :1], (null.x0 + 2.5 * (full.x0 - null.x0))[:, :1])
    assert torch.equal(by_null.x0[:, 1:], full.x0[:, 1:])
    net.rows = weak_net.rows = 0
    both_kinds = guided(inside, [ClassifierFree(scale=2.0), part])(x, t, y)
    assert (net.rows, weak_net.rows) == (4, 2)
    free = ClassifierFree(inside, 2.0)(x, t, y)
    assert near(both_kinds.x0, weaker.x0 + 2.5 * (free.x0 - weaker.x0))
    assert active([Autoguidance(scale=1.0)]) == ()
    with pytest.raises(UsageError, match="weaker model of autoguidance is not open"):
        guided(inside, [Autoguidance(scale=2.0)])(x, t, y)
    jobs = [Job(Euler(2), Noise(0, [0], SHAPE), y[:1], (Autoguidance(scale=2.0, weaker=one),))
            for one in (weak, inside)]  # fmt: skip
    assert not torch.equal(*sample_many(inside, jobs))  # different models are not mixed


@both
@torch.no_grad()
def test_internal_guidance_is_one_pass(schedule, parameterization):
    """early + scale (full - early), the variance of the full network; the early head is the depth-1 network
    with its own final layer."""
    net, inside = denoiser_of(schedule, parameterization, early_output=1)
    t, y = schedule.time_at(torch.tensor([0.2, 0.6])), torch.tensor([0, 1])
    x = Noise(0, range(2), SHAPE).initial()
    full = inside(x, t, y)
    early = inside.decode(inside.output(x, t, y, early=True).early, x, t)
    assert not near(early.x0, full.x0)
    net.rows = 0
    part = guided(inside, [Internal(scale=2.5)])
    made = part(x, t, y)
    assert net.rows == 2
    assert near(made.x0, early.x0 + 2.5 * (full.x0 - early.x0))
    assert near(made.eps, early.eps + 2.5 * (full.eps - early.eps))
    assert near(diffuse(schedule, made.x0, made.eps, t), x)
    if full.log_variance is not None:
        assert made.log_variance is not None
        assert near(made.log_variance(t, t - 1), full.log_variance(t, t - 1))
    outer = guided(inside, [Internal(scale=2.5), ClassifierFree(scale=3.0)])(x, t, y)
    null = part(x, t, None)
    assert near(outer.x0, null.x0 + 3 * (made.x0 - null.x0))
    rows = torch.tensor([2.5, 1.0], dtype=torch.float64)
    several = guided(inside, [Internal(scale=rows)])(x, t, y)  # pyright: ignore[reportArgumentType]
    assert near(several.x0[:1], made.x0[:1])
    assert torch.equal(several.x0[1:], full.x0[1:])
    with pytest.raises(UsageError, match=r"no early head; train one with model\.early_output"):
        Internal(denoiser_of(schedule, parameterization)[1], 2.0)
    with pytest.raises(UsageError, match="must be the first part"):
        guided(inside, [ClassifierFree(scale=2.0), Internal(scale=2.0)])


# ---- all of them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own(Guidance, name="own"):
    """A guidance of one's own, which does not return the unguided prediction."""

    def __call__(self, x_t: Tensor, t: Tensor, y) -> Prediction:
        return ClassifierFree(self.denoiser, 2.0)(x_t, t, y)


LISTS = (
    (),
    (ClassifierFree(scale=2.0),),
    (ClassifierFree(scale=2.0), Interval(low=0.2, high=0.7)),
    (ClassifierFree(scale=2.0), Scheduled(shape="cosine"), Rescale()),
    (Internal(scale=1.5), ClassifierFree(scale=2.0), Interval(low=0.3), Rescale(), Scheduled()),
    (Internal(scale=1.5), Interval(high=0.5)),
    (CFGZeroStar(scale=2.0, zero=0.2), Interval(low=0.1)),
    (Own(),),
    (Own(), Interval(low=0.5)),
    (Own(), Rescale()),
)


@pytest.mark.parametrize("sampler", [Euler(7), Heun(5)], ids=["euler", "heun"])
@pytest.mark.parametrize("parts", LISTS, ids=lambda parts: "-".join(part.NAME for part in parts) or "none")
def test_guidance_costs_what_it_states(parts: tuple[Guidance, ...], sampler: Sampler):
    """The plan's forward passes are those of a network that counts its rows."""
    net, inside = denoiser_of(*FLOW, early_output=1)
    x = sample(guided(inside, parts), sampler, Noise(0, [0], SHAPE), torch.tensor([1]))
    assert torch.isfinite(x).all()
    assert evaluations(sampler, parts, LinearFlow()) == net.rows


@both
def test_jobs_with_different_guidance_share_a_batch(schedule, parameterization):
    """All BY_ROW fields at once, beside what each job gives alone."""
    _, inside = denoiser_of(schedule, parameterization, early_output=1)
    jobs = [
        Job(Euler(steps), Noise(steps, [0, 1], SHAPE), torch.tensor([1, 2]), (
            Internal(scale=k), ClassifierFree(scale=1 + k), Scheduled(power=k, floor=k / 10),
            Interval(low=0.1 * k, high=0.5 + 0.1 * k), Rescale(phi=k / 5)))
        for steps, k in ((3, 1.0), (6, 2.0), (4, 3.0))
    ]  # fmt: skip
    batch = Batch(inside)
    for job in jobs:
        batch.add(job)  # refused if they could not share it
    for job, together in zip(jobs, sample_many(inside, jobs), strict=True):
        alone = sample(guided(inside, job.guidance), job.sampler, job.noise, job.y)
        assert near(together, alone)


# ---- from the command line -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    for _ in train(tiny("train.steps=4", "checkpoint.every=2"), folder):
        pass
    return folder


def sampled(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    out = run.parent / "x.png"
    command = ["sample", str(run), "--classes", "1,4", "--per-class", "1", "--out", str(out), "--json"]
    assert main([*command, *words]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["sample", str(run), "--out", str(run.parent / "x.png"), *words]) == 2
    return capsys.readouterr().err


def test_an_interval_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]):
    made = sampled(run, capsys, "--cfg-scale", "2", "--cfg-interval", "0.1-0.8")
    parts = ClassifierFree(scale=2.0, channels=3), Interval(low=0.1, high=0.8)
    assert made["guidance"] == [part.to_json() for part in parts]
    assert load(run).settings(cfg_scale=2, cfg_interval=(0.1, 0.8)).guidance == parts
    assert sampled(run, capsys, "--cfg-scale", "1", "--cfg-interval", "0-0.8")["guidance"] == []
    assert scaled((Interval(), Rescale()), 2.0) == (ClassifierFree(scale=2.0), Interval(), Rescale())
    assert scaled((Internal(), Interval()), 2.0) == (Internal(), ClassifierFree(scale=2.0), Interval())
    limited = with_values(tiny(), {"sample.guidance": [Internal(), Interval()]})
    values = short(limited, cfg_scale=2, cfg_interval=(0.1, 0.5))
    assert with_values(limited, values).sample.guidance == (
        Internal(),
        ClassifierFree(scale=2.0),
        Interval(low=0.1, high=0.5),
    )
    zero_star = with_values(tiny(), {"sample.guidance": [CFGZeroStar(scale=4.0)]})
    assert short(zero_star, cfg_scale=2) == {"sample.guidance.cfg_zero_star.scale": 2}
    both_kinds = 'sample.guidance=["cfg_zero_star",{name="classifier_free",scale=2}]'
    assert "which both guide by the class; leave one" in refused(run, capsys, both_kinds)
    assert "there is none; put another part before it" in refused(run, capsys, 'sample.guidance=["interval"]')
    assert "two fractions" in refused(run, capsys, "--cfg-scale", "2", "--cfg-interval", "0.5")
    assert "low must be below high" in refused(run, capsys, "--cfg-scale", "2", "--cfg-interval", "0.5-0.4")


def test_autoguidance_from_a_run(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Opened by path, recorded by hash, refused where it does not fit, also before training."""
    part = "sample.guidance.autoguidance"
    made = sampled(run, capsys, f"{part}.model={run}@2", f"{part}.scale=3")
    weaker = load(run / "checkpoints" / "step-00000002")
    (recorded,) = (entry for entry in made["guidance"] if entry["name"] == "autoguidance")
    assert recorded["sha256"] == weaker.origin["sha256"]
    assert recorded["model"] == f"{run}@2"
    again = sampled(run, capsys, f"sample.guidance={json.dumps([recorded])}".replace(":", "="))
    assert again["guidance"] == [recorded]
    pipeline, other = load(run), weaker
    inside, weak = (assemble.denoiser(p.config.diffusion, p.net) for p in (pipeline, other))
    direct = pipeline([1, 4], guidance=[Autoguidance(model="it", scale=3.0, weaker=weak)])
    assert (pipeline([1, 4], guidance=[Autoguidance(model=f"{run}@2", scale=3.0)]) == direct).all()
    assert (direct != pipeline([1, 4], guidance=[])).any()
    assert inside.schedule == weak.schedule
    assert "is empty; name the weaker model" in refused(run, capsys, 'sample.guidance=["autoguidance"]')
    assert "step-00000003 does not exist" in refused(run, capsys, f"{part}.model={run}@3")
    assert "not 12ab; restore" in refused(run, capsys, f"{part}.model={run}@2", f"{part}.sha256=12ab")
    config = tiny("train.steps=1", "diffusion.prediction=x0", f"{part}.model={run}")
    with pytest.raises(UsageError, match=r"cannot guide this model: its diffusion\.prediction is"):
        next(train(config, tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_a_weaker_model_imports_nothing_that_is_not_allowed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A model that names a class outside scaledit is refused as guidance, as it is as a model."""
    examples = Path(__file__).parent.parent / "examples"
    weak = tmp_path / "weak"
    with monkeypatch.context() as here:
        here.chdir(examples)
        for _ in train(tiny("train.steps=1", "sample.sampler=my_samplers:Midpoint"), weak):
            pass
        part = Autoguidance(model=str(weak), scale=2.0)
        with pytest.raises(UsageError, match="code from outside scaledit; if you trust it, allow it with"):
            load(run)([1], guidance=[part])
        allowed = load(run, allow_import=["my_samplers"])
        assert allowed([1], guidance=[part]).shape == (1, 8, 8, 3)


def test_reports_show_and_name_guidance_of_other_kinds(run: Path):
    pipeline = load(run)
    parts = (Autoguidance(model="w"), Interval(high=0.5))
    shown = _guidances(pipeline, parts)
    assert list(shown.values()) == [(), parts]
    assert list(shown)[1] == "autoguidance, model w and interval, high 0.5"
    limited = _guidances(pipeline, (ClassifierFree(scale=3.0), Interval(high=0.5)))
    assert active(limited["no guidance"]) == ()
    assert limited["guidance 4.0"] == (ClassifierFree(scale=4.0), Interval(high=0.5))
    printed = printed_table.table().rows[0]
    row = dataclasses.replace(printed, guidance=cell([CFGZeroStar(scale=2.0).to_json()]))
    assert row.guidance_scale == 2
    assert row.other_guidance == "cfg_zero_star (scale 2.0, zero 0.04, channels all)"
    assert printed.other_guidance == ""


def test_guidance_that_does_not_fit_the_model_is_refused(run: Path, capsys: pytest.CaptureFixture[str]):
    assert "has no early head; train one" in refused(run, capsys, 'sample.guidance=["internal"]')
    chain = tiny("diffusion.schedule=linear", "diffusion.prediction=epsilon", "diffusion.objective=simple")
    zero = CFGZeroStar(scale=2.0)
    with pytest.raises(UsageError, match="velocities of flows, and this model has a beta schedule"):
        check_guidance(chain.model, chain.diffusion.schedule, [zero])
    check_guidance(chain.model, LinearFlow(), [zero])


def test_a_users_guidance_may_inherit_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "inherited_guidance.py").write_text(
        "from dataclasses import dataclass\nfrom scaledit.diffusion import ClassifierFree, Guidance\n"
        "@dataclass(frozen=True)\nclass Own(ClassifierFree):\n    scale: float = 2.0\n"
        "@dataclass(frozen=True)\nclass Nothing(Guidance): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build(Guidance, "inherited_guidance:Own", "sample.guidance").scale == 2
    with pytest.raises(UsageError, match="lacks the method __call__ or guide"):
        build(Guidance, "inherited_guidance:Nothing", "sample.guidance")
