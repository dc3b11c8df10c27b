"""Figures with their protocol: what was measured, how, on how much, and what to distrust about it.

    {"name": ..., "fid": 2.27, "fid_std": ..., "fid_real": ..., "protocol": {...}, "warnings": [...]}

A result's JSON is flat, under the keys of the metrics' columns. _std is over sample seeds, _real the same
figure of real held-out images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scaledit.config import old
from scaledit.errors import UsageError, shown
from scaledit.evaluation import metric
from scaledit.evaluation.metric import Column
from scaledit.files.reading import read_json

DIGITS = 4


class MetricValue(NamedTuple):
    """value: the mean over sample sets; std: over them, where there are several; real: the same figure of
    real held-out images, the floor (or ceiling) of what a model can reach."""

    value: float
    std: float | None = None
    real: float | None = None

    def text(self, digits: int = DIGITS) -> str:
        """6.52 ± 0.99: to the second digit of the deviation; without one, to so many significant digits."""
        if self.std is None or not 1e-30 < self.std < LONG or not abs(self.value) < LONG:
            return _short(self.value, digits) + ("" if self.std is None else f" ± {_short(self.std, digits)}")
        places = max(0, 1 - math.floor(math.log10(self.std)))
        return f"{self.value:.{places}f} ± {self.std:.{places}f}"

    def __str__(self) -> str:
        return self.text()


LONG = 1e15
"""From here on numbers are written with an exponent."""


def _short(value: float, digits: int) -> str:
    return f"{value:.1f}" if 1000 <= abs(value) < LONG else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Result:
    """name: of what was judged. figures: by the keys of `columns`, in their order."""

    name: str
    metrics: Mapping[str, MetricValue]
    protocol: Mapping[str, Any]
    warnings: Sequence[str]

    @property
    def columns(self) -> dict[str, Column]:
        """What the figures are, in the order in which they are shown."""
        every = metric.columns(self.protocol)
        return {key: every[key] for key in every if key in self.metrics}

    def shown(self) -> list[tuple[str, str]]:
        """(title, figure) of each, for people."""
        return [(one.title, self.metrics[key].text(one.digits)) for key, one in self.columns.items()]

    def to_json(self) -> dict[str, Any]:
        flat: dict[str, Any] = {"name": self.name}
        for key, figure in self.metrics.items():
            flat[key] = figure.value
            flat |= {f"{key}_std": figure.std} if figure.std is not None else {}
            flat |= {f"{key}_real": figure.real} if figure.real is not None else {}
        return {**flat, "protocol": dict(self.protocol), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """Raises UsageError for what `to_json` does not write."""
        protocol, warnings = value.get("protocol", {}), value.get("warnings", [])
        if not isinstance(value.get("name"), str):
            raise UsageError(f"its name is {shown(value.get('name'))}")
        if not isinstance(protocol, Mapping):
            raise UsageError(f"its protocol is {shown(protocol)}")
        if not isinstance(warnings, list | tuple) or not all(isinstance(one, str) for one in warnings):
            raise UsageError(f"its warnings are {shown(warnings)}")
        figures = {
            key: MetricValue(
                _number(value, key),
                _number(value, f"{key}_std") if value.get(f"{key}_std") is not None else None,
                _number(value, f"{key}_real") if value.get(f"{key}_real") is not None else None,
            )
            for key in metric.columns(protocol)
            if key in value
        }
        size = protocol.get("image_size", [0, 0])
        if not isinstance(size, list | tuple) or not all(type(side) is int for side in size):
            raise UsageError(f"its image_size is {shown(size)}")
        return cls(value["name"], figures, old.protocol(protocol), warnings)

    @classmethod
    def read(cls, path: Path) -> Result:
        """Raises UsageError unless `path` is a file that `scaledit evaluate --json` wrote."""
        if not path.exists():
            raise UsageError(f"there is no {path}")
        value = read_json(path, WHAT, error=UsageError)
        try:
            result = cls.from_json(value)
        except UsageError as error:
            raise UsageError(f"{path} cannot be read as {WHAT}: {error}") from None
        if not result.metrics:
            raise UsageError(f"{path} holds no figure that scaledit knows")
        return result


WHAT = "a result of scaledit evaluate --json"


def _number(value: Mapping[str, Any], key: str) -> float:
    """A figure of a result, or of a line of log.jsonl, where numbers that are not finite are words."""
    figure = value[key]
    if figure in ("nan", "inf", "-inf"):
        return float(figure)
    try:
        if isinstance(figure, int | float) and not isinstance(figure, bool):
            return float(figure)
    except OverflowError:
        pass
    raise UsageError(f"its {key} is {shown(figure)}")


def side_by_side(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): a row a result, a column a figure that any of them has."""
    every = metric.columns(*(result.protocol for result in results))
    columns = [one for key, one in every.items() if any(key in result.metrics for result in results)]
    header = ["", *(one.title for one in columns)]
    rows = [
        [
            result.name,
            *(result.metrics[c.key].text(c.digits) if c.key in result.metrics else "" for c in columns),
        ]
        for result in results
    ]
    return header, rows
