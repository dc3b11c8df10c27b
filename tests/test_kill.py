"""kill -9 at random moments of a real process, resumed each time: the end is that of an undisturbed run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from lives import one_more
from processes import Job, scaledit
from saved import identical, weights
from tiny import TINY


def start(out: Path, steps: int, before: Callable[[], None] | None = None) -> Job:
    shape = [f"train.steps={steps}", "checkpoint.every=7", "sample.every=50"]
    words = ["train", "digits", "--resume", "auto", *TINY, *shape, "--out", str(out)]
    return scaledit(*words, beside=out, before=before)


def test_killed_at_random_moments_and_resumed(tmp_path: Path):
    """Three times; tests/faults kills more often."""
    kills, steps = 3, 200
    undisturbed = start(tmp_path / "whole", steps)
    assert undisturbed.wait() == 0, undisturbed.said()
    rng, out = random.Random(kills), tmp_path / "killed"
    for _ in range(kills):
        one_more(lambda before: start(out, steps, before), out, steps, after=rng.randint(1, 40))
    last = start(out, steps)
    assert last.wait() == 0, last.said()
    assert identical(weights(tmp_path / "whole", steps), weights(out, steps))
    assert (out / "report.html").exists()
    assert not list((out / "checkpoints").glob(".*"))
