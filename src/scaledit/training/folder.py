"""A run folder: its lock, its config and its status.

    config.json  log.jsonl  status.json  checkpoints/  samples/  report.html  .run/ (lock, one file per rank)

Only one job may train in a folder. The lock is the kernel's, so it ends with the process that holds it.

config.json says how the run continues, the config in a checkpoint how it was trained up to there. Where they
differ, the run changes at the step of that checkpoint, even if the job that was asked for the change was
killed before its next one.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from scaledit import checkpoint
from scaledit.config import COMMANDS, Change, Config, all_changes, as_overrides, recipe_names, unasked
from scaledit.config.tables import modules as modules_of
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


Changes = Literal["refuse", "accept"]
"""What happens to a run that is resumed with another config: "refuse" refuses what would train it in another
way, "accept" takes the changes that a run may make on the way (config.Change.is_allowed)."""

Check = Callable[[checkpoint.Latest], None]
"""Raises UsageError if a run cannot resume from a checkpoint."""


def lock(
    config: Config, out: Path, resume: str, check: Check = lambda _: None, changes: Changes = "refuse"
) -> tuple[Lock, checkpoint.Latest]:
    """Locks `out` as the run folder of `config` and finds the latest intact checkpoint, which `check`
    accepts. From then on `config` is the run's config.json.

    Raises UsageError if the folder holds something else or another run or another job is training in it, and
    what `check` raises; RunError if it cannot be read or written. Nothing has been changed then.
    """
    path = out / CONFIG
    if not path.exists() and out.exists() and any(entry.name != PRIVATE for entry in out.iterdir()):
        raise UsageError(f"{out} is not empty and contains no run; choose another --out")
    existing = _checked_same(config, out, resume, changes) if path.exists() else None
    try:
        lock = locked(out)
    except OSError as error:
        raise RunError(f"could not write into {out}: {_reason(error)}") from error
    try:
        latest = checkpoint.latest(out / CHECKPOINTS)
        if existing is not None:
            _check_steps(existing, config, out, latest)
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


def _checked_same(config: Config, out: Path, resume: str, changes: Changes) -> Config:
    """The config of the run in `out`. Raises UsageError if this call does not resume it."""
    path, fix = out / CONFIG, "choose another --out"
    value = read_json(path, "a run's config", fix, UsageError)
    with reading(path, "a run's config", fix, UsageError):
        try:
            existing = with_background(type(config).from_json(value, _allowed(config, value, path)), out)
        except UsageError as error:
            raise ValueError(error) from None  # `reading` adds the file's name
    changed = unasked(existing, config)
    refused = [change for change in changed if not change.is_allowed]
    if refused and changes == "accept":
        raise UsageError(
            f"{_listed(refused)}: a run cannot change {_keys(refused)} on the way, because that would be "
            f"another training; leave {'it' if len(refused) == 1 else 'them'} out to resume {out}, or train "
            "a recipe in another folder"
        )
    if changed and changes == "refuse":
        other = f"{out} contains a run with another config ({_listed(changed)})"
        if refused:
            raise UsageError(
                f"{other}; choose another --out, or resume that run as it is: {command(existing, out)}"
            )
        asked = as_overrides(all_changes(existing, config))
        raise UsageError(
            f"{other}; to change it from step {_newest(out)} on, run: {command(existing, out, asked)}; or "
            "choose another --out"
        )
    if resume != "auto":
        raise UsageError(
            f"{out} already contains this run; to resume it, run: {command(existing, out)}; or choose "
            "another --out"
        )
    return existing


def _allowed(config: Config, earlier: Mapping[str, Any], where: Path) -> Allowed:
    """What may be imported to read an earlier config of the run of `config`: the modules of `config`, and
    those that the user has allowed, so that this process has imported them already."""
    imported = {module for module in modules_of(earlier) if module in sys.modules}
    return Allowed.only(config.modules() | imported, str(where))


def _listed(changes: list[Change]) -> str:
    more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
    return "; ".join(map(str, changes[:3])) + more


def _keys(changes: list[Change]) -> str:
    return changes[0].key if len(changes) == 1 else "these keys"


def _newest(out: Path) -> int:
    """The step of the newest checkpoint, by its name; 0 if there is none."""
    folders = checkpoint.find(out / CHECKPOINTS)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def _check_steps(existing: Config, config: Config, out: Path, latest: checkpoint.Latest) -> None:
    """Raises UsageError if the run is to end before the step that it has reached."""
    reached = 0 if latest.checkpoint is None else latest.checkpoint.step
    steps = config.train.steps
    if steps != existing.train.steps and steps < reached:
        raise UsageError(
            f"{out} has reached step {reached}, so it cannot end at step {steps} (--until, train.steps); "
            f"choose a step above {reached}"
        )


def words(config: Config, out: Path) -> list[str]:
    """The words after `scaledit` that resume the run of `config` in `out`."""
    allowed = [["--allow-import", module] for module in sorted(config.modules())]
    where = f"./{out}" if str(out) in recipe_names(None) else str(out)
    return [*COMMANDS[config.TRAINS].split()[1:], where, *(word for pair in allowed for word in pair)]


def command(config: Config, out: Path, overrides: Iterable[str] = ()) -> str:
    """The command that resumes the run of `config` in `out`, with these changes, quoted for a shell."""
    return shlex.join(["scaledit", *words(config, out), *overrides])


def changes_since(saved: checkpoint.Checkpoint, config: Config, out: Path) -> list[Change]:
    """What changes at a checkpoint from which the run in `out` continues with `config`."""
    allowed = _allowed(config, saved.config, saved.folder)
    try:
        before = with_background(type(config).from_json(saved.config, allowed), out)
    except (
        UsageError
    ):  # it names a part of the user's that the run no longer has, and nothing is imported for this
        before = saved.config
    return all_changes(before, config)


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
