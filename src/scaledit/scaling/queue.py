"""Jobs that any number of processes, on any machines, share through a folder, without a coordinator.

    OUT/results/KEY.json    a job is done when this file exists                   (written once, then renamed)
    OUT/queue/KEY.lock      held by the process that does the job     (released by the kernel when it ends)
    OUT/queue/KEY.json      the progress of that process
    OUT/journal.jsonl       which process began, finished or failed which job, and when

A process that is killed leaves a free lock and no result, so the next process takes the job.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaledit.errors import RunError, UsageError, reading, shown
from scaledit.files.atomic import atomic_bytes
from scaledit.files.lock import Lock
from scaledit.files.reading import read_json

RESULT_FILE = ("the result of a job", "delete it to do the job again")
RESULTS, QUEUE, JOURNAL = "results", "queue", "journal.jsonl"


@dataclass(frozen=True)
class Job:
    """key: a file name. inputs: all plain values that the result depends on. macs: multiply-adds, for the
    order. needs: keys of jobs that must be done before. upgrade: converts the inputs that an earlier version
    wrote."""

    key: str
    inputs: Mapping[str, Any]
    macs: float
    needs: tuple[str, ...] = ()
    upgrade: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


@dataclass
class Queue:
    """Jobs in a folder. Raises UsageError if it holds results of other jobs under their keys."""

    out: Path
    jobs: Sequence[Job]
    failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.out.is_file():
            raise UsageError(f"{self.out} is a file; choose another --out")
        known = any((self.out / name).exists() for name in (RESULTS, QUEUE))
        if self.out.exists() and not known and any(self.out.iterdir()):
            raise UsageError(f"{self.out} is not empty and contains no study; choose another --out")
        for job in self.jobs:
            if self.done(job.key):
                self.result(job)

    def done(self, key: str) -> bool:
        return self._path(key).is_file()

    def result(self, job: Job) -> dict[str, Any]:
        """The result of a job that is done. Raises UsageError if the file is of a job with other inputs,
        RunError if it is corrupt."""
        path = self._path(job.key)
        with self.parsing(job):
            content = read_json(path, *RESULT_FILE)
            for key in ("job", "found"):
                if not isinstance(content[key], dict):
                    raise ValueError(f"{key} is {shown(content[key])}")
        changed = _difference(job.upgrade(content["job"]), json.loads(json.dumps(job.inputs)))
        if changed:
            raise UsageError(
                f"{path} belongs to another study ({changed}); choose another --out, or delete it"
            )
        return content["found"]

    @contextmanager
    def parsing(self, job: Job) -> Iterator[None]:
        """Turns any error raised while a result is taken apart into a RunError that names its file."""
        with reading(self._path(job.key), *RESULT_FILE):
            try:
                yield
            except KeyError as error:
                raise ValueError(f"it lacks {error}") from None

    @property
    def left(self) -> list[Job]:
        """Jobs that are not done, by falling multiply-adds of the job and the costliest one that needs it."""
        left = [job for job in self.jobs if not self.done(job.key)]
        after = {job.key: max((o.macs for o in left if job.key in o.needs), default=0.0) for job in left}
        return sorted(left, key=lambda job: -(job.macs + after[job.key]))

    @contextmanager
    def next(self) -> Iterator[Job | None]:
        """A job that this process holds while the block lasts, to be passed to `finish` inside it; None if
        there is none at present (each is done, failed here, held by another process, or needs such a job)."""
        for job in self.left:
            if job.key in self.failed or not all(self.done(key) for key in job.needs):
                continue
            lock = Lock(self.out / QUEUE / f"{job.key}.lock")
            try:
                if not lock.take() or self.done(job.key):  # done by the process that just released the lock
                    continue
                self._log("began", job)
                yield job
                return
            finally:
                (self.out / QUEUE / f"{job.key}.json").unlink(missing_ok=True)
                lock.release()
        yield None

    def report_progress(self, job: Job, share: float) -> None:
        """Tells other processes what share of a job held by this one is done, in [0, 1]."""
        atomic_bytes(self.out / QUEUE / f"{job.key}.json", json.dumps({"share": share}).encode())

    def progress(self, key: str) -> float:
        """The share last passed to `report_progress`; 0 if no process holds the job."""
        try:
            share = float(read_json(self.out / QUEUE / f"{key}.json", "the progress of a job")["share"])
        except (OSError, RunError, ValueError, KeyError, TypeError, OverflowError):
            return 0.0
        return min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0

    def finish(self, job: Job, result: Mapping[str, Any]) -> None:
        self._path(job.key).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"job": job.inputs, "found": result}, indent=1) + "\n"
        atomic_bytes(self._path(job.key), text.encode())
        self._log("finished", job)

    def fail(self, job: Job, why: str) -> None:
        """Records a failure. This process does not try the job again; another one may."""
        self.failed.add(job.key)
        self._log("failed", job, why=why)

    def failures(self) -> dict[str, str]:
        """Why jobs that are not done failed the last time, by key. Lines of the journal that cannot be read
        are left out: a process may have ended while it wrote one."""
        reasons: dict[str, str] = {}
        with suppress(OSError), (self.out / JOURNAL).open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with suppress(ValueError, TypeError, KeyError, RecursionError):
                    entry = json.loads(line)
                    if entry["event"] == "failed":
                        reasons[str(entry["job"])] = str(entry["why"])
        return {key: why for key, why in reasons.items() if not self.done(key)}

    def _log(self, event: str, job: Job, **more: str) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        process = {"process": os.getpid(), "host": socket.gethostname()}
        line = json.dumps({"event": event, "job": job.key, "time": at, **process, **more}) + "\n"
        with (self.out / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(line)  # one short write with O_APPEND: lines of several processes do not mix

    def _path(self, key: str) -> Path:
        return self.out / RESULTS / f"{key}.json"


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first 'key: old -> new' by which two nested tables differ, or ""."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(old.keys() | new.keys())
        below = (_difference(old.get(key), new.get(key), f"{name}.{key}" if name else key) for key in keys)
        return next(filter(None, below), "")
    return "" if old == new else f"{name or 'job'}: {shown(old)} -> {shown(new)}"
