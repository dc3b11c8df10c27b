"""Writes checkpoints in the background of training, and reads them into complete or sharded tensors.

    snapshot (copies; training waits)  ->  write, sync, rename, verify, remove the oldest (a thread)

Without shards rank 0 writes complete tensors. With shards every rank writes its own through
torch.distributed.checkpoint, in its safetensors format, and rank 0 the manifest. Any number of ranks can read
either.
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
from scaledit.checkpoint import POWER, SHARDED, Checkpoint
from scaledit.config import CheckpointConfig
from scaledit.errors import UsageError
from scaledit.training.parallel import copy_full, full
from scaledit.training.ranks import Ranks

Parts = Mapping[str, Mapping[str, Tensor]]
IN_SHARDS = ("model", "optimizer", POWER)
"""The parts of a sharded model that are saved as shards. The EMA is saved complete, for sampling."""


class Saving:
    """Saves the checkpoints of a run, one at a time. All ranks must call each method."""

    def __init__(self, checkpoints: Path, config: CheckpointConfig, ranks: Ranks, *, sharded: bool):
        self.checkpoints, self.config, self.ranks, self.sharded = checkpoints, config, ranks, sharded
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scaledit-save")
        self._writing: Future[Path] | None = None
        self._snapshot: dict[str, Tensor] = {}
        # The thread's collectives must not mix with those of training.
        self._group: Any = dist.new_group(backend="gloo") if sharded else None

    def start(self, step: int, parts: Parts, config: Mapping[str, Any], **state: Any) -> list[Path]:
        """Starts to save the current values of `parts`, and returns the checkpoint that was finished before,
        if any. Waits for the end without checkpoint.background. Raises RunError if this save or the previous
        one fails."""
        done, folder = self.wait(), None
        waits: list[Callable[[], None]] = []
        copies: Parts = {}
        if self.sharded:
            from scaledit.training import shards

            folder = self.ranks.on_first(lambda: checkpoint.begin(self.checkpoints, step))
            sharded = {
                f"{part}/{key}": value for part in IN_SHARDS for key, value in parts.get(part, {}).items()
            }
            parts = {
                part: {key: full(value.detach()) for key, value in tensors.items()}
                for part, tensors in parts.items()
                if part not in IN_SHARDS
            }
            waits.append(shards.write(folder / SHARDED, sharded, self._group))
        if self.ranks.first:
            copies, wait_for_copies = self._copied(parts)
            waits.insert(0, wait_for_copies)

        def work() -> Path:
            for wait in waits:
                wait()
            begun = folder or checkpoint.begin(self.checkpoints, step)
            if not self.ranks.first:
                return begun
            written = checkpoint.finish(begun, step, copies, config, world=self.ranks.world, **state)
            checkpoint.prune(self.checkpoints, self.config.keep, self.config.keep_every)
            return written

        if waits:
            self._writing = self._thread.submit(work)
        return done if self.config.background else done + self.wait()

    def finished(self) -> list[Path]:
        """The checkpoint that was finished since the last call, if any. Does not wait. Raises RunError if the
        save failed."""
        if self._writing is None or not self._writing.done():
            return []
        return self.wait()

    def wait(self) -> list[Path]:
        """`finished`, after waiting for the save in progress."""
        writing, self._writing = self._writing, None
        return [] if writing is None else [writing.result()]

    def close(self) -> None:
        """Waits for the save in progress; only `wait` reports a failure."""
        self._thread.shutdown(wait=True)

    def _copied(self, parts: Parts) -> tuple[Parts, Callable[[], None]]:
        """Copies on the CPU, in memory that later calls use again, and a function that waits for them."""
        copies: dict[str, dict[str, Tensor]] = {}
        on_gpu = False
        for part, tensors in parts.items():
            copies[part] = {}
            for key, tensor in tensors.items():
                name, on_gpu = f"{part}/{key}", on_gpu or tensor.is_cuda
                copy = self._snapshot.get(name)
                if copy is None or copy.shape != tensor.shape:
                    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                    self._snapshot[name] = copy
                copies[part][key] = copy.copy_(tensor.detach(), non_blocking=True)
        if not on_gpu:
            return copies, lambda: None
        copied = torch.cuda.Event()
        copied.record()
        return copies, copied.synchronize


def keys(saved: Checkpoint, part: str) -> set[str]:
    """The names of the tensors of a part."""
    return saved.names(part) if _is_complete(saved, part) else set(_sharded_shapes(saved, part))


def read_into(saved: Checkpoint, targets: Parts) -> None:
    """Copies the parts of a checkpoint into tensors, complete or sharded, on any device.

    Raises UsageError naming the first tensor that does not fit, before anything is changed, and RunError if a
    file is corrupt.
    """
    complete: dict[str, dict[str, Tensor]] = {}
    for part, tensors in targets.items():
        if _is_complete(saved, part):
            complete[part] = saved.tensors(part)
            shapes = {key: tuple(value.shape) for key, value in complete[part].items()}
        else:
            shapes = _sharded_shapes(saved, part)
        _check_fits(saved.folder, shapes, {key: tuple(value.shape) for key, value in tensors.items()})
    sharded: dict[str, Tensor] = {}
    for part, tensors in targets.items():
        if part in complete:
            for key, value in complete[part].items():
                copy_full(tensors[key], value)
        else:
            sharded |= {f"{part}/{key}": value.detach() for key, value in tensors.items()}
    if sharded:
        from scaledit.training import shards

        shards.read(saved.folder / SHARDED, sharded)


def _is_complete(saved: Checkpoint, part: str) -> bool:
    return f"{part}.safetensors" in saved.files or not saved.is_sharded


def _sharded_shapes(saved: Checkpoint, part: str) -> dict[str, tuple[int, ...]]:
    from scaledit.training import shards

    shapes = shards.shapes(saved.folder / SHARDED)
    return {
        key.removeprefix(f"{part}/"): shape for key, shape in shapes.items() if key.startswith(f"{part}/")
    }


def _check_fits(folder: Path, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key in sorted(saved.keys() | expected.keys()):
        if saved.get(key) != expected.get(key):
            raise UsageError(
                f"{folder} does not fit its config: {key} is {saved.get(key, 'nothing')}, the config says "
                f"{expected.get(key, 'nothing')}"
            )
