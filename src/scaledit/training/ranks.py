"""The processes of one run: each has its share of every batch, and they agree on all that is decided.

    rank r of R has the samples  B r // R  ...  B (r + 1) // R - 1  of a batch of B

Started by torchrun, by `scaledit train --nproc`, or by a cluster that sets the same variables (RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Messages between CPUs go over gloo, between GPUs over NCCL.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scaledit import assemble
from scaledit.errors import RunError, UsageError

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""Of collectives: what is stuck is found, and named, by scaledit.training.watch."""


class EndedElsewhere(Exception):
    """Rank 0 could not go on and has said why; this rank ends with the same code."""

    def __init__(self, code: int):
        self.code = code


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. local_world: how many of them are on this machine. grouped:
    whether there is a process group, as there may be for a single rank too."""

    device: torch.device
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    grouped: bool = False

    @classmethod
    def join(cls, device: str = "auto") -> Ranks:
        """The ranks that the environment describes, or this process alone. On several GPUs, rank k of a
        machine has its k-th. Raises UsageError for a device that is not there."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls(assemble.device(device))
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        where = assemble.device(device)
        if where.type == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise UsageError(
                    f"rank {rank} needs the GPU {local_rank} of this machine, which has "
                    f"{torch.cuda.device_count()}; start at most that many ranks on it"
                )
            where = torch.device("cuda", local_rank)
            torch.cuda.set_device(where)
        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"rank {rank} of {world} could not meet the others ({reason})") from error
        return cls(where, rank, world, local_rank, local_world, grouped=True)

    @property
    def first(self) -> bool:
        """Whether this rank writes, shows and decides what only one can."""
        return self.rank == 0

    def share(self, size: int) -> range:
        """This rank's places in a batch. Raises UsageError where a rank would have none."""
        if size < self.world:
            raise UsageError(
                f"train.batch_size {size} is less than one sample for each of {self.world} ranks"
            )
        return range(size * self.rank // self.world, size * (self.rank + 1) // self.world)

    def sum_(self, tensor: Tensor) -> Tensor:
        """In place, over all ranks; the same bits on each."""
        if self.grouped:
            dist.all_reduce(tensor)
        return tensor

    def all_agree(self, yes: bool) -> bool:
        """Whether all say yes."""
        return int(self.sum_(torch.tensor(int(not yes)))) == 0

    def on_first(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, on all ranks. Its UsageError or RunError ends all of them: rank 0 with
        the error, the others with EndedElsewhere."""
        if not self.grouped:
            return work()
        answer, error = None, None
        if self.first:
            try:
                answer = work()
            except (UsageError, RunError) as refused:
                error = refused
            except OSError as failed:
                where = f"{failed.filename}: " if failed.filename else ""
                error = RunError(f"{where}{failed.strerror or failed}")
        code = 0 if error is None else 2 if isinstance(error, UsageError) else 1
        box = [answer, code]
        dist.broadcast_object_list(box, src=0)
        if error is not None:
            raise error
        if box[1]:
            raise EndedElsewhere(box[1])
        return box[0]  # pyright: ignore[reportReturnType]

    def barrier(self) -> None:
        """Waits for all; messages between CPUs, so that no GPU has to be waited for."""
        if self.grouped:
            self.sum_(torch.zeros(1))


def leave(code: int) -> NoReturn:
    """Ends this process of several. Destroying the group aborts now and then, and hangs where another rank
    has gone; ending at once does neither."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
