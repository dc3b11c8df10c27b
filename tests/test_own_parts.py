"""Samplers, objectives, terms of the loss, block designs and guidance of a user: the files of examples/,
copied into a folder and named on the command line. (Metrics and data sets: test_own_judging.py.)"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import scaledit
from scaledit.cli import main
from scaledit.training import log
from tiny import TINY

EXAMPLES = Path(__file__).parents[1] / "examples"
DEEP = [word for word in TINY if not word.startswith(("model.depth", "sample.steps"))] + ["model.depth=4"]
SHORT = [
    "train.steps=40",
    "checkpoint.every=40",
    "optimizer.warmup_steps=0",
    "evaluate.num=10",
    "evaluate.seeds=1",
]


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("own")
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def run(here: Path) -> Path:
    """A run with a user's block design, objective and term of the loss."""
    words = ["train", "digits", "--out", "run", *DEEP, *SHORT, "model.conditioning=my_blocks:Parallel"]
    assert main([*words, *OWN]) == 0
    return here / "run"


OWN = [
    "diffusion.objective=my_objectives:Aligned",
    "diffusion.objective.weight=0.25",
    "diffusion.terms=my_terms:Edges",
    "diffusion.terms.0.weight=0.2",
]
MODULES = ["my_blocks", "my_objectives", "my_terms"]
ALLOWED = [word for name in MODULES for word in ("--allow-import", name)]


def test_each_example_is_short_and_says_how_it_is_used():
    files = sorted(EXAMPLES.glob("*.py"))
    kinds = ("blocks", "guidance", "metrics", "objectives", "optimizers", "samplers", "sets", "terms")
    assert [path.stem for path in files] == [f"my_{kind}" for kind in kinds]
    for path in files:
        text = path.read_text()
        assert len(text.splitlines()) <= 40
        assert f"{path.stem}:" in text.split('"""')[1]


def test_a_block_design_and_an_objective_with_a_head_are_trained(run: Path):
    last = [line for line in log.read(run) if line["event"] == "stepped"][-1]
    summed = last["mse"] + 0.25 * last["align"] + 0.2 * last["edges"]
    assert last["loss"] == pytest.approx(summed, rel=1e-5) and last["edges"] > 0
    written = json.loads((run / "config.json").read_text())
    assert written["model"]["conditioning"] == {"name": "my_blocks:Parallel"}
    assert written["diffusion"]["objective"] == {
        "name": "my_objectives:Aligned",
        "block": 3,
        "weight": 0.25,
    }
    assert written["diffusion"]["terms"] == [{"name": "my_terms:Edges", "weight": 0.2}]
    saved = {path.name for path in (run / "checkpoints" / "step-00000040").iterdir()}
    assert "objective.safetensors" in saved


def test_it_resumes(run: Path, here: Path):
    words = ["train", "digits", *DEEP, *SHORT, "model.conditioning=my_blocks:Parallel", "train.steps=42"]
    shutil.copytree(run, here / "resumed")
    assert main([*words, *OWN, "--out", "resumed", "--resume", "auto"]) == 0
    assert log.read(here / "resumed")[-1]["step"] == 42


def test_a_folder_that_names_classes_of_ones_own_imports_them_only_where_allowed(run: Path, capsys):
    assert main(["sample", "run", "--num", "1", "--out", "x.npz"]) == 2
    said = capsys.readouterr().err
    assert "--allow-import my_" in said and len(said.strip().splitlines()) == 1
    with pytest.raises(scaledit.errors.UsageError, match="allow_import"):
        scaledit.load(run)
    assert scaledit.load(run, allow_import=MODULES)([1]).shape == (1, 8, 8, 3)


def test_a_midpoint_sampler(run: Path, here: Path):
    words = ["sample", "run", "--num", "4", *ALLOWED, "--cfg-scale", "1"]
    images = {}
    for steps in (4, 64):
        name = f"midpoint-{steps}.npz"
        chosen = ["--sampler", "my_samplers:Midpoint", f"sample.sampler.steps={steps}"]
        assert main([*words, *chosen, "--out", name]) == 0
        with np.load(name) as file:
            images[steps] = file["arr_0"].astype(int)
            assert json.loads(str(file["origin"]))["sampler"]["name"] == "my_samplers:Midpoint"
    assert main([*words, "--sampler", "heun", "--steps", "64", "--out", "heun.npz"]) == 0
    with np.load("heun.npz") as file:
        assert np.abs(images[64] - file["arr_0"]).max() <= 1  # both are of second order
    assert main([*words, "--sampler", "my_samplers:Midpoint", "sample.sampler.eta=1", "--out", "y.npz"]) == 2


def test_guidance_that_depends_on_the_time(run: Path):
    words = ["sample", "run", "--num", "4", *ALLOWED, "--sampler", "euler", "--steps", "8"]
    made = {}
    for scale in (1, 1000):  # the model knows its labels hardly
        fading = ["sample.guidance=my_guidance:Fading", f"sample.guidance.0.scale={scale}"]
        assert main([*words, *fading, "--out", f"fading-{scale}.npz"]) == 0
        with np.load(f"fading-{scale}.npz") as file:
            made[scale] = file["arr_0"]
            assert json.loads(str(file["origin"]))["guidance"] == [
                {"name": "my_guidance:Fading", "scale": float(scale)}
            ]
    assert main([*words, "--cfg-scale", "1", "--out", "plain.npz"]) == 0
    with np.load("plain.npz") as file:
        assert np.array_equal(made[1], file["arr_0"])
    assert not np.array_equal(made[1], made[1000])
