"""Being asked to stop: SIGTERM or SIGUSR1 ends a run after the step that it is in, with everything saved.

first signal   finish the step, save on all ranks, exit 75        (try again later, as sysexits.h has it)
second SIGTERM exit 143 at once
"""

from __future__ import annotations

import os
import signal
from types import FrameType

STOPPED = 75
"""Exit code of a run that was asked to stop and has saved: the same command with --resume auto goes on."""
AT_ONCE = 128 + signal.SIGTERM


class Stopping(Exception):
    """Raised between two images, where a run that was asked to stop is drawing or judging pictures."""


class StopRequest:
    """Which signal has come. Nothing is caught before `listen`."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def listen(self) -> StopRequest:
        """From now on, in the main thread of this process."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGTERM:
            os._exit(AT_ONCE)
        self.signal = self.signal or signal.Signals(number).name

    def check(self, *_: object) -> None:
        """Raises Stopping once a signal has come; goes where a progress callback does."""
        if self.signal is not None:
            raise Stopping
