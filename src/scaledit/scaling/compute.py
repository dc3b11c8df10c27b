"""The training compute of a run, in multiply-adds, from its config alone; imports no torch.

    train_macs = steps (batch (3 macs + extra) + step)
    extra      of one image: teachers, second passes             `extra_macs` of the parts of [diffusion]
    step       of one step: an optimizer's matrix products       `step_macs` of the part optimizer.algorithm

A backward pass counts as two forward passes (paper, section 4). Plans, tables of studies and studies at equal
compute all use this number. A part without these methods costs nothing besides the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from scaledit.config import RunConfig
from scaledit.errors import RunError
from scaledit.models import flops
from scaledit.part import Part
from scaledit.values import own_fields


def step_macs(config: RunConfig) -> int:
    """Multiply-adds of one training step of the whole batch.

    A part of [diffusion], or one inside it, may define extra_macs(model) -> int: multiply-adds per image
    besides the forward and backward pass of the network, such as a teacher's forward pass, or a second pass
    with its backward pass. An optimizer may define step_macs(model) -> int: those of its own matrix products
    in one step. model: the run's DiTConfig. Raises RunError if one of them returns no whole number of at
    least 0.
    """
    image = flops.train_macs(flops.count(config.model).macs, 1)
    image += sum(_counted(part, "extra_macs", config) for part in _parts(config.diffusion))
    return config.train.batch_size * image + _counted(config.optimizer.algorithm, "step_macs", config)


def train_macs_of(config: RunConfig, steps: int | None = None) -> int:
    """Multiply-adds of the training of `config`, up to `steps` (None: all of train.steps)."""
    return step_macs(config) * (config.train.steps if steps is None else steps)


def steps_within(config: RunConfig, budget: int) -> int:
    """The number of steps, at least one, whose multiply-adds are closest to `budget`."""
    one = step_macs(config)
    return max(1, (2 * budget + one) // (2 * one))


def _counted(part: Part, method: str, config: RunConfig) -> int:
    count = getattr(part, method, None)
    if count is None:
        return 0
    macs = count(config.model)
    if isinstance(macs, bool) or not isinstance(macs, int) or macs < 0:
        raise RunError(f"{part.part_name()}.{method} must return a whole number of at least 0, got {macs!r}")
    return macs


def _parts(value: Any) -> Iterator[Part]:
    """All parts in a section, a part, or a list of parts; those inside parts as well."""
    if isinstance(value, Part):
        yield value
    if isinstance(value, tuple | list):
        for inner in value:
            yield from _parts(inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in own_fields(type(value)):
            yield from _parts(getattr(value, item.name))
