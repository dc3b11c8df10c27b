"""Several workers on one machine: processes of the same command that join the study in its folder.

Each has one CPU thread (or one GPU), so that a result is the same whoever made it. They know nothing of each
other: what one leaves undone, another takes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

POLL = 0.25
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def run(arguments: Sequence[str], workers: int, look: Callable[[], None], gpus: int = 0) -> list[int]:
    """Starts `workers` processes of `scaledit *arguments`, calls `look` while they work, and gives their exit
    codes. Ctrl-C and stop signals reach every worker once. gpus: worker k sees the k-th of so many alone."""
    crew = [_start(arguments, worker, gpus) for worker in range(workers)]

    def forward(number: int, _: FrameType | None) -> None:
        for worker in crew:
            if worker.poll() is None:
                worker.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        while any(worker.poll() is None for worker in crew):
            look()
            time.sleep(POLL)
        look()
        return [worker.returncode for worker in crew]
    finally:
        for worker in crew:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(arguments: Sequence[str], worker: int, gpus: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(worker % gpus)
    command = [sys.executable, "-m", "scaledit.cli", *arguments]
    # Of their own session: a terminal's Ctrl-C comes from here alone, once.
    return subprocess.Popen(command, env=environment, start_new_session=True)
