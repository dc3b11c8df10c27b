"""What a run with train.init starts from: the weights of another model, if they fit its config.

MODEL --open_model--> Model --refuse what does not fit--> Start --load--> the network and its average

class table:  row of a class  =  the model's row of the class with that name, or its null row
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scaledit import part
from scaledit.config import RunConfig, override, trained
from scaledit.data import imagenet
from scaledit.data.latents import AutoencoderInfo
from scaledit.diffusion import Objective, Parameterization, Schedule
from scaledit.errors import UsageError, counted
from scaledit.interop import hub
from scaledit.interop.convert import open_model
from scaledit.interop.model import Model
from scaledit.interop.official import LABELS
from scaledit.models.blocks import Block
from scaledit.models.conditioners import Conditioner
from scaledit.models.config import PARTS, DiTConfig
from scaledit.models.dit import DiT
from scaledit.models.positions import Position
from scaledit.models.shapes import shapes
from scaledit.part import Allowed, Part, plain
from scaledit.training.events import Initialized, few

SIZES = (
    "patch_size",
    "hidden_size",
    "depth",
    "num_heads",
    "second_time",
    "learn_sigma",
    "qk_norm",
    "value_residual",
    "registers",
)
"""Fields of DiTConfig in which the model and the run must agree, besides parts and the channels."""
SWITCHED = ("time_embedding", "norm", "mlp", "patch_embed")
"""Fields of DiTConfig that are parts, in which they must agree as well."""


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from. rows: {label of the run: label of the model} of the classes whose
    rows are taken over by name; None if the conditions are no class labels. event: the record of it."""

    model: Model
    rows: Mapping[int, int] | None
    event: Initialized

    @torch.no_grad()
    def load(self, net: DiT) -> None:
        """Copies the weights into the network of a run, one tensor at a time. Other parameters, LoRA's,
        keep their values."""
        own = net.state_dict()
        for key, lazy in self.model.weights.items():
            value = lazy.read()
            own[key].copy_(value if key != LABELS or self.rows is None else self._table(value, net))

    def _table(self, table: Tensor, net: DiT) -> Tensor:
        """The class table of the run: (num_classes + 1, D), with the null row at the end."""
        assert self.rows is not None
        null = table[-1] if self.model.config.model.has_null_label else table[:-1].float().mean(dim=0)
        rows = null.to(table.dtype).repeat(net.config.num_classes + 1, 1)
        rows[list(self.rows)] = table[list(self.rows.values())]
        return rows


def opened(config: RunConfig, class_names: Sequence[str], latents: AutoencoderInfo | None) -> Start:
    """The model that train.init names, for a run on data with these classes.

    latents: the autoencoder of the data's latents, None for pixels. Raises UsageError if there is no model or
    if it does not fit the run, RunError if its files are corrupt.
    """
    init = config.train.init
    model = open_model(hub.local(init), allowed=Allowed.only(config.modules(), init))
    _check_fits(config, model)
    about_latents = _check_latents(init, model.autoencoder_info, latents)
    rows, new, about_rows = _rows(config, model, class_names)
    if new and LABELS not in trained.names(config):
        key = "lora.also" if config.lora.rank else "train.freeze"
        raise UsageError(
            f"the classes {few(new)} are new to {init}, so their rows of the class table must be trained, "
            f"but {key} excludes {LABELS}; change {key}"
        )
    event = Initialized(
        step=0,
        init=init,
        name=model.config.name,
        model_step=model.step,
        weights=model.kind,
        sha256=model.sha256,
        tensors=len(model.weights),
        classes=[class_names[label] for label in rows or ()],
        new_classes=new,
        notes=[*model.notes, *about_latents, *about_rows],
    )
    return Start(model, rows, event)


def _rows(
    config: RunConfig, model: Model, names: Sequence[str]
) -> tuple[dict[int, int] | None, list[str], list[str]]:
    """The rows of the class table that are taken over, the names of the classes that are new, and notes."""
    if config.model.conditioner != "labels":
        return None, [], []
    labels = _labels(model)
    rows = {i: labels[name] for i, name in enumerate(names) if name in labels}
    new = [name for i, name in enumerate(names) if i not in rows]
    notes = []
    if not model.has_class_names:
        notes.append("the model's classes have no names, so no class of the data is one of them")
    if not model.config.model.has_null_label:
        notes.append("the model has no trained null row; the mean of its class rows takes its place")
    return rows, new, notes


def _labels(model: Model) -> dict[str, int]:
    """{name: label} of the model's classes, without names that several classes have. Those of ImageNet are
    also called by the ids of their synsets."""
    if not model.has_class_names:
        return {}
    counts = Counter(model.class_names)
    labels = {name: i for i, name in enumerate(model.class_names) if counts[name] == 1}
    is_imagenet = model.class_names == imagenet.names()
    return labels | ({name: i for i, name in enumerate(imagenet.synsets())} if is_imagenet else {})


class Mismatch(NamedTuple):
    """A key in which the model and the run differ. theirs, ours: its values in words. overrides: what makes
    the run fit."""

    key: str
    theirs: object
    ours: object
    overrides: Sequence[str]


def _check_fits(config: RunConfig, model: Model) -> None:
    """Raises UsageError, with all overrides that would make the run fit, if the model has another shape or
    another diffusion."""
    init, channels = config.train.init, model.config.model.in_channels
    wrong = [*_shape(config, model.config), *_diffusion(config, model.config)]
    words = [f"{one.key} is {one.theirs} there and {one.ours} here" for one in wrong]
    if channels != config.model.in_channels:
        words.insert(
            0, f"its input has {counted(channels, 'channel')} and the data {config.model.in_channels}"
        )
    if words:
        pasted = shlex.join(word for one in wrong for word in one.overrides)
        data = channels != config.model.in_channels
        fixes = [f"use data with {counted(channels, 'channel')}"] * data + [f"add {pasted}"] * bool(pasted)
        raise UsageError(f"{init} does not fit this recipe: {', '.join(words)}; {' and '.join(fixes)}")
    expected = shapes(config.model)
    for key, lazy in model.weights.items():
        shape, wanted = lazy.shape, expected.get(key)
        if key == LABELS and wanted is not None and config.model.conditioner == "labels":
            shape, wanted = shape[1:], wanted[1:]
        if shape != wanted:
            raise UsageError(
                f"{init} does not fit this recipe: {key} is {lazy.shape}, not {expected.get(key)}"
            )


def _shape(config: RunConfig, other: RunConfig) -> Iterator[Mismatch]:
    ours, theirs = config.model, other.model
    for key in SIZES:
        a, b = getattr(theirs, key), getattr(ours, key)
        if a != b:
            yield Mismatch(f"model.{key}", json.dumps(a), json.dumps(b), [override(f"model.{key}", a)])
    if int(theirs.hidden_size * ours.mlp_ratio) != theirs.mlp_hidden:
        ratio = [override("model.mlp_ratio", theirs.mlp_ratio)]
        yield Mismatch("model.mlp_ratio", theirs.mlp_ratio, ours.mlp_ratio, ratio)
    yield from _part(Block, "model.conditioning", ours.block, theirs.block)
    yield from _part(Conditioner, "model.conditioner", ours.conditioner_part, theirs.conditioner_part)
    yield from _position(ours, theirs)
    for key in SWITCHED:
        mine, other_part = (getattr(model, f"{key}_part") for model in (ours, theirs))
        yield from _part(PARTS[key], f"model.{key}", mine, other_part)


def _position(ours: DiTConfig, theirs: DiTConfig) -> Iterator[Mismatch]:
    """The position encoding must be the same function of a place, whatever the sizes of the inputs."""
    a, b = ours.position_part, theirs.position_part
    span: Any = getattr(a, "span", None)
    if span is None or type(a) is not type(b):
        yield from _part(Position, "model.position", a, b)
        return
    changed: Any = dataclasses.replace
    b = changed(b, span=span)
    yield from _part(Position, "model.position", a, b)
    spanned = theirs.position_part.spans(theirs)
    if spanned is None or span:  # a span that the user sets is used as it is
        return
    here = (ours.height // theirs.patch_size, ours.width // theirs.patch_size)
    if spanned != here:
        value = spanned[0] if spanned[0] == spanned[1] else list(spanned)
        old, new = (f"{rows}x{columns} tokens" for rows, columns in (spanned, here))
        yield Mismatch("the position table", old, new, [override("model.position.span", value)])


def _diffusion(config: RunConfig, other: RunConfig) -> Iterator[Mismatch]:
    ours, theirs = config.diffusion, other.diffusion
    yield from _part(Schedule, "diffusion.schedule", ours.schedule, theirs.schedule)
    if ours.parameterization != theirs.parameterization:
        yield from _part(Parameterization, "diffusion.prediction", ours.prediction, theirs.prediction)
    if ours.learns_variance != theirs.learns_variance:
        yield from _part(Objective, "diffusion.objective", ours.objective, theirs.objective)


def _part(kind: type[Part], key: str, ours: Part, theirs: Part) -> Iterator[Mismatch]:
    """The overrides that turn one part into another: its name, and the fields that this does not set."""
    if ours == theirs:
        return
    name, fields = theirs.part_name(), plain(theirs)
    words, before = [], plain(ours)
    if ours.part_name() != name:
        words.append(f"{key}={name}")
        before = plain(part.build(kind, part.switched(kind, before, name), key))
    words += [override(f"{key}.{field}", value) for field, value in fields.items() if before[field] != value]
    yield Mismatch(key, theirs.label(), ours.label(), words)


def _check_latents(init: str, theirs: AutoencoderInfo | None, ours: AutoencoderInfo | None) -> list[str]:
    """Raises UsageError if it is known that the model was trained on the latents of another encoder. Returns
    a note if that is not known."""
    if theirs is None and ours is None:
        return []
    if theirs is None or ours is None or not (theirs.encoder_sha256 and ours.encoder_sha256):
        whose = "the model's" if theirs is None or not theirs.encoder_sha256 else "the data's"
        return [f"the encoder of {whose} latents is not recorded, so it was not compared"]
    if (theirs.encoder_sha256, theirs.scale) != (ours.encoder_sha256, ours.scale):
        raise UsageError(
            f"{init} was trained on the latents of {theirs.name} (scale {theirs.scale:g}), but the data are "
            f"latents of {ours.name} (scale {ours.scale:g}), which mean something else to it; encode the "
            f"images with {theirs.name}"
        )
    return []
