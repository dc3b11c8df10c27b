"""A run folder: whose it is, what it holds, how its last life ended.

    config.json  log.jsonl  status.json  checkpoints/  samples/  report.html  .run/ (lock, a file a rank)

One job at a time: the lock is the kernel's, so it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from scaledit import checkpoint
from scaledit.config import Config, differences
from scaledit.errors import RunError, UsageError
from scaledit.parts import whole

CONFIG, STATUS, CHECKPOINTS, SAMPLES, PRIVATE = "config.json", "status.json", "checkpoints", "samples", ".run"

PATIENCE = 2.0
"""Seconds in which a job that was just killed may let go of the folder."""


class Lock:
    """The right to write into a run folder. A POSIX record lock: not inherited by the loader's processes, and
    known over NFS."""

    def __init__(self, out: Path):
        path = out / PRIVATE / "lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + PATIENCE
        while not self._taken():
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            holder = os.read(self._file, 200).decode(errors="replace").strip()
            os.close(self._file)
            raise UsageError(
                f"another job is training in {out} ({holder or 'just started'}); wait for it, stop it, or "
                "choose another --out"
            )
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _taken(self) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        os.close(self._file)


def claim(config: Config, out: Path, resume: str) -> tuple[Lock, checkpoint.Latest]:
    """Makes `out` this run's folder, or finds the checkpoint to go on from, verified. Damaged ones are passed
    over and renamed.

    Raises UsageError for a folder of something else, of another config, or of a job that runs; RunError if
    nothing can be read or written. Then nothing has been changed.
    """
    path = out / CONFIG
    if not path.exists() and out.exists() and any(entry.name != PRIVATE for entry in out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no run; choose another --out")
    if path.exists():
        _check_same(config, out, resume)
    try:
        lock = Lock(out)
    except OSError as error:
        raise RunError(f"could not write into {out}: {error.strerror}") from error
    try:
        found = checkpoint.latest(out / CHECKPOINTS)
        with whole(path) as file:
            file.write((json.dumps(config.to_json(), indent=1) + "\n").encode())
    except OSError as error:
        lock.release()
        raise RunError(f"could not write {path}: {error.strerror}") from error
    except RunError:
        lock.release()
        raise
    return lock, found


def _check_same(config: Config, out: Path, resume: str) -> None:
    """Raises UsageError where `out` holds a run that this call does not go on with."""
    path = out / CONFIG
    try:
        existing = type(config).from_json(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as a run's config ({error}); choose another --out") from None
    changed = differences(existing, config)
    if changed:
        raise UsageError(
            f"{out} holds a run of another config ({'; '.join(changed[:3])}"
            + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
            + "); choose another --out, or give that run's config"
        )
    if resume != "auto":
        raise UsageError(f"{out} already holds this run; add --resume auto to go on, or choose another --out")


def write_status(out: Path, state: str, step: int | None, **more: Any) -> None:
    """status.json: what a cluster's scripts ask. state: running, stopped, finished or failed."""
    status = {"state": state, "step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more}
    with whole(out / STATUS) as file:
        file.write((json.dumps(status, indent=1) + "\n").encode())
