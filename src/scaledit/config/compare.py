"""Two configs beside each other: whether a run may go on as another one, and what makes one of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaledit.config.recipes import load, override, recipe_names
from scaledit.config.runs import Config

# These say how often a run looks at itself, not what it computes; a resumed run may change them.
FREE_ON_RESUME = (
    "checkpoint.",
    "engine.",
    "sample.",
    "evaluate.",
    "log.",
    "autoencoder.",  # what made the latents is compared by its hash
    "train.accumulate",  # rounding, as engine: where memory ran out a run goes on with more
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
    """'section.key: old -> new' for all that would make `new` another training than `old`."""
    before, after = flatten(old.to_json()), flatten(new.to_json())
    # Without a decay, the number of steps only says when to stop.
    free = (*FREE_ON_RESUME, "train.steps") if new.optimizer.decay == "constant" else FREE_ON_RESUME
    return [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "name" and not key.startswith(free)
    ]


def changes(config: Config) -> list[str]:
    """The overrides that make `config` of the recipe it is named after; empty if there is no such recipe."""
    if config.name not in recipe_names(config.TRAINS):
        return []
    own = flatten(load(config.name, kind=type(config)).to_json())
    return [
        override(key, value)
        for key, value in flatten(config.to_json()).items()
        if key not in own or own[key] != value
    ]


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'section.key': value} of nested tables."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat
