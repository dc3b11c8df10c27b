"""Every key of a recipe with its type, default, bounds and meaning, read from the sections' own fields.

    keys(RunConfig)  ->  Key("train", "steps", "whole number", 400000, "at least 1", "optimizer steps"), ...

The documentation and `scaledit recipes NAME` show them. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from scaledit.config.runs import Config
from scaledit.config.sections import DataConfig
from scaledit.config.tables import parts_kind, section_types
from scaledit.models.config import DiTConfig
from scaledit.part import Part, default_text, part_kind
from scaledit.values import bounds_in_words, hints, own_fields

TYPES = {int: "whole number", float: "number", bool: "true or false", str: "string", Any: "any value"}
NONE = dataclasses.MISSING
"""The default of a key without one."""


class Key(NamedTuple):
    """One key.

    type: in words. default: the field's own, or NONE. bounds: in words, "" if there are none. choices: the
    words that are accepted, empty if others are, too. kind: the kind of part that the key names, alone or in
    a list.
    """

    section: str
    name: str
    type: str
    default: Any
    bounds: str
    doc: str
    choices: tuple[str, ...] = ()
    kind: type[Part] | None = None

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def default_text(self) -> str:
        """The default as TOML writes it, without quotes; "" if there is none."""
        return "" if self.default is NONE else default_text(self.default)


MODEL = (
    ("name", "string", NONE, "one of the paper's models, such as DiT-XL/2, instead of its sizes"),
    (
        "image_size",
        "whole number",
        256,
        "side in pixels of its images, with model.name: 8 times the latents'",
    ),
)
"""The keys of [model] that are not fields of DiTConfig (config.tables.BESIDES)."""


def keys(kind: type[Config]) -> list[Key]:
    """The keys of all sections of a kind of config, in the order of the sections and of their fields."""
    return [key for section, cls in section_types(kind).items() for key in section_keys(section, cls)]


def section_keys(section: str, cls: type) -> list[Key]:
    """The keys of one section, whose dataclass is `cls`."""
    before = MODEL if cls is DiTConfig else ()
    return [
        *(Key(section, name, kind, value, "", doc) for name, kind, value, doc in before),
        *fields(section, cls),
    ]


def fields(section: str, cls: type) -> list[Key]:
    """The keys of one section that are fields of its dataclass."""
    result, annotations = [], hints(cls)
    for item in own_fields(cls):
        if cls is DataConfig and item.name == "own":
            continue
        annotation = annotations[item.name]
        result.append(
            Key(
                section,
                item.name,
                type_in_words(annotation),
                item.default,
                bounds_in_words(item),
                item.metadata.get("doc", ""),
                get_args(annotation) if get_origin(annotation) is Literal else (),
                part_kind(annotation) or parts_kind(annotation),
            )
        )
    return result


def type_in_words(annotation: Any) -> str:
    """The values that a field accepts: "whole number", '"fp32" or "bf16"', "sampler", "list of guidance"."""
    if (kind := parts_kind(annotation)) is not None:
        return f"list of {kind.KIND} parts"
    if (kind := part_kind(annotation)) is not None:
        return kind.KIND
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(type_in_words(one) for one in inner if one is not type(None))
    if origin is tuple:
        several = inner[-1] is Ellipsis
        return (
            f"list of {type_in_words(inner[0])}s"
            if several
            else f"list of {len(inner)} {type_in_words(inner[0])}s"
        )
    if origin in (Mapping, dict):
        return "table"
    return TYPES.get(annotation, getattr(annotation, "__name__", str(annotation)))
