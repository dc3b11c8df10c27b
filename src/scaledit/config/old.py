"""Names of scaledit 0.1 and the names of today: keys of recipes, overrides and config.json, protocols, and
the metadata of sample files. Old names stay valid and keep their meaning.

    sample.steps=50                             sample.sampler.steps=50
    sample.cfg_scale=1.5                        sample.guidance.classifier_free.scale=1.5
    sample.cfg_channels="3"                     sample.guidance.classifier_free.channels=3, of evaluate too
    evaluate.cfg_scale=1.5                      evaluate.guidance.classifier_free.scale=1.5
    diffusion.steps=1000                        diffusion.schedule.steps=1000
    optimizer.betas=[0.9, 0.99]                 optimizer.algorithm.betas=[0.9, 0.99], weight_decay too
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
from scaledit.values import hints

CLASSIFIER_FREE = ClassifierFree.NAME
CHANNELS = 3
"""Guided channels if none are named: the paper's three in 0.1, all of them today."""
ALL = "all"
Path = tuple[str, ...]
SCALES: Mapping[Path, Path] = {
    ("sample", "cfg_scale"): ("sample", "guidance", CLASSIFIER_FREE),
    ("evaluate", "cfg_scale"): ("evaluate", "guidance", CLASSIFIER_FREE),
}
CFG_CHANNELS = ("sample", "cfg_channels")
RENAMED: Mapping[Path, Path] = {
    ("sample", "steps"): ("sample", "sampler", "steps"),
    ("diffusion", "steps"): ("diffusion", "schedule", "steps"),
    ("optimizer", "betas"): ("optimizer", "algorithm", "betas"),
    ("optimizer", "weight_decay"): ("optimizer", "algorithm", "weight_decay"),
}
SCHEDULE, PREDICTION = ("diffusion", "schedule"), ("diffusion", "prediction")
INTERPOLANT = "interpolant"
"""Also a key that marks, in a table of sections, that it was named."""


def is_field(path: Path) -> bool:
    """Whether an old key sets a field of a part."""
    return path in SCALES or path == CFG_CHANNELS or path in RENAMED


def modern(path: Path, value: Any, table: dict[str, Any]) -> list[tuple[Path, Any]]:
    """Today's assignments that mean what `path` = value meant, given the config in `table` so far; unchanged
    if `path` is a key of today. Raises UsageError for a value that 0.1 would have refused."""
    if path in RENAMED:
        return [(RENAMED[path], value)]
    if path == PREDICTION and value == "start":
        return [(path, X0.NAME)]
    if path == SCHEDULE:
        return _schedule(value, table)
    if path in SCALES:
        key = SCALES[path]
        assignments: list[tuple[Path, Any]] = [((*key, "scale"), value)]
        if _guidance_at(table, key) is None:  # evaluation guided the same channels as [sample]
            of_sample = _guidance_at(table, SCALES["sample", "cfg_scale"]) or {}
            assignments.append(((*key, "channels"), of_sample.get("channels", CHANNELS)))
        return assignments
    if path == CFG_CHANNELS:
        channels = _channels(".".join(path), value)
        return [((*key, "channels"), channels) for key in SCALES.values()]
    return [(path, value)]


def _schedule(value: Any, table: dict[str, Any]) -> list[tuple[Path, Any]]:
    """The schedule "interpolant" was the flow with a network whose input is alpha, so that any other schedule
    replaced both."""
    tells = (*PREDICTION, "tells")
    if value == INTERPOLANT:
        table[INTERPOLANT] = True
        return [(SCHEDULE, LinearFlow.NAME), (tells, "alpha")]
    return [(SCHEDULE, value), *([(tells, "t")] if table.pop(INTERPOLANT, False) else [])]


def _guidance_at(table: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    """The guidance part at `path` of the table; None if there is none."""
    section, key, name = path
    parts = map(part.plain, table.get(section, {}).get(key) or ())
    return next((item for item in parts if isinstance(item, Mapping) and item.get("name") == name), None)


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
    """The name of a section's key in the names of files that 0.1 may have begun to write."""
    return WORDS.get(key, key)


def protocol(values: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol, or the origin of samples, in today's names. Values that it does not understand stay
    unchanged: files come from anywhere, and nothing is raised."""
    new = dict(values)
    old_sampler = isinstance(values.get("sampler"), str)
    if old_sampler:
        new["sampler"] = _sampler(values)
        if isinstance(new["sampler"], Mapping):
            new.pop("steps", None)
            new.pop("times", None)
    if old_sampler or "cfg_scale" in values:
        guidance = _guidance(values)
        if guidance is not None:
            for key in ("cfg_scale", "cfg_channels"):
                new.pop(key, None)
            new["guidance"] = guidance
    return new


def _sampler(values: Mapping[str, Any]) -> Any:
    """The sampler with all of its fields; its name alone if they are unknown."""
    name, steps = values["sampler"], values.get("steps")
    if type(steps) is not int:
        return name
    try:
        cls = part.members(Sampler).get(name)
        if cls is None:
            return name
        times = {"times": values.get("times") or "even"} if "times" in hints(cls) else {}
        return part.build(Sampler, {"name": name, "steps": steps, **times}, "sampler").to_json()
    except UsageError:
        return name


def _guidance(values: Mapping[str, Any]) -> list[Any] | None:
    """The guidance parts; None if they are unknown."""
    scale = values.get("cfg_scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        return None
    if scale == 1:
        return []
    try:
        return [_classifier_free(scale, values.get("cfg_channels"))]
    except ValueError:
        return None


def _classifier_free(scale: float, channels: Any) -> dict[str, Any]:
    """Raises ValueError for unknown channels."""
    if channels not in (str(CHANNELS), ALL):
        raise ValueError(f"cfg_channels must be {CHANNELS} or {ALL}, got {shown(channels)}")
    return ClassifierFree(scale=float(scale), channels=None if channels == ALL else CHANNELS).to_json()


LONGEST_STEPS = 20
"""Digits."""
COLUMNS = ("sampler", "sampling_steps", "cfg_scale", "cfg_channels")


def row(values: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a row of a study's table, {column: text}, with today's columns:

        ddpm | 250 | 1.5 | 3           ->  {"name": "ddpm", "steps": 250} | [{"name": "classifier_free", ...}]

    Guidance of scale 1 changes nothing but is kept, since the table records its channels. Raises ValueError.
    """
    if any(values.get(column) is None for column in COLUMNS):
        return dict(values)
    new = {key: value for key, value in values.items() if key not in COLUMNS[1:]}
    name, steps, scale, channels = (values[column] for column in COLUMNS)
    if not (steps.isascii() and steps.isdigit() and len(steps) < LONGEST_STEPS):
        raise ValueError(f"sampling_steps must be a whole number of at least 0, got {shown(steps)}")
    sampler = _sampler({"sampler": name, "steps": int(steps)})
    try:
        number = float(scale)
    except ValueError:
        raise ValueError(f"cfg_scale must be a finite number, got {shown(scale)}") from None
    new["sampler"] = json.dumps(
        sampler if isinstance(sampler, Mapping) else {"name": name, "steps": int(steps)}
    )
    new["guidance"] = json.dumps([_classifier_free(number, channels)])
    return new
