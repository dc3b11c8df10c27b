"""Progress of long work on stderr: a bar on a terminal, a line now and then in a pipe, nothing when quiet.

training digits ━━━━━━━━━━━━ 400/1000  loss 0.412  690 images/s  0:00:41 left        on a terminal
step 400/1000  loss 0.4120  690 images/s  after 37 s, 56 s left                      in a pipe
sampling 12800/50000, 5 min 40 s left
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scaledit import callbacks, terminal
from scaledit.errors import counted, printable
from scaledit.scaling.queue import Queue
from scaledit.training.events import (
    Changed,
    CorruptCheckpoint,
    DataChanged,
    DataRecorded,
    Evaluated,
    Event,
    Exported,
    Finished,
    Fitted,
    Halved,
    Initialized,
    Reconstructed,
    Remarked,
    RolledBack,
    Sampled,
    Saved,
    Skipped,
    Spiked,
    Started,
    Stepped,
    Stopped,
    Verifying,
)

SHOWN_METRICS = 4
"""Of an evaluation during training; the log and the report have all."""
Clock = Callable[[], float]
"""Seconds since some moment."""
SHORTEST, LONGEST, SHARE = 10.0, 600.0, 0.05
"""Time between two lines in a pipe: a share of the time so far, within these bounds in seconds."""

SETTLED = 5.0
"""Seconds after which the speed of a study's workers says something."""


def duration(seconds: float) -> str:
    """A time as people say it: 48 s, 5 min 40 s, 3 h 20 min, 2 days 4 h."""
    for unit, smaller, size, rest in (
        ("days", "h", 86_400, 3_600),
        ("h", "min", 3_600, 60),
        ("min", "s", 60, 1),
    ):
        if seconds >= (2 if unit == "days" else 1) * size:
            whole, left = divmod(round(seconds / rest), size // rest)
            return f"{whole} {unit} {left} {smaller}" if left else f"{whole} {unit}"
    return f"{seconds:.0f} s"


class Estimate:
    """The time that work will still take, from its speed since `begin`: of this process only, so that what an
    earlier one did does not count."""

    def __init__(self, clock: Clock = time.monotonic):
        self.clock = clock
        self.begin(0)

    def begin(self, done: float) -> None:
        self.first, self.since = done, self.clock()

    @property
    def spent(self) -> float:
        """Seconds since `begin`."""
        return self.clock() - self.since

    def left(self, done: float, total: float) -> float | None:
        """Seconds; None if nothing was done yet or everything is."""
        if not self.first < done < total:
            return None
        return (total - done) * self.spent / (done - self.first)

    def left_in_words(self, done: float, total: float) -> str:
        """', 48 s left', or ''."""
        seconds = self.left(done, total)
        return "" if seconds is None else f", {duration(seconds)} left"


class Pace:
    """When to print the next line in a pipe: after 10 seconds, and less and less often as time passes."""

    def __init__(self, clock: Clock = time.monotonic):
        self.clock, self.began = clock, clock()
        self.last = self.began

    @property
    def spoken(self) -> bool:
        """Whether a line was due before."""
        return self.last > self.began

    def due(self) -> bool:
        now = self.clock()
        if now - self.last < min(max(SHORTEST, SHARE * (now - self.began)), LONGEST):
            return False
        self.last = now
        return True


class Lines:
    """Progress as lines, for a pipe or a file. Work that takes less than 10 seconds prints none.

    sampling 12800/50000, 5 min 40 s left
    sampling 50000/50000, after 7 min 37 s
    """

    def __init__(self, title: str, say: Callable[[str], None], clock: Clock = time.monotonic):
        self.title, self.say, self.pace, self.estimate = title, say, Pace(clock), Estimate(clock)
        self.before: tuple[int, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.before is None or done < self.before[0] or total != self.before[1]:  # work of another kind
            self.estimate.begin(done)
        ended = done >= total and (done, total) != self.before
        self.before = done, total
        if self.pace.due() or (ended and self.pace.spoken):
            after = f", after {duration(self.estimate.spent)}" if ended else ""
            left = self.estimate.left_in_words(done, total)
            self.say(f"{self.title} {done}/{total}{after}{left}")


@contextmanager
def shown(title: str, clock: Clock = time.monotonic) -> Iterator[callbacks.Progress]:
    """Yields a callback that shows the progress of some work on stderr."""
    console = terminal.console(stderr=True)
    if terminal.is_quiet() or not console.is_terminal:
        yield Lines(title, lambda line: terminal.inform_on(console, line), clock)
        return
    progress, began = bar(console), clock()
    task = progress.add_task(printable(title), total=None, note="")

    def update(done: int, total: int) -> None:
        progress.start()  # at the first call; it does nothing at the others
        rate = done / max(clock() - began, 1e-9)
        progress.update(task, completed=done, total=total, note=f"{rate:.3g}/s")

    try:
        yield update
    finally:
        if progress.live.is_started:
            progress.stop()


def bar(console: Console) -> Progress:
    """A progress bar in scaledit's style: description, bar, count, note, time left. Texts are plain, not
    markup; pass names from elsewhere through `printable`."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
    )


class TrainingProgress:
    """Shows the events of one run. Use as a context manager around the loop.

    resume: how the user resumes the run, as the end of a sentence (scaledit.launch.how_to_resume).
    """

    def __init__(self, console: Console, resume: str = "", clock: Clock = time.monotonic):
        self.console, self.resume = console, resume
        self.progress = bar(console)
        self.task = self.progress.add_task("training", total=None, note="", start=False)
        self.has_bar = console.is_terminal and not terminal.is_quiet()
        self.verified = Lines("checking the latents, MB", self._inform, clock)
        self.estimate, self.steps = Estimate(clock), 0

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress.live.is_started:  # it is not if the call was refused before the first event
            self.progress.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Verifying():
                self._verifying(event)
            case Started():
                self._started(event)
            case Stepped() | Fitted():
                self._stepped(event)
            case Skipped() | Spiked() | RolledBack() | CorruptCheckpoint() | DataChanged() | Halved():
                terminal.say_on(self.console, trouble(event))
                if isinstance(event, RolledBack):
                    self.progress.update(self.task, completed=event.step)
            case Stopped():
                how = f"; {self.resume}" if self.resume else ""
                terminal.say_on(
                    self.console, f"stopped by {event.signal} after step {event.step}, which is saved{how}"
                )
            case DataRecorded():
                self._inform(
                    "this run has no record of its data, so only the class names were compared; its next "
                    f"checkpoint will record the {counted(event.samples, 'image')} of now"
                )
            case Changed():
                self._inform(f"changed from step {event.step} on: {'; '.join(event.changes)}")
            case Initialized():
                self._inform(printable(event.in_words()))
            case Remarked():
                for line in event.lines:
                    self._inform(line)
            case Evaluated():
                metrics = [f"{title} {value}" for title, value in event.result.shown()]
                self._inform(f"step {event.step}  {'  '.join(metrics[:SHOWN_METRICS])}")
            case Reconstructed():
                fd = "" if event.fd is None else f"FD {event.fd:.3g}  "
                kind = "training" if event.held_out == 0 else "held-out"
                self._inform(
                    f"step {event.step}  PSNR {event.psnr:.2f} dB  SSIM {event.ssim:.3f}  {fd}"
                    f"({counted(event.images, f'{kind} image')})"
                )
            case Exported():
                self._inform(
                    f"the autoencoder is in {event.path}; its latents have the scale {event.scale:.5f}"
                )
            case Sampled() | Saved():
                pass
            case Finished():
                self.progress.update(self.task, completed=event.step)

    def _inform(self, line: str) -> None:
        terminal.inform_on(self.console, line)

    def _verifying(self, event: Verifying) -> None:
        done, total = (count // 1_000_000 for count in event)
        if not self.has_bar:
            if total:  # at least a megabyte
                self.verified(done, total)
            return
        self.progress.start()
        self.progress.start_task(self.task)
        self.progress.update(
            self.task, description="checking the latents", completed=done, total=total, note="MB"
        )

    def _started(self, event: Started) -> None:
        if self.has_bar:
            self.progress.start()
        self.progress.reset(
            self.task,
            start=False,
            description=f"training {printable(event.run)}",
            total=event.steps,
            completed=event.step,
            note="",
        )
        self.progress.start_task(self.task)
        self.estimate.begin(event.step)
        self.steps = event.steps
        resumed = f", resumed at step {event.step}" if event.step else ""
        ranks = f", {event.ranks} ranks" if event.ranks > 1 else ""
        trained = f" ({event.trained / 1e6:.2g} M trained)" if 0 < event.trained < event.params else ""
        self._inform(
            f"{event.run}: {event.params / 1e6:.2f} M parameters{trained}, {event.macs / 1e9:.4g} G "
            f"multiply-adds per image, {event.samples} training images, on {event.device}{ranks}{resumed}"
        )

    def _stepped(self, event: Stepped | Fitted) -> None:
        loss, speed = f"loss {event.loss:.4f}", f"{event.images_per_second:.0f} images/s"
        note = f"{loss}  {speed}  {event.mfu:.0%} MFU"
        self.progress.update(self.task, completed=event.step, note=note)
        if not self.console.is_terminal:
            left = self.estimate.left_in_words(event.step, self.steps)
            self._inform(
                f"step {event.step}/{self.steps}  {loss}  {speed}  after {duration(event.seconds)}{left}"
            )


def trouble(event: Skipped | Spiked | RolledBack | CorruptCheckpoint | DataChanged | Halved) -> str:
    """What went wrong and what the run does about it, in one line. It is printed even when quiet."""
    match event:
        case Skipped():
            return (
                f"step {event.step} was skipped and changed no weight: its loss was {event.loss}, its "
                f"gradient norm {event.grad_norm} ({event.in_a_row} in a row, {event.skipped} in total)"
            )
        case Spiked():
            return (
                f"step {event.step}: the loss {event.loss:.4f} is above {event.threshold:.4f} and far from "
                f"recent losses; the images with the highest losses: {', '.join(map(str, event.samples[:4]))}"
            )
        case RolledBack():
            return (
                f"rolled back from step {event.spiked} to step {event.step}; "
                f"{counted(event.skipped_batches, 'batch', 'batches')} skipped"
            )
        case CorruptCheckpoint():
            return f"{event.why}; renamed it to {event.path.name} and resumed from step {event.step}"
        case DataChanged():
            return (
                f"the data has changed before step {event.step}, which data.changed=accept allows: "
                f"{'; '.join(event.changes)}"
            )
        case Halved():
            return (
                f"step {event.step} ran out of memory; training continues with micro-batches of "
                f"{event.micro_batch} and the same batch size"
            )


class StudyProgress:
    """Shows how far a study is: jobs done, the share of its expected time, time left, over all its workers.
    seconds: the expected time of each job on one worker, by key."""

    def __init__(self, seconds: Mapping[str, float], clock: Clock = time.monotonic):
        self.seconds, self.estimate, self.pace = seconds, Estimate(clock), Pace(clock)
        self.looked = False
        self.console = terminal.console(stderr=True)
        self.has_bar = self.console.is_terminal and not terminal.is_quiet()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
        )
        self.task = self.progress.add_task("study", total=1.0, note="")

    def __enter__(self) -> StudyProgress:
        if self.has_bar:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.has_bar:
            self.progress.stop()

    def look(self, queue: Queue) -> None:
        """Updates the bar, or prints a line if one is due; call it now and then."""
        done = {job.key: 1.0 if queue.done(job.key) else queue.progress(job.key) for job in queue.jobs}
        spent = sum(self.seconds[key] * share for key, share in done.items())
        total = max(sum(self.seconds.values()), 1e-9)
        if not self.looked:  # what earlier workers did says nothing about the speed of these
            self.looked = True
            self.estimate.begin(spent)
        left = self.estimate.left_in_words(spent, total) if self.estimate.spent > SETTLED else ""
        finished = sum(share == 1.0 for share in done.values())
        note = f"{finished}/{len(done)} jobs{left}"
        self.progress.update(self.task, completed=spent / total, note=note)
        if not self.has_bar and self.pace.due():
            terminal.inform_on(self.console, f"study {spent / total:.0%}, {note}")
