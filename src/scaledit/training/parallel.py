"""Wraps a network from outside, block by block, so that the network itself stays plain PyTorch.

    recompute (drop activations, compute them again)  ->  compile  ->  copy (DDP) or shard (FSDP2) over ranks

With copies, gradients are summed while the backward pass still runs. With shards, each rank holds 1/R of
every weight, gradient and moment, and gathers the weights of a block when it is used. Matrix products are in
bf16 if precision = "bf16"; sums over ranks are always in float32.
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
SAVED_PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}
"""The operations with the most multiply-adds, whose results "selective" recomputing keeps."""


class Parallel:
    """A module wrapped for the ranks that train it. Calls take and return what the module does, and unknown
    attributes are the module's."""

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
                # The oldest supported torch does not know the new name.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self._wrapped = DistributedDataParallel(
                    module, broadcast_buffers=False, gradient_as_bucket_view=True
                )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # not set yet
            raise AttributeError(name)
        return getattr(self.module, name)

    def without_sum(self) -> AbstractContextManager[Any]:
        """Inside, gradients stay on their rank; they become part of the next sum."""
        if isinstance(self._wrapped, DistributedDataParallel):
            return self._wrapped.no_sync()
        return nullcontext()  # shards are summed each time: full gradients might not fit


def recompute(block: nn.Module, how: str) -> None:
    """Makes the block recompute activations in the backward pass; parameter names stay. how: "blocks" keeps
    only its input, "selective" also the results of products, any other value changes nothing."""
    if how == "blocks":
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    elif how == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _keep_products)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _keep_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in SAVED_PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def shard(
    module: nn.Module,
    blocks: nn.ModuleList,
    hybrid: bool,
    precision: str,
    ranks: Ranks,
    trained: bool = True,
) -> None:
    """Applies FSDP2 in place, to each block and then to the rest. Inputs keep their dtype: a time rounded to
    bf16 would be another time. trained: whether a backward pass follows each forward pass; if not, all
    weights are freed after the forward pass and gathered again for the next."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # 0.7 s to import

    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bf16" else {}
    policy = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)
    device_mesh = mesh(hybrid, ranks)
    free = None if trained else True  # by default FSDP2 keeps the outermost weights for a backward pass
    for part in (*blocks, module):
        fully_shard(part, mesh=device_mesh, mp_policy=policy, reshard_after_forward=free)


def mesh(hybrid: bool, ranks: Ranks) -> DeviceMesh:
    """One dimension of all ranks, or (hybrid) machines x ranks per machine. Raises UsageError if machines
    have unequal numbers of ranks."""
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
    """Whether the tensor is a DTensor, without importing that type."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """The part of the tensor on this rank; shares its memory."""
    return tensor.to_local() if is_shard(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from the ranks."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


@torch.no_grad()
def copy_full(target: Tensor, source: Tensor) -> None:
    """Copies a full tensor, which each rank has, into one that may be sharded."""
    if is_shard(target):
        from torch.distributed.tensor import distribute_tensor

        source = source.to(target.device)
        shards = distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(shards.to_local())
    else:
        target.copy_(source)
