"""Reads ahead: worker processes make the samples of the next steps during the current one.

    step i reads  first + i stride ...,      worker k makes the samples of the steps i with i mod workers = k

Samples depend only on their positions, so the number of workers does not change them.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from scaledit.errors import RunError
from scaledit.posix import POSIX

Item = TypeVar("Item")
AHEAD = 2
"""Steps that each worker reads ahead."""
SLICES = 20
"""The timeout is split into so many waits. A pause of this process (Ctrl-Z) then uses up one of them, not the
worker's complete timeout."""
PATIENCE = 0.75
"""Fraction of engine.timeout to wait for a worker, so that it is reported before this process seems stuck."""


class Loader(Generic[Item]):
    """`take(positions)` returns `read(positions)`. Workers assume that the next positions are `stride`
    further on; any others are correct too, but restart them.

    timeout: seconds to wait for a worker. Raises what `read` raises, and RunError naming a worker that was
    killed or is stuck. A worker that is stopped after it announced an item is waited for without end, inside
    torch's transfer of shared memory; training.watch reports that.
    """

    def __init__(self, read: Callable[[range], Item], stride: int, workers: int = 0, timeout: float = 600.0):
        self.read, self.stride, self.workers, self.timeout = read, stride, workers, timeout
        self._items: Iterator[Item | _Failed] | None = None
        self._next: range | None = None
        self._taken = 0
        self._pids: Any = None

    @property
    def source(self) -> str:
        """Where the next item comes from, for messages."""
        if self.workers == 0 or self._pids is None:
            return "the data"
        worker = self._taken % self.workers
        return f"loader worker {worker} (process {self._pids[worker]})"

    def take(self, positions: range) -> Item:
        if self.workers == 0:
            return self.read(positions)
        if self._items is None or positions != self._next:
            self._items, self._taken = self._start(positions), 0
        self._next = None  # start again after an error
        item = self._wait(self._items)
        if isinstance(item, _Failed):
            raise item.error
        self._next = _shifted(positions, self.stride)
        self._taken += 1
        return item

    def close(self) -> None:
        """Ends the workers; the next `take` starts others. If they are left to the garbage collector with
        the rest of a training, torch's queues may be gone before the message to end, and torch then waits
        5 s for each worker."""
        self._items = self._next = None

    def _wait(self, items: Iterator[Item | _Failed]) -> Item | _Failed:
        waits = 0
        while True:
            try:
                return next(items)
            except (OSError, EOFError) as error:  # of the connection to a worker
                raise self._lost() from error
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise killed(error) or error from error
                waits += 1
                if waits == SLICES:
                    raise RunError(
                        f"{self.source} has returned no batch for {self.timeout:g} s; the storage is stuck, "
                        "or engine.timeout is too short"
                    ) from error

    def _lost(self) -> RunError:
        """Names the worker that has ended, waiting a moment until that is visible."""
        ended: list[str] = []
        deadline = time.monotonic() + 2
        while not ended and time.monotonic() < deadline:
            alive = {child.pid for child in active_children()}
            ended = [str(pid) for pid in self._pids if pid and pid not in alive]
            time.sleep(0.01)
        return RunError(f"the loader worker (process {', '.join(ended) or 'unknown'}) has ended")

    def _start(self, first: range) -> Iterator[Item | _Failed]:
        context = get_context("fork")
        pids = self._pids = context.Array("i", self.workers)
        stride = self.stride  # a generator that held self would be in a cycle with it: see close

        def record_pid(worker: int) -> None:
            pids[worker] = os.getpid()

        return iter(
            DataLoader(
                _Reading(self.read),
                batch_size=None,
                sampler=(_shifted(first, step * stride) for step in itertools.count()),
                num_workers=self.workers,
                prefetch_factor=AHEAD,
                timeout=self.timeout / SLICES,
                multiprocessing_context=context,
                worker_init_fn=record_pid,
            )
        )


def killed(error: BaseException) -> RunError | None:
    """The message for torch's error about a dead worker; None for other errors. torch raises it from a signal
    handler, so it may come from anywhere, not only from `take`."""
    match = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", str(error))
    return match and RunError(f"the loader worker (process {match[1]}) {match[2].rstrip('. ')}")


def end_workers() -> None:
    """Kills all workers of this process. A stopped worker would not react to a gentler signal."""
    if POSIX and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for each
    for child in active_children():
        child.kill()


def _shifted(positions: range, stride: int) -> range:
    return range(positions.start + stride, positions.stop + stride)


@dataclass(frozen=True)
class _Failed:
    """An error on its way to the training process, since torch would turn it into a traceback."""

    error: Exception


class _Reading(Dataset[Any]):
    def __init__(self, read: Callable[[range], Any]):
        self.read = read

    def __getitem__(self, positions: range) -> Any:
        try:
            return self.read(positions)
        except RunError as error:
            return _Failed(error)
