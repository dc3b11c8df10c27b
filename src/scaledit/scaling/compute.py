"""The training compute of a run, in multiply-adds, from its config alone; imports no torch.

    train_macs = sum over steps of batch (3 macs + extra) + step
    extra      of one image: teachers, second passes             `extra_macs` of the parts of [diffusion]
    step       of one step: an optimizer's matrix products       `config.updates.update_macs`

A backward pass counts as two forward passes (paper, section 4). Plans, tables of studies and studies at equal
compute all use this number. A part without `extra_macs` costs nothing besides the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from scaledit.config import RunConfig
from scaledit.config.updates import update_macs
from scaledit.errors import RunError
from scaledit.models import flops
from scaledit.part import Part
from scaledit.values import own_fields


def step_macs(config: RunConfig, step: int = 0) -> int:
    """Multiply-adds of one training step of the whole batch.

    A part of [diffusion], or one inside it, may define extra_macs(model) -> int: multiply-adds per image
    besides the forward and backward pass of the network, such as a teacher's forward pass, or a second pass
    with its backward pass; model: the run's DiTConfig. If it also defines active(step) -> bool, only active
    steps have that cost. step: counted from 0. Raises RunError if a part returns no whole number of at least
    0, and as `config.updates.updates` does.
    """
    image = flops.train_macs(flops.count(config.model).macs, 1)
    image += sum(macs for part, macs in _extras(config) if _is_active(part, step))
    return config.train.batch_size * image + update_macs(config)


def train_macs_of(config: RunConfig, steps: int | None = None) -> int:
    """Multiply-adds of the training of `config`, up to `steps` (None: all of train.steps)."""
    steps = config.train.steps if steps is None else steps
    network = flops.train_macs(flops.count(config.model).macs, config.train.batch_size * steps)
    own = steps * update_macs(config)
    extra = sum(
        macs * (steps if not hasattr(part, "active") else sum(_is_active(part, i) for i in range(steps)))
        for part, macs in _extras(config)
    )
    return network + own + config.train.batch_size * extra


def steps_within(config: RunConfig, budget: int) -> int:
    """The number of steps, at least one, whose multiply-adds are closest to `budget`."""
    low, high = 0, max(1, budget // train_macs_of(config, 1) + 1)
    while train_macs_of(config, high) < budget:  # later steps may cost less
        low, high = high, 2 * high
    while high - low > 1:  # train_macs_of(low) <= budget <= train_macs_of(high)
        middle = (low + high) // 2
        low, high = (middle, high) if train_macs_of(config, middle) <= budget else (low, middle)
    closer = min((low, high), key=lambda steps: (abs(train_macs_of(config, steps) - budget), -steps))
    return max(1, closer)


def _extras(config: RunConfig) -> list[tuple[Part, int]]:
    """The parts of [diffusion] with a cost of their own, and what it is per image."""
    return [(part, macs) for part in _parts(config.diffusion) if (macs := _extra(part, config))]


def _is_active(part: Part, step: int) -> bool:
    active = getattr(part, "active", None)
    return True if active is None else bool(active(step))


def _extra(part: Part, config: RunConfig) -> int:
    count = getattr(part, "extra_macs", None)
    if count is None:
        return 0
    macs = count(config.model)
    if isinstance(macs, bool) or not isinstance(macs, int) or macs < 0:
        raise RunError(
            f"{part.part_name()}.extra_macs must return a whole number of at least 0, got {macs!r}"
        )
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
