"""A run that is planned: its recipes, the time of each stage, and what they cost.

Facts, Machine, Wish --rules, timing--> Plan --write--> NAME.toml (and NAME-autoencoder.toml)

runs/pictures.toml    the recipe       runs/pictures-autoencoder.toml                     for latents only
runs/pictures/        the model        runs/pictures-autoencoder/, runs/pictures-latents/
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
LATENT_BYTES = 2
"""float16."""


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
    each stage, by name. bytes: of memory in training, and on the disk."""

    facts: Facts
    machine: Machine
    wish: Wish
    places: Places
    draft: Draft
    choices: tuple[Choice, ...]
    autoencoder: tuple[Choice, ...]
    speed: Speed
    seconds: Mapping[str, float]
    memory: int
    disk: int
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, key: str) -> Choice:
        return next(choice for choice in self.choices if choice.key == key)

    @property
    def config(self) -> RunConfig:
        return recipe.config(RunConfig, self.places.recipe.stem, self.choices)

    @property
    def autoencoder_config(self) -> AutoencoderRun | None:
        """None for pixels."""
        if not self.autoencoder:
            return None
        values = [override(one.key, one.value) for one in self.autoencoder]
        return load(rules.autoencoder_recipe(self.draft.factor), values, AutoencoderRun)

    @property
    def minutes(self) -> float:
        return sum(self.seconds.values()) / 60


def make(
    facts: Facts,
    machine: Machine,
    wish: Wish,
    places: Places,
    overrides: Sequence[str],
    device: str,
    began: float,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Plans the run: chooses, measures the speed of what was chosen, and divides the time. overrides:
    section.key=value for the model's recipe. began: `time.monotonic()` of the command's start. say: told what
    is measured. Raises UsageError if the wish or an override cannot be met."""
    pinned = recipe.given(RunConfig, overrides)
    rules.check_given(pinned)
    draft = rules.draft(facts, machine, wish).given(pinned)
    names = tuple(name for name, _ in facts.classes)
    autoencoder: tuple[Choice, ...] = ()
    seconds: dict[str, float] = {}
    if draft.factor > 1:
        say("measuring the speed of the autoencoder")
        autoencoder, more = _autoencoder(facts, draft, wish, device)
        seconds |= more
    data = _data(facts, draft, places)
    choices = recipe.overridden(RunConfig, (*data, *_of_recipe(draft)), overrides)
    draft_config = recipe.config(RunConfig, places.recipe.stem, choices)
    say("measuring the speed of the model")
    stand_in = timing.latents_like(draft_config, names) if draft.factor > 1 else None
    speed = timing.model_speed(draft_config, names, device, stand_in)
    seconds = {"planning": time.monotonic() - began, **seconds}
    left = 60 * wish.minutes * (1 - MARGIN) - sum(seconds.values()) - STARTUP
    shown = draft_config.sample
    held_out = round(draft["data.holdout"].value * facts.images)
    paced = rules.pace(
        min(shown.classes, len(names)),
        shown.per_class,
        speed,
        left,
        held_out,
        pinned["train.steps"].value if "train.steps" in pinned else None,
    )
    choices = recipe.overridden(RunConfig, (*data, *_of_recipe(draft), *paced), overrides)
    config = recipe.config(RunConfig, places.recipe.stem, choices)
    seconds["training"] = config.train.steps * speed.step + STARTUP
    seconds["samples and evaluation"] = rules.sampled(config, held_out) * speed.image + STARTUP
    cost = cost_of(config, Hardware())
    checkpoint = 4 * 4 * cost.params
    encoded = (
        LATENT_BYTES * 2 * math.prod(config.model.shape) * facts.images * (1 + draft["data.flip"].value)
        if draft.factor > 1
        else 0
    )
    return Plan(
        facts,
        machine,
        wish,
        places,
        draft,
        choices,
        autoencoder,
        speed,
        seconds,
        cost.state_bytes + cost.activation_bytes,
        (config.checkpoint.keep + 1) * checkpoint + encoded,
        (*rules.too_little(facts), *facts.changes(draft["data.image_size"].value)),
    )


def _of_recipe(draft: Draft) -> tuple[Choice, ...]:
    """The choices of the model's recipe; those of [data] differ for pixels and latents (`_data`)."""
    return tuple(choice for choice in draft.choices if not choice.key.startswith("data."))


def _data(facts: Facts, draft: Draft, places: Places) -> tuple[Choice, ...]:
    """[data] of the model's recipe."""
    if draft.factor == 1:
        return (
            Choice("data.name", "images", draft.why_space),
            Choice("data.path", str(facts.path), facts.in_words()),
            draft["data.image_size"],
            draft["data.flip"],
            draft["data.holdout"],
            Choice("data.workers", workers(), "processes that read images, beside those that compute"),
        )
    return (
        Choice("data.name", "latents", draft.why_space),
        Choice("data.path", str(places.latents), f"{facts.path} at {draft['data.image_size'].value} pixels"),
        draft["data.flip"],
    )


def workers() -> int:
    """Processes that read images: one on a machine of few cores, at most four."""
    return max(1, min(4, (os.cpu_count() or 1) // 4))


def _autoencoder(
    facts: Facts, draft: Draft, wish: Wish, device: str
) -> tuple[tuple[Choice, ...], dict[str, float]]:
    """The choices of the autoencoder's recipe, and the seconds of its training and of encoding."""
    name, side = rules.autoencoder_recipe(draft.factor), draft["data.image_size"].value
    choices = (
        Choice("data.path", str(facts.path), facts.in_words()),
        draft["data.image_size"],
        draft["data.flip"],
        draft["data.holdout"],
    )
    values = [override(one.key, one.value) for one in choices]
    config = load(name, values, AutoencoderRun)
    if config.train.crop > side:
        choices = (*choices, Choice("train.crop", side, "the whole image"))
        config = load(name, [*values, f"train.crop={side}"], AutoencoderRun)
    step = timing.autoencoder_speed(config, device)
    seconds = rules.AUTOENCODER_SHARE * 60 * wish.minutes
    steps = max(rules.FEWEST_STEPS, rules.rounded((seconds - STARTUP) / step))
    crop = config.train.crop or side
    per_image = step / config.train.batch_size / TRAIN_PASSES * (side / crop) ** 2
    encoding = facts.images * (1 + draft["data.flip"].value) * per_image
    half = max(1, steps // 3)
    return (
        *choices,
        Choice("train.steps", steps, f"{step:.3g} s each, measured on this machine"),
        Choice("checkpoint.every", max(1, min(steps, rules.rounded(60 / step))), "about every 60 s"),
        Choice("evaluate.every", half, "three times"),
    ), {"autoencoder": steps * step + STARTUP, "encoding": encoding + STARTUP}


def rows(plan: Plan) -> list[tuple[str, str]]:
    """What was chosen, why, and what it will cost: labels and sentences."""
    facts, config = plan.facts, plan.config
    side = plan.draft["data.image_size"]
    epochs = config.train.steps * config.train.batch_size / max(1, facts.images)
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
    over = "" if plan.minutes <= plan.wish.minutes else " (more than you allow: the least that is useful)"
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
