"""A run that is planned: its recipes, the time of each stage, and what they cost.

Facts, Machine, Wish --outlined--> Outline --measured--> Speeds --planned--> Plan --header--> NAME.toml

runs/pictures.toml    the recipe       runs/pictures-autoencoder.toml                     for latents only
runs/pictures/        the model        runs/pictures-autoencoder/, runs/pictures-latents/
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import RunConfig, load, override
from scaledit.errors import counted
from scaledit.newrun import recipe, rules, timing
from scaledit.newrun.facts import Facts
from scaledit.newrun.rules import Choice, Draft, Machine, Speed, Wish
from scaledit.scaling.plan import Hardware
from scaledit.scaling.plan import plan as cost_of

STARTUP = 8.0
"""Seconds in which a command loads PyTorch, opens its data and writes its report, on 2 CPU cores."""
MARGIN = 0.08
"""Of the minutes, left free: other programs slow a machine down."""
TRAIN_PASSES = 6
"""A training step of an autoencoder is three passes of its encoder and decoder; encoding is half of one."""
LATENT_BYTES, CHECKPOINT_BYTES = 2, 16
"""Of a number in float16, and of a parameter: its weight, EMA and two moments of AdamW in float32."""


class Places(NamedTuple):
    """Where everything is. recipe, run: of the model. autoencoder_recipe, autoencoder, latents: of what its
    latents are made with."""

    recipe: Path
    run: Path
    autoencoder_recipe: Path
    autoencoder: Path
    latents: Path

    @classmethod
    def of(cls, out: Path) -> Places:
        """out: a run folder, or the path of its recipe NAME.toml, which is trained in runs/NAME."""
        is_recipe = out.suffix == ".toml"
        run = Path("runs") / out.stem if is_recipe else out
        beside = out.with_suffix("") if is_recipe else out
        return cls(
            out if is_recipe else _with(out, ".toml"),
            run,
            _with(beside, "-autoencoder.toml"),
            _with(run, "-autoencoder"),
            _with(run, "-latents"),
        )


def _with(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}{ending}")


@dataclass(frozen=True)
class Plan:
    """choices: of the model's recipe. autoencoder: of the autoencoder's recipe, empty for pixels. seconds: of
    each stage, by name; training includes its samples, evaluations and report. memory: bytes in training,
    beside PyTorch's own. disk: bytes. notes: what a user should know about the images."""

    facts: Facts
    wish: Wish
    places: Places
    draft: Draft
    choices: tuple[Choice, ...]
    autoencoder: tuple[Choice, ...]
    seconds: Mapping[str, float]
    memory: int
    disk: int
    notes: tuple[str, ...]

    def __getitem__(self, key: str) -> Choice:
        return next(choice for choice in self.choices if choice.key == key)

    @property
    def config(self) -> RunConfig:
        return recipe.config(RunConfig, self.places.recipe.stem, self.choices)

    @property
    def autoencoder_config(self) -> AutoencoderRun | None:
        """None for pixels."""
        return _autoencoder_config(self.draft.factor, self.autoencoder) if self.autoencoder else None

    @property
    def minutes(self) -> float:
        return sum(self.seconds.values()) / 60


class Outline(NamedTuple):
    """What is known before the machine is measured. model, autoencoder: choices of their recipes, the latter
    empty for pixels."""

    draft: Draft
    model: tuple[Choice, ...]
    autoencoder: tuple[Choice, ...]


class Speeds(NamedTuple):
    """model: of its training and sampling. autoencoder: seconds of a step of its training."""

    model: Speed
    autoencoder: float = 0.0


def outlined(
    facts: Facts, machine: Machine, wish: Wish, places: Places, overrides: Sequence[str] = ()
) -> Outline:
    """What the rules choose. overrides: section.key=value for the model's recipe. Raises UsageError if the
    wish or an override cannot be met."""
    pinned = recipe.given(RunConfig, overrides)
    rules.check_given(pinned)
    draft = rules.draft(facts, machine, wish).given(pinned)
    model = (*_data(facts, draft, places), *(one for one in draft.choices if not one.key.startswith("data.")))
    autoencoder = () if draft.factor == 1 else _autoencoder(facts, draft)
    return Outline(draft, recipe.overridden(RunConfig, model, _of_model(draft, overrides)), autoencoder)


def made(
    facts: Facts,
    machine: Machine,
    wish: Wish,
    places: Places,
    overrides: Sequence[str],
    device: str,
    spent: Callable[[], float],
    say: Callable[[str], None],
) -> Plan:
    """The plan of a run on this machine. If what was chosen turns out too slow, smaller images are chosen.
    spent: returns the seconds since the command began. say: told what is measured."""
    outline = outlined(facts, machine, wish, places, overrides)
    speeds = measured(facts, outline, device, say)
    plan = planned(facts, wish, places, outline, speeds, overrides, spent())
    side = outline.draft["data.image_size"].value
    is_final = wish.image_size is not None or side < rules.LEAST_GIVEN_UP or bool(overrides)
    if is_final or not rules.is_too_short(plan.config, plan.autoencoder_config):
        return plan
    say(f"{side}x{side} pixels would be too slow here; trying smaller ones")
    smaller = wish._replace(largest=side - 1)
    return made(facts, machine, smaller, places, overrides, device, spent, say)


def measured(facts: Facts, outline: Outline, device: str, say: Callable[[str], None]) -> Speeds:
    """The speeds of what was chosen, on this machine. say: told what is measured."""
    names = tuple(name for name, _ in facts.classes)
    config = recipe.config(RunConfig, "speed", outline.model)
    autoencoder, stand_in = 0.0, None
    if outline.autoencoder:
        say("measuring the speed of the autoencoder")
        run = _autoencoder_config(outline.draft.factor, outline.autoencoder)
        autoencoder = timing.autoencoder_speed(run, device)
        stand_in = timing.latents_like(config, names)
    say("measuring the speed of the model")
    return Speeds(timing.model_speed(config, names, device, stand_in), autoencoder)


def planned(
    facts: Facts,
    wish: Wish,
    places: Places,
    outline: Outline,
    speeds: Speeds,
    overrides: Sequence[str] = (),
    spent: float = 0.0,
) -> Plan:
    """The run with its steps, so that it fits into the minutes. spent: seconds of planning."""
    draft, speed = outline.draft, speeds.model
    images = facts.images * (1 + draft["data.flip"].value)
    seconds, autoencoder = {"planning": spent}, outline.autoencoder
    if autoencoder:
        autoencoder = (*autoencoder, *rules.autoencoder_pace(speeds.autoencoder, wish))
        run = _autoencoder_config(draft.factor, autoencoder)
        seconds["autoencoder"] = run.train.steps * speeds.autoencoder + STARTUP
        seconds["encoding"] = images * _encoding_seconds(run, speeds.autoencoder) + STARTUP
    config = recipe.config(RunConfig, places.recipe.stem, outline.model)
    left = 60 * wish.minutes * (1 - MARGIN) - sum(seconds.values()) - 2 * STARTUP
    held_out = rules.held_out(facts, draft["data.holdout"].value)
    steps = recipe.given(RunConfig, overrides).get("train.steps")
    paced = rules.pace(config, speed, left, held_out, steps.value if steps else None)
    choices = recipe.overridden(RunConfig, (*outline.model, *paced), _of_model(draft, overrides))
    config = recipe.config(RunConfig, places.recipe.stem, choices)
    looking = rules.sampled(config) * speed.image  # grids of samples and evaluations
    seconds["training"] = STARTUP + config.train.steps * speed.step + looking + STARTUP
    cost = cost_of(config, Hardware())
    latents = images * 2 * math.prod(config.model.shape) * LATENT_BYTES * (draft.factor > 1)
    return Plan(
        facts,
        wish,
        places,
        draft,
        choices,
        autoencoder,
        seconds,
        memory=cost.state_bytes + cost.activation_bytes,
        disk=(config.checkpoint.keep + 1) * CHECKPOINT_BYTES * cost.params + latents,
        notes=(*rules.too_little(facts), *facts.changes(draft["data.image_size"].value)),
    )


def _of_model(draft: Draft, overrides: Sequence[str]) -> list[str]:
    """Those that are keys of the model's recipe: what is held out of latents is said where they are made."""
    return [one for one in overrides if draft.factor == 1 or not one.startswith("data.holdout=")]


def _encoding_seconds(run: AutoencoderRun, step: float) -> float:
    """Of one image. step: seconds of a step of training."""
    per_crop = step / run.train.batch_size / TRAIN_PASSES
    return per_crop * (run.data.image_size / (run.train.crop or run.data.image_size)) ** 2


def _data(facts: Facts, draft: Draft, places: Places) -> tuple[Choice, ...]:
    """[data] of the model's recipe."""
    if draft.factor == 1:
        return (
            Choice("data.name", "images", draft.why_space),
            *_which(facts, draft),
            Choice("data.workers", workers(), "processes that read images, beside those that compute"),
        )
    return (
        Choice("data.name", "latents", draft.why_space),
        Choice("data.path", str(places.latents), f"{facts.path} at {draft['data.image_size'].value} pixels"),
        draft["data.flip"],
    )


def _which(facts: Facts, draft: Draft) -> tuple[Choice, ...]:
    """Which images are read, and how: for the model on pixels, or for the autoencoder."""
    given = {"data.split": facts.split, "data.image_key": facts.image_key}
    return (
        Choice("data.path", str(facts.path), facts.in_words()),
        *(Choice(key, value, recipe.GIVEN) for key, value in given.items() if value),
        draft["data.image_size"],
        draft["data.flip"],
        draft["data.holdout"],
    )


def workers() -> int:
    """Processes that read images: one on a machine of few cores, at most four."""
    return max(1, min(4, (os.cpu_count() or 1) // 4))


def _autoencoder(facts: Facts, draft: Draft) -> tuple[Choice, ...]:
    """The choices of the autoencoder's recipe, without the length of its training."""
    choices, side = _which(facts, draft), draft["data.image_size"]
    if _autoencoder_config(draft.factor, choices).train.crop > side.value:
        return (*choices, Choice("train.crop", side.value, "the whole image"))
    return choices


def _autoencoder_config(factor: int, choices: Sequence[Choice]) -> AutoencoderRun:
    values = [override(one.key, one.value) for one in choices]
    return load(rules.autoencoder_recipe(factor), values, AutoencoderRun)


def rows(plan: Plan) -> list[tuple[str, str]]:
    """What was chosen, why, and what it will cost: labels and sentences."""
    facts, config = plan.facts, plan.config
    side = plan.draft["data.image_size"]
    training = facts.images - rules.held_out(facts, plan.draft["data.holdout"].value)
    epochs = config.train.steps * config.train.batch_size / training
    model = config.model
    return [
        ("images", facts.in_words()),
        *(("note", note) for note in plan.notes),
        ("size", f"{side.value}x{side.value} pixels: {side.why}"),
        (
            "trained on",
            f"{'pixels' if plan.draft.factor == 1 else f'latents of f{plan.draft.factor}'}: "
            f"{plan.draft.why_space}",
        ),
        ("flips", f"{'yes' if plan['data.flip'].value else 'no'}: {plan['data.flip'].why}"),
        ("held out", _held_out(plan)),
        (
            "model",
            f"width {model.hidden_size}, {counted(model.depth, 'block')}, {model.tokens} tokens; "
            f"{plan['model.hidden_size'].why}",
        ),
        (
            "training",
            f"{counted(config.train.steps, 'step')} of {counted(config.train.batch_size, 'image')}, "
            f"{plan['train.steps'].why}; each image is seen about {counted(round(epochs), 'time')}",
        ),
        ("time", _time(plan)),
        (
            "memory",
            f"about {plan.memory / 2**20:,.0f} MiB beside PyTorch's own; disk {plan.disk / 2**20:,.0f} MiB",
        ),
    ]


def _held_out(plan: Plan) -> str:
    share = plan.draft["data.holdout"]
    return f"{share.value:.0%} {share.why}" if share.value else share.why


def _time(plan: Plan) -> str:
    """12.9 of 15 min: autoencoder 5.1, training 6.2, ..."""
    parts = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in plan.seconds.items())
    over = ""
    if plan.minutes > plan.wish.minutes:
        given = plan["train.steps"].why == recipe.GIVEN
        why = "for the steps that you gave" if given else "the least that is useful"
        over = f" (more than you allow: {why})"
    return f"{plan.minutes:.1f} of {plan.wish.minutes:g} min{over}: {parts}, by the measured speed"


def to_json(plan: Plan) -> dict[str, Any]:
    """For --json."""
    return {
        "recipe": str(plan.places.recipe),
        "run": str(plan.places.run),
        "images": plan.facts.images,
        "classes": dict(plan.facts.classes),
        "notes": list(plan.notes),
        "choices": {one.key: {"value": one.value, "why": one.why} for one in plan.choices},
        "autoencoder": {one.key: {"value": one.value, "why": one.why} for one in plan.autoencoder},
        "minutes": plan.minutes,
        "seconds": dict(plan.seconds),
        "memory_bytes": plan.memory,
        "disk_bytes": plan.disk,
    }
