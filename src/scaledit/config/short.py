"""Short options of the command line, and short arguments of a pipeline, as config keys.

--sampler ddim --steps 50                 sample.sampler.name=ddim  sample.sampler.steps=50
--tolerance 0.01                          sample.sampler.name=adaptive  ...rtol=0.01  ...atol=0.01
--cfg-scale 1.5 --cfg-channels 3          sample.guidance.classifier_free.scale=1.5  ...channels=3
--cfg-interval 0.1-0.9                    sample.guidance.interval.low=0.1  ...high=0.9
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scaledit import checks
from scaledit.config.old import ALL, CLASSIFIER_FREE
from scaledit.config.runs import RunConfig
from scaledit.diffusion.guidance import CFGZeroStar, ClassifierFree, Guidance, Interval
from scaledit.diffusion.samplers import Adaptive
from scaledit.errors import UsageError, shown


def short(
    config: RunConfig | None = None,
    section: str = "sample",
    *,
    sampler: str | None = None,
    steps: int | None = None,
    cfg_scale: float | None = None,
    cfg_channels: str | int | None = None,
    cfg_interval: str | tuple[float, float] | None = None,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """{"section.key": value} of the options that are not None, to be set before other keys.

    config: the config that they change, if there is one. section: whose guidance to set, "sample" or
    "evaluate"; "evaluate" guides the channels of "sample" by default.
    """
    if tolerance is not None:
        tolerance = checks.finite(tolerance, "tolerance")
        has = sampler is not None or (config is not None and hasattr(config.sample.sampler, "rtol"))
        sampler = sampler if has else Adaptive.NAME
    guidance = f"{section}.guidance.{_scaled_part(config, section)}"
    keys = {
        "sample.sampler.name": sampler,
        "sample.sampler.steps": None if steps is None else checks.integer(steps, "steps", 1),
        "sample.sampler.rtol": tolerance,
        "sample.sampler.atol": tolerance,
        f"{guidance}.scale": None if cfg_scale is None else checks.finite(cfg_scale, "cfg_scale"),
        f"{guidance}.channels": channels(cfg_channels),
    }
    if cfg_scale is not None and cfg_channels is None and config is not None:
        keys[f"{guidance}.channels"] = _channels_of(config, section)
    if cfg_interval is not None:
        low, high = interval(cfg_interval)
        keys |= {f"{section}.guidance.{Interval.NAME}.{key}": n for key, n in (("low", low), ("high", high))}
    return {key: value for key, value in keys.items() if value is not None}


def interval(value: str | tuple[float, float]) -> tuple[float, float]:
    """The two ends that --cfg-interval names, LOW-HIGH. Raises UsageError unless they are two numbers."""
    try:
        low, high = map(float, value.split("-")) if isinstance(value, str) else value
        return checks.finite(low, "cfg_interval"), checks.finite(high, "cfg_interval")
    except (ValueError, TypeError):
        raise UsageError(
            f"cfg_interval must be two fractions of the schedule's time, as in 0.1-0.9, got {shown(value)}"
        ) from None


def channels(value: str | int | None) -> str | int | None:
    """The channels that --cfg-channels names. Raises UsageError unless it is a number or "all"."""
    if value is None or value == ALL:
        return value
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise UsageError(f"cfg_channels must be a number of channels or {ALL}, got {shown(value)}")
    return checks.integer(int(value) if isinstance(value, str) else value, "cfg_channels", 1)


def _scaled_part(config: RunConfig | None, section: str) -> str:
    """The part whose scale --cfg-scale sets: CFG-Zero* where the config guides with that."""
    parts = () if config is None else getattr(config, section).guidance
    zero_star = any(isinstance(part, CFGZeroStar) for part in parts)
    return CFGZeroStar.NAME if zero_star else CLASSIFIER_FREE


def _channels_of(config: RunConfig, section: str) -> str | int | None:
    """The channels that [sample] guides, if `section` has no guidance of its own yet; else None."""
    guidance: Mapping[str, Any] = {"sample": config.sample.guidance, "evaluate": config.evaluate.guidance}
    if any(isinstance(part, ClassifierFree | CFGZeroStar) for part in guidance[section]):
        return None
    of_sample = [part for part in guidance["sample"] if isinstance(part, ClassifierFree)]
    return (of_sample[0].channels or ALL) if of_sample else None


def scaled(guidance: Sequence[Guidance], scale: float) -> tuple[Guidance, ...]:
    """The parts with the scale of classifier-free guidance changed. If there is none, it is added, before
    the parts at the end of the list that change the guidance before them."""
    if not any(isinstance(part, ClassifierFree) for part in guidance):
        end = next((i for i in range(len(guidance), 0, -1) if not guidance[i - 1].modifies), 0)
        return (*guidance[:end], ClassifierFree(scale=scale), *guidance[end:])
    return tuple(
        dataclasses.replace(part, scale=scale) if isinstance(part, ClassifierFree) else part
        for part in guidance
    )
