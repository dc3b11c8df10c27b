"""A run folder: whose it is, what it holds, how its last life ended.

    config.json  log.jsonl  status.json  checkpoints/  samples/  report.html  .run/ (lock, a file a rank)

One job at a time: the lock is the kernel's, so it ends with the process that holds it, however that ends.
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
from scaledit.config import Config, differences
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
"""How often, and after how many seconds each, the folder of a job that was just killed is asked for. Tries
are counted, not seconds: those pass while this process is stopped, too."""


def locked(out: Path) -> Lock:
    """The right to write into a run folder. Raises UsageError while another job has it."""
    lock = Lock(out / PRIVATE / "lock")
    try:
        for _ in range(TRIES):
            if lock.take():
                return lock
            time.sleep(BETWEEN)
        holder = lock.holder()
    except OSError:
        lock.release()
        raise
    lock.release()
    raise UsageError(
        f"another job is training in {out} ({holder or 'just started'}); wait for it, stop it, or "
        "choose another --out"
    )


Check = Callable[[checkpoint.Latest], None]
"""Raises UsageError where a run cannot go on from what was found."""


def lock(
    config: Config, out: Path, resume: str, check: Check = lambda _: None
) -> tuple[Lock, checkpoint.Latest]:
    """Makes `out` this run's folder, or finds the checkpoint to go on from, verified and checked. Corrupt
    ones are passed over and renamed.

    Raises UsageError for a folder of something else, of another config, or of a job that runs, and what
    `check` raises; RunError if nothing can be read or written. Then nothing has been changed.
    """
    path = out / CONFIG
    if not path.exists() and out.exists() and any(entry.name != PRIVATE for entry in out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no run; choose another --out")
    if path.exists():
        _check_same(config, out, resume)
    try:
        lock = locked(out)
    except OSError as error:
        raise RunError(f"could not write into {out}: {said(error)}") from error
    try:
        found = checkpoint.latest(out / CHECKPOINTS)
        check(found)
        _clear(out)
        atomic_bytes(path, (json.dumps(config.to_json(), indent=1) + "\n").encode())
    except OSError as error:
        lock.release()
        raise RunError(f"could not go on in {out}: {said(error)}") from error
    except BaseException:
        lock.release()
        raise
    return lock, found


def with_background(config: AnyConfig, out: Path) -> AnyConfig:
    """`config` with data.background said, where it trains on images from files and leaves it open: what the
    run in `out` began with, white where there is none. A run from before there was such a key dropped alpha,
    and goes on so: its data must not change in the middle."""
    if config.data.name != "images" or config.data.background:
        return config
    word = DEFAULT
    path = out / CONFIG
    if path.exists():
        with suppress(Exception):  # `claim` says what is wrong with it
            word = str(json.loads(path.read_bytes())["data"].get("background", DROP))
    data = replace(config.data, background=word)
    return replace(config, data=data)  # pyright: ignore[reportArgumentType]


def _clear(out: Path) -> None:
    """Removes what killed jobs had begun to write. The folder is ours: whatever else wrote in it has ended,
    on whatever machine, so that what jobs of old call `.NAME.PROCESS.partial` goes too."""
    leftovers = [*(out / PRIVATE).glob(".rank-*.partial"), *out.glob("log.partial")]
    for name in (CONFIG, STATUS, LOG):
        leftovers += out.glob(f".{name}.*.partial")
    for folder in (out, out / SAMPLES):
        remove_abandoned(folder)
    for leftover in leftovers:
        with suppress(OSError):
            leftover.unlink()


def _check_same(config: Config, out: Path, resume: str) -> None:
    """Raises UsageError where `out` holds a run that this call does not go on with."""
    path = out / CONFIG
    other = "choose another --out"
    value = read_json(path, "a run's config", other, UsageError)
    with reading(path, "a run's config", other, UsageError):
        try:
            allowed = Allowed.only(config.modules(), str(path))
            existing = with_background(type(config).from_json(value, allowed), out)
        except UsageError as error:
            raise ValueError(error) from None  # said with the file's name
    changed = differences(existing, config)
    if changed:
        raise UsageError(
            f"{out} holds a run of another config ({'; '.join(changed[:3])}"
            + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
            + "); choose another --out, or give that run's config"
        )
    if resume != "auto":
        raise UsageError(f"{out} already holds this run; add --resume auto to go on, or choose another --out")


def said(error: OSError) -> str:
    """What the system says, with the file that it says it of."""
    why = error.strerror or str(error)
    return f"{error.filename}: {why}" if error.filename else why


def write_status(out: Path, state: str, step: int | None, **more: Any) -> None:
    """status.json: what a cluster's scripts ask. state: running, stopped, finished or failed. One that runs
    has its process and host there: it has been killed if that process is no more."""
    status = {"state": state, "step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more}
    if state == "running":
        status |= {"process": os.getpid(), "host": socket.gethostname()}
    atomic_bytes(out / STATUS, (json.dumps(status, indent=1) + "\n").encode())
