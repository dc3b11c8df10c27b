"""One process of a training run: its loop, its watch, and on the first rank the listeners to its events.

Exit codes: 0 done, 1 failed, 2 a wrong command, 75 stopped by a signal or Ctrl-C with everything saved, 130
interrupted before training began or by a second Ctrl-C, 143 by a second SIGTERM. status.json in the run
folder records the same, with the step and the reason.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from scaledit import launch, terminal
from scaledit.config import Config
from scaledit.data.loader import end_workers, killed
from scaledit.errors import RunError, UsageError, printable
from scaledit.progress import TrainingProgress
from scaledit.training.events import Event, Finished, Saved, Started, Stopped
from scaledit.training.folder import write_status
from scaledit.training.log import JsonLog
from scaledit.training.loop import RunContext
from scaledit.training.ranks import EndedElsewhere, Ranks, leave
from scaledit.training.signals import STOPPED, StopRequest
from scaledit.training.trackers import trackers
from scaledit.training.watch import Watch

Events = Callable[[RunContext], Iterator[Event]]
"""Starts a run of some config: scaledit.training.dit.train, or the autoencoder's."""

Listener = AbstractContextManager[Callable[[Event], None]]
"""What is called with each event of a run, and told when its loop ends: a tracker, for example."""


def run(
    config: Config,
    out: Path,
    device: str,
    events: Events,
    report: Callable[[], None],
    listeners: Iterable[Listener] = (),
) -> int:
    """Trains as one rank, or as the only process, and returns the exit code. report: what the first rank does
    after the end. listeners: to the events of the first rank, in addition to log, trackers and display.
    Raises UsageError and RunError; one of several ranks prints them and ends its process."""
    ranks = Ranks.join(device)
    rank = Rank(config, out, ranks, listeners)
    if not ranks.grouped:
        return rank.run(events, report)
    try:
        code = rank.run(events, report)
    except EndedElsewhere as ended:
        code = ended.code
    except (UsageError, RunError) as error:
        terminal.complain(error)
        code = 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt as error:
        if ranks.first:
            terminal.complain(f"interrupted; {error}" if str(error) else "interrupted")
        code = 130
    except BrokenPipeError:  # stdout is closed
        code = 1
    except Exception:  # a bug
        traceback.print_exc()
        code = 1
    return leave(code)


@contextmanager
def listening(
    out: Path, trackers: Iterable[Listener], console: Console, resume: str = ""
) -> Iterator[Callable[[Event], None]]:
    """Yields what to call with each event: it is passed to the log, the trackers and the display. resume: how
    the user resumes the run."""
    log = JsonLog(out)
    with ExitStack() as stack:
        others: list[Callable[[Event], None]] = [stack.enter_context(tracker) for tracker in trackers]
        others.append(stack.enter_context(TrainingProgress(console, resume)))

        def listen(event: Event) -> None:
            log(event)  # first: trackers read log.jsonl when a run is resumed
            for listener in others:
                listener(event)

        yield listen


class Rank:
    """One rank of a run: its loop, its watch, and on the first rank the listeners."""

    def __init__(self, config: Config, out: Path, ranks: Ranks, listeners: Iterable[Listener] = ()):
        self.config, self.out, self.ranks = config, out, ranks
        self.resume = launch.how_to_resume()
        self.console = terminal.console(stderr=True)
        self.watch = Watch(out, ranks, config.engine.timeout, self._on_stuck)
        self.trackers: list[Listener] = list(listeners)
        self.stop = StopRequest()
        self.stop.patient = ranks.grouped  # one of several ranks must not leave before the others
        self.stop.on_signal, self.stop.at_once = self._on_signal, self._on_second_signal
        self.context = RunContext(ranks, self.stop.listen(), self.watch, self._on_lock)
        self.step: int | None = None  # None until this run owns the folder
        self.saved: int | None = None
        self.ended = False

    def run(self, events: Events, report: Callable[[], None]) -> int:
        """Returns the exit code. Records what ended the run, tells the other ranks, and raises it."""
        try:
            self.ranks.on_first(lambda: self.trackers.extend(trackers(self.config, self.out)))
            code = self._listen(events(self.context))
            if code == 0 and self.ranks.first:
                report()
            return code
        except KeyboardInterrupt:
            self._fail("interrupted", 130)
            if self.step is None:
                raise
            saved = f"step {self.saved} is saved; " if self.saved is not None else ""
            raise KeyboardInterrupt(f"{saved}{self.resume}") from None
        except EndedElsewhere:
            raise
        except (UsageError, RunError) as error:
            self._fail(str(error), 2 if isinstance(error, UsageError) else 1)
            raise
        except BrokenPipeError:  # stdout is closed
            if not self.ended:
                self._fail("the output is closed")
            raise
        except OSError as error:
            reason = error.strerror or error
            message = f"{error.filename or self.out}: {reason}; the checkpoints are intact; {self.resume}"
            self._fail(message)
            raise RunError(message) from error
        except Exception as error:
            if lost := killed(error):  # its signal may arrive here too, while an event is shown or logged
                self._fail(str(lost))
                raise lost from error
            if not (self.ranks.grouped and isinstance(error, RuntimeError) and lost_contact(error)):
                self._fail(f"{type(error).__name__}: {error}")
                raise
            culprit = self.watch.culprit()
            self.watch.ended(f"lost contact: {culprit}")
            if not self.watch.speaks():
                raise EndedElsewhere(1) from error
            self._status("failed", reason=culprit, exit_code=1)
            raise RunError(f"{culprit}; {self.resume}") from error

    def _listen(self, events: Iterator[Event]) -> int:
        """Passes the events of this rank to the listeners and returns the exit code."""
        last: Event | None = None
        with (
            listening(self.out, self.trackers, self.console, self.resume)
            if self.ranks.first
            else nullcontext() as listen
        ):
            for event in events:
                if listen is not None:
                    listen(event)
                last = event
                if isinstance(event, Started):
                    self.step = event.step
                    self.stop.patient = True
                elif isinstance(event, Saved):
                    self.step = self.saved = event.step
        self.stop.patient = self.ranks.grouped  # the report that follows may be interrupted
        assert isinstance(last, Stopped | Finished)
        self.step, self.ended = last.step, True
        if isinstance(last, Finished):
            state, code, more = "finished", 0, {}
        else:
            state, code, more = "stopped", STOPPED, {"reason": last.signal}
        if self.ranks.first:
            self._status(state, **more, exit_code=code)
        return code

    def _on_stuck(self, reason: str) -> None:
        """Called from the watch's thread when no rank advances any more."""
        self.watch.ended("nothing moved")
        if self.watch.speaks():
            terminal.say_on(self.console, f"scaledit: {reason}; {self.resume}")
            self._status("failed", reason=reason, exit_code=1)
        end_workers()
        leave(1)

    def _on_lock(self, step: int) -> None:
        """The folder is this run's: from now on status.json describes it, whatever happens."""
        self.step = step
        if self.ranks.first:
            self._status("running")

    def _on_signal(self, name: str) -> None:
        if name == "SIGINT" and self.ranks.first:
            _write("stopping after this step and saving it; Ctrl-C again leaves at once, without saving")

    def _on_second_signal(self, name: str) -> None:
        if self.ranks.first:
            self._status("failed", reason=f"a second {name}", exit_code=128 + signal.Signals[name])
            if name == "SIGINT":
                _write(f"left at once; {printable(self.resume)}")

    def _fail(self, reason: str, code: int = 1) -> None:
        end_workers()
        if self.step is not None:  # else the folder may be another job's
            self.watch.ended(reason)
        self._status("failed", reason=reason, exit_code=code)

    def _status(self, state: str, **more: Any) -> None:
        """Writes status.json if this run owns the folder; a full disk must not hide the original error."""
        if self.step is None:
            return
        with suppress(OSError):
            write_status(self.out, state, self.step, ranks=self.ranks.world, **more)


def _write(line: str) -> None:
    """Prints from a signal handler, where Python's own files may be in use."""
    with suppress(OSError):
        os.write(2, f"\n{line}\n".encode())


def lost_contact(error: RuntimeError) -> bool:
    """Whether a message to other ranks could not be sent or received."""
    return any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "Connection", "Socket", "TCPStore"))
