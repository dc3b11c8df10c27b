"""What happens to a network from outside, block by block, so that the network itself stays plain PyTorch.

    recompute (forget activations, make them anew)  ->  compile  ->  copy (DDP) or shard (FSDP2) over ranks

Copies: gradients are summed while the backward pass still runs. Shards: each rank holds 1/R of every weight,
gradient and moment; a block's weights are gathered when it is their turn. Products in bf16 where
precision = "bf16", sums over ranks always in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from scaledit.config import EngineConfig
from scaledit.errors import UsageError
from scaledit.training.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}
"""Results that "selective" recomputing does not make anew: those that cost most multiply-adds."""


class Parallel:
    """A module as its ranks train it. Calling it is calling the module."""

    def __init__(
        self, module: nn.Module, blocks: nn.ModuleList, config: EngineConfig, precision: str, ranks: Ranks
    ):
        for block in blocks:
            recompute(block, config.recompute)
            if config.compile:
                block.compile()
        self.module = module
        self.sharded = ranks.grouped and config.parallel != "ddp"
        self._wrapped: Callable[..., Any] = module
        if self.sharded:
            shard(module, blocks, config.parallel == "hybrid", precision, ranks)
        elif ranks.grouped:
            with warnings.catch_warnings():
                # A newer name is on its way, which the oldest torch that we support does not know.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self._wrapped = DistributedDataParallel(
                    module, broadcast_buffers=False, gradient_as_bucket_view=True
                )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(*args, **kwargs)

    def without_sum(self) -> AbstractContextManager[Any]:
        """Gradients that are made inside stay on their rank (and are part of the next sum)."""
        if isinstance(self._wrapped, DistributedDataParallel):
            return self._wrapped.no_sync()
        return nullcontext()  # shards are summed each time: whole gradients would not fit


def recompute(block: nn.Module, how: str) -> None:
    """Replaces the block's forward by one that keeps less for the backward pass; no name changes."""
    if how == "blocks":
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    elif how == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _keep_products)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _keep_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def shard(
    module: nn.Module,
    blocks: nn.ModuleList,
    hybrid: bool,
    precision: str,
    ranks: Ranks,
    trained: bool = True,
) -> None:
    """FSDP2, in place: each block alone, then what is left. Inputs keep their type: a time in bf16 would be
    another time. trained: whether a backward pass follows a forward pass. Without one all weights are freed
    after the forward pass, so that the next gathers them anew."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # 0.7 s to import

    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "bf16":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    chosen = mesh(hybrid, ranks)
    again = None if trained else True  # FSDP2 keeps the outermost weights for a backward pass
    for block in blocks:
        fully_shard(block, mesh=chosen, mp_policy=policy, reshard_after_forward=again)
    fully_shard(module, mesh=chosen, mp_policy=policy, reshard_after_forward=again)


def mesh(hybrid: bool, ranks: Ranks) -> DeviceMesh:
    """All ranks in a row, or (hybrid) a row for each machine. Raises UsageError for machines of unequal
    numbers of ranks."""
    from torch.distributed.device_mesh import init_device_mesh

    if not hybrid:
        return init_device_mesh(ranks.device.type, (ranks.world,))
    if ranks.world % ranks.local_world:
        raise UsageError(
            f'engine.parallel="hybrid" needs the same number of ranks on every machine: {ranks.world} are '
            f"not a multiple of {ranks.local_world}"
        )
    shape = (ranks.world // ranks.local_world, ranks.local_world)
    return init_device_mesh(ranks.device.type, shape, mesh_dim_names=("copies", "shards"))


def is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is spread over ranks; without importing what would tell by its type."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What of it lies here; shares its memory."""
    return tensor.to_local() if is_shard(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """All of it, gathered from the ranks."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


@torch.no_grad()
def copy_full(target: Tensor, source: Tensor) -> None:
    """Copies a whole tensor, which each rank has, into one that may be sharded."""
    if is_shard(target):
        from torch.distributed.tensor import distribute_tensor

        mine = distribute_tensor(
            source.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
        target.to_local().copy_(mine.to_local())
    else:
        target.copy_(source)
