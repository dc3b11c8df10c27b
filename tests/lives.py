"""Runs that are killed repeatedly: each process resumes from a checkpoint and is killed before the end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

from processes import ADVANCE, At, Gate, Job, until
from scaledit import checkpoint
from scaledit.training import log

Start = Callable[[Callable[[], None]], Job]
"""Starts a run that logs every step, in which its argument runs first."""
_gates = itertools.count()


def log_file(out: Path) -> int | None:
    """Which file log.jsonl is: every life of a run replaces it when its training begins."""
    path = out / log.LOG
    return path.stat().st_ino if path.exists() else None


def steps_logged(out: Path) -> int:
    """The last step that the log tells of."""
    try:
        lines = (out / log.LOG).read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)
    except OSError:
        return 0


def one_more(start: Start, out: Path, steps: int, after: int) -> None:
    """A life of a run of `steps` steps that is killed from outside as soon as it has logged `after` steps: at
    whatever it is just doing, and in the middle of training, because it waits before the last step."""
    there = checkpoint.find(out / "checkpoints")
    saved = int(there[-1].name.removeprefix("step-")) if there else 0
    assert saved < steps
    gate, before = Gate(out.with_name(f"{out.name}.gate-{next(_gates)}")), log_file(out)
    job = start(At(ADVANCE, gate, nth=steps - saved))
    reached = min(saved + after, steps - 1)
    until(lambda: log_file(out) != before and steps_logged(out) >= reached, job)
    job.kill()
    assert job.wait() == -9, job.said()
    assert reached <= steps_logged(out) < steps
    assert not [line for line in log.read(out) if line["event"] == "finished"]
