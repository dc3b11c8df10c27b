"""Real training processes for fault injection: `scaledit train` of a tiny run, as one process or as ranks."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demos import SCALEDIT
from lives import steps_logged
from processes import PATIENCE, STARTED, Job, output_beside, scaledit, until
from scaledit import checkpoint
from tiny import TINY

QUIET = ("evaluate.reference=", "train.steps=40", "checkpoint.every=7", f"engine.timeout={PATIENCE:g}")
SOON = 8.0
INSIDE, TESTS = Path(__file__).with_name("inside"), Path(__file__).parents[1]
ENDLESS = "train.steps=100000000"


@dataclass(frozen=True)
class Impatient:
    """`before` of a process whose job will hang: as soon as the file `now` is there, its engine.timeout is
    SOON, for the watch and for the turn of the loader's worker that the file names, if any. Until then, and
    for the other workers, it is as in QUIET: a start on a busy machine may take as long as it likes."""

    now: Path

    def __call__(self) -> None:
        from scaledit.data.loader import Loader
        from scaledit.training.watch import LOOKS, Watch

        Watch.timeout = property(lambda watch: SOON if self.now.exists() else PATIENCE, lambda *_: None)
        Watch.interval = property(lambda watch: SOON / LOOKS, lambda *_: None)
        take = Loader.take

        def impatient(loader: Any, positions: range) -> Any:
            if loader._items is not None:
                worker = loader._pids[loader._taken % loader.workers]
                hangs = self.now.exists() and self.now.read_text() == str(worker)
                loader._items._timeout = 0.75 * (SOON if hangs else PATIENCE)
            return take(loader, positions)

        Loader.take = impatient


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


def start_ranks(out: Path, nproc: int, *overrides: str, before: Callable[[], None] | None = None) -> Job:
    """`scaledit train --nproc`. before: runs in each rank first."""
    environment = dict(os.environ)
    if before is not None:
        file = out.with_name(f"{out.name}.before")
        file.write_bytes(pickle.dumps(before))
        path = os.pathsep.join(map(str, [INSIDE, Path(__file__).parent, TESTS, *sys.path]))
        environment |= {"PYTHONPATH": path, "SCALEDIT_TESTS_BEFORE": str(file)}
    return _started([*SCALEDIT, *words(out, *overrides), "--nproc", str(nproc)], out, environment)


def start_script_ranks(script: Path, out: Path, nproc: int, *overrides: str) -> Job:
    """A script that stands for `scaledit`, as torchrun's ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    return _started([*torchrun, str(script), *words(out, *overrides)], out)


def _started(command: list[str], out: Path, environment: dict[str, str] | None = None) -> Job:
    output = output_beside(out)
    with output.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=environment)
    STARTED.append(job := Job(process, output))
    return job


def ranks_of(out: Path, nproc: int) -> list[int]:
    """The processes of a job's ranks, as they say themselves; waits until all do."""
    files = [out / ".run" / f"rank-{rank}.json" for rank in range(nproc)]
    until(lambda: all(file.exists() for file in files))
    return [json.loads(file.read_text())["process"] for file in files]


def reaches(job: Job, out: Path, step: int) -> None:
    """Waits until the job has logged a step."""
    until(lambda: steps_logged(out) >= step, job)
    assert job.running(), job.said()


def events(out: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == name]


def status(out: Path) -> dict[str, Any]:
    return json.loads((out / "status.json").read_text())


def checkpoints(out: Path) -> list[Path]:
    return checkpoint.find(out / "checkpoints")


def newest(out: Path) -> checkpoint.Checkpoint:
    """The newest complete checkpoint."""
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
