"""Who is alive, and since when nothing has moved.

    every rank, every few seconds:  .run/rank-R.json = {process, host, step, activity, moves, ticks}
    no rank's `moves` has changed for engine.timeout seconds  ->  the job ends, with the name of the culprit

`moves` counts what the training thread does, `ticks` what the thread here does, so a stuck rank and one that
is gone can be told apart. Counts are compared, not clocks: machines may disagree on the time. Seconds in
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
TOGETHER = (COMPUTING, WAITING)
"""At these a rank may have to wait for others."""
LOOKS = 20
"""In a time-out: so many times the others are looked at."""
SILENT = 4
"""Looks without a tick after which a rank counts as gone."""


class AwakeClock:
    """Seconds in which this process ran. Between two readings at most `longest` count: where more have
    passed, the process was stopped, or the whole machine was. Monotonic clocks count on meanwhile."""

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
    """Of a rank: what its file said last, and how many looks ago a count changed."""

    says: dict[str, Any]
    moved: float
    ticked: float


@dataclass
class Watch:
    """Use as a context manager around training. on_stuck: is called once, from this thread, with the message
    for the user, and should end the process."""

    out: Path
    ranks: Ranks
    timeout: float
    on_stuck: Callable[[str], None]
    says: dict[str, Any] = field(init=False)
    _seen: dict[int, _Seen] = field(default_factory=dict, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)
    _parent: int = field(default_factory=os.getppid, init=False)

    def __post_init__(self) -> None:
        self.interval = min(10.0, max(0.1, self.timeout / LOOKS))
        self.clock = AwakeClock(2 * self.interval)
        self.says = {
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
            self._file(rank).unlink(missing_ok=True)  # of an earlier life
        self.ranks.barrier()
        self._look()
        threading.Thread(target=self._run, name="scaledit-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def heartbeat(self, what: str, step: int) -> None:
        """The training thread is at something new."""
        self.says |= {"step": step, "activity": what, "moves": self.says["moves"] + 1}

    def ended(self, why: str) -> None:
        """This rank ends with an error of its own, which the others may tell."""
        self.says["ended"] = why
        self._write()

    def culprit(self, patience: float = 5.0) -> str:
        """Whom the others wait for, as far as can be told, looking for `patience` seconds."""
        until = self.clock() + patience
        while self.clock() < until and not (gone := self._gone()):
            self._look()
            time.sleep(self.interval / 2)
        if gone := self._gone():
            return "; ".join(gone)
        if not self._seen:
            return "another rank has ended"  # before this one had seen any
        step = min(seen.says["step"] for seen in self._seen.values())
        behind = [seen.says for seen in self._seen.values() if seen.says["step"] == step]
        to_blame = [says for says in behind if says["activity"] not in TOGETHER] or behind
        return "; ".join(f"{_name(says)} is {says['activity']} at step {step}" for says in to_blame)

    def _gone(self) -> list[str]:
        """Ranks that have ended, or do not answer."""
        here, found = self.says["host"], []
        for rank, seen in sorted(self._seen.items()):
            if rank == self.ranks.rank:
                continue
            name = _name(seen.says)
            if "ended" in seen.says:
                found.append(f"{name} has ended: {seen.says['ended']}")
            elif seen.says["host"] == here and not _exists(seen.says["process"]):
                found.append(f"{name} has died in step {seen.says['step']}")
            elif self.clock() - seen.ticked > SILENT * self.interval + 1:
                found.append(f"{name} does not answer since step {seen.says['step']}: stopped, or cut off")
        return found

    def speaks(self) -> bool:
        """Whether this rank is the one to tell: the lowest that is still there."""
        gone = " ".join(self._gone())
        return all(f"rank {rank} " in gone for rank in range(self.ranks.rank))

    def _run(self) -> None:
        while not self._ended.wait(self.interval):
            if self.ranks.grouped and os.getppid() != self._parent:
                os._exit(1)  # whoever started the ranks is gone, and with it who would end them
            self.says["ticks"] += 1
            self._look()
            still = self.clock() - max(seen.moved for seen in self._seen.values())
            if still > self.timeout:
                self._stacks()
                self.on_stuck(
                    f"nothing has moved for {still:.0f} s: {self.culprit(0.0)}; what each thread was at "
                    f"is in {self.out / PRIVATE}"
                )

    def _look(self) -> None:
        now = self.clock()
        if self.ranks.world > 1:
            self._write()
        for rank in range(self.ranks.world):
            says = dict(self.says) if rank == self.ranks.rank else self._read(rank)
            if says is None:
                continue
            before = self._seen.get(rank)
            self._seen[rank] = _Seen(
                says,
                before.moved if before and before.says["moves"] == says["moves"] else now,
                before.ticked if before and before.says["ticks"] == says["ticks"] else now,
            )

    def _file(self, rank: int) -> Path:
        return self.out / PRIVATE / f"rank-{rank}.json"

    def _write(self) -> None:
        with suppress(OSError):  # a full disk is the checkpoint's to report
            atomic_bytes(self._file(self.ranks.rank), json.dumps(self.says).encode())

    def _read(self, rank: int) -> dict[str, Any] | None:
        """None where there is nothing to be believed yet; what is not as `says` is was not written here."""
        try:
            says = read_json(self._file(rank), "a rank's file")
        except (OSError, RunError):
            return None
        right = all(type(says.get(key)) is type(value) for key, value in self.says.items() if key != "ended")
        return says if right and says["rank"] == rank and says["process"] > 0 else None

    def _stacks(self) -> None:
        with suppress(OSError), (self.out / PRIVATE / f"stacks-{self.ranks.rank}.txt").open("w") as file:
            faulthandler.dump_traceback(file)


def _name(says: dict[str, Any]) -> str:
    return f"rank {says['rank']} (process {says['process']} on {says['host']})"


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
