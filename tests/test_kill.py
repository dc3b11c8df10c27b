"""kill -9 at random moments of a real process, resumed each time: the end is that of an undisturbed run."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from processes import Job, scaledit
from saved import identical, weights
from tiny import TINY


def start(out: Path, steps: int) -> Job:
    shape = [f"train.steps={steps}", "checkpoint.every=7", "sample.every=50"]
    words = ["train", "digits", "--resume", "auto", *TINY, *shape, "--out", str(out)]
    return scaledit(*words, beside=out)


def log_file(out: Path) -> int | None:
    """Which file log.jsonl is: every life of a run replaces it when its training begins."""
    path = out / "log.jsonl"
    return path.stat().st_ino if path.exists() else None


def test_killed_at_random_moments_and_resumed(tmp_path: Path):
    """Three times; tests/faults kills more often."""
    kills = 3
    steps = 200 + 60 * kills  # long enough that no life sees the end: each has a quarter of a second at most
    undisturbed = start(tmp_path / "whole", steps)
    assert undisturbed.wait() == 0, undisturbed.said()
    rng, out, struck = random.Random(kills), tmp_path / "killed", 0
    while struck < kills:
        before = log_file(out)
        process = start(out, steps)
        while process.running() and log_file(out) == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.25))  # from the start of training, a random moment
        if not process.running():
            pytest.fail(f"the run ended after {struck} kills: make it longer")
        process.kill()
        struck += 1
    last = start(out, steps)
    assert last.wait() == 0, last.said()
    assert identical(weights(tmp_path / "whole", steps), weights(out, steps))
    assert (out / "report.html").exists()
    assert not list((out / "checkpoints").glob(".*"))
