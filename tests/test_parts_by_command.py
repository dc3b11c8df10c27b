"""Parts on the command line: options, keys, parts of one's own, models from elsewhere, --help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scaledit import Pipeline, load
from scaledit.cli import main
from scaledit.config import RunConfig
from scaledit.diffusion import (
    DDIM,
    ClassifierFree,
    DPMSolver,
    Euler,
    Guidance,
    Objective,
    Parameterization,
    Sampler,
    Schedule,
    TimeDistribution,
)
from scaledit.diffusion.times import Times
from scaledit.errors import UsageError
from scaledit.part import Allowed, members
from tiny import TINY

MODULE = "half_way"
MINE = '''
from dataclasses import dataclass
from scaledit.part import field
from scaledit.diffusion.samplers import Sampler
from scaledit.diffusion.samplers.base import along_flow

@dataclass(frozen=True)
class Midpoint(Sampler):
    """The midpoint rule on the flow."""

    evaluations = 2
    place: float = field(0.5, gt=0, lt=1, doc="of the middle")

    def step(self, denoiser, x, t, s, condition, state, noise, i):
        middle = t + self.place * (s - t)
        there = along_flow(denoiser.schedule, x, denoiser(x, t, condition), t, middle)
        return along_flow(denoiser.schedule, x, denoiser(there, middle, condition), t, s), None
'''
NAMED = f"{MODULE}:Midpoint"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    (tmp_path / f"{MODULE}.py").write_text(MINE)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parts") / "run"
    assert main(["train", "digits", "--out", str(out), *TINY, "train.steps=2", "evaluate.num=20"]) == 0
    return out


@pytest.fixture
def printed(capsys: pytest.CaptureFixture):
    """The JSON that the last command printed."""
    return lambda: json.loads(capsys.readouterr().out.splitlines()[-1])


def origin_of(path: str) -> dict:
    with np.load(path) as file:
        return json.loads(str(file["origin"]))


def test_training_takes_options_and_fields_of_parts(folder: Path):
    words = ["--sampler", "ddim", "--cfg-scale", "2", "sample.sampler.eta=0.5", "diffusion.times.mean=0.5"]
    assert main(["train", "digits", "--out", "run", *TINY, *words, "train.steps=1"]) == 0
    written = json.loads((folder / "run/config.json").read_text())
    assert written["sample"]["sampler"] == DDIM(4, eta=0.5).to_json()
    assert written["sample"]["guidance"] == [ClassifierFree(scale=2.0, channels=3).to_json()]
    assert written["diffusion"]["times"] == {"name": "logit_normal", "mean": 0.5, "std": 1.0}


def test_steps_of_training_and_of_sampling_are_not_mixed_up(capsys: pytest.CaptureFixture):
    assert main(["train", "digits", "--steps", "3"]) == 2
    error = capsys.readouterr().err
    assert "train.steps=3" in error and "sample.sampler.steps=3" in error


def test_samples_take_options_first_and_then_keys(run: Path, printed):
    words = ["sample", str(run), "--num", "2", "--out", "x.npz", "--json"]
    assert main([*words, "--sampler", "ddim", "sample.sampler.eta=0.5"]) == 0
    result = printed()
    assert result["sampler"] == DDIM(4, eta=0.5).to_json()
    assert result["guidance"] == [ClassifierFree(scale=1.5, channels=3).to_json()]
    images = np.load("x.npz")["arr_0"]
    assert np.array_equal(images, load(run)([0, 1], sampler=DDIM(4, eta=0.5)))
    assert main([*words, "--sampler", "ddim"]) == 0
    assert printed()["sampler"]["eta"] == 0.0
    assert not np.array_equal(images, np.load("x.npz")["arr_0"])
    keys = ["--steps", "3", "sample.steps=2", "sample.guidance.0.channels=1", "--cfg-scale", "3"]
    assert main([*words, *keys]) == 0
    result = printed()
    assert result["sampler"]["steps"] == 2
    assert result["guidance"] == [ClassifierFree(scale=3.0, channels=1).to_json()]
    assert main([*words, "--cfg-scale", "1", "--cfg-channels", "all"]) == 0
    assert printed()["guidance"] == []


def test_generated_samples_take_them_too(run: Path):
    words = ["generate", str(run), "--num", "4", "--sampler", "ddim"]
    assert main([*words, "sample.sampler.eta=0.5", "--out", "x.npz"]) == 0
    assert origin_of("x.npz")["sampler"] == DDIM(4, eta=0.5).to_json()
    assert main([*words, "--out", "x.npz"]) == 2  # another eta: other samples


def test_an_evaluation_takes_them_too(run: Path):
    words = ["evaluate", str(run), "--reference", "digits", "--seeds", "1", "--json", "x.json", "--metrics"]
    words += ["class_accuracy", "--sampler", "ddim", "sample.sampler.eta=0.5"]
    assert main([*words, "--cfg-scale", "2", "evaluate.num=10"]) == 0
    protocol = json.loads(Path("x.json").read_text())["protocol"]
    assert protocol["sampler"] == DDIM(4, eta=0.5).to_json()
    assert protocol["guidance"] == [ClassifierFree(scale=2.0, channels=3).to_json()]  # as [sample] guides
    assert protocol["n"] == 10
    assert main(words) == 0  # guidance is [evaluate]'s own: none
    assert json.loads(Path("x.json").read_text())["protocol"]["guidance"] == []


def test_what_the_model_is_stays_and_samples_take_no_keys(run: Path, capsys: pytest.CaptureFixture):
    assert main(["sample", str(run), "model.depth=3", "--out", "x.png"]) == 2
    assert "model.depth=3: [model] of a trained model cannot be changed" in capsys.readouterr().err
    assert main(["sample", str(run), "--num", "2", "--out", "x.npz"]) == 0
    assert main(["evaluate", "x.npz", "--reference", "digits", "sample.sampler.steps=3"]) == 2
    assert "sample.sampler.steps=3 is for a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "ddimm"], "unknown sampler 'ddimm' (write MODULE:CLASS for one of your own)"),
        (["--sampler", "euler", "sample.sampler.eta=1"], "sample.sampler.eta: euler has the fields steps"),
        (["--sampler", "ddim", "sample.sampler.eta=-1"], "sample.sampler.eta must be at least 0, got -1.0"),
        (["--sampler", "ddim", "sample.sampler.eta=x"], "sample.sampler.eta must be a number, got 'x'"),
        (["sample.sampler=classifier_free"], "unknown sampler 'classifier_free'"),
        (["sample.sampler=scaledit.diffusion:LinearBeta"], "is not a sampler; derive it from"),
        (["--sampler", "nowhere:Midpoint"], "the module nowhere cannot be found"),
        (["--sampler", f"{MODULE}:Sampler"], "lacks the method step"),
        (["--cfg-channels", "most"], "cfg_channels must be a number of channels or all, got 'most'"),
        (["sample.sampler.steps"], "an override is section.key=value"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert main(["sample", str(run), *words, "--out", "x.png"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("x.png").exists()


def test_a_sampler_of_ones_own_is_trained_with_sampled_with_and_recorded(run: Path, folder: Path, printed):
    words = ["--sampler", NAMED, "sample.sampler.place=0.25", "--json"]
    assert main(["sample", str(run), "--num", "2", "--out", "x.npz", *words]) == 0
    assert printed()["sampler"]["name"] == NAMED
    assert origin_of("x.npz")["sampler"]["place"] == 0.25
    own = ["--out", "own", *TINY, "train.steps=2", "checkpoint.every=1", "sample.every=1", *words]
    assert main(["train", "digits", *own]) == 0
    # Its report and a resumption need no further permission: the command names the same module.
    assert (folder / "own/report.html").is_file()
    sys.modules.pop(MODULE)
    assert main(["train", "digits", *own, "--resume", "auto"]) == 0
    assert json.loads((folder / "own/config.json").read_text())["sample"]["sampler"]["name"] == NAMED


@pytest.fixture
def foreign(run: Path, folder: Path) -> Path:
    """An exported model that names a class of the module."""
    pipeline = load(run)
    table = pipeline.config.to_json()
    table["sample"]["sampler"] = {"name": NAMED, "steps": 4}
    config = RunConfig.from_json(table, Allowed())
    exported = Pipeline(config, pipeline.net, pipeline.device, pipeline.class_names, pipeline.origin)
    exported.save_pretrained(folder / "foreign")
    sys.modules.pop(MODULE)
    (folder / f"{MODULE}.py").write_text(f"open('ran', 'w').close()\n{MINE}")
    return folder / "foreign"


def test_a_model_from_elsewhere_imports_nothing_unless_it_is_allowed(
    foreign: Path, folder: Path, capsys: pytest.CaptureFixture
):
    for words in (
        ["sample", "foreign", "--out", "x.png"],
        ["sample", "foreign", "--sampler", "ddim", "--out", "x.png"],
        ["sample", "foreign", "--out", "x.png", "--allow-import", "another"],
        ["generate", "foreign", "--num", "2", "--out", "x.npz"],
        ["evaluate", "foreign", "--reference", "digits"],
        ["convert", "foreign", "again", "--to", "scaledit"],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert f"foreign names '{NAMED}', which is code from outside scaledit" in error
        assert f"--allow-import {MODULE}" in error and error.count("\n") == 1
        assert not (folder / "ran").exists() and MODULE not in sys.modules
    with pytest.raises(UsageError, match=rf"allow_import=\['{MODULE}'\]"):
        load("foreign")
    words = ["sample", "foreign", "--num", "2", "--allow-import", MODULE, "--json", "--out", "x.npz"]
    assert main(words) == 0
    assert origin_of("x.npz")["sampler"]["name"] == NAMED
    assert (folder / "ran").exists()
    pipeline = load("foreign", allow_import=[MODULE])
    assert np.array_equal(np.load("x.npz")["arr_0"], pipeline([0, 1]))


def test_a_pipeline_takes_parts(run: Path):
    pipeline = load(run)
    assert pipeline.settings(sampler="euler").sampler == Euler(4)
    assert pipeline.settings(sampler="ddim", steps=3).sampler == DDIM(3)
    assert pipeline.settings(sampler={"name": "ddim", "eta": 1}).sampler == DDIM(4, eta=1.0)
    assert pipeline.settings(sampler=DDIM(7, eta=0.5)).sampler == DDIM(7, eta=0.5)
    assert pipeline.settings(cfg_scale=2).guidance == (ClassifierFree(scale=2.0, channels=3),)
    assert pipeline.settings(cfg_scale=2, cfg_channels="all").guidance == (ClassifierFree(scale=2.0),)
    assert pipeline.settings(guidance=[ClassifierFree(scale=3.0)]).guidance == (ClassifierFree(scale=3.0),)
    assert pipeline.settings(guidance=()).guidance == ()
    assert pipeline.settings().sampler == DPMSolver(4)
    with pytest.raises(UsageError, match="must be a sampler, got the part 'classifier_free'"):
        pipeline([0], sampler=ClassifierFree())  # type: ignore[arg-type]
    by_part = pipeline([3, 4], sampler=DDIM(5), guidance=[ClassifierFree(scale=2.0)])
    assert np.array_equal(by_part, pipeline([3, 4], sampler="ddim", steps=5, cfg_scale=2.0))


# ---- --help ----------------------------------------------------------------------------------------------

SAMPLING = (Sampler, Times, Guidance)
TRAINING = (*SAMPLING, Schedule, Parameterization, Objective, TimeDistribution)


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("train", TRAINING),
        ("plan", (*SAMPLING, Schedule)),
        ("sample", SAMPLING),
        ("generate", SAMPLING),
        ("evaluate", SAMPLING),
    ],
)
def test_help_lists_parts_and_fields_without_importing_another_package(command: str, kinds: tuple[type, ...]):
    code = (
        "import sys; own = set(sys.modules)\n"
        "from scaledit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "packages = {name.partition('.')[0] for name in set(sys.modules) - own}\n"
        "print('imported', *sorted(packages - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    help, _, imported = done.stdout.rpartition("imported")
    assert imported.split() == ["scaledit"]  # PyTorch alone would take longer than all else
    for kind in kinds:
        for name in members(kind):
            assert f"  {name}: " in help
    assert "eta: default 0.0, at least 0" in help
    assert "channels: default all, at least 1" in help


def test_a_command_without_parts_lists_none(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main(["models", "--help"])
    assert "Parts that keys of a recipe can name" not in capsys.readouterr().out
