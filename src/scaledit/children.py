"""Child processes of `scaledit`: signals are forwarded to all of them, and none outlives its parent. No
torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType

from scaledit.posix import STOP_SIGNALS, require


@contextlib.contextmanager
def started(
    arguments: Sequence[str], environments: Iterable[Mapping[str, str]], *, silent: bool = False
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts `scaledit *arguments` once for each environment. Ctrl-C and stop signals sent to this process
    reach each child once, and so does Ctrl-Z: the children stop, then this process, and they continue with
    it. Children that still run at the end of the block are killed. silent: what they print on standard output
    goes nowhere. Raises UsageError on Windows."""
    require("running several processes")
    command = [sys.executable, "-m", "scaledit.cli", *arguments]
    children: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
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

    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    if signal.getsignal(signal.SIGTSTP) != signal.SIG_IGN:
        before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, pause)
    try:
        for environment in environments:
            # In their own session a terminal's Ctrl-C reaches them only from here. It stays blocked until
            # they can handle it (scaledit.cli).
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                output = subprocess.DEVNULL if silent else None
                child = subprocess.Popen(
                    command, env=dict(environment), start_new_session=True, stdout=output
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            children.append(child)
            if received:  # a signal came before all children were started
                child.send_signal(received[0])
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
