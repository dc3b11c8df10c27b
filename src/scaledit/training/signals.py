"""Being asked to stop: Ctrl-C, SIGTERM or SIGUSR1 ends a run after the step that it is in, with everything
saved.

first signal              finish the step, save on all ranks, exit 75  (try again later, as sysexits.h has it)
second SIGTERM or Ctrl-C  exit 143 or 130 at once
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

STOPPED = 75
"""Exit code of a run that was asked to stop and has saved: the same command with --resume auto goes on."""
AT_ONCE = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a run at once which was asked to stop before."""


class Stopping(Exception):
    """Raised between two images, where a run that was asked to stop is drawing or judging pictures."""


class StopRequest:
    """Which signal has come. Nothing is caught before `listen`.

    patient: whether Ctrl-C asks to stop like the others; else it does what it did before `listen`, which is
    to raise KeyboardInterrupt. on_signal: told the name of the first signal. at_once: called with the name of
    a second one before the process ends.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.patient = True
        self.on_signal: Callable[[str], None] = lambda name: None
        self.at_once: Callable[[str], None] = lambda name: None
        self._process = os.getpid()
        self._before: Any = None

    def listen(self) -> StopRequest:
        """From now on, in the main thread of this process."""
        self._before = signal.getsignal(signal.SIGINT)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        here = os.getpid() == self._process
        if number == signal.SIGINT:
            if not here:
                return  # a terminal tells the loader's processes too, which end with this one
            if not self.patient and callable(self._before):
                self._before(number, frame)
                return
        name = signal.Signals(number).name
        if self.signal is None:
            self.signal = name
            if here:
                with suppress(Exception):
                    self.on_signal(name)
        elif number in AT_ONCE:
            if here:
                with suppress(Exception):
                    self.at_once(name)
            os._exit(128 + number)

    def check(self, *_: object) -> None:
        """Raises Stopping once a signal has come; goes where a progress callback does."""
        if self.signal is not None:
            raise Stopping
