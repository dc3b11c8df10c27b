"""The processes of one run: each has its share of every batch, and all make the same decisions.

    rank r of R has the samples  B r // R  ...  B (r + 1) // R - 1  of a batch of B

They are started by torchrun, by `scaledit train --nproc`, or by a cluster that sets the same variables (RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). CPUs communicate over gloo, GPUs over NCCL.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scaledit import assemble
from scaledit.errors import RunError, UsageError, counted

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""The timeout of collectives. scaledit.training.watch detects stuck ranks, and names them."""


class EndedElsewhere(Exception):
    """Rank 0 has failed and reported why; this rank exits with the same code."""

    def __init__(self, code: int):
        self.code = code


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. local_rank, local_world: its number and their count on this
    machine. grouped: whether there is a process group, which a single rank may have too."""

    device: torch.device
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    grouped: bool = False

    @classmethod
    def join(cls, device: str = "auto") -> Ranks:
        """The ranks that the environment describes, or this process alone. Rank k of a machine gets its k-th
        GPU. Raises UsageError if the device does not exist, and RunError if the ranks cannot connect."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls(assemble.device(device))
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        torch_device = assemble.device(device)
        if torch_device.type == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise UsageError(
                    f"rank {rank} needs the GPU {local_rank} of this machine, which has only "
                    f"{counted(torch.cuda.device_count(), 'GPU')}; start one rank per GPU"
                )
            torch_device = torch.device("cuda", local_rank)
            torch.cuda.set_device(torch_device)
        backend = "cpu:gloo,cuda:nccl" if torch_device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"rank {rank} of {world} could not connect to the other ranks ({reason})"
            ) from error
        return cls(torch_device, rank, world, local_rank, local_world, grouped=True)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and reports progress."""
        return self.rank == 0

    def share(self, size: int) -> range:
        """The rows of a batch of `size` that this rank has. Raises UsageError if a rank would have none."""
        if size < self.world:
            raise UsageError(
                f"train.batch_size {size} is less than one image for each of the {self.world} ranks"
            )
        return range(size * self.rank // self.world, size * (self.rank + 1) // self.world)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over all ranks in place; all ranks get the same bits."""
        if self.grouped:
            dist.all_reduce(tensor)
        return tensor

    def all_agree(self, yes: bool) -> bool:
        """Whether `yes` is true on all ranks."""
        return int(self.sum_(torch.tensor(int(not yes)))) == 0

    def on_first(self, work: Callable[[], T]) -> T:
        """Runs `work` on rank 0 and returns its result on all ranks. Its UsageError, RunError or OSError is
        raised on rank 0, and EndedElsewhere on the others."""
        if not self.grouped:
            return work()
        result, error = None, None
        if self.first:
            try:
                result = work()
            except (UsageError, RunError) as refused:
                error = refused
            except OSError as failed:
                file = f"{failed.filename}: " if failed.filename else ""
                error = RunError(f"{file}{failed.strerror or failed}")
        message: list[Any] = [result, 0 if error is None else 2 if isinstance(error, UsageError) else 1]
        dist.broadcast_object_list(message, src=0)
        if error is not None:
            raise error
        result, code = message
        if code:
            raise EndedElsewhere(code)
        return result

    def barrier(self) -> None:
        """Waits for all ranks, through their CPUs, so that no GPU has to be synchronized."""
        if self.grouped:
            self.sum_(torch.zeros(1))


def leave(code: int) -> NoReturn:
    """Ends this rank without destroying the process group, which sometimes aborts, and hangs if another rank
    has ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
