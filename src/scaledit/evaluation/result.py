"""Metrics with the protocol that they were measured by, and warnings.

    {"name": ..., "fid": 2.27, "fid_std": ..., "fid_real": ..., "protocol": {...}, "warnings": [...]}

A result's JSON is flat, under the keys of the metrics' columns. _std is the standard deviation over sample
seeds, _real the value of held-out real images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scaledit.config import old
from scaledit.errors import UsageError, shown
from scaledit.evaluation.metric import Column, columns
from scaledit.evaluation.metrics.class_means import ClassResult
from scaledit.files.reading import read_json

DIGITS = 4


class MetricValue(NamedTuple):
    """value, std: mean and standard deviation over sample sets, if there are several. real: the value of
    held-out real images, the floor (or ceiling) of what a model can reach."""

    value: float
    std: float | None = None
    real: float | None = None

    def text(self, digits: int = DIGITS) -> str:
        """6.52 ± 0.99, to the second digit of the deviation; without one, to `digits` significant digits."""
        if self.std is None or not 1e-30 < self.std < LONG or not abs(self.value) < LONG:
            return _short(self.value, digits) + ("" if self.std is None else f" ± {_short(self.std, digits)}")
        places = max(0, 1 - math.floor(math.log10(self.std)))
        return f"{self.value:.{places}f} ± {self.std:.{places}f}"

    def __str__(self) -> str:
        return self.text()


LONG = 1e15
"""Larger numbers are written with an exponent."""


def _short(value: float, digits: int) -> str:
    return f"{value:.1f}" if 1000 <= abs(value) < LONG else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Result:
    """name: of the samples. metrics: by the keys of `columns`, in their order. by_class: one for each class,
    if the reference knows the means of the classes."""

    name: str
    metrics: Mapping[str, MetricValue]
    protocol: Mapping[str, Any]
    warnings: Sequence[str]
    by_class: Sequence[ClassResult] = ()

    @property
    def columns(self) -> dict[str, Column]:
        """The metrics' columns, in the order of tables."""
        return {key: column for key, column in columns(self.protocol).items() if key in self.metrics}

    def shown(self) -> list[tuple[str, str]]:
        """(title, value) of each metric, for people."""
        return [(column.title, self.metrics[key].text(column.digits)) for key, column in self.columns.items()]

    def to_json(self) -> dict[str, Any]:
        flat: dict[str, Any] = {"name": self.name}
        for key, metric in self.metrics.items():
            numbers = zip(("", "_std", "_real"), metric, strict=True)
            flat |= {f"{key}{suffix}": number for suffix, number in numbers if number is not None}
        if self.by_class:
            flat["by_class"] = [one._asdict() for one in self.by_class]
        return {**flat, "protocol": dict(self.protocol), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """Raises UsageError for a value that `to_json` does not write."""
        protocol, warnings = value.get("protocol", {}), value.get("warnings", [])
        if not isinstance(value.get("name"), str):
            raise UsageError(f"its name is {shown(value.get('name'))}")
        if not isinstance(protocol, Mapping):
            raise UsageError(f"its protocol is {shown(protocol)}")
        if not isinstance(warnings, list | tuple) or not all(isinstance(text, str) for text in warnings):
            raise UsageError(f"its warnings are {shown(warnings)}")
        metrics = {
            key: MetricValue(
                _number(value, key),
                _number(value, f"{key}_std") if value.get(f"{key}_std") is not None else None,
                _number(value, f"{key}_real") if value.get(f"{key}_real") is not None else None,
            )
            for key in columns(protocol)
            if key in value
        }
        size = protocol.get("image_size", [0, 0])
        if not isinstance(size, list | tuple) or not all(type(side) is int for side in size):
            raise UsageError(f"its image_size is {shown(size)}")
        by_class = value.get("by_class", ())
        if not isinstance(by_class, list | tuple):
            raise UsageError(f"its by_class is {shown(by_class)}")
        classes = tuple(ClassResult.of(one) for one in by_class)
        return cls(value["name"], metrics, old.protocol(protocol), warnings, classes)

    @classmethod
    def read(cls, path: Path) -> Result:
        """Raises UsageError unless `path` is a file that `scaledit evaluate --json` wrote."""
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        value = read_json(path, WHAT, error=UsageError)
        try:
            result = cls.from_json(value)
        except UsageError as error:
            raise UsageError(f"{path} cannot be read as {WHAT}: {error}") from None
        if not result.metrics:
            raise UsageError(f"{path} contains no metric that scaledit knows")
        return result


WHAT = "a result of scaledit evaluate --json"


def _number(value: Mapping[str, Any], key: str) -> float:
    """A number of a result, or of a line of log.jsonl, where nan and inf are strings."""
    number = value[key]
    if number in ("nan", "inf", "-inf"):
        return float(number)
    with suppress(OverflowError):
        if isinstance(number, int | float) and not isinstance(number, bool):
            return float(number)
    raise UsageError(f"its {key} is {shown(number)}")


def side_by_side(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a table: a row for each result, a column for each metric that any of them has."""
    every = columns(*(result.protocol for result in results)).values()
    used = [column for column in every if any(column.key in result.metrics for result in results)]
    rows = [
        [
            result.name,
            *(result.metrics[c.key].text(c.digits) if c.key in result.metrics else "" for c in used),
        ]
        for result in results
    ]
    return ["", *(column.title for column in used)], rows


class ClassTable(NamedTuple):
    """left_out: a sentence on classes that are not shown, if there are any."""

    header: list[str]
    rows: list[list[str]]
    left_out: list[str]


def class_table(classes: Sequence[ClassResult], most: int) -> ClassTable:
    """The accuracy of each class; of more than `most` classes, those of the lowest accuracy."""
    header = ["class", "held out", "real accuracy", "samples", "accuracy"]
    shown, left_out = list(classes), []
    if len(classes) > most:
        lowest = sorted(classes, key=lambda one: math.inf if one.accuracy is None else one.accuracy)
        shown = lowest[:most]
        left_out.append(f"the {most} classes of the lowest accuracy are shown, of {len(classes)}")
    rows = [
        [one.name, str(one.held_out), _share(one.real), str(one.samples), _share(one.accuracy)]
        for one in shown
    ]
    return ClassTable(header, rows, left_out)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
