"""One process of a training run: its loop, its watch, and on the first rank those who listen to the events.

Exit codes: 0 done, 1 failed, 2 a wrong call, 75 stopped by a signal or Ctrl-C with everything saved, 130
interrupted before training began, or by a second Ctrl-C, 143 told twice to stop. status.json in the run
folder says the same, with the step and the reason.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from scaledit import terminal
from scaledit.config import Config
from scaledit.data.loader import end_workers
from scaledit.errors import RunError, UsageError
from scaledit.progress import TrainingProgress
from scaledit.training.events import Event, Finished, Saved, Started, Stopped
from scaledit.training.folder import write_status
from scaledit.training.log import JsonLog
from scaledit.training.loop import RunContext
from scaledit.training.ranks import EndedElsewhere, Ranks, leave
from scaledit.training.signals import STOPPED, StopRequest
from scaledit.training.trackers import Tracker, trackers
from scaledit.training.watch import Watch

Events = Callable[[RunContext], Iterator[Event]]
"""Starts a run: scaledit.training.dit.train, or the autoencoder's, of some config."""


def run(config: Config, out: Path, device: str, events: Events, report: Callable[[], None]) -> int:
    """Trains as one rank, or as the only process, and gives the exit code. report: what the first rank does
    after the end. Raises UsageError and RunError; one of several ranks prints them and ends its process."""
    ranks = Ranks.join(device)
    rank = Rank(config, out, ranks)
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
    except Exception:  # a fault of ours
        traceback.print_exc()
        code = 1
    return leave(code)


@contextmanager
def listening(out: Path, trackers: Iterable[Tracker], console: Console) -> Iterator[Callable[[Event], None]]:
    """What is to be told of each event: the log, the trackers, the display."""
    log = JsonLog(out)
    with ExitStack() as stack:
        others: list[Callable[[Event], None]] = [stack.enter_context(tracker) for tracker in trackers]
        others.append(stack.enter_context(TrainingProgress(console)))

        def listen(event: Event) -> None:
            log(event)  # first: trackers read log.jsonl when a run is resumed
            for tell in others:
                tell(event)

        yield listen


class Rank:
    """One rank's life: its loop, its watch, and on the first rank the listeners."""

    def __init__(self, config: Config, out: Path, ranks: Ranks):
        self.config, self.out, self.ranks = config, out, ranks
        self.console = terminal.console(stderr=True)
        self.watch = Watch(out, ranks, config.engine.timeout, self._stuck)
        self.trackers: list[Tracker] = []
        self.stop = StopRequest()
        self.stop.patient = ranks.grouped  # of several, none may leave before the others
        self.stop.on_signal, self.stop.at_once = self._asked, self._told_twice
        self.context = RunContext(ranks, self.stop.listen(), self.watch, self._claimed)
        self.step: int | None = None  # none before the folder is this run's
        self.saved: int | None = None
        self.ended = False

    def run(self, events: Events, report: Callable[[], None]) -> int:
        """The exit code; raises what ended the run, after status.json and the other ranks were told."""
        try:
            self.ranks.on_first(lambda: self.trackers.extend(trackers(self.config, self.out)))
            code = self._through(events(self.context))
            if code == 0 and self.ranks.first:
                report()
            return code
        except KeyboardInterrupt:
            self._failed("interrupted", 130)
            if self.step is None:
                raise
            step = f"from step {self.saved} " if self.saved is not None else ""
            goes_on = f"the same command with --resume auto goes on {step}in {self.out}"
            raise KeyboardInterrupt(goes_on) from None
        except EndedElsewhere:
            raise
        except UsageError as error:
            self._failed(str(error), 2)
            raise
        except RunError as error:
            self._failed(str(error))
            raise
        except BrokenPipeError:  # of who reads what is printed
            if not self.ended:
                self._failed("nobody reads the output any more")
            raise
        except OSError as error:
            where = error.filename or self.out
            failed = RunError(
                f"{where}: {error.strerror or error}; checkpoints are intact, and the same command with "
                "--resume auto goes on"
            )
            self._failed(str(failed))
            raise failed from error
        except Exception as error:
            if not (self.ranks.grouped and isinstance(error, RuntimeError) and lost_contact(error)):
                self._failed(f"{type(error).__name__}: {error}")
                raise
            who = self.watch.culprit()
            self.watch.ended(f"lost contact: {who}")
            if not self.watch.speaks():
                raise EndedElsewhere(1) from error
            self._status("failed", reason=who, exit_code=1)
            raise RunError(f"{who}; the same command with --resume auto goes on") from error

    def _through(self, events: Iterator[Event]) -> int:
        """Listens to the events of this rank; the exit code that they mean."""
        last: Event | None = None
        with (
            listening(self.out, self.trackers, self.console) if self.ranks.first else nullcontext() as listen
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
        self.stop.patient = self.ranks.grouped  # what follows, a report, may be interrupted
        assert isinstance(last, Stopped | Finished)
        self.step, self.ended = last.step, True
        if isinstance(last, Finished):
            state, code, more = "finished", 0, {}
        else:
            state, code, more = "stopped", STOPPED, {"reason": last.signal}
        if self.ranks.first:
            self._status(state, **more, exit_code=code)
        return code

    def _stuck(self, why: str) -> None:
        """From the watch's thread, when nothing moves any more."""
        self.watch.ended("nothing moved")
        if self.watch.speaks():
            self._say(f"scaledit: {why}. The same command with --resume auto goes on")
            self._status("failed", reason=why, exit_code=1)
        end_workers()
        leave(1)

    def _claimed(self, step: int) -> None:
        """The folder is this run's: from here on status.json tells of this life, whatever comes."""
        self.step = step
        if self.ranks.first:
            self._status("running")

    def _asked(self, name: str) -> None:
        """From a signal's handler, so not through Python's own files, which may be in use."""
        if name == "SIGINT" and self.ranks.first:
            _write("stopping after this step, saving; Ctrl-C again leaves at once")

    def _told_twice(self, name: str) -> None:
        code = 128 + signal.Signals[name]
        if self.ranks.first:
            self._status("failed", reason=f"{name}, told twice to stop", exit_code=code)
            if name == "SIGINT":
                _write("left at once; the same command with --resume auto goes on")

    def _failed(self, why: str, code: int = 1) -> None:
        end_workers()
        if self.step is not None:  # else the folder may be another job's
            self.watch.ended(why)
        self._status("failed", reason=why, exit_code=code)

    def _status(self, state: str, **more: Any) -> None:
        """Of a run whose folder this is; a disk that is full must not hide the reason."""
        if self.step is None:
            return
        with suppress(OSError):
            write_status(self.out, state, self.step, ranks=self.ranks.world, **more)

    def _say(self, line: str) -> None:
        terminal.say_on(self.console, line)


def _write(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"\n{line}\n".encode())


def lost_contact(error: RuntimeError) -> bool:
    """Whether a message to other ranks could not be sent or received."""
    return any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "Connection", "Socket", "TCPStore"))
