"""`scaledit sweep`: settings sampled together evaluate nothing twice and give what each gives alone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaledit import checkpoint, load
from scaledit.cli import main
from scaledit.config import SampleConfig
from scaledit.evaluation.judge import Judge, open_run_judge, sample_sets
from scaledit.pipeline import Pipeline
from scaledit.report import settings as report
from scaledit.sampling.shared import Shared
from scaledit.scaling.sweep import Spread
from scaledit.training import log
from scaledit.training.dit import train
from scaledit.tuning import found as maps
from scaledit.tuning import judged
from scaledit.tuning.cells import Axes, Cell
from scaledit.tuning.found import is_alike
from scaledit.tuning.judged import Judged, _alone, _drop, judge_cells
from tiny import tiny

SCALES, INTERVALS = (1.0, 1.5, 2.0, 3.0, 4.0), ((0.0, 1.0), (0.2, 0.8), (0.3, 0.6))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run whose outputs are not zero, with snapshots of two averages."""
    out = tmp_path_factory.mktemp("map") / "run"
    config = tiny(
        "train.steps=20", "ema.power=[0.05,0.1]", "ema.snapshots=10", "optimizer.learning_rate=5e-3"
    )
    for _ in train(config, out, device="cpu"):
        pass
    return out


class Counting(torch.nn.Module):
    """Counts how often the network sees a row: its image, time and label."""

    def __init__(self, net: Any):
        super().__init__()
        self.net, self.rows = net, Counter()
        self.config, self.null_label, self.condition = net.config, net.null_label, net.condition

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: Any, **options: Any) -> Any:
        labels = y if isinstance(y, torch.Tensor) else y.values
        for image, time, label in zip(x, t, labels, strict=True):
            self.rows[image.numpy().tobytes(), float(time), int(label)] += 1
        return self.net(x, t, y, **options)


def counting(run: Path, average: str) -> tuple[Pipeline, Counter]:
    pipeline = load(run, "cpu", average=average)
    net = Counting(pipeline.net)
    return dataclasses.replace(pipeline, net=net), net.rows


def sections(pipeline: Pipeline, sampler: str, whole: bool) -> list[SampleConfig]:
    """whole: all of SCALES; otherwise three of them."""
    cells = Axes(steps=(3, 4), scales=SCALES if whole else SCALES[::2], intervals=INTERVALS).cells()
    return [cell.section(pipeline.config, sampler=sampler) for cell in cells]


@pytest.mark.parametrize(
    ("sampler", "averages"),
    [
        ("dpm", ("0.05", "0.08", "0.13")),
        *((name, ("0.1",)) for name in ("ddim", "heun", "euler", "unipc", "ddpm")),
    ],
)
def test_a_map_evaluates_nothing_twice(run: Path, sampler: str, averages: tuple[str, ...]):
    """3 averages x 5 scales x 3 intervals, and two numbers of steps."""
    labels = [3, 7]
    for average in averages:
        pipeline, rows = counting(run, average)
        chosen = sections(pipeline, sampler, whole=len(averages) > 1)
        shared = Shared(pipeline, chosen)
        [(_, drawn)] = shared.batches(labels, 8)
        assert max(rows.values()) == 1  # no image at any time under any label passes twice
        assert rows.total() == shared.evaluated
        members = sorted(member for one in drawn for member in one.members)
        assert members == list(range(len(chosen)))
        assert len(drawn) > len(chosen) / 3
        alone = sum(_alone(pipeline, section) for section in chosen) * len(labels)
        assert shared.evaluated < 0.75 * alone
    for one in drawn[:: len(drawn) // 2]:
        assert one.images is not None
        apart = pipeline.sample(labels, chosen[one.members[-1]]).astype(int) - one.images
        assert abs(apart).max() <= 1  # rounding at another batch size


def judge_of(pipeline: Pipeline, **changes: Any) -> tuple[Judge, Any]:
    evaluate = dataclasses.replace(
        pipeline.config.evaluate, reference="digits", num=20, seeds=2, batch_size=8, **changes
    )
    return open_run_judge(
        dataclasses.replace(pipeline.config, evaluate=evaluate), pipeline.class_names
    ), evaluate


def test_cells_have_the_metrics_of_an_evaluation_and_are_kept(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judged, "PART", 8)

    def opened(average: str | None) -> Pipeline:
        return load(run, "cpu", average=average)

    judge, evaluate = judge_of(opened("0.1"), metrics="fd_digits")
    cells = Axes(averages=("0.1",), scales=(1.0, 3.0), steps=(3,)).cells()

    class Stop(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done > 0.75 * total:  # all of the first seed, and 8 of 20 images of the second
            raise Stop

    with pytest.raises(Stop):
        judge_cells(run, cells, opened, judge, evaluate, {}, progress=interrupt)
    made = judge_cells(run, cells, opened, judge, evaluate, {})
    assert made.work.known == made.work.alone / 2
    other = dataclasses.replace(evaluate, seed=100, seeds=1)
    assert made.work.made == 12 / 20 * judge_cells(run, cells, opened, judge, other, {}).work.made
    assert not list((run / "sweep").glob("*.npz"))
    again = judge_cells(run, cells, opened, judge, evaluate, {})
    assert (again.work.made, again.work.known) == (0, again.work.alone)
    assert [one.metrics for one in again.cells] == [one.metrics for one in made.cells]
    for one in made.cells:
        pipeline = opened("0.1")
        settings = dataclasses.replace(one.section, seed=evaluate.seed)
        result = judge.evaluate(sample_sets(judge, pipeline, evaluate, settings))
        assert np.mean(one.values("fd_digits")) == pytest.approx(result.metrics["fd_digits"].value, rel=1e-3)


def test_halving_drops_what_is_worse_than_chance_explains():
    def cell(*values: float) -> Judged:
        return Judged(Cell(), SampleConfig(), [{"fd": value} for value in values])

    column = maps.Column("fd", "FD")
    # The seeds shift all cells alike, by far more than the cells differ; that is no reason to keep one.
    cells = [cell(5.0, 25.0), cell(5.1, 24.9), cell(6.0, 26.1), cell(5.2, 25.1)]
    _drop(cells, column)
    assert [one.dropped for one in cells] == [False, False, True, False]


def test_pairs_of_seeds_are_compared():
    best = Spread.of([5.0, 7.0, 9.0])
    assert is_alike(best, best)
    assert is_alike(best, Spread.of([6.0, 6.5, 9.5]))
    assert not is_alike(best, Spread.of([5.2, 7.21, 9.19]))
    assert not is_alike(Spread.of([5.0]), Spread.of([5.0]))  # unknown


COMMAND = ["--average", "0.05,0.13", "--cfg-scale", "1,2", "--cfg-interval", "0-1,0.3-0.6", "--steps", "3,4"]
FEW = ["--num", "12", "--seeds", "2", "--metrics", "fd_digits", "--reference", "digits", "--device", "cpu"]


def test_the_command_draws_writes_and_changes_the_run(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "report.html").write_text(f"before{report.BEGIN}old{report.END}after")
    assert main(["sweep", str(run), *COMMAND, *FEW, "--write", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = maps.read(run)
    assert found is not None
    assert len(found.cells) == 16
    assert maps.to_json(found) == {key: value for key, value in printed.items() if key != "written"}
    lines = (run / maps.CSV).read_text().splitlines()
    assert lines[0] == "average,steps,scale,interval,seeds,fd_digits,fd_digits_std,note"
    assert len(lines) == 17
    html = (run / "report.html").read_text()
    assert html.startswith(f"before{report.BEGIN}")
    assert html.endswith(f"{report.END}after")
    assert "data:image/svg" in html
    # The run is now sampled with the best setting, and says so.
    best = found.cells[found.best or 0].values
    config = load(run, "cpu").config
    assert f"{config.sample.average:g}" == best["average"]
    assert str(config.sample.sampler.steps) == best["steps"]
    assert load(run, "cpu").origin["weights"] == f"average {best['average']}"
    assert load(run, "cpu", average=0).origin["weights"] == "ema"
    [changed] = [record for record in log.read(run) if record["event"] == "changed"]
    assert any(change.startswith("sample.average: not set -> ") for change in changed["changes"])
    assert changed["changes"] == printed["written"]
    # Its command makes images; the same map again needs no evaluation.
    assert main([*found.command.replace("samples.png", str(run / "best.png")).split()[1:], "-q"]) == 0
    assert main(["sweep", str(run), *COMMAND, *FEW]) == 0
    assert "0 network evaluations" in capsys.readouterr().out
    # It is resumed as it is: what says how it is sampled may change.
    config = json.loads((run / "config.json").read_text())
    saved = checkpoint.open_checkpoint(checkpoint.find(run / "checkpoints")[-1]).config
    assert {key for key in config if config[key] != saved[key]} == {"sample"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is varied"),
        (["--cfg-scale", "1,1"], "has a value twice"),
        (["--cfg-interval", "0.8-0.2"], "0 <= LOW < HIGH <= 1"),
        (["--cfg-interval", "0.8"], "two fractions"),
        (["--average", "0.1,long"], "relative length"),
        (["--average", "0.28"], "is outside of what"),
        (["--average", "0.1@8", "--write"], "leave @STEP out"),
        (["--steps", "0"], "at least 1"),
        (["--cfg-scale", "2", "--halving", "--seeds", "2"], "--seeds 3 or more"),
    ],
)
def test_wrong_maps_are_refused(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    before = sorted(path.name for path in (run / "sweep").glob("*"))
    assert main(["sweep", str(run), *words, "--reference", "digits", "--num", "12"]) == 2
    assert message in capsys.readouterr().err
    assert before == sorted(path.name for path in (run / "sweep").glob("*"))


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["sweep", str(tmp_path / "nothing"), "--steps", "4"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert main(["sweep", str(tmp_path), "--steps", "4"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
