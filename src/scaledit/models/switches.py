"""Whether a block design obeys the switches of a config. Imports no torch.

model.norm   model.mlp   model.qk_norm   model.value_residual   model.registers

A design lists its layers itself, so one that builds a LayerNorm itself would ignore model.norm="rms". That is
refused when the config is made: a design must list no layer of the default kind, and it must list other
layers than at the default.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple

from scaledit.errors import UsageError
from scaledit.models import mlps
from scaledit.models.description import MLP, CrossAttention, Layer, LayerNorm, Linear, SelfAttention
from scaledit.models.norms import Norm
from scaledit.part import Part

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class _OtherNorm(Norm):
    """Makes layers that no other norm makes."""

    def layer(self, width: int, rows: int, affine: bool = True) -> Layer:
        return Linear(width, width, rows)


@dataclass(frozen=True)
class _OtherMLP(mlps.MLP):
    """Likewise."""

    def layer(self, width: int, hidden: int, rows: int) -> Layer:
        return Linear(width, width, rows)


class Switch(NamedTuple):
    """A field of a config that changes layers of a block. default: its value without effect. other: a value
    with which a design that obeys lists other layers. kinds: the layers that it is about. obeyed: whether
    such a layer is as the config wants it. instead: what makes the right layer."""

    name: str
    default: Any
    other: Any
    kinds: type[Layer] | UnionType
    obeyed: Callable[[DiTConfig, Any], bool]
    instead: str


SWITCHES = (
    Switch(
        "norm",
        "layer",
        _OtherNorm(),
        LayerNorm,
        lambda config, layer: isinstance(config.norm_part.layer(1, 1), LayerNorm),
        "norm(config, rows)",
    ),
    Switch(
        "mlp",
        "gelu",
        _OtherMLP(),
        MLP,
        lambda config, layer: isinstance(config.mlp_part.layer(1, 1, 1), MLP),
        "mlp(config, rows)",
    ),
    Switch(
        "qk_norm",
        False,
        False,
        SelfAttention | CrossAttention,
        lambda config, layer: layer.qk_norm,
        "attention(config, rows)",
    ),
    Switch(
        "value_residual",
        False,
        False,
        SelfAttention,
        lambda config, layer: layer.mixes_values,
        "attention(config, rows)",
    ),
)


def check(config: DiTConfig) -> None:
    """Raises UsageError if a switch that is not at its default does not reach all layers of the block design
    that it is about."""
    for switch in SWITCHES:
        if getattr(config, switch.name) != switch.default:
            _check(config, switch)
    if not config.value_residual and not config.registers:
        return
    name = config.block.part_name()
    layers = config.block.layers(config).values()
    attentions = [layer for layer in layers if isinstance(layer, SelfAttention)]
    if config.value_residual and len(attentions) != 1:
        raise UsageError(
            f"model.value_residual needs one self-attention in each block, but the block design {name} has "
            f"{len(attentions)}; leave it out"
        )
    if config.registers and any(layer.rows < config.sequence for layer in attentions):
        raise UsageError(
            f"the block design {name} counts config.tokens tokens, but with model.registers a block has "
            "config.sequence; change its layers, or leave model.registers out"
        )


def _check(config: DiTConfig, switch: Switch) -> None:
    other = copy.copy(config)
    object.__setattr__(other, switch.name, switch.other)  # without the checks of a new config
    layers = config.block.layers(config)
    no_effect = layers == config.block.layers(other)
    everything = (*layers.values(), *config.block.final_layers(config).values())
    concerned = (layer for layer in everything if isinstance(layer, switch.kinds))
    if no_effect or not all(switch.obeyed(config, layer) for layer in concerned):
        value = getattr(config, switch.name)
        text = value.label() if isinstance(value, Part) else str(value).lower()
        raise UsageError(
            f"the block design {config.block.part_name()} has layers that ignore model.{switch.name}={text}; "
            f"build them with {switch.instead} of scaledit.models.blocks, or leave the key out"
        )
