"""Several workers on one machine: processes of the same command that join the study in its folder.

Each has one CPU thread (or one GPU), so that results do not depend on the worker. The workers are
independent: a job that one leaves undone is taken by another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from scaledit import children

POLL = 0.25


def run(arguments: Sequence[str], workers: int, refresh: Callable[[], None], gpus: int = 0) -> list[int]:
    """Starts `workers` processes of `scaledit *arguments`, calls `refresh` while they work, and returns their
    exit codes. Ctrl-C and stop signals reach every worker once. gpus: if not 0, worker k sees only GPU k mod
    gpus."""
    environments = [{**os.environ, "OMP_NUM_THREADS": "1"} for _ in range(workers)]
    for worker in range(workers if gpus else 0):
        environments[worker]["CUDA_VISIBLE_DEVICES"] = str(worker % gpus)
    with children.started(arguments, environments) as crew:
        while any(worker.poll() is None for worker in crew):
            refresh()
            time.sleep(POLL)
        refresh()
        return [worker.returncode for worker in crew]
