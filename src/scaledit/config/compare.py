"""Comparing configs: what may change when a run is resumed, and how a config differs from its recipe.

free       does not change what the run computes        may differ whenever the run is resumed
from_now   changes the training from some step on       only if the user asks for it; recorded as a break
all others mean another training                        refused
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scaledit.config.recipes import load, override, parsed, recipe_names
from scaledit.config.runs import Config
from scaledit.part import plain

# Keys that do not change what a run computes, so that a resumed run may change them.
FREE_ON_RESUME = (
    "checkpoint.",
    "engine.",
    "sample.",
    "evaluate.",
    "log.",
    "ema.snapshots",
    "ema.snapshot_precision",
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
# Keys that change the training from the step at which a run is resumed.
FROM_NOW_ON = (
    STEPS,
    "train.batch_size",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.decay",
    "optimizer.clip",
)
NOT_SET = "not set"
"""The value of a key that a config does not have."""


class Change(NamedTuple):
    """A key that differs between two configs, with its plain values, or NOT_SET."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {_in_words(self.before)} -> {_in_words(self.after)}"

    @property
    def is_free(self) -> bool:
        """Whether it does not change what a run computes."""
        return self.key.startswith(FREE_ON_RESUME)

    @property
    def is_allowed(self) -> bool:
        """Whether a run may change it on the way."""
        return self.is_free or self.key in FROM_NOW_ON


def changes_training(change: str) -> bool:
    """Whether the change in a record, "section.key: old -> new", changes what a run computes."""
    return not Change(change.partition(":")[0], NOT_SET, NOT_SET).is_free


def all_changes(old: Config | Mapping[str, Any], new: Config) -> list[Change]:
    """The keys in which two configs differ, except the name of the recipe. old: a config or its JSON."""
    before, after = (
        flatten(json.loads(json.dumps(config.to_json() if isinstance(config, Config) else config)))
        for config in (old, new)
    )
    return [
        Change(key, before.get(key, NOT_SET), after.get(key, NOT_SET))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "name"
    ]


def unasked(old: Config, new: Config) -> list[Change]:
    """The changes that make `new` another training than `old`. Without a decay, train.steps only says when
    to stop."""
    steps = (STEPS,) if new.optimizer.decay == "constant" else ()
    return [change for change in all_changes(old, new) if not change.is_free and change.key not in steps]


def differences(old: Config, new: Config) -> list[str]:
    """'section.key: old -> new' for each change of `unasked`."""
    return list(map(str, unasked(old, new)))


def as_overrides(differing: Iterable[Change]) -> list[str]:
    """The overrides that make these changes."""
    return [_as_override(change.key, change.after) for change in differing if change.after != NOT_SET]


def _as_override(key: str, value: Any) -> str:
    """`section.key=value`, with a word without quotes, unless it would be read as something else."""
    is_word = isinstance(value, str) and value.isidentifier()
    return f"{key}={value}" if is_word and parsed(f"{key}={value}").value == value else override(key, value)


def _in_words(value: Any) -> str:
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
