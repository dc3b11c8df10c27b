"""Jobs of several ranks that are paused, or interrupted at the terminal."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import jobs
import pytest
from jobs import reaches, start_ranks, status, steps_logged, until

from saved import identical, weights

pytestmark = pytest.mark.faults


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_job_paused_and_continued(tmp_path: Path, happened):
    """A job is paused for longer than its timeout and then continued"""
    out = tmp_path / "run"
    impatient = tmp_path / "impatient"
    job = start_ranks(out, 2, jobs.ENDLESS, before=jobs.Impatient(impatient))
    reaches(job, out, 20)
    ranks = jobs.ranks_of(out, 2)
    impatient.touch()
    os.kill(job.pid, signal.SIGTSTP)
    until(lambda: {state(pid) for pid in (job.pid, *ranks)} == {"T"})
    time.sleep(jobs.SOON + 4)  # the fault itself
    at = steps_logged(out)
    os.kill(job.pid, signal.SIGCONT)
    reaches(job, out, at + 20)
    impatient.unlink()
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait() == 75, job.said()
    assert status(out)["state"] == "stopped"
    happened(
        "Ctrl-Z (SIGTSTP) to the launcher of 2 ranks for 12 s, engine.timeout 8 s",
        "All ranks pause and continue. Asked to stop later, the job exits with code 75.",
    )


def test_interrupted_at_the_terminal(tmp_path: Path, happened):
    """Ctrl-C in the terminal"""
    out, steps = tmp_path / "run", "train.steps=300"
    job = start_ranks(out, 2, steps)
    reaches(job, out, 20)
    os.kill(job.pid, signal.SIGINT)
    assert job.wait() == 75, job.said()
    step = steps_logged(out)
    assert (status(out)["state"], status(out)["reason"], status(out)["step"]) == ("stopped", "SIGINT", step)
    assert job.said().count("Ctrl-C again leaves at once") == 1
    assert "Traceback" not in job.said()
    again = start_ranks(out, 2, steps)
    assert again.wait() == 0, again.said()
    undisturbed = start_ranks(tmp_path / "whole", 2, steps)
    assert undisturbed.wait() == 0
    assert identical(weights(out, 300), weights(tmp_path / "whole", 300))
    happened(
        "SIGINT to the launcher of 2 ranks",
        f"Exit code 75 after step {step}, which is saved and recorded in status.json. The resumed run ends "
        "bit-identical.",
    )
