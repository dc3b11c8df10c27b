"""The sampler with error control: its error, its cost, and rows that do not see each other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scaledit import load
from scaledit.cli import main
from scaledit.diffusion import (
    Adaptive,
    Batch,
    ClassifierFree,
    Interval,
    Job,
    LinearBeta,
    LinearFlow,
    Noise,
    NonFiniteError,
    Prediction,
    Schedule,
    TooManyEvaluations,
    guided,
    sample,
    sample_many,
)
from scaledit.diffusion.schedule import broadcast_like
from scaledit.errors import UsageError
from scaledit.evaluation.samples import open_samples

SHAPE = (2, 4, 4)
MEANS = torch.tensor([-1.5, 0.5, 1.0, 0.0], dtype=torch.float64)
STD = torch.tensor([0.1, 0.4, 1.0, 0.2], dtype=torch.float64)


@dataclass
class Gaussian:
    """The exact denoiser of images ~ N(mean, std^2) by class, the last one for no class; it counts its rows.

    x0 = (alpha std^2 x_t + sigma^2 mean) / (alpha^2 std^2 + sigma^2)
    """

    schedule: Schedule
    rows: int = 0

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        self.rows += len(x_t)
        y = torch.full((len(x_t),), 3) if y is None else y
        mean, std = (broadcast_like(value[y], x_t) for value in (MEANS, STD))
        alpha, sigma = (broadcast_like(value, x_t) for value in self.schedule.coefficients(t))
        x0 = (alpha * std**2 * x_t + sigma**2 * mean) / (alpha**2 * std**2 + sigma**2)
        return Prediction(x0, (x_t - alpha * x0) / sigma)


class Double(Noise):
    def initial(self) -> Tensor:
        return super().initial().double()


def exact(schedule: Schedule, noise: Noise, y: Tensor) -> Tensor:
    """(x_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant along the flow."""
    x = noise.initial()
    mean, std = (broadcast_like(value[y], x) for value in (MEANS, STD))
    alpha, sigma = schedule.coefficients(torch.tensor(schedule.noisiest))
    return mean + std * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2).sqrt()


def test_the_error_is_about_the_tolerance():
    """And falls with it; the number of evaluations grows as its inverse root, as a second-order method's."""
    denoiser, noise, y = Gaussian(LinearFlow()), Double(0, range(6), SHAPE), torch.tensor([0, 1, 2, 0, 1, 2])
    errors, spent = [], []
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        counts: list[Tensor] = []
        sampler = Adaptive(rtol=tolerance, atol=tolerance)
        x = sample(denoiser, sampler, noise, y, on_evaluations=counts.append)
        error = (x - exact(LinearFlow(), noise, y)).flatten(1).square().mean(1).sqrt()
        errors.append(float(error.max()) / tolerance)
        spent.append(float(counts[0].double().mean()))
    assert max(errors) < 3
    assert min(errors) > 0.05
    assert 2.5 < spent[-1] / spent[-2] < 3.8  # sqrt(10)


@pytest.mark.parametrize("schedule", [LinearFlow(), LinearBeta()], ids=["flow", "chain"])
def test_rows_are_what_they_are_alone(schedule: Schedule):
    """Bit-identical, with the evaluations that a counting denoiser sees, in one job, in several and joined in
    the middle; rows differ in their evaluations."""
    denoiser, y = Gaussian(schedule), torch.tensor([0, 1, 2, 0])
    sampler, noise = Adaptive(rtol=0.003, atol=0.003), Double(0, range(4), SHAPE)
    counts: list[Tensor] = []
    together = sample(denoiser, sampler, noise, y, on_evaluations=counts.append)
    assert denoiser.rows == int(counts[0].sum())
    assert len(set(counts[0].tolist())) > 1
    for k in range(4):
        denoiser.rows, one = 0, []
        alone = sample(denoiser, sampler, Double(0, [k], SHAPE), y[k : k + 1], on_evaluations=one.append)
        assert one[0].tolist() == [denoiser.rows] == [int(counts[0][k])]
        assert torch.equal(alone[0], together[k])
    batch, images = Batch(denoiser), {}
    batch.add(Job(sampler, Double(0, [0, 1], SHAPE), y[:2]), 0)
    for _ in range(5):
        batch.advance()
    batch.add(Job(sampler, Double(0, [2, 3], SHAPE), y[2:]), 1)
    while batch.running:
        images |= dict(batch.advance())
    assert torch.equal(torch.cat([images[0], images[1]]), together)
    assert torch.equal(torch.cat([batch.evaluations[0], batch.evaluations[1]]), counts[0])


@pytest.mark.parametrize("schedule", [LinearFlow(), LinearBeta()], ids=["flow", "chain"])
def test_guidance_of_each_row_follows_it_out_of_the_batch(schedule: Schedule):
    """Scales and intervals per job, and guidance with a value per row."""
    denoiser, y = Gaussian(schedule), torch.tensor([0, 1, 2])
    sampler = Adaptive(rtol=0.01, atol=0.01)
    scales = torch.tensor([1.5, 3.0, 1.0], dtype=torch.float64)
    parts = [
        (ClassifierFree(scale=scales), Interval(high=0.8)),  # pyright: ignore[reportArgumentType]
        (ClassifierFree(scale=2.0), Interval(high=0.5)),
    ]
    jobs = [Job(sampler, Double(0, range(3), SHAPE), y, part) for part in parts]
    ticks: list[int] = []
    images = [sample_many(denoiser, [job], on_step=lambda _, i, x: ticks.append(i))[0] for job in jobs]
    assert ticks.count(sampler.ticks - 1) >= 2
    assert set(ticks) <= set(range(sampler.ticks))
    for k in range(3):
        alone = guided(denoiser, [ClassifierFree(scale=float(scales[k])), Interval(high=0.8)])
        x = sample(alone, sampler, Double(0, [k], SHAPE), y[k : k + 1])
        assert torch.allclose(x[0], images[0][k], rtol=0, atol=1e-12)
    many = sample_many(denoiser, [jobs[1], jobs[1]])
    assert torch.equal(many[0], images[1])
    assert torch.equal(many[1], images[1])


def test_a_chain_has_whole_times_and_ends_by_itself():
    """Where no step meets the tolerance, every time of the chain is visited: two evaluations each."""
    schedule = LinearBeta(steps=20)
    counts: list[Tensor] = []
    tight = Adaptive(rtol=0.0, atol=1e-9)
    noise, y = Double(0, [0], SHAPE), torch.tensor([2])
    sample(Gaussian(schedule), tight, noise, y, on_evaluations=counts.append)
    assert counts[0].tolist() == [2 * 19]  # from 19 to 0, the image from the last evaluation
    chain, y, errors = LinearBeta(), torch.tensor([0]), []
    for tolerance in (1e-1, 1e-2, 1e-3):
        x = sample(Gaussian(chain), Adaptive(rtol=0.0, atol=tolerance), noise, y)
        errors.append(float((x - exact(chain, noise, y)).abs().max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 5e-3


def test_what_cannot_be_sampled_is_an_error():
    noise, y = Double(0, range(3), SHAPE), torch.tensor([0, 2, 0])
    counts: list[Tensor] = []
    sample(Gaussian(LinearFlow()), Adaptive(), noise, y, on_evaluations=counts.append)
    most = int(counts[0].min())
    assert (counts[0] > most).tolist() == [False, True, False]
    with pytest.raises(TooManyEvaluations, match=rf"row 1 reached only time 0\.\d+ in {most} evaluations"):
        sample(Gaussian(LinearFlow()), Adaptive(max_evaluations=most), noise, y)

    class Broken(Gaussian):
        def __call__(self, x_t, t, y):
            x0, eps, _ = super().__call__(x_t, t, y)
            bad = (t.reshape(-1, 1, 1, 1) < 0.5) & (y == 2).reshape(-1, 1, 1, 1)
            return Prediction(torch.where(bad, torch.nan, x0), eps)

    with pytest.raises(NonFiniteError, match=r"first in evaluation \d+, at time 0\.[5-9]\d*, in row 1"):
        sample(Broken(LinearFlow()), Adaptive(), noise, y)
    with pytest.raises(UsageError, match="steps: adaptive chooses its own steps; set rtol and atol"):
        Adaptive(50)


RUN = Path(__file__).parent / "made_by_0_1" / "run-flow"


def test_a_tolerance_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """--tolerance in place of steps; the evaluations of the images are in the result, in files and their
    parts, and in the protocol."""

    def ran(*words: str) -> dict[str, Any]:
        assert main([words[0], str(RUN), *words[1:]]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    out, images = str(tmp_path / "x.png"), ("--classes", "1,4", "--per-class", "2")
    coarse = ran("sample", *images, "--out", out, "--json", "--tolerance", "0.3")
    assert coarse["sampler"] == Adaptive(rtol=0.3, atol=0.3).to_json()
    fine = ran("sample", *images, "--out", out, "--json", "--tolerance", "0.01")
    assert fine["evaluations"]["min"] > coarse["evaluations"]["max"] >= coarse["evaluations"]["mean"]
    pipeline = load(RUN)
    assert pipeline.settings(tolerance=0.3).sampler == Adaptive(rtol=0.3, atol=0.3)
    spent: list[Tensor] = []
    pipeline.sample([1, 1, 4, 4], pipeline.settings(tolerance=0.3), on_evaluations=spent.append)
    assert coarse["evaluations"]["mean"] == float(spent[0].double().mean())
    made = tmp_path / "x.npz"
    for _ in range(2):  # the second time it is there already
        ran("generate", "--num", "300", "--tolerance", "0.5", "--out", str(made), "--json")
    samples = open_samples(made)
    assert set(samples.origin["evaluations"]) == {"mean", "min", "max"}
    result = tmp_path / "x.json"
    words = ("--num", "40", "--seeds", "1", "--tolerance", "0.5", "--reference", "digits")
    assert main(["evaluate", str(RUN), *words, "--json", str(result)]) == 0
    protocol = json.loads(result.read_text())["protocol"]
    assert protocol["sampler"] == Adaptive(rtol=0.5, atol=0.5).to_json()
    assert protocol["evaluations"]["min"] >= 3
    assert "per image" in capsys.readouterr().out
    chosen = ("sample", str(RUN), "--out", out, "--tolerance", "0.1", "--steps", "5")
    assert main([*chosen]) == 2
    assert "adaptive has the fields rtol, atol" in capsys.readouterr().err
