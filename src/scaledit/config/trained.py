"""Which weights a run trains, from its config alone. Imports no torch.

train.freeze                  all but those whose names match
lora.rank > 0                 A and B of each linear layer in lora.targets, and those in lora.also
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from scaledit.config.runs import RunConfig
from scaledit.errors import UsageError, did_you_mean, shown
from scaledit.models.config import DiTConfig
from scaledit.models.description import Description, Embedding, Shapes
from scaledit.models.shapes import LORA_A, LORA_B


class Counts(NamedTuple):
    """Numbers of parameters during training. all: A and B of LoRA included."""

    trained: int
    all: int


def adapted(config: RunConfig) -> list[str]:
    """The names of the linear layers with LoRA, in the order of the network; [] without LoRA. Raises
    UsageError for a pattern that matches none."""
    if not config.lora.rank:
        return []
    return _matching(config.lora.targets, _linears(config.model), "lora.targets", "linear layer")


def shapes(config: RunConfig) -> Shapes:
    """{name: shape} of the network's parameters during training: the model's, then LoRA's."""
    own, rank = Description.of(config.model).shapes(), config.lora.rank
    factors: Shapes = {}
    for name in adapted(config):
        outputs, inputs = own[f"{name}.weight"]
        factors |= {f"{name}{LORA_A}": (rank, inputs), f"{name}{LORA_B}": (outputs, rank)}
    return {**own, **factors}


def names(config: RunConfig) -> frozenset[str]:
    """The names of the parameters that the optimizer changes. Raises UsageError for a pattern that matches
    none, and if nothing is left to train."""
    own = list(Description.of(config.model).shapes())
    if config.lora.rank:
        factors = shapes(config).keys() - set(own)
        return frozenset(factors).union(_matching(config.lora.also, own, "lora.also", "weight"))
    frozen = _matching(config.train.freeze, own, "train.freeze", "weight")
    if len(frozen) == len(own):
        raise UsageError("train.freeze matches every weight of the model; leave some of them to train")
    return frozenset(own).difference(frozen)


def count(config: RunConfig) -> Counts:
    """How many parameters the network has during training, and how many of them are trained."""
    sizes = {name: math.prod(shape) for name, shape in shapes(config).items()}
    return Counts(sum(sizes[name] for name in names(config)), sum(sizes.values()))


def _linears(config: DiTConfig) -> list[str]:
    """The layers with a matrix, but for tables, by the names of their modules."""
    return [
        f"{name}.{weight}".removesuffix(".weight")
        for name, layer in Description.of(config).named()
        if not isinstance(layer, Embedding)
        for weight, shape in layer.weights().items()
        if len(shape) == 2 and f"{name}.{weight}".endswith(".weight")
    ]


def _matching(patterns: Iterable[str], known: Sequence[str], key: str, noun: str) -> list[str]:
    """The known names that match a pattern, in their order."""
    found: set[str] = set()
    for pattern in patterns:
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches:
            kinds = {re.sub(r"\.\d+\.", ".*.", name) for name in known}
            if pattern.endswith(".*"):
                kinds = {f"{name.rpartition('.')[0]}.*" for name in kinds}
            raise UsageError(
                f"{key}: {shown(pattern)} matches no {noun} of the model{did_you_mean(pattern, kinds)}"
            )
        found.update(matches)
    return [name for name in known if name in found]
