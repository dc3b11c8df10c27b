"""Requests to stop: Ctrl-C, SIGTERM or SIGUSR1 ends a run after the current step, with a checkpoint.

first signal              finish the step, save on all ranks, exit 75  (EX_TEMPFAIL of sysexits.h)
second SIGTERM or Ctrl-C  exit 143 or 130 at once
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from scaledit.posix import STOP_SIGNALS

STOPPED = 75
"""The exit code of a run that was asked to stop and has saved a checkpoint to resume from."""
AT_ONCE = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a run at once if it was asked to stop before."""


class Stopping(Exception):
    """Raised between two images if a run is asked to stop while it samples or evaluates."""


class StopRequest:
    """The signal that has arrived, if any. Installs its handlers only in `listen`.

    patient: whether Ctrl-C asks to stop like the other signals; if not, its previous handler is called, which
    raises KeyboardInterrupt. on_signal: called with the name of the first signal. at_once: called with that
    of the second one before the process ends.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.patient = True
        self.on_signal: Callable[[str], None] = lambda name: None
        self.at_once: Callable[[str], None] = lambda name: None
        self._process = os.getpid()
        self._before: Any = None

    def listen(self) -> StopRequest:
        """Installs the signal handlers; call it in the main thread."""
        self._before = signal.getsignal(signal.SIGINT)
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        in_own_process = os.getpid() == self._process
        if number == signal.SIGINT:
            if not in_own_process:
                return  # a terminal interrupts the loader's processes too, which end with this one
            if not self.patient and callable(self._before):
                self._before(number, frame)
                return
        name = signal.Signals(number).name
        if self.signal is None:
            self.signal = name
            if in_own_process:
                with suppress(Exception):
                    self.on_signal(name)
        elif number in AT_ONCE:
            if in_own_process:
                with suppress(Exception):
                    self.at_once(name)
            os._exit(128 + number)

    def check(self, *_: object) -> None:
        """Raises Stopping if a signal has arrived; usable as a progress callback."""
        if self.signal is not None:
            raise Stopping
