"""The short options of the command line, and the short arguments of a pipeline's call, as keys of a config.

--sampler ddim --steps 50                 sample.sampler.name=ddim  sample.sampler.steps=50
--cfg-scale 1.5 --cfg-channels 3          sample.guidance.classifier_free.scale=1.5  ...channels=3
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scaledit import checks
from scaledit.config.old import ALL, CLASSIFIER_FREE
from scaledit.config.runs import RunConfig
from scaledit.diffusion.guidance import ClassifierFree, Guidance
from scaledit.errors import UsageError, shown


def short(
    config: RunConfig | None = None,
    section: str = "sample",
    *,
    sampler: str | None = None,
    steps: int | None = None,
    cfg_scale: float | None = None,
    cfg_channels: str | int | None = None,
) -> dict[str, Any]:
    """{"section.key": value} of what is given; to be set before other keys.

    config: the one that they change, where there is one. section: whose guidance it is, "sample" or
    "evaluate", which guides the channels that "sample" does unless told otherwise.
    """
    of = f"{section}.guidance.{CLASSIFIER_FREE}"
    keys = {
        "sample.sampler.name": sampler,
        "sample.sampler.steps": None if steps is None else checks.integer(steps, "steps", 1),
        f"{of}.scale": None if cfg_scale is None else checks.finite(cfg_scale, "cfg_scale"),
        f"{of}.channels": channels(cfg_channels),
    }
    if cfg_scale is not None and cfg_channels is None and config is not None:
        keys[f"{of}.channels"] = _channels_of(config, section)
    return {key: value for key, value in keys.items() if value is not None}


def channels(said: str | int | None) -> str | int | None:
    """As the part has it. Raises UsageError for what is neither a number of channels nor "all"."""
    if said is None or said == ALL:
        return said
    if isinstance(said, str) and not (said.isascii() and said.isdigit()):
        raise UsageError(f"cfg_channels is {shown(said)}; it is a number of channels, or {ALL}")
    return checks.integer(int(said) if isinstance(said, str) else said, "cfg_channels", 1)


def _channels_of(config: RunConfig, section: str) -> str | int | None:
    """Those that [sample] guides, where `section` guides none; else None: nothing is to be said."""
    own: Mapping[str, Any] = {"sample": config.sample.guidance, "evaluate": config.evaluate.guidance}
    if any(isinstance(part, ClassifierFree) for part in own[section]):
        return None
    like = [part for part in own["sample"] if isinstance(part, ClassifierFree)]
    return (like[0].channels or ALL) if like else None


def scaled(guidance: Sequence[Guidance], scale: float) -> tuple[Guidance, ...]:
    """The parts with classifier-free guidance of another scale, which is added where there is none."""
    found = tuple(
        dataclasses.replace(part, scale=scale) if isinstance(part, ClassifierFree) else part
        for part in guidance
    )
    is_there = any(isinstance(part, ClassifierFree) for part in guidance)
    return found if is_there else (*found, ClassifierFree(scale=scale))
