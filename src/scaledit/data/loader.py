"""Reading ahead: processes make the samples of the next steps while the present one is computed.

    step i reads  first + i stride ...,      worker k makes what the steps i with i mod workers = k read

What is read is a function of the positions alone, so the number of workers changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

from scaledit.errors import RunError

Item = TypeVar("Item")
AHEAD = 2
"""Steps that each worker is ahead."""


class Loader(Generic[Item]):
    """`take(positions)` gives `read(positions)`. With workers, what comes next is assumed to be the positions
    `stride` further on; anything else is right as well, and starts them anew.

    timeout: seconds to wait for a worker. Raises what `read` raises, and RunError naming a worker that was
    killed or is stuck.
    """

    def __init__(self, read: Callable[[range], Item], stride: int, workers: int = 0, timeout: float = 600.0):
        self.read, self.stride, self.workers, self.timeout = read, stride, workers, timeout
        self._items: Iterator[Item | _Failed] | None = None
        self._next: range | None = None
        self._taken = 0
        self._pids: Any = None

    def take(self, positions: range) -> Item:
        if self.workers == 0:
            return self.read(positions)
        if self._items is None or positions != self._next:
            self._items, self._taken = self._started(positions), 0
        self._next = None  # what failed is not gone on from
        try:
            item = next(self._items)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise killed(error) or error from error
            worker = self._taken % self.workers
            raise RunError(
                f"loader worker {worker} (process {self._pids[worker]}) has made nothing for "
                f"{self.timeout:g} s: the storage is stuck, or engine.timeout is too short"
            ) from error
        if isinstance(item, _Failed):
            raise item.error
        self._next = _further(positions, self.stride)
        self._taken += 1
        return item

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
                timeout=self.timeout,
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
