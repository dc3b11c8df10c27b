"""Several workers on one machine: processes of the same command that join the study in its folder.

Each has one CPU thread (or one GPU), so that a result is the same whoever made it. They know nothing of each
other: what one leaves undone, another takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from scaledit import children

POLL = 0.25


def run(arguments: Sequence[str], workers: int, look: Callable[[], None], gpus: int = 0) -> list[int]:
    """Starts `workers` processes of `scaledit *arguments`, calls `look` while they work, and gives their exit
    codes. Ctrl-C and stop signals reach every worker once. gpus: worker k sees the k-th of so many alone."""
    with children.started(arguments, _environments(workers, gpus)) as crew:
        while any(worker.poll() is None for worker in crew):
            look()
            time.sleep(POLL)
        look()
        return [worker.returncode for worker in crew]


def _environments(workers: int, gpus: int) -> Iterator[dict[str, str]]:
    for worker in range(workers):
        own = {"CUDA_VISIBLE_DEVICES": str(worker % gpus)} if gpus else {}
        yield {**os.environ, "OMP_NUM_THREADS": "1", **own}
