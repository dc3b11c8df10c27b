"""Reading ahead: processes make the samples of the next steps while the present one is computed.

    step i reads  first + i stride ...,      worker k makes what the steps i with i mod workers = k read

What is read is a function of the positions alone, so the number of workers changes nothing.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

from scaledit.errors import RunError

Item = TypeVar("Item")
AHEAD = 2
"""Steps that each worker is ahead."""
SLICES = 20
"""In which a worker is waited for: seconds in which this process was stopped (Ctrl-Z) shorten one of them
only, not all the time that the worker has."""
PATIENCE = 0.75
"""Of engine.timeout: who waits for a worker should find out before it seems stuck itself."""


class Loader(Generic[Item]):
    """`take(positions)` gives `read(positions)`. With workers, what comes next is assumed to be the positions
    `stride` further on; anything else is right as well, and starts them anew.

    timeout: seconds to wait for a worker. Raises what `read` raises, and RunError naming a worker that was
    killed or is stuck. (One that is stopped after it announced an item is waited for without end, in torch's
    passing on of shared memory; that is the watch's to find.)
    """

    def __init__(self, read: Callable[[range], Item], stride: int, workers: int = 0, timeout: float = 600.0):
        self.read, self.stride, self.workers, self.timeout = read, stride, workers, timeout
        self._items: Iterator[Item | _Failed] | None = None
        self._next: range | None = None
        self._taken = 0
        self._pids: Any = None

    @property
    def source(self) -> str:
        """What the next item comes from, for messages."""
        if self.workers == 0 or self._pids is None:
            return "the data"
        worker = self._taken % self.workers
        return f"loader worker {worker} (process {self._pids[worker]})"

    def take(self, positions: range) -> Item:
        if self.workers == 0:
            return self.read(positions)
        if self._items is None or positions != self._next:
            self._items, self._taken = self._started(positions), 0
        self._next = None  # what failed is not gone on from
        item = self._waited_for(self._items)
        if isinstance(item, _Failed):
            raise item.error
        self._next = _further(positions, self.stride)
        self._taken += 1
        return item

    def _waited_for(self, items: Iterator[Item | _Failed]) -> Item | _Failed:
        waited = 0
        while True:
            try:
                return next(items)
            except (OSError, EOFError) as error:  # of a connection to a worker
                raise self._lost() from error
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise killed(error) or error from error
                waited += 1
                if waited == SLICES:
                    raise RunError(
                        f"{self.source} has made nothing for {self.timeout:g} s: the storage is stuck, or "
                        "engine.timeout is too short"
                    ) from error

    def _lost(self) -> RunError:
        """Which worker has ended, waiting a moment until that can be seen."""
        gone: list[str] = []
        deadline = time.monotonic() + 2
        while not gone and time.monotonic() < deadline:
            there = {child.pid for child in active_children()}
            gone = [str(pid) for pid in self._pids if pid and pid not in there]
            time.sleep(0.01)
        return RunError(f"loader worker (process {', '.join(gone) or 'unknown'}) has ended")

    def _started(self, first: range) -> Iterator[Item | _Failed]:
        context = get_context("fork")
        pids = self._pids = context.Array("i", self.workers)

        def note(worker: int) -> None:
            pids[worker] = os.getpid()

        return iter(
            DataLoader(
                _Reading(self.read),
                batch_size=None,
                sampler=_Onward(first, self.stride),
                num_workers=self.workers,
                prefetch_factor=AHEAD,
                timeout=self.timeout / SLICES,
                multiprocessing_context=context,
                worker_init_fn=note,
            )
        )


def killed(error: BaseException) -> RunError | None:
    """What to say of a worker's death. torch raises it from a signal handler: anywhere, not only in
    `take`."""
    found = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", str(error))
    if found is None:
        return None
    return RunError(f"loader worker (process {found[1]}) {found[2].rstrip('. ')}")


def end_workers() -> None:
    """Ends all workers of this process at once. One that is stopped would not hear anything gentler, and
    would be waited for."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for each
    for child in active_children():
        child.kill()


def _further(positions: range, stride: int) -> range:
    return range(positions.start + stride, positions.stop + stride)


@dataclass(frozen=True)
class _Failed:
    """An error on its way to the training process; torch would wrap it into a traceback."""

    error: Exception


class _Reading(Dataset[Any]):
    def __init__(self, read: Callable[[range], Any]):
        self.read = read

    def __getitem__(self, positions: range) -> Any:
        try:
            return self.read(positions)
        except RunError as error:
            return _Failed(error)


class _Onward(Sampler[range]):
    """first, first + stride, first + 2 stride, ... without end."""

    def __init__(self, first: range, stride: int):
        self.first, self.stride = first, stride

    def __iter__(self) -> Iterator[range]:
        positions = self.first
        while True:
            yield positions
            positions = _further(positions, self.stride)
