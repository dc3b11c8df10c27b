"""How each weight of a network is updated, from a run's config alone: in which group of the optimizer it is,
and how its rate and its initial size follow the width. Imports no torch.

r = model.hidden_size / optimizer.base_width           muP: Yang et al. 2022, table 8; for DiTs: 2505.15270

a weight (outputs x inputs)            of a DiT                                      Adam's rate    std
input (inputs fixed), and vectors      patch_embed, time_embed.fc1, the table        1              1
                                       of classes, biases, norms
hidden (both sides grow)               of the blocks, modulations, time_embed.fc2    1 / r          r^-1/2
output (outputs fixed)                 final.linear                                  1 / r          1 / r

At the base width nothing changes. The table's multiplier of the output is equal to these two factors, and the
final linear starts at zero. Logits stay q k / sqrt(head), as muP asks for heads of one width: so
`model.num_heads` has to grow with `model.hidden_size`. Muon's matrices have a factor of their own
(`Optimizer.width_scale`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from scaledit.config import trained
from scaledit.config.runs import RunConfig
from scaledit.errors import UsageError
from scaledit.models.description import Description

BLOCKS = "blocks."


class Update(NamedTuple):
    """lr_scale: the factor of the learning rate. matrices: how many matrices of the blocks lie in the weight,
    for an optimizer that updates them in its own way; else 0."""

    lr_scale: float = 1.0
    matrices: int = 0


class _Matrix(NamedTuple):
    """A weight that multiplies vectors. inputs_grow, outputs_grow: with the width. normal: whether it starts
    as N(0, 0.02), else Xavier-uniform. zero: whether it starts at zero. stacked: as in `Layer.matrices`."""

    name: str
    outputs: int
    inputs: int
    outputs_grow: bool
    inputs_grow: bool
    normal: bool
    zero: bool
    stacked: int


def updates(config: RunConfig) -> dict[str, Update]:
    """{name: update} of the network's trained parameters that are not updated like all others. Raises
    UsageError if the optimizer needs matrices and none is trained, and as `trained.names` does."""
    algorithm, names = config.optimizer.algorithm, trained.names(config)
    found = {}
    for matrix in _matrices(config):
        if matrix.name not in names:
            continue
        split = algorithm.splits_matrices and matrix.name.startswith(BLOCKS)
        count = matrix.stacked if split else 0
        ratio = _ratio(config) if matrix.inputs_grow else 1.0
        update = Update(1.0 if ratio == 1 else algorithm.width_scale(ratio, count), count)
        if update != Update():
            found[matrix.name] = update
    if algorithm.splits_matrices and not any(update.matrices for update in found.values()):
        frozen = "lora.rank" if config.lora.rank else "train.freeze"
        raise UsageError(
            f"optimizer.algorithm {algorithm.part_name()} has no matrix to update: {frozen} leaves none of "
            'the blocks\' matrices to train; use optimizer.algorithm="adamw"'
        )
    return found


def matrix_weights(config: RunConfig) -> int:
    """How many trained weights are in matrices that the optimizer updates in its own way. Raises as `updates`
    does."""
    shapes = trained.shapes(config)
    return sum(math.prod(shapes[name]) for name, update in updates(config).items() if update.matrices)


def update_macs(config: RunConfig) -> int:
    """Multiply-adds of the matrix products in one step of the optimizer, on all ranks together; 0 for AdamW.
    Raises as `updates` does."""
    shapes, algorithm, total = trained.shapes(config), config.optimizer.algorithm, 0
    for name, update in updates(config).items():
        if update.matrices:
            rows, columns = shapes[name]
            total += update.matrices * algorithm.matrix_macs(rows // update.matrices, columns)
    return total


def initial_scales(config: RunConfig) -> dict[str, float]:
    """{name: factor} of the initial weights that change with optimizer.base_width; {} without it."""
    ratio = _ratio(config)
    factors = {}
    for matrix in _matrices(config) if ratio != 1 else ():
        wanted = 1.0
        if matrix.inputs_grow:
            wanted = ratio**-0.5 if matrix.outputs_grow else 1 / ratio
        before = 1.0
        if not matrix.normal:  # Xavier: 2 / (inputs + outputs)
            inputs = matrix.inputs / (ratio if matrix.inputs_grow else 1)
            outputs = matrix.outputs / (ratio if matrix.outputs_grow else 1)
            before = math.sqrt((inputs + outputs) / (matrix.inputs + matrix.outputs))
        if not matrix.zero and not math.isclose(wanted, before):
            factors[matrix.name] = wanted / before
    return factors


def _ratio(config: RunConfig) -> float:
    base = config.optimizer.base_width
    return config.model.hidden_size / base if base else 1.0


def _matrices(config: RunConfig) -> Iterator[_Matrix]:
    """All of them. Which sides grow is seen at twice the width."""
    model = config.model
    wider = Description.of(replace(model, hidden_size=2 * model.hidden_size)).shapes()
    for layer_name, layer in Description.of(model).named():
        shapes = layer.weights()
        for weight, count in layer.matrices().items():
            name, (outputs, inputs) = f"{layer_name}.{weight}", shapes[weight]
            yield _Matrix(
                name,
                outputs,
                inputs,
                wider[name][0] > outputs,
                wider[name][1] > inputs,
                weight in layer.NORMAL,
                layer.starts_at_zero,
                count,
            )
