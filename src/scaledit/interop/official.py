"""The official DiT's state dict <-> scaledit's: the same numbers under other names.

    x_embedder.proj.weight (D, C, p, p)  <->  patch_embed.weight (D, C p p)
    blocks.i.adaLN_modulation.1.weight   <->  blocks.i.modulation.weight,  and so on

The official programs have the adaLN-Zero block only, and keep the frozen position table as `pos_embed`.
fast-DiT and SiT write the same keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from scaledit.errors import UsageError
from scaledit.interop.lazy_tensors import DTYPES, Lazy, cat, from_tensor
from scaledit.models.config import DiTConfig
from scaledit.models.dit import DiT
from scaledit.models.layers import position_table
from scaledit.models.shapes import shapes as needed_shapes

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
LABELS = "label_embed.weight"
"""By our name."""
POSITION_TOLERANCE = 1e-5
MOST_TOKENS = 1 << 16
"""Of an input that is believed: 4096x4096 pixels at patch 2 in an f8 autoencoder's latents."""


def _native(key: str) -> str:
    for theirs, native in _NAMES:
        key = key.replace(theirs, native)
    return key


def _theirs(key: str) -> str:
    for theirs, native in _NAMES:
        key = key.replace(native, theirs)
    return key


def check_conditioning(config: DiTConfig, layout: str = "official") -> None:
    """Raises UsageError for the designs that the official and diffusers' layouts do not have, for other
    encodings of positions and conditions, and for a second time."""
    if config.conditioning != "adaln_zero":
        raise UsageError(
            f"the {layout} layout holds adaLN-Zero models only; this config is {config.block.label()!r}"
        )
    beside = [
        f"{name} {value}"
        for name, value, held in (
            ("position", config.position_part.label(), config.position == "sincos"),
            ("conditioner", config.conditioner_part.label(), config.conditioner == "labels"),
            ("second_time", config.second_time, not config.second_time),
        )
        if not held
    ]
    if beside:
        raise UsageError(f"the {layout} layout cannot hold this model's {' and '.join(beside)}")


def to_native(weights: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The weights under scaledit's names and shapes, without the position table. The label table is
    unchanged: see `with_null_row`."""
    out = {_native(key): value for key, value in weights.items() if key != POSITION}
    patches = out.get("patch_embed.weight")
    if patches is not None and len(patches.shape) == 4:
        out["patch_embed.weight"] = patches.reshaped((patches.shape[0], math.prod(patches.shape[1:])))
    return out


def with_null_row(weights: Mapping[str, Lazy], config: DiTConfig) -> dict[str, Lazy]:
    """Weights for scaledit's network, whose label table always has a row for the null label. A model that was
    trained without label dropout has none: it gets a row of zeros, which is never used (guidance is refused)
    and left out again on the way back."""
    out, table = dict(weights), weights.get(LABELS)
    if not config.has_null_label and table is not None and table.shape[:1] == (config.num_classes,):
        zeros = torch.zeros(1, *table.shape[1:], dtype=DTYPES[table.dtype])
        out[LABELS] = cat([table, from_tensor(zeros)])
    return out


def to_official(weights: Mapping[str, Lazy], config: DiTConfig) -> dict[str, Lazy]:
    """The official names and shapes in that program's order, `pos_embed` (in the weights' dtype) first. A
    model without a null label (class_dropout 0) has no row for it there."""
    check_conditioning(config)
    dtype = weights["patch_embed.weight"].dtype
    table = position(config).unsqueeze(0).to(DTYPES[dtype])
    named = {
        _theirs(key): weights[key].reshaped(_theirs_shape(config, key, shape))
        for key, shape in needed_shapes(config).items()
    }
    if not config.has_null_label:
        named[_theirs(LABELS)] = weights[LABELS].rows(0, config.num_classes)
    return {POSITION: from_tensor(table), **named}


def position(config: DiTConfig) -> Tensor:
    """(T, D) float32: the frozen table."""
    rows, columns = config.height // config.patch_size, config.width // config.patch_size
    return position_table(config.hidden_size, rows, columns)


def check_position(table: Tensor, config: DiTConfig) -> None:
    """Raises UsageError unless `table` (1, T, D) is the sin-cos table, to its own precision."""
    tolerance = max(POSITION_TOLERANCE, torch.finfo(table.dtype).eps)
    if tuple(table.shape) != (1, config.tokens, config.hidden_size) or not torch.allclose(
        table.float(), position(config).unsqueeze(0), rtol=0, atol=tolerance
    ):
        raise UsageError(
            f"{POSITION} is not the sin-cos table of a {config.height}x{config.width} input at patch "
            f"{config.patch_size}; check input_size and patch_size"
        )


def check_size(config: DiTConfig, tensors: int) -> None:
    """Raises UsageError for what a config claims and no weight shows: an input whose position table alone
    would fill the memory, or more blocks than there are `tensors`."""
    if config.tokens > MOST_TOKENS:
        raise UsageError(f"an input of {config.height}x{config.width} is {config.tokens} patches: too large")
    if config.depth > tensors:
        raise UsageError(f"the config claims {config.depth} blocks, the state dict has {tensors} tensors")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: DiTConfig) -> None:
    """shapes: by our names. Raises UsageError naming the first key (as the official layout calls it) that is
    missing, unknown or of another shape than `config` needs."""
    check_size(config, len(shapes))
    expected = needed_shapes(config)
    missing, unknown = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or unknown:
        raise UsageError(
            "the state dict does not fit this config"
            + (f"; missing {_theirs(missing[0])} and {len(missing) - 1} more" if missing else "")
            + (f"; unknown {_theirs(unknown[0])[:100]} and {len(unknown) - 1} more" if unknown else "")
        )
    for key, shape in shapes.items():
        if shape != expected[key]:
            wanted = _theirs_shape(config, key, expected[key])
            raise UsageError(f"{_theirs(key)} has shape {shape}, this config needs {wanted}")


def load(config: DiTConfig, state_dict: Mapping[str, Tensor]) -> DiT:
    """A DiT with the weights of an official state dict; every value kept bit for bit. Where class_dropout is
    0, the label table may lack the null label's row.

    Raises UsageError where a key is missing or unknown, a shape is another one's, or `pos_embed` is not
    the sin-cos table (then the weights belong to another position embedding).
    """
    check_conditioning(config)
    given = {_native(key): value for key, value in state_dict.items() if key != POSITION}
    patches = given.get("patch_embed.weight")
    if patches is not None:
        needed = _theirs_shape(config, "patch_embed.weight", ())
        if tuple(patches.shape) != needed:
            raise UsageError(f"{PATCHES} has shape {tuple(patches.shape)}, this config needs {needed}")
        given["patch_embed.weight"] = patches.reshape(patches.shape[0], -1)
    table = given.get(LABELS)
    if not config.has_null_label and table is not None and table.shape[:1] == (config.num_classes,):
        given[LABELS] = torch.cat([table, table.new_zeros(1, *table.shape[1:])])
    check_shapes({key: tuple(value.shape) for key, value in given.items()}, config)
    if POSITION in state_dict:
        check_position(state_dict[POSITION], config)
    dit = DiT(config)
    dit.load_state_dict(given)
    return dit


def export(dit: DiT) -> dict[str, Tensor]:
    """The official state dict of `dit`, `pos_embed` included; without the null label's row where
    class_dropout is 0, as that program has it."""
    check_conditioning(dit.config)
    state = {
        _theirs(key): value.reshape(_theirs_shape(dit.config, key, tuple(value.shape)))
        for key, value in dit.state_dict().items()
    }
    if not dit.config.has_null_label:
        state[_theirs(LABELS)] = state[_theirs(LABELS)][: dit.config.num_classes]
    return {POSITION: dit.position.unsqueeze(0), **state}


def _theirs_shape(config: DiTConfig, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if key == "patch_embed.weight":
        return (config.hidden_size, config.in_channels, config.patch_size, config.patch_size)
    return shape
