"""What a map found: its cells by quality, as JSON, as CSV and as a table, and the command of the best one."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaledit.errors import UsageError
from scaledit.evaluation.metric import Column
from scaledit.files.atomic import atomic_bytes
from scaledit.files.reading import read_json
from scaledit.scaling.sweep import P, Spread, badness, p_value
from scaledit.tuning.cells import NAMES, Axes, Cell
from scaledit.tuning.judged import Judged, Map

JSON, CSV = "sweep.json", "sweep.csv"
MOST_METRICS = 4
"""Metrics in tables for people; the files have all."""
ALIKE = "not distinguishable from it"


class Found(NamedTuple):
    """A cell of a map. values: by axis, in words. metrics: by column, over seeds; none if it failed. note:
    what is to be said about it."""

    values: Mapping[str, str]
    metrics: Mapping[str, Spread]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """varied: the axes. axes: their values in words, in the order of the map. cells: in that order. columns:
    the one that decides first. best: the number of the best cell, None if no cell has a result. command: that
    samples with it. work: `Work.in_words`."""

    step: int
    varied: tuple[str, ...]
    axes: Mapping[str, tuple[str, ...]]
    cells: tuple[Found, ...]
    columns: tuple[Column, ...]
    best: int | None
    command: str
    protocol: Mapping[str, Any]
    work: str

    @property
    def main(self) -> Column:
        return self.columns[0]

    def ranked(self) -> list[Found]:
        """The cells with a result, the best first."""
        known = [cell for cell in self.cells if self.main.key in cell.metrics]
        return sorted(known, key=lambda cell: badness(self.main, cell.metrics[self.main.key].mean))

    def verdict(self) -> str:
        """Which cell is best, and what its margin is worth."""
        ranked, key = self.ranked(), self.main.key
        if not ranked:
            return "No setting has a result."
        best = ranked[0].metrics[key]
        said = f"Best: {title(ranked[0])}, {self.main.title} {best.text(self.main.digits)}."
        if len(ranked) == 1:
            return said
        if best.std is None:
            margin = abs(best.mean - ranked[1].metrics[key].mean)
            return f"{said} The next is {margin:.2g} away; one seed cannot tell whether that is chance."
        alike = sum(cell.note.startswith(ALIKE) for cell in ranked)
        others = f"{alike} of the other {len(ranked) - 1} settings are {ALIKE}"
        return f"{said} {others} (paired t-test over the seeds, p < {P})."

    def header(self) -> list[str]:
        shown = [column.title for column in self.columns if not column.aside][:MOST_METRICS]
        return [*(NAMES[axis] for axis in self.varied), *shown, ""]

    def rows(self) -> list[list[str]]:
        """The best first, then those without a result."""
        ranked = self.ranked()
        rest = [cell for cell in self.cells if self.main.key not in cell.metrics]
        shown = [column for column in self.columns if not column.aside][:MOST_METRICS]
        return [
            [
                *(cell.values[axis] for axis in self.varied),
                *(
                    cell.metrics[column.key].text(column.digits) if column.key in cell.metrics else ""
                    for column in shown
                ),
                "best" if ranked and cell is ranked[0] else cell.note,
            ]
            for cell in [*ranked, *rest]
        ]


def title(cell: Found) -> str:
    """average 0.1, guidance 1.5, interval 0.2-0.8"""
    return ", ".join(
        f"{value} steps" if axis == "steps" else f"{NAMES[axis]} {value}"
        for axis, value in cell.values.items()
    )


def finding(run: Path, made: Map, axes: Axes, options: Mapping[str, Any]) -> Finding:
    """options: the further short options that all cells have."""
    spreads = [_spreads(one, made.columns) for one in made.cells]
    key, column = made.columns[0].key, made.columns[0]
    known = [i for i, metrics in enumerate(spreads) if key in metrics]
    best = min(known, key=lambda i: badness(column, spreads[i][key].mean), default=None)
    cells = []
    for i, one in enumerate(made.cells):
        notes = [one.failed] if one.failed else []
        if best is not None and i != best and key in spreads[i]:
            ours, other = spreads[best][key], spreads[i][key]
            if is_alike(ours, other):
                notes.append(ALIKE)
        if one.dropped:
            notes.append(f"left out after {len(one.metrics)} seeds")
        values = {axis: one.cell.words(axis) for axis in axes.varied}
        cells.append(Found(values, spreads[i], "; ".join(notes)))
    return Finding(
        step=int(made.cells[0].origin.get("step", 0)),
        varied=axes.varied,
        axes={axis: tuple(dict.fromkeys(cell.values[axis] for cell in cells)) for axis in axes.varied},
        cells=tuple(cells),
        columns=made.columns,
        best=best,
        command="" if best is None else command(run, made.cells[best].cell, options),
        protocol=made.protocol,
        work=made.work.in_words(),
    )


def is_alike(a: Spread, b: Spread) -> bool:
    """Whether two settings are not distinguishable: a paired t-test over the seeds that both have, since they
    share noise and classes. False if only one seed is known."""
    pairs = np.array([x - y for x, y in zip(a.values, b.values, strict=False)])
    if len(pairs) < 2:
        return False
    error = float(pairs.std(ddof=1)) / math.sqrt(len(pairs))
    mean = abs(float(pairs.mean()))
    if error == 0:
        return mean == 0
    return p_value(mean / error, len(pairs) - 1) >= P


def _spreads(one: Judged, columns: Sequence[Column]) -> dict[str, Spread]:
    if one.failed:
        return {}
    return {column.key: Spread.of(values) for column in columns if (values := one.values(column.key))}


def command(run: Path, cell: Cell, options: Mapping[str, Any]) -> str:
    """The command that samples with a cell."""
    given: dict[str, Any] = {f"--{key.replace('_', '-')}": value for key, value in options.items()}
    given |= {"--average": cell.average, "--steps": cell.steps}
    given["--cfg-scale"] = None if cell.scale is None else f"{cell.scale:g}"
    given["--cfg-interval"] = None if cell.interval is None else cell.words("interval")
    words = [str(word) for flag, value in given.items() if value is not None for word in (flag, value)]
    return shlex.join(["scaledit", "sample", str(run), *words, "--out", "samples.png"])


def to_json(found: Finding) -> dict[str, Any]:
    return {
        "step": found.step,
        "varied": list(found.varied),
        "axes": {axis: list(values) for axis, values in found.axes.items()},
        "columns": [column._asdict() for column in found.columns],
        "best": found.best,
        "command": found.command,
        "verdict": found.verdict(),
        "cells": [
            {
                "values": dict(cell.values),
                "metrics": {
                    key: {"mean": spread.mean, "std": spread.std, "values": list(spread.values)}
                    for key, spread in cell.metrics.items()
                },
                "note": cell.note,
            }
            for cell in found.cells
        ],
        "protocol": dict(found.protocol),
        "work": found.work,
    }


def to_csv(found: Finding) -> str:
    """One row per cell, in the order of the map, with all metrics."""
    file = io.StringIO()
    keys = [column.key for column in found.columns]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*found.varied, "seeds", *(name for key in keys for name in (key, f"{key}_std")), "note"])
    for cell in found.cells:
        seeds = max((len(spread.values) for spread in cell.metrics.values()), default=0)
        numbers: list[Any] = []
        for key in keys:
            spread = cell.metrics.get(key)
            numbers += ["", ""] if spread is None else [spread.mean, "" if spread.std is None else spread.std]
        writer.writerow([*cell.values.values(), seeds, *numbers, cell.note])
    return file.getvalue()


def write(found: Finding, run: Path) -> None:
    """Writes RUN/sweep.json and RUN/sweep.csv, each atomically."""
    atomic_bytes(run / JSON, (json.dumps(to_json(found), indent=1) + "\n").encode())
    atomic_bytes(run / CSV, to_csv(found).encode())


def read(run: Path) -> Finding | None:
    """The map of a run; None if there is none. Raises UsageError if its file cannot be read as one."""
    path = run / JSON
    if not path.exists():
        return None
    value = read_json(path, "a map of scaledit sweep", "delete it", UsageError)
    try:
        cells = tuple(
            Found(
                {str(axis): str(word) for axis, word in cell["values"].items()},
                {
                    str(key): Spread(
                        float(one["mean"]),
                        None if one["std"] is None else float(one["std"]),
                        tuple(map(float, one["values"])),
                    )
                    for key, one in cell["metrics"].items()
                },
                str(cell["note"]),
            )
            for cell in value["cells"]
        )
        found = Finding(
            step=int(value["step"]),
            varied=tuple(map(str, value["varied"])),
            axes={str(axis): tuple(map(str, words)) for axis, words in value["axes"].items()},
            cells=cells,
            columns=tuple(Column(**one) for one in value["columns"]),
            best=value["best"],
            command=str(value["command"]),
            protocol=dict(value["protocol"]),
            work=str(value["work"]),
        )
        _ = found.rows(), found.header(), found.verdict()
        if not found.columns or any(cell.values.keys() != set(found.varied) for cell in cells):
            raise ValueError("its cells do not fit its axes")
    except Exception as error:  # an edited file can raise anything
        raise UsageError(f"{path} cannot be read as a map of scaledit sweep ({error}); delete it") from None
    return found
