"""Detects ranks that have ended and runs that are stuck, and names the culprit.

    every rank, every few seconds:  .run/rank-R.json = {process, host, step, activity, moves, ticks}
    no rank's `moves` has changed for engine.timeout seconds  ->  the job ends, with the name of the culprit

`moves` counts the heartbeats of the training thread, `ticks` the updates of the watch's own thread, which
tells a stuck rank from a dead one. Counts are compared because the clocks of machines may differ. Seconds in
which this process itself was stopped (Ctrl-Z, `scontrol suspend`) do not count.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaledit.errors import RunError
from scaledit.files.atomic import atomic_bytes
from scaledit.files.reading import read_json
from scaledit.training.folder import PRIVATE
from scaledit.training.ranks import Ranks

COMPUTING, WAITING = "computing", "waiting for the others"
COLLECTIVE = (COMPUTING, WAITING)
"""The activities in which a rank may have to wait for others."""
LOOKS = 20
"""How often the ranks' files are read during a timeout."""
SILENT = 4
"""A rank without a tick in so many readings counts as gone."""


class AwakeClock:
    """The seconds in which this process ran. At most `longest` count between two readings: if more have
    passed, the process or the machine was stopped, while monotonic clocks kept running."""

    def __init__(self, longest: float):
        self.longest = longest
        self._seconds, self._last = 0.0, time.monotonic()
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            now = time.monotonic()
            self._seconds += min(now - self._last, self.longest)
            self._last = now
            return self._seconds


@dataclass
class _Seen:
    """The latest file of a rank, and when its counts last changed."""

    report: dict[str, Any]
    moved: float
    ticked: float


@dataclass
class Watch:
    """A context manager around training. timeout: seconds. on_stuck: called once, from the watch's thread,
    with a message for the user; it should end the process."""

    out: Path
    ranks: Ranks
    timeout: float
    on_stuck: Callable[[str], None]
    report: dict[str, Any] = field(init=False)
    _seen: dict[int, _Seen] = field(default_factory=dict, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)
    _parent: int = field(default_factory=os.getppid, init=False)

    def __post_init__(self) -> None:
        self.interval = min(10.0, max(0.1, self.timeout / LOOKS))
        self.clock = AwakeClock(2 * self.interval)
        self.report = {
            "rank": self.ranks.rank,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "step": 0,
            "activity": "starting",
            "moves": 0,
            "ticks": 0,
        }

    def __enter__(self) -> Watch:
        self._file(self.ranks.rank).parent.mkdir(parents=True, exist_ok=True)
        for rank in range(self.ranks.world if self.ranks.first else 0):
            self._file(rank).unlink(missing_ok=True)  # of an earlier process
        self.ranks.barrier()
        self._look()
        threading.Thread(target=self._run, name="scaledit-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def heartbeat(self, activity: str, step: int) -> None:
        """Records that the training thread has started a new activity."""
        self.report |= {"step": step, "activity": activity, "moves": self.report["moves"] + 1}

    def ended(self, why: str) -> None:
        """Records why this rank ends, for the other ranks' messages."""
        self.report["ended"] = why
        self._write()

    def culprit(self, patience: float = 5.0) -> str:
        """The ranks that the others wait for, as a message; waits up to `patience` seconds for one to be
        gone."""
        until = self.clock() + patience
        while self.clock() < until and not (gone := self._gone()):
            self._look()
            time.sleep(self.interval / 2)
        if gone := self._gone():
            return "; ".join(gone)
        if not self._seen:
            return "another rank has ended"  # before this one had read a file
        step = min(seen.report["step"] for seen in self._seen.values())
        behind = [seen.report for seen in self._seen.values() if seen.report["step"] == step]
        culprits = [report for report in behind if report["activity"] not in COLLECTIVE] or behind
        return "; ".join(f"{_name(report)} is {report['activity']} at step {step}" for report in culprits)

    def _gone(self) -> list[str]:
        """A message for each rank that has ended or does not answer."""
        messages = []
        for rank, seen in sorted(self._seen.items()):
            report, name = seen.report, _name(seen.report)
            if rank == self.ranks.rank:
                continue
            if "ended" in report:
                messages.append(f"{name} has ended: {report['ended']}")
            elif report["host"] == self.report["host"] and not _exists(report["process"]):
                messages.append(f"{name} has died in step {report['step']}")
            elif self.clock() - seen.ticked > SILENT * self.interval + 1:
                messages.append(f"{name} does not answer since step {report['step']}: stopped, or cut off")
        return messages

    def speaks(self) -> bool:
        """Whether this rank reports the end of the job, as the lowest one alive."""
        gone = " ".join(self._gone())
        return all(f"rank {rank} " in gone for rank in range(self.ranks.rank))

    def _run(self) -> None:
        while not self._ended.wait(self.interval):
            if self.ranks.grouped and os.getppid() != self._parent:
                os._exit(1)  # the parent process, which would end the ranks, is gone
            self.report["ticks"] += 1
            self._look()
            idle = self.clock() - max(seen.moved for seen in self._seen.values())
            if idle > self.timeout:
                folder = self.out / PRIVATE
                with suppress(OSError), (folder / f"stacks-{self.ranks.rank}.txt").open("w") as file:
                    faulthandler.dump_traceback(file)
                self.on_stuck(
                    f"nothing has moved for {idle:.0f} s: {self.culprit(0.0)}; stack traces are in {folder}"
                )

    def _look(self) -> None:
        now = self.clock()
        if self.ranks.world > 1:
            self._write()
        for rank in range(self.ranks.world):
            report = dict(self.report) if rank == self.ranks.rank else self._read(rank)
            if report is None:
                continue
            before = self._seen.get(rank)
            self._seen[rank] = _Seen(
                report,
                before.moved if before and before.report["moves"] == report["moves"] else now,
                before.ticked if before and before.report["ticks"] == report["ticks"] else now,
            )

    def _file(self, rank: int) -> Path:
        return self.out / PRIVATE / f"rank-{rank}.json"

    def _write(self) -> None:
        with suppress(OSError):  # saving a checkpoint reports a full disk
            atomic_bytes(self._file(self.ranks.rank), json.dumps(self.report).encode())

    def _read(self, rank: int) -> dict[str, Any] | None:
        """The file of another rank; None if it is missing or invalid."""
        try:
            report = read_json(self._file(rank), "a rank's file")
        except (OSError, RunError):
            return None
        own = {key: value for key, value in self.report.items() if key != "ended"}
        valid = all(type(report.get(key)) is type(value) for key, value in own.items())
        return report if valid and report["rank"] == rank and report["process"] > 0 else None


def _name(report: dict[str, Any]) -> str:
    return f"rank {report['rank']} (process {report['process']} on {report['host']})"


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)
    return True
