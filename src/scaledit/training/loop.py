"""The training loop as a stream of events, whatever is trained, over a run folder that survives being killed.

    claim the folder  ->  restore  ->  (step, look at the result, save) ...  ->  Finished or Stopped

All ranks go through the same loop and come to the same decisions; the first one looks and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import torch

from scaledit import checkpoint, machine
from scaledit.config import Config
from scaledit.data import loader
from scaledit.errors import RunError
from scaledit.files.lock import Lock
from scaledit.models.flops import TRAIN_FORWARDS
from scaledit.training import folder
from scaledit.training.events import (
    CorruptCheckpoint,
    Event,
    Finished,
    Halved,
    RolledBack,
    Saved,
    Skipped,
    Spiked,
    Started,
    Stopped,
)
from scaledit.training.learner import Learner, StepResult
from scaledit.training.ranks import EndedElsewhere, Ranks
from scaledit.training.same_data import SameData
from scaledit.training.saving import Saving
from scaledit.training.signals import Stopping, StopRequest
from scaledit.training.spikes import SpikeDetector
from scaledit.training.watch import WAITING, Watch

MOST_ROLLBACKS = 5
"""Without a checkpoint in between."""
State = TypeVar("State", bound=Learner[Any])


@dataclass(frozen=True)
class RunContext:
    """What a run is told by, and tells, the world outside its loop. watch: None for a caller that does not
    want its process ended when nothing moves. on_claim: told the step that the run goes on from, as soon as
    the folder is this run's."""

    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)
    watch: Watch | None = None
    on_lock: Callable[[int], None] = lambda step: None

    def heartbeat(self, what: str, step: int) -> None:
        if self.watch is not None:
            self.watch.heartbeat(what, step)

    def first_only(self, step: int, work: Callable[[], Iterator[Event]]) -> Iterator[Event]:
        """What only the first rank does between steps, while the others wait for it."""
        with suppress(Stopping):  # all hear of it at the next step
            yield from work() if self.ranks.first else ()
        self.heartbeat(WAITING, step)
        self.ranks.barrier()


@contextmanager
def locked(
    config: Config, out: Path, resume: str, context: RunContext, check: folder.Check
) -> Iterator[checkpoint.Latest]:
    """The run folder, for as long as the block lasts, watched, and the checkpoint to go on from, which
    `check` allowed. Raises what `folder.claim` does, on all ranks."""
    locks: list[Lock] = []

    def lock_folder() -> checkpoint.Latest:
        lock, found = folder.lock(config, out, resume, check)
        locks.append(lock)
        return found

    try:
        found = context.ranks.on_first(lock_folder)
        context.on_lock(0 if found.checkpoint is None else found.checkpoint.step)
        with context.watch or nullcontext():
            yield found
    finally:
        for lock in locks:
            lock.release()


class Speed(NamedTuple):
    """As in events.Stepped."""

    images_per_second: float
    macs_per_second: float
    mfu: float
    data_wait: float
    memory: int


class Run(Generic[State]):
    """One life of a run. The owner says what is reported and looked at between steps: `logged` makes the
    event of a step that is reported; `looks` gives the events of what is due after a step, told whether it is
    the last, on all ranks. macs: multiply-adds of a forward pass of one image. manifest: what else a
    checkpoint's should say. data: of the run, checked."""

    def __init__(
        self,
        state: State,
        out: Path,
        context: RunContext,
        macs: int,
        manifest: dict[str, Any],
        logged: Callable[[StepResult, Speed], Event],
        hooks: Callable[[bool], Iterator[Event]],
        data: SameData,
    ):
        self.state, self.context, self.data = state, context, data
        self.manifest = {**manifest, "data": data.record} if context.ranks.first else manifest
        self.logged, self.hooks, self.macs = logged, hooks, macs
        self.config: Config = state.config
        self.checkpoints = out / folder.CHECKPOINTS
        self.saving = Saving(
            self.checkpoints, self.config.checkpoint, context.ranks, sharded=state.parallel.sharded
        )
        self.spikes = SpikeDetector(self.config.train.spike)
        self.skips, self.rollbacks = 0, 0
        self._since = (0, 0.0, 0.0)
        state.heartbeat = context.heartbeat

    def run(
        self, found: checkpoint.Latest, params: int, after: Callable[[], Iterator[Event]] = lambda: iter(())
    ) -> Iterator[Event]:
        """From the checkpoint that was found to Stopped or Finished. after: what follows the last step of a
        run that was not stopped. Raises as `_guarded` does."""
        state, around, train = self.state, self.context, self.config.train
        yield from self._restored(found)
        if state.step < train.steps:  # of a run that is done nothing is recorded any more
            yield from (note(state.step) for note in self.data.notes)
        around.heartbeat("measuring the machine", state.step)
        machine.measured_peak(around.ranks.device, train.precision)  # while nothing else runs
        yield Started(
            self.config.name,
            state.step,
            train.steps,
            str(around.ranks.device),
            around.ranks.world,
            params,
            self.macs,
            state.samples,
        )
        ended = None
        for event in self._guarded():
            ended = event
            yield event
        if not isinstance(ended, Stopped):
            yield from after()
            yield Finished(state.step, state.seconds, state.skipped)

    def _restored(self, found: checkpoint.Latest) -> Iterator[Event]:
        """Goes on from a checkpoint, if there is one, after renaming the corrupt ones that are newer."""
        self.context.heartbeat("reading a checkpoint", 0)
        if found.checkpoint is not None:
            self._restore(found.checkpoint)
        if self.context.ranks.first:
            checkpoint.clean(self.checkpoints)
            for path, why in found.corrupt.items():
                yield CorruptCheckpoint(self.state.step, checkpoint.set_aside(path), why)

    def _guarded(self) -> Iterator[Event]:
        """From where the state is to the end. Raises RunError where the numbers go wrong, memory or the disk
        does not suffice, or a loader's process is lost."""
        try:
            try:
                yield from self._steps()
            finally:
                self.saving.close()
        except RuntimeError as error:
            raise loader.killed(error) or error from error

    def _steps(self) -> Iterator[Event]:
        state, train = self.state, self.config.train
        self._mark()
        while state.step < train.steps:
            micro_batch = state.micro_batch
            result = state.train_step(stop=self.context.stop.signal is not None)
            last = state.step == train.steps
            if result.micro_batch != micro_batch:
                yield Halved(state.step, result.micro_batch)
            yield from self._saved(self.saving.finished())
            if result.skipped:
                self.skips += 1
                yield self._skipped(result)
                if self.skips >= train.max_skips:
                    self._give_up(f"{self.skips} steps in a row were not finite (loss {result.loss})")
            else:
                self.skips = 0
                if due(state.step, train.log_every) or last:
                    yield self.logged(result, self._speed())
                    self._mark()
                threshold = self.spikes.see(result.loss)
                if threshold is not None:
                    yield self._spiked(result, threshold)
                    if train.rollback and (back := self._rolled_back()):
                        yield back
                        continue
            yield from self.hooks(last)
            stopping = result.stop and not last
            if due(state.step, self.config.checkpoint.every) or last or stopping:
                yield from self._save()
            if stopping:
                yield from self._saved(self.saving.wait())
                yield Stopped(state.step, self.context.stop.signal or "a signal to another rank")
                return
        yield from self._saved(self.saving.wait())
        self.context.heartbeat(WAITING, state.step)
        self.context.ranks.barrier()

    def _skipped(self, result: StepResult) -> Skipped:
        state = self.state
        samples = state.indices(state.step - 1)
        wrong = ~result.table[:, 0].isfinite().numpy()
        return Skipped(
            state.step,
            result.loss,
            result.grad_norm,
            self.skips,
            state.skipped,
            samples.tolist(),
            samples[wrong].tolist(),
        )

    def _spiked(self, result: StepResult, threshold: float) -> Spiked:
        order = result.table[:, 0].argsort(descending=True).numpy()
        samples = self.state.indices(self.state.step - 1)[order]
        return Spiked(self.state.step, result.loss, threshold, samples.tolist())

    def _rolled_back(self) -> RolledBack | None:
        """None where there is no checkpoint yet to go back to."""
        state, spiked, skipped_batches = self.state, self.state.step, self.state.skipped_batches
        self.saving.wait()
        found = self.context.ranks.on_first(lambda: checkpoint.latest(self.checkpoints)).checkpoint
        if found is None:
            return None
        self.rollbacks += 1
        if self.rollbacks > MOST_ROLLBACKS:
            self._give_up(f"the loss spiked again after {MOST_ROLLBACKS} roll-backs to step {found.step}")
        self._restore(found)
        state.skipped_batches = skipped_batches + spiked - state.step
        self._mark()
        return RolledBack(state.step, spiked, state.skipped_batches)

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        self.state.restore(saved)
        self.spikes.losses.clear()
        self.spikes.losses.extend(saved.manifest["state"].get("losses", ()))

    def _save(self) -> Iterator[Event]:
        state = self.state
        self.context.heartbeat("saving", state.step)
        if not state.is_finite():
            self._give_up("the weights are not finite")
        self.rollbacks = 0
        yield from self._saved(
            self.saving.start(
                state.step,
                state.state_dict(),
                self.config.to_json(),
                losses=list(self.spikes.losses),
                **self.manifest,
                **state.counters(),
            )
        )

    def _saved(self, written: list[Path]) -> Iterator[Event]:
        for path in written if self.context.ranks.first else ():
            yield Saved(int(path.name.removeprefix("step-")), path)

    def _give_up(self, what: str) -> NoReturn:
        """Ends the run on all ranks, which have come to this together."""
        if not self.context.ranks.first:
            raise EndedElsewhere(1)
        found = checkpoint.find(self.checkpoints)
        good = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been saved yet"
        raise RunError(
            f"{what}; stopped after step {self.state.step}; {good}. Try a lower optimizer.learning_rate, or "
            "optimizer.clip=1"
        )

    def _mark(self) -> None:
        """Speeds are told from here on."""
        self._since = (self.state.step, self.state.seconds, self.state.waited)

    def _speed(self) -> Speed:
        state, ranks = self.state, self.context.ranks
        step, seconds, waited = self._since
        images = (state.step - step) * self.config.train.batch_size
        passed = max(state.seconds - seconds, 1e-9)
        macs = images * self.macs * TRAIN_FORWARDS / passed
        peak = (
            machine.measured_peak(ranks.device, self.config.train.precision) * ranks.world / 2
        )  # in multiply-adds
        return Speed(
            images / passed, macs, macs / peak, (state.waited - waited) / passed, memory(ranks.device)
        )


def memory(device: torch.device) -> int:
    """Bytes, as in events.Stepped."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return machine.peak_memory()


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
