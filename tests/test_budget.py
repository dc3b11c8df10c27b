"""The paper as a study's table, and what a study predicts for a budget, in Python and on the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaledit.cli import main
from scaledit.errors import UsageError
from scaledit.models import flops
from scaledit.scaling import comparable, paper, printed_table
from scaledit.scaling.budget import answer, macs_in
from scaledit.scaling.plan import Hardware
from scaledit.scaling.table import (
    DECODER,
    FINAL,
    GUIDANCE,
    SAMPLING,
    TRAINING,
    About,
    Row,
    Table,
    read,
    write,
)

PAPER = printed_table.table()


def test_the_papers_table_is_what_the_paper_prints():
    printed = {(row.model, row.image_size, row.block, row.steps_thousands): row for row in paper.printed()}
    rows = PAPER.part(FINAL) + PAPER.part(TRAINING)
    assert (len(PAPER.part(FINAL)), len(PAPER.part(TRAINING))) == (15, 5)
    for row in rows:
        side = 8 * row.patch_size * math.isqrt(row.tokens)
        one = printed.pop((f"DiT-{row.model}", side, row.conditioning, row.steps // 1000), None)
        if one is None:  # XL/2 after 400k steps is in both parts
            assert (row.name, row.steps, row.fd) == ("XL/2", 400_000, 19.47)
            continue
        assert (row.fd, row.metrics) == (one.fid, {"fid": one.fid})
        assert row.gflops == pytest.approx(one.gflops, rel=1e-3, abs=0.005)
        assert round(row.params / 1e6) == one.params_millions
        assert row.train_macs == pytest.approx(3 * one.gflops * 1e9 * 256 * row.steps, rel=0.01)
        assert (row.loss, row.fd_std, row.decoder, row.guidance_scale) == (None, None, "ft-MSE", 1.0)
    assert not printed
    assert [row.name for row in PAPER.models()][-1] == "XL/2" and len(PAPER.models()) == 12
    assert [(row.conditioning, row.fd) for row in PAPER.blocks()] == [
        ("adaln_zero", 19.47),
        ("in_context", 35.24),
        ("cross_attention", 26.14),
        ("adaln", 25.21),
    ]


def test_the_papers_guidance_decoders_and_sampling():
    def described(part: str) -> list[tuple[str, int, float, str, str, float | None]]:
        return [
            (r.name, r.steps, r.guidance_scale, r.guided_channels, r.decoder, r.fd) for r in PAPER.part(part)
        ]

    assert described(GUIDANCE) == [
        ("XL/2", 7_000_000, 1.0, "3", "ft-EMA", 9.62),
        ("XL/2", 7_000_000, 1.25, "3", "ft-EMA", 3.22),
        ("XL/2", 7_000_000, 1.5, "3", "ft-EMA", 2.27),
        ("XL/2 512", 3_000_000, 1.0, "3", "ft-EMA", 12.03),
        ("XL/2 512", 3_000_000, 1.25, "3", "ft-EMA", 4.64),
        ("XL/2 512", 3_000_000, 1.5, "3", "ft-EMA", 3.04),
        ("XL/2", 7_000_000, 1.375, "all", "ft-EMA", 2.2),
    ]
    assert [row[4:] for row in described(DECODER)] == [("original", 2.46), ("ft-MSE", 2.3), ("ft-EMA", 2.27)]
    guided = PAPER.part(GUIDANCE)[2]
    assert (guided.metric("precision"), guided.metric("recall")) == (0.83, 0.57)
    assert dict(guided.metrics) == dict(PAPER.part(DECODER)[2].metrics)  # so table 2 used ft-EMA
    assert guided.fd == paper.data()["guidance_channels"]["three_of_four"]["fid50k"]
    assert guided.sampling_macs == 500 * guided.macs
    for row in PAPER.part(SAMPLING):
        printed = paper.data()["sampling_compute"][f"DiT-{row.model}"]
        assert (row.num, row.fd, row.sampling_steps) == (10_000, printed["fid10k"], printed["steps"])
        assert row.sampling_macs / 1e12 == pytest.approx(printed["tflops_per_image"], abs=0.05)


def test_the_papers_table_is_read_back_from_its_files(tmp_path: Path):
    write(PAPER, tmp_path)
    assert read(tmp_path) == PAPER
    assert answer(comparable.study(str(tmp_path)), 1e20) == answer(PAPER, 1e20)
    assert {row.protocol for row in PAPER.rows} == set(PAPER.about.protocols)
    assert {row.name for row in PAPER.rows} == set(PAPER.about.configs)


def test_what_the_paper_says_of_budgets():
    """1e20 multiply-adds: XL/2 took 3.644e19 for 400k steps and 2.14e20 for 2352k, so the first is the best
    within; 1e20 / (3 * 118.62e9 * 256) is 1,097,679 of its steps. 1e22 is 15.7 times XL/2's 7000k steps."""
    within = answer(PAPER, 1e20)
    assert within.best is not None
    assert (within.best.name, within.best.steps, within.best_steps) == ("XL/2", 400_000, 1_097_679)
    assert (within.extrapolation, within.reach, within.warnings) == (1.0, "within the measured range", [])
    assert within.law is not None and within.law.n == 10 and within.law.floor is None
    assert within.predicted is not None and 10.67 < within.predicted.value < 19.47
    assert within.held_out is not None and within.held_out.actual == 9.62 and within.held_out.inside
    assert within.optimum is None and "no three models" in str(within.no_optimum)

    beyond = answer(PAPER, 1e22)
    assert beyond.best is not None and (beyond.best.steps, beyond.best.fd) == (7_000_000, 9.62)
    assert beyond.extrapolation == pytest.approx(1e22 / 6.377e20, rel=1e-3)
    assert beyond.reach == "15.7 times beyond the most compute in the study"
    assert len(beyond.warnings) == 1 and "15.7 times" in beyond.warnings[0]
    below = answer(PAPER, 1e17)
    assert below.best is None and below.reach == "1.1 times below the least compute in the study"
    assert dict(below.describe())["best measured"].startswith("none")


def test_other_image_sizes_blocks_and_guided_results_are_not_compared():
    """512 x 512 took 1.21e21 and reached 11.93, guided models 2.27: neither is a result of the grid."""
    rows = comparable.finished(PAPER)
    assert {row.name for row in rows} == {row.name for row in PAPER.models()}
    assert [row.steps for row in rows if row.name == "XL/2"] == [400_000, 2_352_000, 7_000_000]


def miniature(seeds: int = 2, during: int = 100) -> Iterator[Row]:
    """Five models that share 6e10 to 6e12 multiply-adds of training, with the best size C^0.5 / 50 and
    distance there (C / 1e9)^-0.4 * 100, seeds 5 % apart. during: images of a distance during training."""
    for width, macs in enumerate(np.geomspace(1500, 1.5e5, 5).astype(int).tolist()):
        for part, seed in [(part, seed) for part in (TRAINING, FINAL) for seed in range(seeds)]:
            all_steps = [int(c / (3 * macs * 64)) for c in np.geomspace(6e10, 6e12, 7)]
            for steps in all_steps if part == TRAINING else all_steps[-1:]:
                compute = flops.train_macs(macs, 64 * steps)
                away = math.log(macs / (compute**0.5 / 50))
                fd = 100 * (compute / 1e9) ** -0.4 * math.exp(0.05 * away**2) * (1 + 0.05 * (seed - 0.5))
                yield replace(
                    PAPER.rows[0],
                    name=f"w{width}/2 seed {seed}",
                    part=part,
                    size=f"w{width}",
                    patch_size=2,
                    tokens=16,
                    params=macs // 4,
                    macs=macs,
                    batch_size=64,
                    steps=steps,
                    images=64 * steps,
                    train_macs=compute,
                    seed=seed,
                    fd=fd,
                    num=during if part == TRAINING else 1000,
                )


def table(rows: Iterator[Row]) -> Table:
    return Table(About("mini", "Miniature", "scaledit study mini", "FD-digits"), tuple(rows))


def test_the_optimal_model_of_a_study_with_curves():
    result = answer(table(miniature(during=1000)), 1e12)
    best = result.optimum
    assert best is not None and result.no_optimum is None
    assert best.macs.value == pytest.approx(1e12**0.5 / 50, rel=0.05)
    assert best.exponent.value == pytest.approx(0.5, abs=0.03)
    assert best.steps == int(1e12 / (3 * best.macs.value * 64))
    assert result.predicted is not None
    assert result.predicted.value == pytest.approx(100 * 1e3**-0.4, rel=0.15)
    assert result.batch_size == 64
    assert 6e10 <= best.smallest < best.largest <= 6.1e12
    far = answer(table(miniature(during=1000)), 1e14)
    assert len(far.warnings) == 2 and "optimal model" in far.warnings[1]
    labels = [label for label, _ in far.describe()]
    assert labels.count("warning") == 2 and "optimal model" in labels


def test_coarser_distances_during_training_make_curves_but_no_law():
    """A distance of 100 images is biased: only those of 1000 images are compared with the final ones."""
    result = answer(table(miniature(during=100)), 1e13)
    assert result.optimum is not None
    assert result.law is None or result.law.n <= 5
    assert result.smallest > 5e12  # the ends of training only


def test_hours_and_devices_are_a_budget():
    """24 hours on 8 devices of 1e15 FLOP/s at 40 %: 86,400 * 8 * 4e14 / 2 multiply-adds."""
    hardware = Hardware(1e15, 8, 0.4, price=2.0)
    assert macs_in(24, hardware) == pytest.approx(1.3824e20)
    result = answer(PAPER, macs_in(24, hardware), hardware)
    assert (result.hours, result.cost) == (pytest.approx(24), pytest.approx(24 * 8 * 2))
    assert answer(PAPER, 1e20).hours is None
    for hours, devices in ((24, Hardware()), (0, hardware), (math.inf, hardware)):
        with pytest.raises(UsageError, match="hours"):
            macs_in(hours, devices)


def test_a_study_that_cannot_answer_says_why():
    two = [row for row in miniature() if row.size in ("w0", "w1")]
    assert answer(table(iter(two)), 1e12).optimum is None
    for rows in ([], [replace(row, fd=None) for row in miniature()]):
        with pytest.raises(UsageError, match="study mini has no distance"):
            answer(table(iter(rows)), 1e12)


def test_plan_budget_on_the_command_line(capsys: pytest.CaptureFixture, tmp_path: Path):
    assert main(["plan", "--budget", "1e22"]) == 0
    output = capsys.readouterr().out
    assert "XL/2 after 7,000,000 steps" in output
    assert output.count("15.7 times beyond the most compute in the study") == 2  # "measured" and "warning"
    write(table(miniature(during=1000)), tmp_path)
    hours = ["--hours", "0.01", "--peak", "1e9", "--utilization", "0.5", "--price", "3"]
    assert main(["plan", *hours, "--study", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["budget"] == pytest.approx(0.01 * 3600 * 1e9 * 0.5 / 2)
    assert values["study"] == "Miniature" and values["distance"] == "FD-digits"
    assert values["extrapolation"] > 1 and "below the least" in values["reach"]
    assert values["best"] is None and values["optimum"]["macs"]["value"] > 0
    assert (values["hours"], values["cost"]) == (pytest.approx(0.01), pytest.approx(0.03))
    assert main(["plan", "--budget", "1e12", "--study", str(tmp_path)]) == 0
    assert "multiply-adds per image (95 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass exactly one of a recipe"),
        (["digits", "--budget", "1e18"], "pass exactly one of a recipe"),
        (["--budget", "1e18", "--hours", "2", "--peak", "1e12"], "pass exactly one of a recipe"),
        (["--budget", "-1"], "a budget must be a positive number of multiply-adds, such as 1e18"),
        (["--budget", "nan"], "a budget must be a positive number"),
        (["--hours", "2"], "a budget in hours also needs the speed of a device"),
        (
            ["--budget", "1e18", "--study", "nowhere"],
            "there is no study nowhere; use a folder with a table.csv",
        ),
        (["--budget", "1e18", "--study", "."], "contains no study"),
        (["digits", "--peak", "1e12", "--study", "paper"], "--study goes with --budget or --hours"),
        (["--budget", "1e18", "--iterations-per-second", "3"], "for a budget, pass --gpu or --peak"),
    ],
)
def test_a_wrong_budget_exits_2_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_answers_need_no_torch():
    code = "import sys; from scaledit.cli import main; main(['plan', '--budget', '1e20', '--json']); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
