"""Processes that are killed, paused, asked to stop or stuck, and a second job in one folder."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import jobs
import pytest
from jobs import ENDLESS, Impatient, reaches, start, start_ranks, status
from safetensors.torch import load_file

from lives import one_more, steps_logged
from pictures import tree
from processes import ADVANCE, At, Each, Gate, Note, die, until
from saved import identical, weights
from scaledit import checkpoint

pytestmark = pytest.mark.faults


def test_killed_at_random_moments(tmp_path: Path, happened, repeats):
    """A process is killed at random moments, repeatedly"""
    kills = repeats(50)
    step = 150 + 60 * kills
    steps = f"train.steps={step}"
    whole, out = start(tmp_path / "whole", steps), tmp_path / "killed"
    assert whole.wait() == 0, whole.said()
    rng = random.Random(kills)
    for _ in range(kills):
        one_more(lambda before: start(out, steps, before=before), out, step, after=rng.randint(1, 60))
    last = start(out, steps)
    assert last.wait() == 0, last.said()
    assert identical(weights(tmp_path / "whole", step), weights(out, step))
    logged = [event["step"] for event in jobs.events(out, "stepped")]
    assert logged == list(range(1, step + 1))
    assert not list((out / "checkpoints").glob(".*"))
    happened(
        f"`kill -9`, {kills} times, 1 to 60 steps after each start; resumed each time",
        f"After {step} steps, weights, EMA weights and optimizer state are bit-identical to those of an "
        "undisturbed run. The log has every step once.",
    )


def test_killed_while_saving(tmp_path: Path, happened, repeats):
    """A process is killed while it writes a checkpoint"""
    kills, out, rng = repeats(100), tmp_path / "run", random.Random(1)
    often = ("checkpoint.every=1", "model.hidden_size=64", "train.log_every=100000")
    first = start(out, *often, "train.steps=1")
    assert first.wait() == 0, first.said()
    cut = 0
    for kill in range(kills):
        points = (
            At("torch:Tensor.numpy", die, nth=rng.randint(1, 40)),  # a file is begun
            At("os:fsync", die, nth=rng.randint(1, 6)),  # a file, or the folder, is not yet on the disk
            At("pathlib:Path.rename", die, argument="*/step-*"),  # the checkpoint has no name yet
        )
        job = start(out, *often, ENDLESS, before=At("scaledit.checkpoint:finish", points[kill % len(points)]))
        assert job.wait() == -9, job.said()
        [left] = partial(out)
        cut += not (left / checkpoint.MANIFEST).exists()
        found = checkpoint.latest(out / "checkpoints")
        assert found.checkpoint is not None and found.checkpoint.step == 1
        assert not found.corrupt
        assert load_file(found.checkpoint.folder / "model.safetensors")
    assert cut >= kills // 3
    happened(
        f"`kill -9`, {kills} times: inside a file, before a file is synced, or before the folder is renamed",
        f"{kills} saves were interrupted. Every time the newest checkpoint was complete (SHA-256 of each "
        "file) and could be loaded.",
    )


def partial(out: Path) -> list[Path]:
    """Checkpoints that are being written, or were."""
    return list((out / "checkpoints").glob(".step-*.partial"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("nproc", [1, 2])
def test_asked_to_stop(tmp_path: Path, happened, name: str, nproc: int):
    """A job is asked to stop"""
    out = tmp_path / "run"
    job = start(out, ENDLESS) if nproc == 1 else start_ranks(out, nproc, ENDLESS)
    reaches(job, out, 20)
    os.kill(job.pid, getattr(signal, name))
    code, said = job.wait(), job.said()
    assert code == 75, said
    step = steps_logged(out)
    assert status(out) | {"time": ""} == {
        "state": "stopped",
        "step": step,
        "time": "",
        "ranks": nproc,
        "reason": name,
        "exit_code": 75,
    }
    assert jobs.newest(out).step == step
    assert step >= 20
    end = step + 50
    steps = f"train.steps={end}"
    again = start(out, steps) if nproc == 1 else start_ranks(out, nproc, steps)
    assert again.wait() == 0, again.said()
    whole = tmp_path / "whole"
    undisturbed = start(whole, steps) if nproc == 1 else start_ranks(whole, nproc, steps)
    assert undisturbed.wait() == 0
    assert identical(weights(out, end), weights(whole, end))
    receiver = "one process" if nproc == 1 else f"the launcher of {nproc} ranks"
    happened(
        f"{name} to {receiver}",
        f"Exit code 75 after step {step}, which is saved and recorded in status.json. The resumed run ends "
        "bit-identical.",
    )


def test_told_twice(tmp_path: Path, happened):
    """A job is asked to stop a second time"""
    out, gate, heard = tmp_path / "run", Gate(tmp_path / "gate"), tmp_path / "heard"
    listens = At("scaledit.training.signals:StopRequest._on_signal", Note(heard), after=True)
    job = start(out, "train.steps=30", before=Each((At(ADVANCE, gate, nth=10), listens)))
    gate.reached(job)  # a step that does not end
    until(lambda: jobs.checkpoints(out), job)
    os.kill(job.pid, signal.SIGTERM)
    until(heard.exists, job)  # two pending signals of one kind would be delivered as one
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait() == 143
    assert (steps_logged(out), jobs.newest(out).step) == (9, 7)
    again = start(out, "train.steps=30")
    assert again.wait() == 0, again.said()
    happened("SIGTERM twice", "Exit code 143 at once. The saved checkpoint is intact, and the run resumes.")


def test_asked_to_stop_while_judging(tmp_path: Path, happened):
    """A job is asked to stop during an evaluation"""
    out, gate, heard = tmp_path / "run", Gate(tmp_path / "gate"), tmp_path / "heard"
    judging = ("evaluate.every=10", "evaluate.reference=digits", "evaluate.num=2000")
    listens = At("scaledit.training.signals:StopRequest._on_signal", Note(heard), after=True)
    job = start(out, *judging, before=Each((At("scaledit.pipeline:Pipeline.sample", gate, nth=2), listens)))
    gate.reached(job)  # some samples are judged
    os.kill(job.pid, signal.SIGTERM)
    until(heard.exists, job)
    gate.open()
    assert job.wait() == 75, job.said()
    assert not jobs.events(out, "evaluated")
    assert jobs.newest(out).step == 11
    happened(
        "SIGTERM in the middle of an evaluation",
        "The evaluation is abandoned, step 11 is saved, exit code 75.",
    )


def test_a_rank_is_killed(tmp_path: Path, happened):
    """A rank is killed"""
    out = tmp_path / "run"
    job = start_ranks(out, 2, ENDLESS)
    reaches(job, out, 20)
    victim = jobs.ranks_of(out, 2)[1]
    os.kill(victim, signal.SIGKILL)
    assert job.wait() == 1
    said = job.said()
    assert f"rank 1 (process {victim}" in said, said
    assert "Traceback" not in said
    assert status(out)["state"] == "failed"
    assert gone(jobs.ranks_of(out, 2))
    resumes(out)
    happened("`kill -9` to rank 1 of 2", f"Exit code 1: “{line_with(said, 'rank 1')}”. The run resumes.")


def test_the_first_rank_is_killed(tmp_path: Path, happened):
    """The first rank is killed"""
    out = tmp_path / "run"
    job = start_ranks(out, 2, ENDLESS)
    reaches(job, out, 20)
    victim = jobs.ranks_of(out, 2)[0]
    os.kill(victim, signal.SIGKILL)
    assert job.wait() == 1
    said = job.said()
    assert f"rank 0 (process {victim}" in said, said
    assert gone(jobs.ranks_of(out, 2))
    resumes(out)
    happened("`kill -9` to rank 0 of 2", f"Exit code 1: “{line_with(said, 'rank 0')}”. The run resumes.")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_hangs(tmp_path: Path, happened, rank: int):
    """A rank hangs"""
    out = tmp_path / "run"
    now = tmp_path / "now"
    job = start_ranks(out, 2, ENDLESS, before=Impatient(now))
    reaches(job, out, 20)
    victim = jobs.ranks_of(out, 2)[rank]
    os.kill(victim, signal.SIGSTOP)
    now.touch()
    assert job.wait() == 1
    said = job.said()
    assert f"rank {rank} (process {victim}" in said, said
    assert "does not answer" in said
    assert status(out)["state"] == "failed"
    assert gone(jobs.ranks_of(out, 2))
    resumes(out)
    happened(
        f"SIGSTOP to rank {rank} of 2, engine.timeout 8 s",
        f"Exit code 1: “{line_with(said, 'does not answer')}”. The run resumes.",
    )


def test_the_starter_is_killed(tmp_path: Path, happened):
    """The launcher of the ranks is killed"""
    out = tmp_path / "run"
    job = start_ranks(out, 2, ENDLESS)
    reaches(job, out, 20)
    victims = jobs.ranks_of(out, 2)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    until(lambda: gone(victims))
    resumes(out)
    happened("`kill -9` to the launcher", "Its ranks end by themselves within seconds. The run resumes.")


LOADING = ("data.name=images", "data.image_size=8", "model.in_channels=3", ENDLESS)


SHOWN = "scaledit.progress:TrainingProgress.__call__"
"""The point before an event is shown, outside the training loop: torch raises where the signal arrives."""


@pytest.mark.parametrize(("how", "point"), [("killed", ADVANCE), ("killed", SHOWN), ("hung", ADVANCE)])
def test_a_loader_worker(tmp_path: Path, happened, how: str, point: str):
    """A loader worker is lost"""
    pictures = tree(tmp_path / "pictures")
    classes = len([path for path in pictures.iterdir() if path.is_dir()])
    out, now, gate = tmp_path / "run", tmp_path / "now", Gate(tmp_path / "gate")
    overrides = (*LOADING, f"data.path={pictures}", f"model.num_classes={classes}", "data.workers=2")
    job = start(out, *overrides, before=Each((Impatient(now), At(point, gate, nth=10))))
    gate.reached(job)
    victim = children(job.pid)[0]
    os.kill(victim, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    if how == "killed":
        until(lambda: gone([victim]))  # the job is told by a signal at this very point
    now.with_suffix(".part").write_text(str(victim))
    now.with_suffix(".part").rename(now)
    gate.open()
    code, said = job.wait(), job.said()
    assert code == 1
    assert f"process {victim}" in said, said
    assert "loader worker" in said
    assert "Traceback" not in said
    assert status(out)["state"] == "failed"
    until(lambda: gone([victim]))
    resumes(out, *overrides, "data.workers=0")
    signalled = "`kill -9`" if how == "killed" else "SIGSTOP"
    moment = " while an event is shown" if point == SHOWN else ""
    happened(
        f"{signalled} to one of two workers{moment}, engine.timeout 8 s",
        f"Exit code 1: “{line_with(said, 'loader worker')}”. The run resumes.",
    )


def test_two_jobs_on_one_folder(tmp_path: Path, happened):
    """Two jobs use one run folder"""
    out, gate = tmp_path / "run", Gate(tmp_path / "gate")
    first = start(out, "train.steps=60", before=At(ADVANCE, gate, nth=5))
    gate.reached(first)
    second = start(out.with_name("run"), "train.steps=60")
    assert second.wait() == 2
    gate.open()
    assert f"another job is training in {out} (process {first.pid} on " in first.said() + second.said()
    assert first.wait() == 0
    whole = start(tmp_path / "whole", "train.steps=60")
    assert whole.wait() == 0
    assert identical(weights(out, 60), weights(tmp_path / "whole", 60))
    happened(
        "the same command a second time",
        "Exit code 2, naming the process that trains. The first job ends bit-identical to a single one.",
    )


def test_a_changed_config_on_resume(tmp_path: Path, happened):
    """The config is changed on resume"""
    out = tmp_path / "run"
    assert start(out).wait() == 0
    before = jobs.contents(out)
    job = start(out, "optimizer.learning_rate=0.1")
    assert job.wait() == 2
    assert "optimizer.learning_rate: 0.005 -> 0.1" in job.said()
    assert jobs.contents(out) == before
    happened(
        "optimizer.learning_rate=0.1",
        "Exit code 2, naming the key, its old value and its new value. Nothing is written.",
    )


def resumes(out: Path, *overrides: str) -> None:
    """Asserts that the run resumes from a checkpoint, as one process."""
    at = jobs.newest(out).step
    job = start(out, *(overrides or (ENDLESS,)), "checkpoint.every=1")
    until(lambda: jobs.newest(out).step > at, job)
    assert job.running(), job.said()
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait() == 75


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def gone(processes: list[int]) -> bool:
    """Whether the processes have ended with all of their threads: only then are their parents notified."""
    for process in processes:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
            threads = len(list(Path(f"/proc/{process}/task").iterdir()))
        except OSError:
            continue
        if state != "Z" or threads > 1:
            return False
    return True


def line_with(said: str, words: str) -> str:
    """The line of a job's output that says it, without what differs from run to run."""
    line = next(line for line in said.splitlines() if words in line)
    return line.removeprefix("scaledit: ").split(";")[0].split(". The same")[0]
