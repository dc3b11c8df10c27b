"""The official DiT's state dict <-> scaledit's: the same numbers under other names.

    x_embedder.proj.weight (D, C, p, p)  <->  patch_embed.weight (D, C p p)
    blocks.i.adaLN_modulation.1.weight   <->  blocks.i.modulation.weight,  and so on

The official programs have only the adaLN-Zero block, and store the frozen position table as `pos_embed`.
fast-DiT and SiT write the same keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from scaledit.errors import UsageError, and_more
from scaledit.interop.lazy_tensors import DTYPES, Lazy, cat, from_tensor
from scaledit.models.config import ADDED, DiTConfig
from scaledit.models.dit import DiT
from scaledit.models.layers import position_table
from scaledit.models.shapes import shapes as needed_shapes
from scaledit.part import Part

_NAMES = (
    ("x_embedder.proj.", "patch_embed."),
    ("t_embedder.mlp.0.", "time_embed.fc1."),
    ("t_embedder.mlp.2.", "time_embed.fc2."),
    ("y_embedder.embedding_table.", "label_embed."),
    ("final_layer.", "final."),
    (".adaLN_modulation.1.", ".modulation."),
)
PATCHES = "x_embedder.proj.weight"
POSITION = "pos_embed"
NATIVE_PATCHES, LABELS = "patch_embed.weight", "label_embed.weight"
"""scaledit's names."""
POSITION_TOLERANCE = 1e-5
MOST_TOKENS = 1 << 16
"""The largest input that is accepted: 4096x4096 pixels at patch 2 in the latents of an f8 autoencoder."""


def _native(key: str) -> str:
    for official, native in _NAMES:
        key = key.replace(official, native)
    return key


def _official(key: str) -> str:
    for official, native in _NAMES:
        key = key.replace(native, official)
    return key


def check_conditioning(config: DiTConfig, layout: str = "official") -> None:
    """Raises UsageError for what the official and diffusers' layouts do not have: other block designs and
    position encodings, and whatever a config has besides the paper's fields."""
    if config.conditioning != "adaln_zero":
        raise UsageError(
            f"the {layout} layout supports adaLN-Zero models only; this config has {config.block.label()!r}"
        )
    defaults = {item.name: item.default for item in dataclasses.fields(config)}
    unsupported = [
        f"{name} {value.label() if isinstance(value, Part) else value}"
        for name in ("position", *ADDED)
        if (value := getattr(config, name)) != defaults[name]
    ]
    if unsupported:
        raise UsageError(f"the {layout} layout does not support this model's {' and '.join(unsupported)}")


def to_native(weights: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The weights under scaledit's names and shapes, without the position table; see `with_null_row`."""
    out = {_native(key): value for key, value in weights.items() if key != POSITION}
    patches = out.get(NATIVE_PATCHES)
    if patches is not None and len(patches.shape) == 4:
        out[NATIVE_PATCHES] = patches.reshaped((patches.shape[0], math.prod(patches.shape[1:])))
    return out


def with_null_row(weights: Mapping[str, Lazy], config: DiTConfig) -> dict[str, Lazy]:
    """Weights for scaledit's network, whose label table always has a row for the null label.

    A model that was trained without label dropout has none. It gets a row of zeros, which is never used
    (guidance is refused) and which `to_official` removes.
    """
    out, table = dict(weights), weights.get(LABELS)
    if not config.has_null_label and table is not None and table.shape[:1] == (config.num_classes,):
        zeros = torch.zeros(1, *table.shape[1:], dtype=DTYPES[table.dtype])
        out[LABELS] = cat([table, from_tensor(zeros)])
    return out


def to_official(weights: Mapping[str, Lazy], config: DiTConfig) -> dict[str, Lazy]:
    """The official names and shapes in that program's order, `pos_embed` (in the weights' dtype) first. The
    label table of a model without a null label (class_dropout 0) has no row for it. Raises UsageError as
    `check_conditioning` does."""
    check_conditioning(config)
    table = position(config).unsqueeze(0).to(DTYPES[weights[NATIVE_PATCHES].dtype])
    named = {
        _official(key): weights[key].reshaped(_official_shape(config, key, shape))
        for key, shape in needed_shapes(config).items()
    }
    if not config.has_null_label:
        named[_official(LABELS)] = weights[LABELS].rows(0, config.num_classes)
    return {POSITION: from_tensor(table), **named}


def position(config: DiTConfig) -> Tensor:
    """(T, D) float32: the frozen table."""
    rows, columns = config.height // config.patch_size, config.width // config.patch_size
    return position_table(config.hidden_size, rows, columns)


def check_position(table: Tensor, config: DiTConfig) -> None:
    """Raises UsageError unless `table` (1, T, D) is the sin-cos table, to the precision of its dtype."""
    tolerance = max(POSITION_TOLERANCE, torch.finfo(table.dtype).eps)
    if tuple(table.shape) != (1, config.tokens, config.hidden_size) or not torch.allclose(
        table.float(), position(config).unsqueeze(0), rtol=0, atol=tolerance
    ):
        raise UsageError(
            f"{POSITION} is not the sin-cos table of a {config.height}x{config.width} input at patch "
            f"{config.patch_size}; check input_size and patch_size"
        )


def check_size(config: DiTConfig, tensors: int) -> None:
    """Raises UsageError for claims of a config that no weight supports: an input whose position table alone
    would fill the memory, or more blocks than there are `tensors`."""
    if config.tokens > MOST_TOKENS:
        raise UsageError(
            f"an input of {config.height}x{config.width} has {config.tokens} patches, which are too many"
        )
    if config.depth > tensors:
        raise UsageError(
            f"the config declares {config.depth} blocks, but the state dict has {tensors} tensors"
        )


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: DiTConfig) -> None:
    """shapes: by scaledit's names. Raises UsageError naming the first key (as the official layout calls it)
    that is missing, unknown or of another shape than `config` needs."""
    check_size(config, len(shapes))
    expected = needed_shapes(config)
    missing, unknown = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or unknown:
        raise UsageError(
            "the state dict does not fit this config"
            + (f"; missing: {_official(missing[0])}{and_more(len(missing) - 1)}" if missing else "")
            + (f"; unknown: {_official(unknown[0])[:100]}{and_more(len(unknown) - 1)}" if unknown else "")
        )
    for key, shape in shapes.items():
        if shape != expected[key]:
            needed = _official_shape(config, key, expected[key])
            raise UsageError(f"{_official(key)} has the shape {shape}, but this config needs {needed}")


def load(config: DiTConfig, state_dict: Mapping[str, Tensor]) -> DiT:
    """A DiT with the weights of an official state dict, bit for bit. If class_dropout is 0, the label table
    may lack the row of the null label.

    Raises UsageError if a key is missing or unknown, a shape differs, or `pos_embed` is not the sin-cos table
    (then the weights belong to another position embedding).
    """
    check_conditioning(config)
    patches, needed = state_dict.get(PATCHES), _official_shape(config, NATIVE_PATCHES, ())
    if patches is not None and tuple(patches.shape) != needed:
        raise UsageError(f"{PATCHES} has the shape {tuple(patches.shape)}, but this config needs {needed}")
    native = to_native({key: from_tensor(value) for key, value in state_dict.items() if key != POSITION})
    weights = with_null_row(native, config)
    check_shapes({key: lazy.shape for key, lazy in weights.items()}, config)
    if POSITION in state_dict:
        check_position(state_dict[POSITION], config)
    dit = DiT(config)
    dit.load_state_dict({key: lazy.read() for key, lazy in weights.items()})
    return dit


def export(dit: DiT) -> dict[str, Tensor]:
    """The official state dict with `pos_embed`, without the null label's row if class_dropout is 0."""
    weights = {key: from_tensor(value) for key, value in dit.state_dict().items()}
    return {key: lazy.read() for key, lazy in to_official(weights, dit.config).items()}


def _official_shape(config: DiTConfig, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if key == NATIVE_PATCHES:
        return (config.hidden_size, config.in_channels, config.patch_size, config.patch_size)
    return shape
