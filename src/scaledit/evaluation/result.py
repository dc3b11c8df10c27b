"""Figures with their protocol: what was measured, how, on how much, and what to distrust about it.

    {"name": ..., "fid": 2.27, "fid_std": ..., "fid_real": ..., "protocol": {...}, "warnings": [...]}

A result's JSON is flat, under the names of the paper's tables. _std is over sample seeds, _real the same
figure of real held-out images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scaledit.errors import UsageError

TITLES = {
    "fid": "FID",
    "fid_infinity": "FID-infinity",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "fd_digits": "FD-digits",
    "fd_digits_random": "FD-digits-random",
    "fd_photos": "FD-photos",
    "fd_photos_random": "FD-photos-random",
    "fd_dinov2": "FD-DINOv2",
    "fd_dinov2_infinity": "FD-DINOv2-infinity",
    "class_accuracy": "class accuracy",
    "class_score": "class score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "kid": "KID",
    "kid_spread": "KID, sd of subsets",
    "kd_dinov2": "KD-DINOv2",
    "kd_dinov2_spread": "KD-DINOv2, sd of subsets",
    "nearest": "nearest distance",
}
"""Every figure there is, in the order it is shown in."""


class Figure(NamedTuple):
    """value: the mean over sample sets; std: over them, where there are several; real: the same figure of
    real held-out images, the floor (or ceiling) of what a model can reach."""

    value: float
    std: float | None = None
    real: float | None = None

    def __str__(self) -> str:
        """6.52 ± 0.99: to the second digit of the deviation."""
        if not self.std:
            return _number(self.value) + (" ± 0" if self.std is not None else "")
        digits = max(0, 1 - math.floor(math.log10(self.std)))
        return f"{self.value:.{digits}f} ± {self.std:.{digits}f}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


@dataclass(frozen=True)
class Result:
    """name: of what was judged. figures: by the names of TITLES."""

    name: str
    figures: Mapping[str, Figure]
    protocol: Mapping[str, Any]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        flat: dict[str, Any] = {"name": self.name}
        for key, figure in self.figures.items():
            flat[key] = figure.value
            flat |= {f"{key}_std": figure.std} if figure.std is not None else {}
            flat |= {f"{key}_real": figure.real} if figure.real is not None else {}
        return {**flat, "protocol": dict(self.protocol), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        figures = {
            key: Figure(value[key], value.get(f"{key}_std"), value.get(f"{key}_real"))
            for key in TITLES
            if isinstance(value.get(key), int | float)
        }
        return cls(str(value["name"]), figures, value.get("protocol", {}), value.get("warnings", []))

    @classmethod
    def read(cls, path: Path) -> Result:
        """Raises UsageError unless `path` is a file that `scaledit evaluate --json` wrote."""
        try:
            result = cls.from_json(json.loads(path.read_bytes()))
        except FileNotFoundError:
            raise UsageError(f"there is no {path}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{path} is no result of scaledit evaluate --json") from None
        if not result.figures:
            raise UsageError(f"{path} holds no figure that scaledit knows")
        return result


def side_by_side(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): a row a result, a column a figure that any of them has."""
    keys = [key for key in TITLES if any(key in result.figures for result in results)]
    header = ["", *(TITLES[key] for key in keys)]
    rows = [
        [result.name, *(str(result.figures[key]) if key in result.figures else "" for key in keys)]
        for result in results
    ]
    return header, rows
