"""What a map varies: the average of the weights, the steps, the guidance scale and its interval.

    Axes(averages=("0.05", "0.1"), scales=(1, 1.5))  ->  4 cells, and the [sample] section of each

A setting that is not varied is the run's own. A scale of 1 is no guidance, whatever its interval: cells whose
sections do the same share one result.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scaledit import averages
from scaledit.config import RunConfig, SampleConfig, short, with_values
from scaledit.diffusion.guidance import active
from scaledit.errors import UsageError

MOST_CELLS = 2_000
NAMES = {"average": "average", "steps": "steps", "scale": "guidance", "interval": "interval"}
"""What tables and figures call the axes."""


class Cell(NamedTuple):
    """One combination; None where the run's own value is used. average: as `averages.asked` reads it."""

    average: str | None = None
    steps: int | None = None
    scale: float | None = None
    interval: tuple[float, float] | None = None

    def words(self, axis: str) -> str:
        """The value on an axis, for people: "0.1", "20", "1.5", "0.2-0.8"."""
        value = getattr(self, axis)
        if axis == "interval":
            return f"{value[0]:g}-{value[1]:g}"
        if axis == "average" and averages.asked(value) is None:
            return "EMA"
        return f"{value:g}" if isinstance(value, float) else str(value)

    def to_json(self) -> dict[str, Any]:
        """The values that are varied."""
        return {key: value for key, value in self._asdict().items() if value is not None}

    def section(self, config: RunConfig, **more: Any) -> SampleConfig:
        """[sample] of the run with these values. more: further short options of `config.short`."""
        values = short(config, steps=self.steps, cfg_scale=self.scale, cfg_interval=self.interval, **more)
        return with_values(config, values).sample if values else config.sample


@dataclass(frozen=True)
class Axes:
    """The values of each axis, in the order of the map; an axis without values is not varied. Raises
    UsageError for a value twice, and for more than MOST_CELLS cells."""

    averages: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    intervals: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        flags = {
            "--average": [averages.asked(value) for value in self.averages],
            "--steps": self.steps,
            "--cfg-scale": self.scales,
            "--cfg-interval": self.intervals,
        }
        for flag, values in flags.items():
            if len(set(values)) < len(values):
                raise UsageError(f"{flag} has a value twice; leave one out")
        if not any(flags.values()):
            raise UsageError(
                f"nothing is varied; pass lists to {', '.join(flags)}, such as --cfg-scale 1,1.5,2"
            )
        for low, high in self.intervals:
            if not 0 <= low < high <= 1:
                raise UsageError(
                    f"--cfg-interval {low:g}-{high:g} must be LOW-HIGH with 0 <= LOW < HIGH <= 1, fractions "
                    "of the schedule from 0, the image, to 1, noise"
                )
        if len(self.cells()) > MOST_CELLS:
            raise UsageError(f"the lists make {len(self.cells()):,} cells; a map has at most {MOST_CELLS:,}")

    @property
    def varied(self) -> tuple[str, ...]:
        """The names of the fields of `Cell` that are varied."""
        given = (self.averages, self.steps, self.scales, self.intervals)
        return tuple(name for name, values in zip(Cell._fields, given, strict=True) if values)

    def cells(self) -> list[Cell]:
        given: list[Sequence[Any]] = [self.averages, self.steps, self.scales, self.intervals]
        return [Cell(*values) for values in itertools.product(*(values or (None,) for values in given))]


def identity(section: SampleConfig) -> str:
    """Equal for sections that make the same images from the same weights and noise."""
    guidance = [part.to_json() for part in active(section.guidance)]
    return json.dumps([section.sampler.to_json(), guidance, section.seed], sort_keys=True)
