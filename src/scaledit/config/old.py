"""What scaledit 0.1 wrote and its users wrote for it, in today's words: keys of recipes, overrides and
config.json, and what protocols and sample files say of how images were made. It works for ever, and means
what it meant.

    sample.steps=50                             sample.sampler.steps=50
    sample.cfg_scale=1.5                        sample.guidance.classifier_free.scale=1.5
    sample.cfg_channels="3"                     sample.guidance.classifier_free.channels=3, of evaluate too
    evaluate.cfg_scale=1.5                      evaluate.guidance.classifier_free.scale=1.5
    diffusion.steps=1000                        diffusion.schedule.steps=1000
    diffusion.prediction="start"                diffusion.prediction="x0"
    diffusion.schedule="interpolant"            diffusion.schedule="flow"  diffusion.prediction.tells="alpha"

    {"sampler": "dpm", "steps": 20, "cfg_scale": 1.5, "cfg_channels": "3"}
    {"sampler": {"name": "dpm", "steps": 20, ...}, "guidance": [{"name": "classifier_free", ...}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scaledit import part
from scaledit.diffusion.guidance import ClassifierFree
from scaledit.diffusion.parameterization import X0
from scaledit.diffusion.samplers import Sampler
from scaledit.diffusion.schedule import LinearFlow
from scaledit.errors import UsageError, did_you_mean, shown

CLASSIFIER_FREE = ClassifierFree.NAME
CHANNELS = 3
"""That were guided where nothing said how many: the paper's recipe (of today's parts: all)."""
ALL = "all"
Path = tuple[str, ...]
SCALES: Mapping[Path, Path] = {
    ("sample", "cfg_scale"): ("sample", "guidance", CLASSIFIER_FREE),
    ("evaluate", "cfg_scale"): ("evaluate", "guidance", CLASSIFIER_FREE),
}
OF_CHANNELS = ("sample", "cfg_channels")
RENAMED: Mapping[Path, Path] = {
    ("sample", "steps"): ("sample", "sampler", "steps"),
    ("diffusion", "steps"): ("diffusion", "schedule", "steps"),
}
SCHEDULE, PREDICTION = ("diffusion", "schedule"), ("diffusion", "prediction")
INTERPOLANT = "interpolant"
"""Also the key of a table of sections that notes that it was named."""


def is_field(path: Path) -> bool:
    """Whether an old key sets a field of a part."""
    return path in SCALES or path == OF_CHANNELS or path in RENAMED


def modern(path: Path, value: Any, table: dict[str, Any]) -> list[tuple[Path, Any]]:
    """Today's keys that mean what `path` = value meant, in the config that `table` holds so far; itself where
    it is of today. Raises UsageError."""
    if path in RENAMED:
        return [(RENAMED[path], value)]
    if path == PREDICTION and value == "start":
        return [(path, X0.NAME)]
    if path == SCHEDULE:
        return _schedule(value, table)
    if path in SCALES:
        of = SCALES[path]
        made: list[tuple[Path, Any]] = [((*of, "scale"), value)]
        if _guiding(table, of) is None:  # evaluation guided the channels that [sample] did
            as_sample = _guiding(table, SCALES["sample", "cfg_scale"]) or {}
            made.append(((*of, "channels"), as_sample.get("channels", CHANNELS)))
        return made
    if path == OF_CHANNELS:
        channels = _channels(".".join(path), value)
        return [((*of, "channels"), channels) for of in SCALES.values()]
    return [(path, value)]


def _schedule(value: Any, table: dict[str, Any]) -> list[tuple[Path, Any]]:
    """The schedule "interpolant" was the flow of a network that is told alpha, and any other one took its
    place wholly."""
    told = (*PREDICTION, "tells")
    if value == INTERPOLANT:
        table[INTERPOLANT] = True
        return [(SCHEDULE, LinearFlow.NAME), (told, "alpha")]
    return [(SCHEDULE, value), *([(told, "t")] if table.pop(INTERPOLANT, False) else [])]


def _guiding(table: Mapping[str, Any], of: Path) -> Mapping[str, Any] | None:
    """That part of the table, if it is there."""
    section, key, name = of
    parts = table.get(section, {}).get(key) or ()
    tables = map(part.plain, parts)
    return next((one for one in tables if isinstance(one, Mapping) and one.get("name") == name), None)


def _channels(key: str, value: Any) -> Any:
    if str(value) not in (str(CHANNELS), ALL) or isinstance(value, float):
        raise UsageError(f"{key} is {shown(value)}{did_you_mean(str(value), [str(CHANNELS), ALL])}")
    return ALL if value == ALL else CHANNELS


WORDS = {
    "sampler.steps": "steps",
    f"guidance.{CLASSIFIER_FREE}.scale": "cfg_scale",
    f"guidance.{CLASSIFIER_FREE}.channels": "cfg_channels",
}


def word(key: str) -> str:
    """What a section's key is called in the names of files that 0.1 may have begun to write."""
    return WORDS.get(key, key)


def protocol(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a protocol, or the origin of samples, says, in today's words; what is no such thing stays as it
    is. Files come from anywhere: nothing is raised."""
    new = dict(said)
    old_sampler = isinstance(said.get("sampler"), str)
    if old_sampler:
        new["sampler"] = _sampler(said)
        if isinstance(new["sampler"], Mapping):
            new.pop("steps", None)
            new.pop("times", None)
    if old_sampler or "cfg_scale" in said:
        guidance = _guidance(said)
        if guidance is not None:
            for key in ("cfg_scale", "cfg_channels"):
                new.pop(key, None)
            new["guidance"] = guidance
    return new


def _sampler(said: Mapping[str, Any]) -> Any:
    """The part whole; its name alone where that cannot be told."""
    name, steps = said["sampler"], said.get("steps")
    if type(steps) is not int:
        return name
    try:
        of = part.members(Sampler).get(name)
        if of is None:
            return name
        times = {"times": said.get("times") or "even"} if "times" in part.hints(of) else {}
        return part.build(Sampler, {"name": name, "steps": steps, **times}, "sampler").to_json()
    except UsageError:
        return name


def _guidance(said: Mapping[str, Any]) -> list[Any] | None:
    """What changes the images; None where it cannot be told."""
    scale = said.get("cfg_scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        return None
    if scale == 1:
        return []
    try:
        return [_classifier_free(scale, said.get("cfg_channels"))]
    except ValueError:
        return None


def _classifier_free(scale: float, channels: Any) -> dict[str, Any]:
    """Raises ValueError."""
    if channels not in (str(CHANNELS), ALL):
        raise ValueError(f"cfg_channels must be {CHANNELS} or {ALL}, it is {shown(channels)}")
    return ClassifierFree(scale=float(scale), channels=None if channels == ALL else CHANNELS).to_json()


LONGEST_STEPS = 20
"""Digits."""
COLUMNS = ("sampler", "sampling_steps", "cfg_scale", "cfg_channels")


def row(values: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a line of a study's table, {column: text}, those of 0.1 under today's columns:

        ddpm | 250 | 1.5 | 3           ->  {"name": "ddpm", "steps": 250} | [{"name": "classifier_free", ...}]

    Guidance of scale 1 is none, and is kept: a table says which channels would be guided. Raises ValueError.
    """
    if any(values.get(column) is None for column in COLUMNS):
        return dict(values)
    new = {key: value for key, value in values.items() if key not in COLUMNS[1:]}
    name, steps, scale, channels = (values[column] for column in COLUMNS)
    if not (steps.isascii() and steps.isdigit() and len(steps) < LONGEST_STEPS):
        raise ValueError(f"sampling_steps must be a whole number from 0 on, it is {shown(steps)}")
    whole = _sampler({"sampler": name, "steps": int(steps)})
    try:
        number = float(scale)
    except ValueError:
        raise ValueError(f"cfg_scale must be a finite number, it is {shown(scale)}") from None
    new["sampler"] = json.dumps(whole if isinstance(whole, Mapping) else {"name": name, "steps": int(steps)})
    new["guidance"] = json.dumps([_classifier_free(number, channels)])
    return new
