"""Ctrl-C: each command says what it has kept, and how to resume."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

import pictures
from processes import At, Gate, Job, scaledit
from scaledit.cli import main
from tiny import TINY

RESUME = "run the same command again to resume"


@dataclass(frozen=True)
class CtrlC:
    """Ctrl-C within the process itself. To be given to `At`."""

    def __call__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("interrupts") / "run"
    assert main(["train", "digits", "--out", str(out), *TINY, "train.steps=2", "evaluate.num=20"]) == 0
    return out


def said(job: Job) -> str:
    """What an interrupted command says."""
    assert job.wait() == 130, job.said()
    return job.said().splitlines()[-1]


def test_sample_has_written_nothing(run: Path, tmp_path: Path):
    out, gate = tmp_path / "x.png", Gate(tmp_path / "gate")
    words = ["sample", str(run), "--num", "2", "--batch-size", "1", "--out", str(out)]
    job = scaledit(*words, beside=out, before=At("scaledit.diffusion:sample", gate, nth=2))
    gate.reached(job)
    os.kill(job.pid, signal.SIGINT)
    assert said(job) == "scaledit: interrupted; nothing was written"
    assert not out.exists()


def test_sample_counts_the_images_that_it_has_written(run: Path, tmp_path: Path):
    out = tmp_path / "folder"
    words = ["sample", str(run), "--num", "5", "--out", str(out)]
    job = scaledit(*words, beside=out, before=At("scaledit.images:save_png", CtrlC(), nth=3))
    assert said(job).startswith(f"scaledit: interrupted; 2 of 5 images are written in {out}")
    assert len(list(out.glob("*.png"))) == 2


def test_generate_counts_the_parts_that_it_keeps_and_resumes(run: Path, tmp_path: Path, capsys):
    out, gate = tmp_path / "y.npz", Gate(tmp_path / "gate")
    words = ["generate", str(run), "--num", "700", "--out", str(out)]
    at = At("scaledit.sampling.files:write_npz", gate, nth=3)
    job = scaledit(*words, beside=out, before=at)
    gate.reached(job)
    os.kill(job.pid, signal.SIGINT)
    assert said(job) == f"scaledit: interrupted; 2 of 3 parts are kept in {out}.parts; {RESUME}"
    assert not out.exists()
    assert main([*words, "--quiet"]) == 0
    assert out.exists()


def test_generate_says_so_before_the_first_part(run: Path, tmp_path: Path):
    out = tmp_path / "y.npz"
    words = ["generate", str(run), "--num", "700", "--out", str(out)]
    job = scaledit(*words, beside=out, before=At("scaledit.sampling.files:write_npz", CtrlC()))
    assert said(job) == f"scaledit: interrupted; none of 3 parts was finished; {RESUME}"


def test_evaluate_has_measured_nothing(run: Path, tmp_path: Path):
    out = tmp_path / "result.json"
    words = ["evaluate", str(run), "--reference", "digits", "--json", str(out)]
    at = At("scaledit.evaluation.judge:Judge.evaluate", CtrlC())
    assert said(scaledit(*words, beside=out, before=at)) == (
        "scaledit: interrupted; nothing was measured and nothing was written"
    )
    assert not out.exists()


def test_encode_counts_its_files_and_resumes(tmp_path: Path):
    source, out = pictures.tree(tmp_path / "pictures"), tmp_path / "latents"
    words = ["encode", str(source), "--image-size", "16", "--autoencoder", "pixels", "--per-file", "4"]
    words += ["--out", str(out)]
    at = At("scaledit.autoencoders.cache:_Folder.make", CtrlC(), nth=3)
    job = scaledit(*words, beside=out, before=at)
    assert said(job) == f"scaledit: interrupted; 2 of 3 files are kept in {out}; {RESUME}"
    assert main([*words, "--quiet"]) == 0


def test_convert_has_written_nothing(run: Path, tmp_path: Path):
    out = tmp_path / "exported"
    at = At("scaledit.interop.native:write_safetensors", CtrlC())
    job = scaledit("convert", str(run), str(out), "--to", "scaledit", beside=out, before=at)
    assert said(job) == "scaledit: interrupted; nothing was written"
    assert [path.name for path in tmp_path.iterdir()] == ["exported.output"]


STUDY = """
title = "tiny"
recipe = "digits"
[sizes.S]
depth = 1
hidden_size = 16
num_heads = 2
[common]
train.steps = 4
train.batch_size = 16
evaluate.every = 0
evaluate.num = 20
sample.every = 0
[[runs]]
size = "S"
model.patch_size = [4, 8]
[[measure]]
part = "final"
"""


def test_study_counts_the_jobs_that_are_done(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(STUDY)
    out, gate = tmp_path / "out", Gate(tmp_path / "gate")
    words = ["study", str(tmp_path / "mine.toml"), "--join", "--out", str(out)]
    job = scaledit(*words, beside=out, before=At("scaledit.training.learner:Learner.train_step", gate, nth=6))
    gate.reached(job)  # in the second training, after the first one and its measurement
    os.kill(job.pid, signal.SIGINT)
    gate.open()
    assert job.wait() == 75, job.said()
    assert f"stopped; 2 of 4 jobs are kept in {out}; {RESUME}" in job.said()


def test_study_says_so_while_it_measures_the_machine(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(STUDY)
    out = tmp_path / "out"
    at = At("scaledit.scaling.cost:measure_rates", CtrlC())
    job = scaledit("study", str(tmp_path / "mine.toml"), "--out", str(out), beside=out, before=at)
    assert said(job) == f"scaledit: interrupted; none of 4 jobs was finished; {RESUME}"
