"""Writing checkpoints while training goes on, and reading them into whatever holds the weights now.

    snapshot (copies; training waits)  ->  write, sync, rename, verify, remove the oldest (a thread)

One rank, or copies on each: rank 0 writes whole tensors. Shards: every rank writes its own through
torch.distributed.checkpoint, in its safetensors format, and rank 0 the manifest. Either is read back by any
number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaledit import checkpoint
from scaledit.checkpoint import SHARDED, Checkpoint
from scaledit.config import CheckpointConfig
from scaledit.errors import UsageError
from scaledit.training.parallel import copy_full, full
from scaledit.training.ranks import Ranks

Parts = Mapping[str, Mapping[str, Tensor]]
IN_SHARDS = ("model", "optimizer")
"""Parts that stay shards where the model is sharded. The average is always whole: sampling reads it."""


class Saving:
    """Saves the checkpoints of a run, one at a time. All ranks call each method together."""

    def __init__(self, checkpoints: Path, config: CheckpointConfig, ranks: Ranks, *, sharded: bool):
        self.checkpoints, self.config, self.ranks, self.sharded = checkpoints, config, ranks, sharded
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scaledit-save")
        self._writing: Future[Path] | None = None
        self._snapshot: dict[str, Tensor] = {}
        # Collectives of the thread must not meet those of training.
        self._group: Any = dist.new_group(backend="gloo") if sharded else None

    def start(self, step: int, parts: Parts, config: Mapping[str, Any], **state: Any) -> list[Path]:
        """Begins to save what the parts hold now; gives what was finished before. Without
        checkpoint.background it waits for the end. Raises RunError where this or the save before fails."""
        done = self.wait()
        state = {"world": self.ranks.world, **state}
        if self.sharded:
            self._start_sharded(step, parts, config, state)
        elif self.ranks.first:
            copies, ready = self._copied(parts)
            self._submit(lambda: checkpoint.begin(self.checkpoints, step), step, copies, ready, config, state)
        return done if self.config.background else done + self.wait()

    def finished(self) -> list[Path]:
        """The checkpoint that has come to be since the last call, if any; does not wait. Raises RunError."""
        if self._writing is None or not self._writing.done():
            return []
        return self.wait()

    def wait(self) -> list[Path]:
        """As `finished`, after the end of what is being written."""
        writing, self._writing = self._writing, None
        return [] if writing is None else [writing.result()]

    def close(self) -> None:
        """Lets what is being written come to its end; its failure is told by `wait`, not here."""
        self._thread.shutdown(wait=True)

    def _submit(
        self,
        folder: Callable[[], Path],
        step: int,
        parts: Parts,
        ready: Callable[[], None],
        config: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> None:
        def work() -> Path:
            ready()
            written = checkpoint.finish(folder(), step, parts, config, **state)
            checkpoint.prune(self.checkpoints, self.config.keep, self.config.keep_every)
            return written

        self._writing = self._thread.submit(work)

    def _start_sharded(
        self, step: int, parts: Parts, config: Mapping[str, Any], state: Mapping[str, Any]
    ) -> None:
        from scaledit.training import shards

        partial = self.ranks.on_first(lambda: checkpoint.begin(self.checkpoints, step))
        in_shards = {f"{part}/{key}": value for part in IN_SHARDS for key, value in parts[part].items()}
        others = {
            part: {key: full(value.detach()) for key, value in parts[part].items()}
            for part in parts
            if part not in IN_SHARDS
        }
        written = shards.write(partial / SHARDED, in_shards, self._group)
        if not self.ranks.first:
            self._writing = self._thread.submit(lambda: (written(), partial)[1])
            return
        copies, ready = self._copied(others)

        def all_ready() -> None:
            ready()
            written()

        self._submit(lambda: partial, step, copies, all_ready, config, state)

    def _copied(self, parts: Parts) -> tuple[Parts, Callable[[], None]]:
        """Copies on the CPU, in memory that is kept for the next time, and what waits until they are made."""
        copies: dict[str, dict[str, Tensor]] = {}
        on_gpu = False
        for part, tensors in parts.items():
            copies[part] = {}
            for key, tensor in tensors.items():
                name, on_gpu = f"{part}/{key}", on_gpu or tensor.is_cuda
                held = self._snapshot.get(name)
                if held is None or held.shape != tensor.shape:
                    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                    self._snapshot[name] = held
                copies[part][key] = held.copy_(tensor.detach(), non_blocking=True)
        if not on_gpu:
            return copies, lambda: None
        copied = torch.cuda.Event()
        copied.record()
        return copies, copied.synchronize


def keys(saved: Checkpoint, part: str) -> set[str]:
    """The names of a part's tensors."""
    return saved.names(part) if _complete(saved, part) else set(_in_shards(saved, part))


def read_into(saved: Checkpoint, targets: Parts) -> None:
    """Copies a checkpoint's parts into tensors, whole or shards, wherever they lie.

    Raises UsageError naming the first that does not fit, before anything is changed, and RunError where a
    file is corrupt.
    """
    there: dict[str, dict[str, Tensor]] = {}
    for part, tensors in targets.items():
        if _complete(saved, part):
            there[part] = saved.tensors(part)
            shapes = {key: tuple(value.shape) for key, value in there[part].items()}
        else:
            shapes = _in_shards(saved, part)
        _check_fits(saved.folder, shapes, {key: tuple(value.shape) for key, value in tensors.items()})
    for part, tensors in there.items():
        for key, value in tensors.items():
            copy_full(targets[part][key], value)
    in_shards = {
        f"{part}/{key}": value.detach()
        for part, tensors in targets.items()
        if part not in there
        for key, value in tensors.items()
    }
    if in_shards:
        from scaledit.training import shards

        shards.read(saved.folder / SHARDED, in_shards)


def _complete(saved: Checkpoint, part: str) -> bool:
    return f"{part}.safetensors" in saved.files or not saved.is_sharded


def _in_shards(saved: Checkpoint, part: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a part's tensors, by name."""
    from scaledit.training import shards

    found = shards.shapes(saved.folder / SHARDED)
    return {key.removeprefix(f"{part}/"): shape for key, shape in found.items() if key.startswith(f"{part}/")}


def _check_fits(where: Path, have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    for key in sorted(have.keys() | want.keys()):
        if have.get(key) != want.get(key):
            raise UsageError(
                f"{where} does not fit its config: {key} is {have.get(key, 'nothing')}, the config says "
                f"{want.get(key, 'nothing')}"
            )
