"""Infers the config of a DiT from its state dict, and says what has to be supplied.

    width, depth, classes, MLP ratio, block design    from the shapes
    patch, channels, learned sigma, input size        from the patch convolution and the position table
    heads                                             from a named size, the file's args, or the user

The output of the last layer has p p C rows, or twice as many with learned sigma. The label table has one row
per class, and one for the null label if the model was trained with label dropout; the table alone does not
show which (`classes_of`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from scaledit.errors import UsageError, counted, did_you_mean
from scaledit.interop.official import LABELS, MOST_TOKENS, NATIVE_PATCHES, POSITION_TOLERANCE, check_size
from scaledit.models.blocks import Block
from scaledit.models.config import IMAGENET_CLASSES, MODEL_NAMES, PATCHES, SIZES, DiTConfig
from scaledit.models.description import Description
from scaledit.models.layers import position_table
from scaledit.part import members

CLASS_DROPOUT = 0.1
"""The official programs' label dropout, assumed if the label table has a null label."""
FLOW_NAMES = {name.replace("DiT-", "SiT-"): name for name in MODEL_NAMES}
"""SiT's sizes are the DiT's."""
KNOWN_NAMES = (*MODEL_NAMES, *FLOW_NAMES)
SECOND_TIME = "second_time_embed.fc1.weight"
KNOWN_CLASSES = (10, 100, IMAGENET_CLASSES)
"""Of the data sets on which nearly every class-conditional model is trained: a label table with so many rows
has no null label, one with one more row has one."""


@dataclass(frozen=True)
class Hints:
    """What the user or the file's own args state; None means unknown. model: one of KNOWN_NAMES. num_classes:
    without the null label. class_dropout: of training; 0 means there is no null label."""

    model: str | None = None
    heads: int | None = None
    input_size: int | tuple[int, int] | None = None
    patch_size: int | None = None
    num_classes: int | None = None
    class_dropout: float | None = None

    def __post_init__(self) -> None:
        if self.model is not None and self.model not in KNOWN_NAMES:
            raise UsageError(f"unknown model {self.model!r}{did_you_mean(self.model, KNOWN_NAMES)}")

    @property
    def is_flow(self) -> bool:
        """Whether the weights are SiT's, which have a DiT's keys and shapes."""
        return self.model in FLOW_NAMES


def config_of(
    shapes: Mapping[str, tuple[int, ...]],
    hints: Hints,
    patches: tuple[int, ...] | None = None,
    position: Tensor | None = None,
    null_row: bool | None = None,
) -> DiTConfig:
    """The config of weights with these shapes, by scaledit's names. class_dropout is 0 without a null label.

    patches: the shape (D, C, p, p) of the patch convolution, position: the frozen table (1, T, D), if the
    layout has them. null_row: whether the label table ends with the null label, None if unknown.

    Raises UsageError if the weights are not a DiT's, contradict the hints, or need more of them.
    """
    label = _shape(shapes, LABELS, 2)
    rows = _shape(shapes, "final.linear.weight", 2)[0]
    area = _shape(shapes, NATIVE_PATCHES, 2)[1]
    width, depth = label[1], _depth(shapes)
    patch = _patch(area, patches, hints)
    channels = area // patch**2
    if rows not in (area, 2 * area):
        raise UsageError(
            f"final_layer.linear.weight has {rows} rows; patches of {patch}x{patch}x{channels} need {area}, "
            f"or {2 * area} with learned sigma"
        )
    classes = classes_of(label[0], hints, null_row)
    _check_name(depth, width, patch, hints)
    plain = DiTConfig(
        input_size=_input_size(position, width, patch, hints),
        patch_size=patch,
        in_channels=channels,
        hidden_size=width,
        depth=depth,
        num_heads=_heads(depth, width, hints),
        num_classes=classes.num,
        class_dropout=CLASS_DROPOUT if classes.null_row else 0.0,
        learn_sigma=rows == 2 * area,
        mlp_ratio=_shape(shapes, "blocks.0.mlp.fc1.weight", 2)[0] / width,
        second_time=SECOND_TIME in shapes,
    )
    config = _with_design(plain, shapes)
    check_size(config, len(shapes))
    return config


class Classes(NamedTuple):
    """What a label table holds. is_assumed: neither the file nor the user states it."""

    num: int
    null_row: bool
    is_assumed: bool = False

    @property
    def note(self) -> str | None:
        """A sentence for the user, if there is something to know."""
        if self.is_assumed:
            return (
                f"the label table has {self.num} rows, and nothing says whether the last is a null label: "
                f"read as {counted(self.num, 'class', 'classes')}, which can be sampled without guidance "
                f"only; pass --num-classes {self.num - 1} if the model was trained with label dropout"
            )
        if not self.null_row:
            classes = counted(self.num, "class", "classes")
            return f"{classes} and no null label: it can be sampled without guidance only"
        return None


def classes_of(rows: int, hints: Hints, null_row: bool | None = None) -> Classes:
    """How to read a label table with so many rows. null_row: see `config_of`.

    The official programs give it one row per class, and one for the null label if labels are dropped in
    training: 5 rows are 5 classes, or 4 and the null label. This is decided by, in order: the hints; a single
    row, which is one class; KNOWN_CLASSES, or one more. Otherwise every row is read as a class and the model
    is sampled without guidance. If that is wrong, only images of the last class are wrong, whereas guidance
    away from a real class would spoil every image.

    Raises UsageError if the hints contradict the number of rows.
    """
    if hints.num_classes is not None:
        more = rows - hints.num_classes
        if more not in ((0, 1) if null_row is None else (int(null_row),)):
            both = "" if null_row is not None else f"{rows} classes, or "
            raise UsageError(
                f"the label table has {rows} rows: {both}{counted(rows - 1, 'class', 'classes')} and the "
                f"null label, not "
                f"{hints.num_classes}; pass --num-classes if its own arguments are wrong"
            )
        return Classes(hints.num_classes, bool(more))
    if null_row is None and hints.class_dropout is not None:
        null_row = hints.class_dropout > 0
    if null_row is None and rows > 1 and rows - 1 in KNOWN_CLASSES:
        null_row = True
    if null_row is None and (rows == 1 or rows in KNOWN_CLASSES):
        null_row = False
    if rows - bool(null_row) < 1:
        raise UsageError("the label table has one row, which cannot be a class and the null label")
    return Classes(rows - bool(null_row), bool(null_row), is_assumed=null_row is None)


def name_of(config: DiTConfig) -> str | None:
    """ "DiT-XL/2" for a config of one of the paper's sizes, whatever its input."""
    for size, shape in SIZES.items():
        if shape == (config.depth, config.hidden_size, config.num_heads) and config.patch_size in PATCHES:
            return f"DiT-{size}/{config.patch_size}"
    return None


def _size_of(depth: int, width: int) -> str | None:
    """The paper's size with this depth and width, as in "XL"."""
    return next((size for size, (d, w, _) in SIZES.items() if (d, w) == (depth, width)), None)


def _shape(shapes: Mapping[str, tuple[int, ...]], key: str, axes: int) -> tuple[int, ...]:
    shape = shapes.get(key)
    if shape is None or len(shape) != axes or 0 in shape:
        problem = "is missing" if shape is None else f"has shape {shape}"
        raise UsageError(f"this is not a DiT's state dict: {key} (scaledit's name for it) {problem}")
    return shape


def _depth(shapes: Mapping[str, tuple[int, ...]]) -> int:
    blocks = {key.split(".")[1] for key in shapes if key.startswith("blocks.") and key.count(".") > 1}
    for i in range(len(blocks)):
        if str(i) not in blocks:
            raise UsageError(f"the state dict lacks block {i} of {len(blocks)}")
    return len(blocks)


def _with_design(config: DiTConfig, shapes: Mapping[str, tuple[int, ...]]) -> DiTConfig:
    """The config with the block design whose weights are most similar to those of block 0 and of the layers
    outside the blocks. A tie leaves the config unchanged; then an error names the weights that do not fit."""
    ends = {key: shape for key, shape in shapes.items() if re.match(r"blocks\.0\.|(?!blocks\.)", key)}

    def mismatches(candidate: DiTConfig) -> int:
        expected = Description.of(replace(candidate, depth=1)).shapes()
        return sum(ends.get(key) != expected.get(key) for key in ends.keys() | expected.keys())

    return min((config, *(replace(config, conditioning=name) for name in members(Block))), key=mismatches)


def _patch(area: int, patches: tuple[int, ...] | None, hints: Hints) -> int:
    if patches is not None and len(patches) == 4:
        if patches[2] != patches[3]:
            raise UsageError(f"patches of {patches[2]}x{patches[3]}: only square ones are supported")
        patch = patches[2]
    elif hints.model is not None:
        patch = int(hints.model.rpartition("/")[2])
    elif hints.patch_size is not None:
        patch = hints.patch_size
    else:
        raise UsageError(
            "these weights do not show the patch size; convert them with --patch-size P or --model NAME"
        )
    if hints.patch_size not in (None, patch) or patch < 1 or area % patch**2:
        raise UsageError(f"the patch size is not {hints.patch_size or patch}: a patch has {area} values here")
    return patch


def _input_size(position: Tensor | None, width: int, patch: int, hints: Hints) -> int | tuple[int, int]:
    if hints.input_size is not None:
        return hints.input_size
    if position is None:
        raise UsageError(
            "these weights do not show the input size; convert them with --input-size S (32 for 256 pixels)"
        )
    tokens, table = position.shape[-2], position.reshape(-1, position.shape[-1]).float()
    side = math.isqrt(tokens)
    grids = [(side, side)] if side * side == tokens else []
    grids += [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0 and rows != side]
    tolerance = max(POSITION_TOLERANCE, torch.finfo(position.dtype).eps)
    for rows, columns in grids if tokens <= MOST_TOKENS and width == table.shape[1] else []:
        if torch.allclose(position_table(width, rows, columns), table, rtol=0, atol=tolerance):
            return rows * patch if rows == columns else (rows * patch, columns * patch)
    raise UsageError(
        f"pos_embed {tuple(position.shape)} is not a sin-cos table of {tokens} patches: these weights have "
        "another position embedding"
    )


def _heads(depth: int, width: int, hints: Hints) -> int:
    if hints.heads is not None:
        return hints.heads
    size = _size_of(depth, width)
    if size is None:
        raise UsageError(
            f"these weights do not show their number of heads, and {depth} blocks of width {width} "
            "are not one of the paper's sizes; convert them with --heads N"
        )
    return SIZES[size][2]


def _check_name(depth: int, width: int, patch: int, hints: Hints) -> None:
    if hints.model is None:
        return
    size, _, named_patch = hints.model[len("DiT-") :].partition("/")
    actual = _size_of(depth, width)
    if (actual, patch) != (size, int(named_patch)):
        hint = "" if actual is None else f"; that is DiT-{actual}/{patch}"
        raise UsageError(
            f"these weights are not {hints.model}: {depth} blocks of width {width}, patch {patch}{hint}"
        )
