"""Progress on the terminal: one line with rate and time left, and a line for each notable event.

training digits ━━━━━━━━━━━━ 400/1000  loss 0.412  690 images/s  0:00:41 left
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scaledit import terminal
from scaledit.errors import printable
from scaledit.scaling.queue import Queue
from scaledit.training.events import (
    CorruptCheckpoint,
    DataChanged,
    DataRecorded,
    Evaluated,
    Event,
    Exported,
    Finished,
    Fitted,
    Halved,
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
    """Shows the events of one run. Use as a context manager around the loop."""

    def __init__(self, console: Console):
        self.console = console
        self.progress = bar(console)
        self.task = self.progress.add_task("training", total=None, note="", start=False)

    def __enter__(self) -> TrainingProgress:
        return self

    def _say(self, line: str) -> None:
        terminal.say_on(self.console, line)

    def __exit__(self, *_: object) -> None:
        if self.progress.live.is_started:  # it is not if the call was refused before the first event
            self.progress.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Verifying():
                if self.console.is_terminal:
                    self.progress.start()
                done, total = (count // 1_000_000 for count in event)
                self.progress.start_task(self.task)
                self.progress.update(
                    self.task, description="checking latents", completed=done, total=total, note="MB"
                )
            case Started():
                if self.console.is_terminal:
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
                resumed = f", resumed at step {event.step}" if event.step else ""
                ranks = f", {event.ranks} ranks" if event.ranks > 1 else ""
                self._say(
                    f"{event.run}: {event.params / 1e6:.2f} M parameters, {event.macs / 1e9:.4g} G "
                    f"multiply-adds per image, {event.samples} samples, on {event.device}{ranks}{resumed}"
                )
            case Stepped() | Fitted():
                self.progress.update(
                    self.task,
                    completed=event.step,
                    note=f"loss {event.loss:.4f}  {event.images_per_second:.0f} images/s  "
                    f"{event.mfu:.0%} MFU",
                )
                if not self.console.is_terminal:
                    self._say(
                        f"step {event.step}  loss {event.loss:.4f}  {event.images_per_second:.0f} images/s  "
                        f"{event.seconds:.0f} s"
                    )
            case Skipped():
                self._say(
                    f"step {event.step} skipped: loss {event.loss}, gradient norm {event.grad_norm} "
                    f"({event.in_a_row} in a row, {event.skipped} in all); no weight was changed"
                )
            case Spiked():
                self._say(
                    f"step {event.step}  loss {event.loss:.4f} is above {event.threshold:.4f}, far from "
                    f"recent losses; worst samples: {', '.join(map(str, event.samples[:4]))}"
                )
            case RolledBack():
                self._say(
                    f"rolled back from step {event.spiked} to {event.step}; "
                    f"{event.skipped_batches} batches skipped"
                )
                self.progress.update(self.task, completed=event.step)
            case DataChanged():
                self._say(
                    f"the data changed before step {event.step}, which data.changed=accept allows: "
                    f"{'; '.join(event.changes)}"
                )
            case DataRecorded():
                self._say(
                    "this run has no record of its data, so only its classes could be compared; its next "
                    f"checkpoint records the {event.samples} images that it now uses"
                )
            case CorruptCheckpoint():
                self._say(f"{event.why}; renamed to {event.path.name}, resuming from step {event.step}")
            case Remarked():
                for line in event.lines:
                    self._say(line)
            case Halved():
                self._say(
                    f"step {event.step}  out of memory: continuing with micro-batches of "
                    f"{event.micro_batch}; the batch stays the same"
                )
            case Stopped():
                self._say(
                    f"stopped by {event.signal} after step {event.step}, which is saved; the same command "
                    "with --resume auto resumes"
                )
            case Evaluated():
                metrics = [f"{title} {value}" for title, value in event.result.shown()]
                self._say(f"step {event.step}  {'  '.join(metrics[:SHOWN_METRICS])}")
            case Reconstructed():
                self._say(
                    f"step {event.step}  PSNR {event.psnr:.2f} dB  SSIM {event.ssim:.3f}  "
                    f"({event.images} held-out images)"
                )
            case Exported():
                self._say(f"the autoencoder is {event.path}, scale {event.scale:.5f}")
            case Sampled() | Saved():
                pass
            case Finished():
                self.progress.update(self.task, completed=event.step)


class StudyProgress:
    """Shows how far a study is: jobs done, the share of its expected time, time left, over all its workers.
    seconds: the expected time of each job on one worker, by key."""

    def __init__(self, seconds: Mapping[str, float]):
        self.seconds, self.before, self.began = seconds, -1.0, 0.0
        self.console = terminal.console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
        )
        self.task = self.progress.add_task("study", total=1.0, note="")

    def __enter__(self) -> StudyProgress:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def look(self, queue: Queue) -> None:
        """Updates the bar; call it now and then."""
        done = {job.key: 1.0 if queue.done(job.key) else queue.progress(job.key) for job in queue.jobs}
        spent = sum(self.seconds[key] * share for key, share in done.items())
        total, now = max(sum(self.seconds.values()), 1e-9), time.monotonic()
        if self.before < 0:
            self.before, self.began = spent, now
        rate = (spent - self.before) / max(now - self.began, 1e-9)
        left = f"{(total - spent) / rate / 60:.0f} min left" if rate > 0 and now > self.began + 5 else ""
        finished = sum(share == 1.0 for share in done.values())
        note = f"{finished}/{len(done)} jobs  {rate:.2g} s of work per second  {left}"
        self.progress.update(self.task, completed=spent / total, note=note)
