"""Which results of a study can be compared, as points and curves for `fits` and `frontier`.

    comparable:  equal image size, block design, number of images, sampler, guidance and decoder

Image size and block design are those of the grid of models (`Table.models`); seeds are averaged.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from scaledit.errors import UsageError, near_path
from scaledit.scaling import printed_table
from scaledit.scaling.frontier import Curve, Point, curve
from scaledit.scaling.table import FINAL, TRAINING, Row, Table, evaluated, grouped, over_seeds, read

PAPER = "paper"
"""The name of the paper's own table as a study."""


def study(name: str) -> Table:
    """The paper's table for "paper", else the study in that folder. Raises UsageError if there is none."""
    if name == PAPER:
        return printed_table.table()
    if not Path(name).is_dir():
        raise UsageError(
            f"there is no study {name}{near_path(name)}; use a folder with a table.csv, or paper"
        )
    return read(Path(name))


def finished(table: Table) -> list[Row]:
    """All results measured like most results at the end of training, those during training included.

    Raises UsageError for a study in which no model finished and has a distance.
    """
    return _measured_like(table, FINAL)


def over_training(table: Table) -> list[Row]:
    """All results measured like most results during training, which are more but may be coarser; those of
    `finished` in a study without any. Raises UsageError as `finished` does."""
    return _measured_like(table, TRAINING if _of_grid(table, TRAINING) else FINAL)


def points(rows: Iterable[Row]) -> dict[Point, Row]:
    """Each result that has a distance by its point (model, training multiply-adds, distance)."""
    return {Point(row.model, float(row.train_macs), row.distance): row for row in evaluated(rows)}


def curves(rows: Iterable[Row]) -> list[Curve]:
    """One curve per model (size, patch, batch size); its size is the multiply-adds of a forward pass."""
    models = grouped(rows, lambda row: (row.size, row.patch_size, row.batch_size)).values()
    return [
        curve(rows[0].model, rows[0].macs, [(row.train_macs, row.distance) for row in evaluated(rows)])
        for rows in models
    ]


def _measured_like(table: Table, part: str) -> list[Row]:
    def protocol(row: Row) -> tuple[int, str, str, str]:
        return row.num, row.sampler, row.guidance, row.decoder

    models = _of_grid(table, part)
    if not models:
        raise UsageError(
            f"study {table.about.name} has no distance of a model that finished; run and evaluate it first"
        )
    most = statistics.mode(protocol(row) for row in models)
    rows = [row for row in _of_grid(table, FINAL, TRAINING) if protocol(row) == most]
    return over_seeds(rows, lambda row: (row.size, row.patch_size, row.batch_size, row.steps))


def _of_grid(table: Table, *parts: str) -> list[Row]:
    """Results after some training with a distance, of the grid's image size and block design."""
    models = table.models()
    if not models:
        return []
    grid = models[0].conditioning, models[0].area
    return [
        row
        for row in evaluated(table.rows)
        if row.part in parts
        and (row.conditioning, row.area) == grid
        and row.train_macs > 0
        and row.distance > 0
    ]
