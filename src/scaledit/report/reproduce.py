"""The commands that reproduce a run, and what it was made with.

    config.json  ->  scaledit train RECIPE --out RUN section.key=value ...

The command starts from the recipe of the same name. A run of a recipe that scaledit does not have starts from
the built-in recipe that differs least, with every difference as an override.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scaledit import __version__
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import (
    COMMANDS,
    Config,
    RunConfig,
    changes_training,
    flatten,
    load,
    override,
    recipe_names,
)
from scaledit.config.compare import STEPS
from scaledit.errors import UsageError
from scaledit.report.breaks import breaks_of

LONGEST_LINE = 90
"""Letters of a command that are written on one line; longer ones have an option or an override on each."""


class Reproduce(NamedTuple):
    """commands: for a shell. note: what they need, or empty. made: seed, device, versions, weights."""

    commands: list[str]
    note: str
    made: dict[str, object]
    config: str


def reproduce(
    config: RunConfig | AutoencoderRun,
    run: Path,
    events: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Any],
) -> Reproduce:
    """events: of the run's log. weights: where the weights of the report come from."""
    started = [event for event in events if event["event"] == "started"]
    ranks = started[-1]["ranks"] if started else 1
    recipe, overrides = nearest(config)
    commands = [
        shell(
            *COMMANDS[config.TRAINS].split(), recipe, ["--out", str(run)],
            *([["--nproc", str(ranks)]] if ranks > 1 else []), *([one] for one in overrides)
        ),
        *(_uses(config, run) if isinstance(config, RunConfig) else []),
    ]  # fmt: skip
    made = {
        "seed": config.train.seed,
        "device": f"{started[-1]['device'] if started else 'unknown'}, {ranks} rank{'s' * (ranks > 1)}",
        "scaledit": __version__,
        "torch": torch.__version__,
        **{f"weights, {key}": value for key, value in weights.items()},
    }
    return Reproduce(
        commands,
        _note(config, recipe) + _on_the_way(config, events),
        made,
        json.dumps(config.to_json(), indent=1),
    )


def nearest(config: Config) -> tuple[str, list[str]]:
    """A built-in recipe and the overrides that turn it into `config`: the recipe of the same name, or
    else the one that differs least."""
    names = recipe_names(config.TRAINS)
    candidates = [config.name] if config.name in names else names
    choices = {name: _changes(config, name) for name in candidates}
    best = min(choices, key=lambda name: len(choices[name]))
    try:
        return best, [override(key, value) for key, value in choices[best].items()]
    except UsageError:  # a value that no command line can hold
        return best, []


def _changes(config: Config, recipe: str) -> dict[str, Any]:
    before = flatten(load(recipe, kind=type(config)).to_json())
    after = flatten(config.to_json())
    del after["name"]
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _note(config: Config, recipe: str) -> str:
    own = ", ".join(sorted(config.modules()))
    named = (
        f"The run was trained with the recipe {config.name}, which scaledit does not include; the command "
    )
    named += f"starts from {recipe} and makes the same config. "
    imports = f"The commands need your modules: {own}."
    return (named if config.name != recipe else "") + (imports if own else "")


def _on_the_way(config: Config, events: Sequence[Mapping[str, Any]]) -> str:
    """What the commands leave out of a run that was changed on the way. One that was only made longer, at a
    constant rate, is that of a longer run from the start."""
    longer = f"{STEPS}:" if config.optimizer.decay == "constant" else "none"
    changes = [change for one in breaks_of(events) for change in one.changes if not change.startswith(longer)]
    if not any(map(changes_training, changes)):
        return ""
    return " The run was changed during training; the commands train with its last settings from the start."


def _uses(config: RunConfig, run: Path) -> list[str]:
    """The commands for the run's samples and its evaluation."""
    allowed = [["--allow-import", module] for module in sorted(config.modules())]
    settings, evaluate = config.sample, config.evaluate
    sampled = (
        ["--per-class", str(settings.per_class)],
        ["--seed", str(settings.seed)],
        ["--out", "samples.png"],
    )
    commands = [shell("scaledit", "sample", str(run), *allowed, *sampled)]
    if evaluate.reference:
        commands.append(
            shell("scaledit", "evaluate", str(run), *allowed, ["--reference", evaluate.reference])
        )
    return commands


def shell(*words: str | list[str]) -> str:
    """A command quoted for a shell. Lists are options with their values, and overrides: if the command is
    long, each has a line of its own."""
    head = shlex.join(word for word in words if isinstance(word, str))
    options = [shlex.join(word) for word in words if not isinstance(word, str)]
    line = " ".join([head, *options])
    return line if len(line) <= LONGEST_LINE else " \\\n    ".join([head, *options])
