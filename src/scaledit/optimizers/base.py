"""What all optimizers share: the tensors that they keep, and how rates follow the width of a network.

    groups = [{"params": [...]}, {"params": [...], "lr_scale": 0.25}, {"params": [...], "matrices": 3}]

The run multiplies the learning rate of a group by its "lr_scale" (optimizer.base_width; 1 if it is absent).
"matrices" is only in the groups of an optimizer that asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from scaledit.lazy import torch
from scaledit.part import Part

LR_SCALE, MATRICES = "lr_scale", "matrices"
"""Keys of groups."""


class Optimizer(Part, kind="optimizer", home="scaledit.optimizers", needs=("make",)):
    """An optimizer, made by torch or by the user.

    state: the kinds of tensors that it keeps for each parameter, by torch's names; a checkpoint stores them
    as "exp_avg/NAME". scalars: the kinds with shape (); all others have their parameter's shape and dtype.
    bytes_of_state: bytes of state per float32 weight. splits_matrices: whether `make` gets the matrices of a
    DiT's blocks in groups of their own, with "matrices": how many matrices of equal shape lie under each
    other in each of the group's weights (3 for the weight that makes q, k and v). bytes_of_matrices: bytes of
    state per float32 weight of these.
    """

    state: ClassVar[tuple[str, ...]] = ("step",)
    scalars: ClassVar[tuple[str, ...]] = ("step",)
    bytes_of_state: ClassVar[int] = 0
    splits_matrices: ClassVar[bool] = False
    bytes_of_matrices: ClassVar[int] = 0

    def make(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """Makes torch's optimizer. groups: the trained parameters, {"params": [...]} each, as torch takes
        them, with the keys that the module lists. learning_rate: that of the first step; the run sets it
        before each later step."""
        raise NotImplementedError

    def width_scale(self, ratio: float, matrices: int) -> float:
        """The factor of the learning rate of a weight with `ratio` times as many inputs as at
        optimizer.base_width. matrices: as in the weight's group, 0 if it is in no group of matrices.

        1 / ratio is right for every optimizer whose update of an entry does not depend on the size of its
        gradient, such as AdamW (Yang et al. 2022, table 8): the updates of n entries of a row add up to n
        times one of them. Another optimizer overrides this."""
        return 1 / ratio

    def matrix_macs(self, rows: int, columns: int) -> int:
        """Multiply-adds of the products of matrices in the update of one matrix."""
        return 0

    def state_bytes(self, weights: int, in_matrices: int) -> int:
        """Bytes of state for `weights` float32 weights, of which `in_matrices` are in groups of matrices."""
        if not self.splits_matrices:
            in_matrices = 0
        return self.bytes_of_state * (weights - in_matrices) + self.bytes_of_matrices * in_matrices


def with_decay(groups: Sequence[Any], weight_decay: float) -> list[Any]:
    """The groups, with a decay of their own where the rate is scaled, so that rate times decay is the same in
    all groups: otherwise wide networks would decay less (Wang & Aitchison 2024)."""
    return [
        {**group, "weight_decay": weight_decay / group[LR_SCALE]}
        if isinstance(group, Mapping) and LR_SCALE in group
        else group
        for group in groups
    ]
