"""Comparing configs: whether a run may resume with another one, and how a config differs from its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scaledit.config.recipes import load, override, recipe_names
from scaledit.config.runs import Config
from scaledit.part import plain

# Keys that do not change what a run computes, so that a resumed run may change them.
FREE_ON_RESUME = (
    "checkpoint.",
    "engine.",
    "sample.",
    "evaluate.",
    "log.",
    "autoencoder.",  # the encoder is compared by its hash
    "train.accumulate",  # only rounding; a run that was out of memory may resume with more
    "train.log_every",
    "train.max_skips",
    "train.spike",
    "train.rollback",
    "data.path",
    "data.workers",
    "data.verify",
    "data.changed",
)


STEPS = "train.steps"


def steps_hint(old: Config, new: Config) -> str:
    """Why a run cannot resume with another train.steps, and what to do; '' if that is not what differs."""
    decay = new.optimizer.decay
    if old.train.steps == new.train.steps or decay == "constant":
        return ""
    return (
        f'With optimizer.decay="{decay}", the learning rate of every step depends on {STEPS}, so this run '
        f"cannot be extended or shortened. Train with optimizer.decay=constant to extend a run later"
    )


def differences(old: Config, new: Config) -> list[str]:
    """'section.key: old -> new' for each key that makes `new` a different training than `old`."""
    before, after = flatten(old.to_json()), flatten(new.to_json())
    # Without a decay, train.steps only says when to stop.
    free = (*FREE_ON_RESUME, STEPS) if new.optimizer.decay == "constant" else FREE_ON_RESUME
    return [
        f"{key}: {_in_words(before, key)} -> {_in_words(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "name" and not key.startswith(free)
    ]


def _in_words(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, "not set")
    return str(value).lower() if isinstance(value, bool) else str(value)


def changes(config: Config) -> list[str]:
    """The overrides that turn the recipe of the same name into `config`; [] if there is no such recipe."""
    if config.name not in recipe_names(config.TRAINS):
        return []
    recipe = flatten(load(config.name, kind=type(config)).to_json())
    return [
        override(key, value)
        for key, value in flatten(config.to_json()).items()
        if key not in recipe or recipe[key] != value
    ]


NOT_SET = "not set"
"""The value of a key that a config does not have."""


def differing(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """{"section.key": [the plain value in each config]} of the keys that are not equal in all configs, also
    at their defaults. A part that is another one is one value; of equal parts, the fields that differ are
    keys."""
    tables = [
        {"name": one.name, **{key: plain(table) for key, table in one.sections().items()}} for one in configs
    ]
    sections = dict.fromkeys(key for table in tables for key in table)
    found: dict[str, list[Any]] = {}
    for section in sections:
        values = [table.get(section, {}) for table in tables]
        if section == "name":
            found |= {section: values} if _differ(values) else {}
            continue
        for key in dict.fromkeys(key for table in values for key in table):
            found |= _differing([table.get(key, NOT_SET) for table in values], f"{section}.{key}")
    return found


def _differing(values: list[Any], key: str) -> dict[str, list[Any]]:
    if not _differ(values):
        return {}
    parts = all(isinstance(value, Mapping) for value in values)
    if not parts or _differ([value.get("name") for value in values]):
        return {key: values}
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for value in values for name in value):
        found |= _differing([value.get(name, NOT_SET) for value in values], f"{key}.{name}")
    return found


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] or type(value) is not type(values[0]) for value in values)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as {'section.key': value}."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat
