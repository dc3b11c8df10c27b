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


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as {'section.key': value}."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat
