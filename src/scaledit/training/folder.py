"""A run folder: whose it is, what it holds, how its last life ended.

    config.json  log.jsonl  status.json  checkpoints/  samples/  report.html  .run/ (lock, a file a rank)

One job at a time: the lock is the kernel's, so it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from scaledit import checkpoint
from scaledit.config import Config, differences
from scaledit.data.background import DEFAULT, DROP
from scaledit.errors import RunError, UsageError
from scaledit.parts import Lock, whole

CONFIG, STATUS, CHECKPOINTS, SAMPLES, PRIVATE = "config.json", "status.json", "checkpoints", "samples", ".run"

AnyConfig = TypeVar("AnyConfig", bound=Config)

PATIENCE = 2.0
"""Seconds in which a job that was just killed may let go of the folder."""


def locked(out: Path) -> Lock:
    """The right to write into a run folder. Raises UsageError while another job has it."""
    lock = Lock(out / PRIVATE / "lock")
    deadline = time.monotonic() + PATIENCE
    while not lock.take():
        if time.monotonic() < deadline:
            time.sleep(0.05)
            continue
        holder = lock.holder()
        lock.release()
        raise UsageError(
            f"another job is training in {out} ({holder or 'just started'}); wait for it, stop it, or "
            "choose another --out"
        )
    return lock


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
        lock = locked(out)
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


def _check_same(config: Config, out: Path, resume: str) -> None:
    """Raises UsageError where `out` holds a run that this call does not go on with."""
    path = out / CONFIG
    try:
        existing = with_background(type(config).from_json(json.loads(path.read_bytes())), out)
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
