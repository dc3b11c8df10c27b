"""The command line: output, exit codes, and no files left behind by a wrong command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scaledit import load
from scaledit.cli import COMMANDS, main
from tiny import TINY

RUN = [*TINY, "train.steps=4", "checkpoint.every=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits", "--out", str(out), *RUN, "sample.every=2"]) == 0
    return out


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(command: list[str]):
    code = (
        "import sys; from scaledit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'PIL', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: scaledit" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "digts"], "did you mean 'digits'"),
        (["train", "digits", "--reusme", "auto"], "did you mean '--resume'"),
        (["train", "digits", "train.stepz=3"], "did you mean 'train.steps'"),
        (["train", "digits", "trian.steps=3"], "did you mean 'train'"),
        (["train", "digits", "train.steps=many"], "train.steps must be a whole number, got 'many'"),
        (["train", "digits", "steps=3"], "did you mean 'train.steps=3' or 'sample.sampler.steps=3'?"),
        (["train", "digits", "train.lr=1e-4"], "did you mean 'optimizer.learning_rate'?"),
        (["train", "digits", "model.patch_size=3"], "model.patch_size 3 does not divide the input size 8x8"),
        (["train", "digits", "model.num_heads=5"], "model.num_heads 5 does not divide model.hidden_size 96"),
        (["train", "digits", "model.num_classes=4"], "set model.num_classes=10"),
        (["train", "digits", "--device", "tpu"], "unknown device 'tpu'; use auto, cpu, cuda or mps"),
        (["train", "digits", "sample.sampler=plms"], "sample.sampler: unknown sampler 'plms'"),
        (["train", "imagenet256-s2"], "data.path=FOLDER"),
        (["train", "imagenet256-s2", "data.path=/nowhere"], "/nowhere contains no encoded images"),
        (["sample", "nowhere", "--out", "x.png"], "nowhere does not exist"),
        (["plan", "digits", "--devices", "0"], "devices"),
    ],
)
def test_a_wrong_call_exits_2_in_one_line_and_leaves_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "3,11"], "class 11 is out of range; this model has the classes 0..9"),
        (["--classes", "-1"], "class -1 is out of range"),
        (["--classes", "seven"], "unknown class 'seven'"),
        (["--steps", "0"], "steps must"),
        (["--num", "0"], "--num must be at least 1"),
        (["--sampler", "plms"], "unknown sampler 'plms'"),
        (["--per-class", "2", "--num", "3"], "cannot be combined with"),
    ],
)
def test_a_wrong_sample_call_exits_2(run: Path, arguments: list[str], message: str, tmp_path: Path, capsys):
    assert main(["sample", str(run), "--out", str(tmp_path / "x.png"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file/x.png", "file/x.npz", "file/folder"])
def test_sample_checks_first_that_it_can_write(
    run: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from scaledit.sampling import request

    monkeypatch.setattr(request, "run", lambda *_: pytest.fail("sampled"))
    (tmp_path / "file").touch()
    assert main(["sample", str(run), "--out", str(tmp_path / name)]) == 2
    assert f"{tmp_path / 'file'} is not a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_sample_refuses_unknown_formats_and_folders_without_a_run(run: Path, tmp_path: Path, capsys):
    assert main(["sample", str(run), "--out", str(tmp_path / "x.jpg")]) == 2
    assert main(["sample", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert "contains no checkpoint" in capsys.readouterr().err


def test_contents_of_a_run_folder(run: Path):
    assert json.loads((run / "config.json").read_text())["train"]["steps"] == 4
    events = [json.loads(line)["event"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert events[0] == "started"
    assert events[-1] == "finished"
    assert {"stepped", "sampled", "saved"} < set(events)
    latest = run / "checkpoints" / "step-00000004"
    manifest = json.loads((latest / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in latest.glob("*.safetensors")}
    assert Image.open(run / "samples" / "step-00000004.png").width > 100
    page = (run / "report.html").read_text()
    for part in ("class accuracy", "Real images", "images/s in training", "training loss", "data:image/png"):
        assert part in page


def test_samples_go_into_a_grid_a_batch_and_a_folder(run: Path, tmp_path: Path, capsys):
    """The three outputs hold the same images, those of the pipeline at the same indices."""
    common = ["sample", str(run), "--classes", "3,5", "--per-class", "2", "--seed", "7", "--cfg-scale", "1.5"]
    for name in ("grid.png", "batch.npz", "folder"):
        assert main([*common, "--out", str(tmp_path / name), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["labels"] == "rows"
    batch = np.load(tmp_path / "batch.npz")
    assert batch["arr_0"].shape == (4, 8, 8, 3)
    assert batch["arr_0"].dtype == np.uint8
    assert batch["arr_1"].tolist() == [3, 3, 5, 5]
    assert np.array_equal(batch["arr_0"], load(run)([3, 3, 5, 5], seed=7, cfg_scale=1.5))
    files = sorted((tmp_path / "folder").iterdir())
    assert [path.name for path in files] == ["000000-3.png", "000001-3.png", "000002-5.png", "000003-5.png"]
    assert np.array_equal(np.stack([np.asarray(Image.open(path)) for path in files]), batch["arr_0"])
    origin = json.loads(Image.open(tmp_path / "grid.png").text["scaledit"])
    assert (origin["seed"], origin["step"], origin["sampler"]["name"]) == (7, 4, "dpm")
    assert origin["guidance"] == [{"name": "classifier_free", "scale": 1.5, "channels": 3}]
    shifted = load(run)([5], seed=7, start=2, cfg_scale=1.5)[0]
    assert np.abs(shifted.astype(int) - batch["arr_0"][2]).max() <= 1


def test_checkpoint_of_a_run_can_be_sampled(run: Path):
    early, late = (load(run / "checkpoints" / f"step-{step:08d}") for step in (2, 4))
    assert (early.origin["step"], late.origin["step"]) == (2, 4)
    assert late.origin["sha256"] == load(run).origin["sha256"] != early.origin["sha256"]


def test_a_corrupt_checkpoint_exits_1_and_names_it(run: Path, tmp_path: Path, capsys):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step-00000004" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "x.png")]) == 1
    error = capsys.readouterr().err
    assert "step-00000004 is corrupt: ema.safetensors has" in error
    assert "Traceback" not in error


def test_a_python_program_gets_its_signal_handlers_back(run: Path, capsys):
    def own(number: int, frame: object) -> None: ...

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, own) for number in numbers}
    try:
        assert main(["train", "digits", "--out", str(run), *RUN, "sample.every=2"]) == 2
        assert "already contains this run" in capsys.readouterr().err  # so it had listened for signals
        assert [signal.getsignal(number) for number in numbers] == [own] * 3
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert main(["recipes"]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_options_and_overrides_mix(tmp_path: Path, capsys):
    assert main(["plan", "digits", "train.steps=10", "--json", "train.batch_size=2", "--peak", "1e12"]) == 0
    ten = json.loads(capsys.readouterr().out)
    assert main(["plan", "digits", "--json", "train.steps=20", "train.batch_size=2", "--peak", "1e12"]) == 0
    assert json.loads(capsys.readouterr().out)["train_macs"] == 2 * ten["train_macs"]


def test_models_prints_the_papers_table(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 16
    assert main(["models"]) == 0
    assert "118.6" in capsys.readouterr().out
