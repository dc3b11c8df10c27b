"""Muon and AdamW as one torch optimizer, for complete and sharded weights.

    X <- N / |N|_F;    X <- a X + (b A + c A^2) X,  A = X X^T        5 times: a Newton-Schulz iteration
    singular values s -> a s + b s^3 + c s^5;  U and V stay

The coefficients are Jordan's: the slope at 0 is as large as possible, and singular values of at least 0.002
of the norm end between 0.68 and 1.21 instead of at 1.

Ranks: the update needs the whole matrix, and takes half as long as the rest of a step of XL/2 with 64 images
per rank. Therefore sharded matrices are gathered, each rank updates another one, and all get its result:

    a round of R matrices:   gather all  ->  rank r computes the r-th  ->  broadcast each from its rank

All ranks have the same bits, the work is divided by R, and shards, copies and hybrids are one case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from scaledit.optimizers.base import MATRICES

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
TINY = 1e-7
"""The smallest norm that a matrix is divided by."""
RMS = 0.2
"""Of the entries of an update, in units of the rate."""


def newton_schulz(matrix: Tensor, iterations: int = 5) -> Tensor:
    """A matrix with the singular vectors of `matrix` (rows, columns) and singular values near 1, in the same
    dtype; zero if `matrix` is."""
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix  # the smaller of X X^T and X^T X
    x = wide / wide.norm().clamp(min=TINY)
    for _ in range(iterations):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def scale(rows: int, columns: int) -> float:
    """What an orthogonal update is multiplied by, besides the rate (Liu et al. 2025, eq. 4)."""
    return RMS * math.sqrt(max(rows, columns))


class MuonAndAdamW(torch.optim.Optimizer):
    """Groups with "matrices" follow Muon, the others torch's AdamW. The matrices of a weight lie under each
    other in its rows. All ranks of the default process group, if there is one, must have the same weights or
    shards of the same, and call `step` together.

    precision: of the iteration, "fp32", "bf16" or "auto" (bf16 on CUDA, fp32 elsewhere: few CPUs are fast in
    bf16). Other arguments: as of `scaledit.optimizers.Muon`.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        iterations: int,
        precision: str,
        betas: tuple[float, float],
        weight_decay: float,
    ):
        # It has no weights of its own: each step lends it the groups and the state.
        self.adamw = torch.optim.AdamW(
            [torch.zeros(())], lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        self.momentum, self.iterations, self.precision = momentum, iterations, precision
        super().__init__(groups, self.adamw.defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.adamw.param_groups = [group for group in self.param_groups if not group.get(MATRICES)]
        self.adamw.state = self.state
        self.adamw.step()
        for group in self.param_groups:
            if group.get(MATRICES):
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        weights.sort(key=lambda weight: weight.numel())  # so that the ranks of a round have equal work
        world, rank = (dist.get_world_size(), dist.get_rank()) if _grouped() else (1, 0)
        for first in range(0, len(weights), world):
            together = weights[first : first + world]
            updates = [self._update(weight, group[MATRICES], i, rank) for i, weight in enumerate(together)]
            if world > 1:
                sent = [dist.broadcast(update, i, async_op=True) for i, update in enumerate(updates)]
                for one in sent:
                    assert one is not None
                    one.wait()
            for weight, update in zip(together, updates, strict=True):
                rows, columns = weight.shape[0] // group[MATRICES], weight.shape[1]
                own = _share(update, weight)
                _local(weight).mul_(1 - group["lr"] * group["weight_decay"])
                _local(weight).add_(own, alpha=-group["lr"] * scale(rows, columns))

    def _update(self, weight: Tensor, matrices: int, owner: int, rank: int) -> Tensor:
        """The complete update of a weight, before its rate; on other ranks than `owner`, memory for it."""
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        gradient, mean = _local(weight.grad), _local(state["momentum_buffer"])
        mean.lerp_(gradient, 1 - self.momentum)
        bf16 = self.precision == "bf16" or (self.precision == "auto" and weight.is_cuda)
        dtype = torch.bfloat16 if bf16 else torch.float32
        direction = _whole(gradient.lerp(mean, self.momentum).to(dtype), weight)
        if rank != owner:
            return torch.empty_like(direction, memory_format=torch.contiguous_format)
        return torch.cat([newton_schulz(one, self.iterations) for one in direction.chunk(matrices)])


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether the tensor is a DTensor, without importing that type."""
    return hasattr(tensor, "full_tensor")


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor on this rank; shares its memory."""
    return tensor.to_local() if _is_shard(tensor) else tensor


def _whole(part: Tensor, weight: Tensor) -> Tensor:
    """The complete tensor of which `part` is this rank's share, sharded as the weight is."""
    if not _is_shard(weight):
        return part
    shared = type(weight).from_local(
        part, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride()
    )
    return shared.full_tensor()


def _share(whole: Tensor, weight: Tensor) -> Tensor:
    """This rank's share of a complete tensor, which each rank has."""
    if not _is_shard(weight):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None).to_local()
