"""The main job, for real: the demo trains, its digits are digits, and the README's commands work on it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pictures
from scaledit import load
from scaledit.evaluation.judge import drawn, open_judge
from scaledit.evaluation.result import Figure

pytestmark = pytest.mark.slow

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
# All cores: the tests' own limit of one thread is for many small tests side by side.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
SCALEDIT = [sys.executable, "-m", "scaledit.cli"]


def scores(run: Path, cfg_scale: float) -> dict[str, Figure]:
    pipeline = load(run)
    config = replace(pipeline.config.evaluate, cfg_scale=cfg_scale, seed=11, num=360, labels="equal")
    judge = open_judge(replace(config, reference="digits"))
    return dict(judge.score(drawn(judge, pipeline, config)).figures)


def train(recipe: str, folder: Path, *overrides: str) -> Path:
    out = folder / "runs" / ("demo" if recipe == "digits" else recipe)
    command = [*SCALEDIT, "train", recipe, "--out", str(out), "--resume", "auto", *overrides]
    subprocess.run(command, check=True, env=ENVIRONMENT, cwd=folder)
    return out


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("digits", tmp_path_factory.mktemp("demo"))


@pytest.mark.parametrize("cfg_scale", [1.0, 1.5])
def test_digits_are_of_the_class_asked_for_and_not_copies(demo: Path, cfg_scale: float):
    result = scores(demo, cfg_scale)
    assert result["class_accuracy"].real >= 0.98  # a judge worth asking
    assert result["class_accuracy"].value >= 0.95
    assert 0.9 <= result["nearest"].value <= 1.3
    assert result["fd_digits"].value <= 2.5 * result["fd_digits"].real


def test_report_says_it(demo: Path):
    page = (demo / "report.html").read_text(encoding="utf-8")
    for part in (
        "How good",
        "guidance 1.5",
        "guidance 4.0",
        "FD-digits-random",
        "real, held out",
        "class score",
        "recall",
        "Real images (held out)",
        "images/s in training",
        "During training",
    ):
        assert part in page


def commands() -> list[str]:
    found = re.findall(r"^    (scaledit .+)$", README, re.MULTILINE)
    assert len(found) >= 4
    return found


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_readme(demo: Path, command: str):
    words = shlex.split(command)[1:]
    if not (demo.parent.parent / "pictures").exists():
        pictures.tree(demo.parent.parent / "pictures")
    if "train" in words[:2]:
        words.append("train.steps=20")  # the command is the README's, the length is not
    done = subprocess.run(
        [*SCALEDIT, *words], env=ENVIRONMENT, cwd=demo.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_python_of_the_readme(demo: Path):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code += (
        "\nassert images.shape == (3, 8, 8, 3) and str(images.dtype) == 'uint8' and x.shape == (3, 1, 8, 8)"
    )
    # Both ways of the README give the same pictures: the run's settings are DPM-Solver++ with 12 steps.
    code += "\nfrom scaledit.images import to_uint8; assert abs(to_uint8(x).astype(int) - images).max() <= 1"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT, cwd=demo.parent.parent)


def test_the_papers_objective(tmp_path: Path):
    run = train("digits-paper", tmp_path, "sample.every=0")
    assert scores(run, cfg_scale=1.0)["class_accuracy"].value >= 0.90
