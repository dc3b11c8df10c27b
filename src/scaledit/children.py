"""Processes of `scaledit` that this one starts: signals reach all of them, and they end with it. No torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""A terminal's Ctrl-Z is handed on as well: the children stop, then this process, and go on with it."""


@contextlib.contextmanager
def started(
    arguments: Sequence[str], environments: Iterable[Mapping[str, str]]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process of `scaledit *arguments` for each environment. Ctrl-C and stop signals to this process reach
    every one of them once; those that still run at the end of the block are killed."""
    command = [sys.executable, "-m", "scaledit.cli", *arguments]
    children: list[subprocess.Popen[bytes]] = []
    came: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        came.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    def pause(_: int, __: FrameType | None) -> None:
        running = [child for child in children if child.poll() is None]
        for child in running:
            child.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for child in running:
            child.send_signal(signal.SIGCONT)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    if signal.getsignal(signal.SIGTSTP) != signal.SIG_IGN:
        before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, pause)
    try:
        for environment in environments:
            # Of their own session: a terminal's Ctrl-C comes from here alone, once; and held back until they
            # can answer it (scaledit.cli).
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                child = subprocess.Popen(command, env=dict(environment), start_new_session=True)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            children.append(child)
            if came:  # asked to stop before all were there
                child.send_signal(came[0])
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()  # when this process is gone, so are they
        for number, handler in before.items():
            signal.signal(number, handler)
