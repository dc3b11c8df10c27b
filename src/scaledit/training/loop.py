"""The training loop of any model as a stream of events, in a run folder that survives being killed.

    lock the folder  ->  restore  ->  (step, hooks, save) ...  ->  Finished or Stopped

All ranks run the same loop and make the same decisions; only the first one samples, evaluates and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import torch

from scaledit import checkpoint, machine
from scaledit.config import Config
from scaledit.data import loader
from scaledit.errors import Diverged, counted
from scaledit.models.flops import TRAIN_FORWARDS
from scaledit.training import folder
from scaledit.training.events import (
    Changed,
    CorruptCheckpoint,
    Event,
    Finished,
    Halved,
    Remarked,
    RolledBack,
    Saved,
    Skipped,
    Spiked,
    Started,
    Stopped,
)
from scaledit.training.learner import Learner, StepResult, batch_size_of
from scaledit.training.ranks import EndedElsewhere, Ranks
from scaledit.training.same_data import SameData
from scaledit.training.saving import Saving
from scaledit.training.signals import Stopping, StopRequest
from scaledit.training.spikes import SpikeDetector
from scaledit.training.watch import WAITING, Watch

MOST_ROLLBACKS = 5
"""The most rollbacks without a new checkpoint in between."""
State = TypeVar("State", bound=Learner[Any])


@dataclass(frozen=True)
class RunContext:
    """What connects a training loop to its process. watch: ends the process when no rank makes progress; None
    for a caller that does not want that. on_lock: called with the step that the run resumes from, once the
    folder is locked."""

    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)
    watch: Watch | None = None
    on_lock: Callable[[int], None] = lambda step: None

    def heartbeat(self, activity: str, step: int) -> None:
        if self.watch is not None:
            self.watch.heartbeat(activity, step)

    def first_only(self, step: int, work: Callable[[], Iterator[Event]]) -> Iterator[Event]:
        """Runs `work` on the first rank only, while the others wait for it."""
        with suppress(Stopping):  # the next step tells all ranks
            yield from work() if self.ranks.first else ()
        self.heartbeat(WAITING, step)
        self.ranks.barrier()


@contextmanager
def locked(
    config: Config,
    out: Path,
    resume: str,
    context: RunContext,
    check: folder.Check,
    changes: folder.Changes = "refuse",
) -> Iterator[checkpoint.Latest]:
    """Locks and watches the run folder for the duration of the block, and yields the checkpoint to resume
    from, which `check` has accepted. Raises what `folder.lock` does, on all ranks."""
    with ExitStack() as stack:

        def lock_folder() -> checkpoint.Latest:
            lock, latest = folder.lock(config, out, resume, check, changes)
            stack.callback(lock.release)
            return latest

        latest = context.ranks.on_first(lock_folder)
        context.on_lock(0 if latest.checkpoint is None else latest.checkpoint.step)
        stack.enter_context(context.watch or nullcontext())
        yield latest


class Run(Generic[State]):
    """The training of `state` in the run folder `out`, from a checkpoint or the start to the end or a stop.

    macs: multiply-adds of the forward pass of one image. manifest: further entries of the checkpoints'
    `state`. logged: makes the event of a logged step from the fields that `Stepped` and `Fitted` share.
    hooks: yields the events that are due after a step; called on all ranks with whether the step is the last.
    data: already checked.
    """

    def __init__(
        self,
        state: State,
        out: Path,
        context: RunContext,
        macs: int,
        manifest: dict[str, Any],
        logged: Callable[..., Event],
        hooks: Callable[[bool], Iterator[Event]],
        data: SameData,
    ):
        self.state, self.context, self.data = state, context, data
        self.manifest = {**manifest, "data": data.record} if context.ranks.first else manifest
        self.logged, self.hooks, self.macs = logged, hooks, macs
        self.config: Config = state.config
        self.out, self.checkpoints = out, out / folder.CHECKPOINTS
        self.saving = Saving(
            self.checkpoints, self.config.checkpoint, context.ranks, sharded=state.parallel.sharded
        )
        self.spikes = SpikeDetector(self.config.train.spike)
        self.skips, self.rollbacks = 0, 0
        self.restored: checkpoint.Checkpoint | None = None
        self.breaks: list[dict[str, Any]] = []  # as the manifest has them
        self._since = (0, 0.0, 0.0)
        state.heartbeat = context.heartbeat

    def run(
        self, latest: checkpoint.Latest, params: int, after: Callable[[], Iterator[Event]] = lambda: iter(())
    ) -> Iterator[Event]:
        """Yields the events of the run, up to Stopped or Finished.

        latest: the checkpoint to resume from. params: of the network. after: yields what follows the last
        step of a run that was not stopped. Raises RunError if losses or weights are not finite too often,
        memory or disk space runs out, or a process of the loader dies.
        """
        state, ranks, train = self.state, self.context.ranks, self.config.train
        if (lines := getattr(self.data.dataset, "remarks", ())) and ranks.first:
            yield Remarked(lines)
        yield from self._restored(latest)
        if state.step < train.steps:  # a finished run records no more
            yield from (note(state.step) for note in self.data.notes)
        self.context.heartbeat("measuring the machine", state.step)
        machine.measured_peak(ranks.device, train.precision)  # while nothing else runs
        yield Started(
            run=self.config.name,
            step=state.step,
            steps=train.steps,
            device=str(ranks.device),
            ranks=ranks.world,
            params=params,
            macs=self.macs,
            samples=state.samples,
            trained=sum(weight.numel() for weight in state.weights),
        )
        yield from self._changed()
        try:
            try:
                stopped = yield from self._steps()
            finally:
                self.saving.close()
                self.state.loader.close()
        except RuntimeError as error:
            raise loader.killed(error) or error from error
        if not stopped:
            yield from after()
            yield Finished(state.step, state.seconds, state.skipped)

    def _restored(self, latest: checkpoint.Latest) -> Iterator[Event]:
        """Resumes from the checkpoint, if there is one, and renames the corrupt ones that are newer."""
        self.context.heartbeat("reading a checkpoint", 0)
        if latest.checkpoint is not None:
            self._restore(latest.checkpoint)
        if self.context.ranks.first:
            checkpoint.clean(self.checkpoints)
            for path, why in latest.corrupt.items():
                yield CorruptCheckpoint(self.state.step, checkpoint.set_aside(path), why)

    def _steps(self) -> Generator[Event, None, bool]:
        """The training steps; returns whether the run was stopped."""
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
                    self._give_up(
                        f"{counted(self.skips, 'step')} in a row had values that are not "
                        f"finite (loss {result.loss})"
                    )
            else:
                self.skips = 0
                if due(state.step, train.log_every) or last:
                    yield self.logged(**self._logged_fields(result))
                    self._mark()
                threshold = self.spikes.see(result.loss)
                if threshold is not None:
                    yield self._spiked(result, threshold)
                    if train.rollback and (rolled_back := self._rolled_back()):
                        yield rolled_back
                        yield from self._changed()
                        continue
            yield from self.hooks(last)
            stopping = result.stop and not last
            if due(state.step, self.config.checkpoint.every) or last or stopping:
                yield from self._save()
            if stopping:
                yield from self._saved(self.saving.wait())
                yield Stopped(state.step, self.context.stop.signal or "a signal to another rank")
                return True
        yield from self._saved(self.saving.wait())
        self.context.heartbeat(WAITING, state.step)
        self.context.ranks.barrier()
        return False

    def _skipped(self, result: StepResult) -> Skipped:
        state = self.state
        samples = state.indices(state.step - 1)
        culprits = samples[~result.table[:, 0].isfinite().numpy()]
        return Skipped(
            state.step,
            result.loss,
            result.grad_norm,
            self.skips,
            state.skipped,
            samples.tolist(),
            culprits.tolist(),
        )

    def _spiked(self, result: StepResult, threshold: float) -> Spiked:
        order = result.table[:, 0].argsort(descending=True).numpy()
        samples = self.state.indices(self.state.step - 1)[order]
        return Spiked(self.state.step, result.loss, threshold, samples.tolist())

    def _rolled_back(self) -> RolledBack | None:
        """Restores the last checkpoint; returns None if there is none yet."""
        state, spiked, skipped_batches = self.state, self.state.step, self.state.skipped_batches
        position = state.position  # the stream continues behind the batch that spiked
        self.saving.wait()
        saved = self.context.ranks.on_first(lambda: checkpoint.latest(self.checkpoints)).checkpoint
        if saved is None:
            return None
        self.rollbacks += 1
        if self.rollbacks > MOST_ROLLBACKS:
            self._give_up(f"the loss spiked again after {MOST_ROLLBACKS} rollbacks to step {saved.step}")
        self._restore(saved)
        state.position, state.skipped_batches = position, skipped_batches + spiked - state.step
        self._mark()
        return RolledBack(state.step, spiked, state.skipped_batches)

    def _changed(self) -> Iterator[Event]:
        """What changes at the step of the checkpoint that was restored last."""
        saved = self.restored
        if saved is not None and (changes := folder.changes_since(saved, self.config, self.out)):
            changed = Changed(saved.step, list(map(str, changes)), batch_size_of(saved))
            self.breaks.append(changed._asdict())
            yield changed

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        self.restored = saved
        self.breaks = list(saved.manifest["state"].get("breaks", ()))
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
                **({"breaks": self.breaks} if self.breaks else {}),
                **self.manifest,
                **state.counters(),
            )
        )

    def _saved(self, written: list[Path]) -> Iterator[Event]:
        for path in written if self.context.ranks.first else ():
            yield Saved(int(path.name.removeprefix("step-")), path)

    def _give_up(self, why: str) -> NoReturn:
        """Ends the run with Diverged; called on all ranks together."""
        if not self.context.ranks.first:
            raise EndedElsewhere(1)
        folders = checkpoint.find(self.checkpoints)
        good = f"the last good checkpoint is {folders[-1]}" if folders else "no checkpoint had been saved yet"
        raise Diverged(
            f"{why}; stopped after step {self.state.step}; {good}. Try a lower optimizer.learning_rate, or "
            "optimizer.clip=1"
        )

    def _mark(self) -> None:
        """Starts the interval that the next logged speeds are measured over."""
        self._since = (self.state.step, self.state.seconds, self.state.waited)

    def _logged_fields(self, result: StepResult) -> dict[str, Any]:
        """The fields that Stepped and Fitted share."""
        state, device = self.state, self.context.ranks.device
        step, seconds, waited = self._since
        images = (state.step - step) * self.config.train.batch_size
        passed = max(state.seconds - seconds, 1e-9)
        macs = images * self.macs * TRAIN_FORWARDS / passed
        flops = machine.measured_peak(device, self.config.train.precision)  # two for each multiply-add
        peak = flops * self.context.ranks.world / 2
        on_gpu = device.type == "cuda"
        return {
            "step": state.step,
            "loss": result.loss,
            "terms": result.terms,
            "grad_norm": result.grad_norm,
            "learning_rate": state.last_rate,
            "seconds": state.seconds,
            "images_per_second": images / passed,
            "macs_per_second": macs,
            "mfu": macs / peak,
            "data_wait": (state.waited - waited) / passed,
            "memory": torch.cuda.max_memory_allocated(device) if on_gpu else machine.peak_memory(),
        }


def due(step: int, every: int, last: bool = False) -> bool:
    """Whether `step` is a multiple of `every` or the last one; never if `every` is 0."""
    return every > 0 and (last or step % every == 0)
