"""kill -9 at random moments of a real process, resumed each time: the end is that of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from scaledit import checkpoint
from tiny import TINY

STEPS = 400
COMMAND = [sys.executable, "-m", "scaledit.cli", "train", "digits", "--resume", "auto", *TINY]
SHAPE = [f"train.steps={STEPS}", "checkpoint.every=7", "sample.every=50"]


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *SHAPE, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def log_size(out: Path) -> int:
    path = out / "log.jsonl"
    return path.stat().st_size if path.exists() else 0


def final_weights(out: Path) -> dict[str, Tensor]:
    folder = checkpoint.find(out / "checkpoints")[-1]
    assert folder.name == checkpoint.folder_name(STEPS)
    return {
        f"{file}/{key}": value
        for file in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(file).items()
    }


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed(tmp_path: Path, kills: int):
    undisturbed = start(tmp_path / "whole")
    assert undisturbed.wait() == 0, undisturbed.stderr.read().decode()
    rng, out, struck = random.Random(kills), tmp_path / "killed", 0
    while struck < kills:
        before = log_size(out)
        process = start(out)
        # The first log line of this life is written when training begins: from there, a random moment.
        while process.poll() is None and log_size(out) <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.25))
        if process.poll() is not None:
            pytest.fail(f"the run ended after {struck} kills: make it longer")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        struck += 1
    last = start(out)
    assert last.wait() == 0, last.stderr.read().decode()
    whole, killed = final_weights(tmp_path / "whole"), final_weights(out)
    whole = {key.replace(str(tmp_path / "whole"), ""): value for key, value in whole.items()}
    killed = {key.replace(str(out), ""): value for key, value in killed.items()}
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    assert (out / "report.html").exists()
    assert not list((out / "checkpoints").glob(".*"))
