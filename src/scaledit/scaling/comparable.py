"""Which results of a study can be compared, as points and curves for `fits` and `frontier`.

    comparable:  one image size, block design, number of images, sampler, guidance and decoder

Image size and block design are those of the grid of models (`Table.models`); seeds are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from scaledit.errors import UsageError
from scaledit.scaling import printed_table
from scaledit.scaling.frontier import Curve, Point, curve
from scaledit.scaling.table import FINAL, TRAINING, Row, Table, over_seeds, read

PAPER = "paper"
"""The name of the paper's own table as a study."""

Key = TypeVar("Key")
How = tuple[int, str, str, str]


def study(name: str) -> Table:
    """The paper's table for "paper", else the study in that folder. Raises UsageError."""
    if name == PAPER:
        return printed_table.table()
    if not Path(name).is_dir():
        raise UsageError(f"there is no study {name}; give the folder of one (with its table.csv), or paper")
    return read(Path(name))


def finished(table: Table) -> list[Row]:
    """All results measured as most are at the end of training, those during training among them.

    Raises UsageError for a study in which no model finished and has a distance.
    """
    return _measured_as(table, FINAL)


def over_training(table: Table) -> list[Row]:
    """All results measured as most are during training, where more results are, if coarser ones: those of
    `finished` in a study without any. Raises UsageError as `finished` does."""
    return _measured_as(table, TRAINING if _of_grid(table, (TRAINING,)) else FINAL)


def points(rows: Iterable[Row]) -> dict[Point, Row]:
    """Each result that has a distance as (model, training multiply-adds, distance)."""
    return {Point(row.model, float(row.train_macs), row.fd): row for row in rows if row.fd is not None}


def curves(rows: Iterable[Row]) -> list[Curve]:
    """A curve a model (size, patch, batch size), its size in multiply-adds of a forward pass."""
    models: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        models.setdefault((row.size, row.patch_size, row.batch_size), []).append(row)
    return [
        curve(rows[0].model, rows[0].macs, [(row.train_macs, row.fd) for row in rows if row.fd is not None])
        for rows in models.values()
    ]


def usual(rows: Sequence[Row], key: Callable[[Row], Key]) -> Key:
    """The most frequent value; of equally frequent ones the first. rows: at least one."""
    values = [key(row) for row in rows]
    return max(values, key=values.count)


def _measured_as(table: Table, part: str) -> list[Row]:
    models = _of_grid(table, (part,))
    if not models:
        raise UsageError(
            f"study {table.about.name} has no distance of a model that finished; run and evaluate it first"
        )
    how = usual(models, _how)
    rows = [row for row in _of_grid(table, (FINAL, TRAINING)) if _how(row) == how]
    return over_seeds(rows, lambda row: (row.size, row.patch_size, row.batch_size, row.steps))


def _how(row: Row) -> How:
    """How a distance was measured."""
    return row.num, row.sampler, row.guidance, row.decoder


def _of_grid(table: Table, parts: tuple[str, ...]) -> list[Row]:
    """Results after some training with a distance, of the grid's image size and block design."""
    models = table.models()
    if not models:
        return []
    grid = _kind(models[0])
    return [
        row
        for row in table.rows
        if row.part in parts
        and _kind(row) == grid
        and row.train_macs > 0
        and row.fd is not None
        and row.fd > 0
    ]


def _kind(row: Row) -> tuple[str, int]:
    return row.conditioning, row.tokens * row.patch_size**2
