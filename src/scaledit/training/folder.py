"""A run folder: its lock, its config and its status.

    config.json  log.jsonl  status.json  checkpoints/  samples/  report.html  .run/ (lock, one file per rank)

Only one job may train in a folder. The lock is the kernel's, so it ends with the process that holds it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from scaledit import checkpoint
from scaledit.config import Config, differences, steps_hint
from scaledit.data.background import DEFAULT, DROP
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.atomic import atomic_bytes, remove_abandoned
from scaledit.files.lock import Lock
from scaledit.files.reading import read_json
from scaledit.part import Allowed
from scaledit.training.log import LOG

CONFIG, STATUS, CHECKPOINTS, SAMPLES, PRIVATE = "config.json", "status.json", "checkpoints", "samples", ".run"

AnyConfig = TypeVar("AnyConfig", bound=Config)

TRIES, BETWEEN = 40, 0.05
"""How often to try the lock of a job that may just have been killed, and the seconds between tries. Tries are
counted because seconds also pass while this process is stopped."""


def locked(out: Path) -> Lock:
    """The lock of a run folder. Raises UsageError if another job holds it."""
    lock = Lock(out / PRIVATE / "lock")
    try:
        for _ in range(TRIES):
            if lock.take():
                return lock
            time.sleep(BETWEEN)
        raise UsageError(
            f"another job is training in {out} ({lock.holder() or 'just started'}); wait for it, stop it, or "
            "choose another --out"
        )
    except (OSError, UsageError):
        lock.release()
        raise


Check = Callable[[checkpoint.Latest], None]
"""Raises UsageError if a run cannot resume from a checkpoint."""


def lock(
    config: Config, out: Path, resume: str, check: Check = lambda _: None
) -> tuple[Lock, checkpoint.Latest]:
    """Locks `out` as the run folder of `config` and finds the latest intact checkpoint, which `check`
    accepts.

    Raises UsageError if the folder holds something else or another run or another job is training in it, and
    what `check` raises; RunError if it cannot be read or written. Nothing has been changed then.
    """
    path = out / CONFIG
    if not path.exists() and out.exists() and any(entry.name != PRIVATE for entry in out.iterdir()):
        raise UsageError(f"{out} is not empty and contains no run; choose another --out")
    if path.exists():
        _check_same(config, out, resume)
    try:
        lock = locked(out)
    except OSError as error:
        raise RunError(f"could not write into {out}: {_reason(error)}") from error
    try:
        latest = checkpoint.latest(out / CHECKPOINTS)
        check(latest)
        _clear(out)
        atomic_bytes(path, (json.dumps(config.to_json(), indent=1) + "\n").encode())
    except BaseException as error:
        lock.release()
        if isinstance(error, OSError):
            raise RunError(f"could not use {out}: {_reason(error)}") from error
        raise
    return lock, latest


def with_background(config: AnyConfig, out: Path) -> AnyConfig:
    """`config` with data.background filled in, if it trains on image files and leaves it open: that of the
    run in `out`, or white for a new run. A run that is older than this key dropped alpha and keeps doing so,
    because its data must not change halfway."""
    if config.data.name != "images" or config.data.background:
        return config
    background, path = DEFAULT, out / CONFIG
    if path.exists():
        with suppress(Exception):  # `lock` reports what is wrong with the file
            background = str(json.loads(path.read_bytes())["data"].get("background", DROP))
    data = replace(config.data, background=background)
    return replace(config, data=data)  # pyright: ignore[reportArgumentType]


def _clear(out: Path) -> None:
    """Removes the partial files of killed jobs. This job holds the lock, so any other writer has ended, on
    whatever machine; older versions named their files `.NAME.PROCESS.partial`."""
    leftovers = [*(out / PRIVATE).glob(".rank-*.partial"), *out.glob("log.partial")]
    for name in (CONFIG, STATUS, LOG):
        leftovers += out.glob(f".{name}.*.partial")
    for folder in (out, out / SAMPLES):
        remove_abandoned(folder)
    for leftover in leftovers:
        with suppress(OSError):
            leftover.unlink()


def _check_same(config: Config, out: Path, resume: str) -> None:
    """Raises UsageError if `out` holds a run that this call does not resume."""
    path, fix = out / CONFIG, "choose another --out"
    value = read_json(path, "a run's config", fix, UsageError)
    with reading(path, "a run's config", fix, UsageError):
        try:
            allowed = Allowed.only(config.modules(), str(path))
            existing = with_background(type(config).from_json(value, allowed), out)
        except UsageError as error:
            raise ValueError(error) from None  # `reading` adds the file's name
    changed = differences(existing, config)
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        hint = steps_hint(existing, config)
        raise UsageError(
            f"{out} contains a run with another config ({'; '.join(changed[:3])}{more}); choose "
            f"another --out, or use that run's config{f'. {hint}' if hint else ''}"
        )
    if resume != "auto":
        raise UsageError(
            f"{out} already contains this run; add --resume auto to resume it, or choose another --out"
        )


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def write_status(out: Path, state: str, step: int | None, **more: Any) -> None:
    """Writes status.json, for scripts of a cluster. state: running, stopped, finished or failed. A running
    job adds its process and host; if that process no longer exists, the job was killed."""
    status = {"state": state, "step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more}
    if state == "running":
        status |= {"process": os.getpid(), "host": socket.gethostname()}
    atomic_bytes(out / STATUS, (json.dumps(status, indent=1) + "\n").encode())
