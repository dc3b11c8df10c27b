"""Comparing configs: whether a run may resume with another one, and how a config differs from its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaledit.config.recipes import load, override, recipe_names
from scaledit.config.runs import Config

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


def differences(old: Config, new: Config) -> list[str]:
    """'section.key: old -> new' for each key that makes `new` a different training than `old`."""
    before, after = flatten(old.to_json()), flatten(new.to_json())
    # Without a decay, train.steps only says when to stop.
    free = (*FREE_ON_RESUME, "train.steps") if new.optimizer.decay == "constant" else FREE_ON_RESUME
    return [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "name" and not key.startswith(free)
    ]


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


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as {'section.key': value}."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat
