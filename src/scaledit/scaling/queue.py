"""Work that any number of processes, on any machines, share through a folder; nobody is in charge.

    OUT/results/KEY.json    a job is done when this file is there, whole          (written once, then renamed)
    OUT/queue/KEY.lock      held by the process that does it       (the kernel lets go when the process ends)
    OUT/queue/KEY.json      how far that process is
    OUT/journal.jsonl       who began, finished or failed what, and when

A process that is killed leaves a lock that is free again and no result: the next one to look takes the job.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaledit.errors import RunError, UsageError, reading, shown
from scaledit.files.atomic import atomic_bytes
from scaledit.files.lock import Lock
from scaledit.files.reading import read_json

RESULT_FILE = ("the result of a job", "delete it, and the job is done again")
RESULTS, QUEUE, JOURNAL = "results", "queue", "journal.jsonl"


@dataclass(frozen=True)
class Job:
    """key: a file's name. what: all that the result depends on, plain values. needs: keys of jobs that must
    be done before. macs: multiply-adds, for the order and for what is left. as_now: makes today's words of
    what an earlier version wrote as `what`."""

    key: str
    what: Mapping[str, Any]
    macs: float
    needs: tuple[str, ...] = ()
    as_now: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


@dataclass
class Queue:
    """Jobs in a folder. Raises UsageError where it holds results of other jobs under their keys."""

    out: Path
    jobs: Sequence[Job]
    failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.out.is_file():
            raise UsageError(f"{self.out} is a file; choose another --out")
        known = any((self.out / name).exists() for name in (RESULTS, QUEUE))
        if self.out.exists() and not known and any(self.out.iterdir()):
            raise UsageError(f"{self.out} is not empty and holds no study; choose another --out")
        for job in self.jobs:
            if self.done(job.key):
                self.result(job)

    def done(self, key: str) -> bool:
        return self._path(key).is_file()

    def result(self, job: Job) -> dict[str, Any]:
        """What was found. Raises UsageError where it is of another job of that name, RunError where it is
        corrupt."""
        path = self._path(job.key)
        with self.using(job):
            held = read_json(path, *RESULT_FILE)
            there, found = held["job"], held["found"]
            if not isinstance(there, dict):
                raise ValueError(f"job is {shown(there)}")
            if not isinstance(found, dict):
                raise ValueError(f"found is {shown(found)}")
        wanted = json.loads(json.dumps(job.what))
        changed = _difference(job.as_now(there), wanted)
        if changed:
            raise UsageError(f"{path} is of another study ({changed}); choose another --out, or delete it")
        return found

    @contextmanager
    def using(self, job: Job) -> Iterator[None]:
        """Around what takes a result apart: RunError where it does not hold what it should."""
        with reading(self._path(job.key), *RESULT_FILE):
            try:
                yield
            except KeyError as error:
                raise ValueError(f"it lacks {error}") from None

    @property
    def left(self) -> list[Job]:
        """Not done, dearest chain first: what others wait for comes before what nobody needs."""
        waiting = [job for job in self.jobs if not self.done(job.key)]
        after = {
            job.key: max((o.macs for o in waiting if job.key in o.needs), default=0.0) for job in waiting
        }
        return sorted(waiting, key=lambda job: -(job.macs + after[job.key]))

    @contextmanager
    def next(self) -> Iterator[Job | None]:
        """A job that nobody else does, ours while the block lasts; None where there is none at present (all
        are done, failed here, in other hands, or wait for such). `finish` it inside the block."""
        for job in self.left:
            if job.key in self.failed or not all(self.done(key) for key in job.needs):
                continue
            lock = Lock(self.out / QUEUE / f"{job.key}.lock")
            try:
                if not lock.take() or self.done(job.key):  # done: by who held the lock a moment ago
                    continue
                self._note("began", job)
                yield job
                return
            finally:
                (self.out / QUEUE / f"{job.key}.json").unlink(missing_ok=True)
                lock.release()
        yield None

    def moved(self, job: Job, share: float) -> None:
        """Tells others how much of a job in our hands is done, in [0, 1]."""
        atomic_bytes(self.out / QUEUE / f"{job.key}.json", json.dumps({"share": share}).encode())

    def share(self, key: str) -> float:
        """As `moved` says; 0 where nobody is at it."""
        try:
            share = float(read_json(self.out / QUEUE / f"{key}.json", "how far a job is")["share"])
        except (OSError, RunError, ValueError, KeyError, TypeError, OverflowError):
            return 0.0
        return min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0

    def finish(self, job: Job, found: Mapping[str, Any]) -> None:
        self._path(job.key).parent.mkdir(parents=True, exist_ok=True)
        atomic_bytes(
            self._path(job.key), (json.dumps({"job": job.what, "found": found}, indent=1) + "\n").encode()
        )
        self._note("finished", job)

    def fail(self, job: Job, why: str) -> None:
        """Not tried again by this process; the next one tries."""
        self.failed.add(job.key)
        self._note("failed", job, why=why)

    def _note(self, event: str, job: Job, **more: str) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        who = {"process": os.getpid(), "host": socket.gethostname()}
        line = json.dumps({"event": event, "job": job.key, "time": at, **who, **more}) + "\n"
        with (self.out / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(line)  # one short write with O_APPEND: lines of several processes do not mix

    def _path(self, key: str) -> Path:
        return self.out / RESULTS / f"{key}.json"


def _difference(there: Any, wanted: Any, name: str = "") -> str:
    """The first 'key: old -> new' by which two nested tables differ, or ""."""
    if isinstance(there, Mapping) and isinstance(wanted, Mapping):
        for key in sorted(there.keys() | wanted.keys()):
            if found := _difference(there.get(key), wanted.get(key), f"{name}.{key}" if name else key):
                return found
        return ""
    return "" if there == wanted else f"{name or 'job'}: {shown(there)} -> {shown(wanted)}"
