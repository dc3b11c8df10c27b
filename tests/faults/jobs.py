"""Real training processes to be hurt: `scaledit train` of a tiny run, alone or as ranks, and what it left."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from demos import SCALEDIT
from processes import Job, output_beside, scaledit
from scaledit import checkpoint
from tiny import TINY

QUIET = ("evaluate.reference=", "train.steps=40", "checkpoint.every=7", "engine.timeout=60")
SOON = "engine.timeout=8"
"""For jobs that will hang: found soon, and not too soon for a start on a busy machine."""


def start(
    out: Path, *overrides: str, recipe: str = "digits", before: Callable[[], None] | None = None
) -> Job:
    """`scaledit train` as one process. before: runs in it first."""
    return scaledit(*words(out, *overrides, recipe=recipe), beside=out, before=before)


def words(out: Path, *overrides: str, recipe: str = "digits") -> list[str]:
    return [
        "train",
        recipe,
        "--device",
        "cpu",
        "--resume",
        "auto",
        "--out",
        str(out),
        *TINY,
        *QUIET,
        *overrides,
    ]


def start_ranks(out: Path, nproc: int, *overrides: str) -> Job:
    """`scaledit train --nproc`."""
    return _started([*SCALEDIT, *words(out, *overrides), "--nproc", str(nproc)], out)


def start_script_ranks(script: Path, out: Path, nproc: int, *overrides: str) -> Job:
    """A script that stands for `scaledit`, as torchrun's ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    return _started([*torchrun, str(script), *words(out, *overrides)], out)


def _started(command: list[str], out: Path) -> Job:
    output = output_beside(out)
    with output.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    return Job(process, output)


def ranks_of(out: Path, nproc: int) -> list[int]:
    """The processes of a job's ranks, as they say themselves; waits until all do."""
    files = [out / ".run" / f"rank-{rank}.json" for rank in range(nproc)]
    until(lambda: all(file.exists() for file in files))
    return [json.loads(file.read_text())["process"] for file in files]


def until(what: Callable[[], object], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def steps_logged(out: Path) -> int:
    try:
        lines = (out / "log.jsonl").read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)
    except OSError:
        return 0


def reaches(job: Job, out: Path, step: int) -> None:
    """Waits until the job has logged a step."""
    until(lambda: steps_logged(out) >= step or not job.running())
    assert job.running(), job.said()


def events(out: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == name]


def status(out: Path) -> dict[str, Any]:
    return json.loads((out / "status.json").read_text())


def checkpoints(out: Path) -> list[Path]:
    return checkpoint.find(out / "checkpoints")


def newest(out: Path) -> checkpoint.Checkpoint:
    """The newest checkpoint that is whole."""
    found = checkpoint.latest(out / "checkpoints").checkpoint
    assert found is not None
    return found


def contents(out: Path) -> dict[Path, bytes]:
    """Every file of a run folder but those that only running jobs need."""
    files = (path for path in out.rglob("*") if path.is_file() and ".run" not in path.parts)
    return {path: path.read_bytes() for path in files}


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes, mounted at folder. Skips the test where that is not allowed."""
    import pytest

    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
