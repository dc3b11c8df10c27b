"""The table of a study: one row per result, with its cost and how it was measured; CSV and SQLite.

    images = batch_size * steps    train_macs = 3 macs * images (`compute`)    sampling_macs = macs * passes

A folder holds everything that figures and verdicts are made from:

    table.csv   losses.csv   study.json (what was run, on what; protocols and configs by key)   pictures/
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import sqlite3
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

from scaledit import part
from scaledit.config import old
from scaledit.diffusion import CFGZeroStar, ClassifierFree, Sampler
from scaledit.errors import UsageError, reading, shown
from scaledit.evaluation.metric import Column, built_in_columns, columns
from scaledit.files.atomic import atomic_bytes, atomic_path
from scaledit.files.reading import picture_in, read_json

TABLE, LOSSES, ABOUT, PICTURES = "table.csv", "losses.csv", "study.json", "pictures"
SQLITE = "table.sqlite"
FINAL, TRAINING, SAMPLING, GUIDANCE, DECODER = "final", "training", "sampling", "guidance", "decoder"
"""Parts of a table: at the end of training, during it, over sampling steps, over guidance, over decoders."""

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Row:
    """One result.

    name: of the run, such as "XL/1" or "XL/2 adaln seed 1". part: one of the names above. size: "XL", or
    depth x width if the study names no sizes. macs: multiply-adds of one forward pass at batch 1. steps,
    images, train_macs: of training, up to this result. loss: mean training loss of the last tenth of those
    steps. fd: the study's distance (`About.distance`); fd_std: its deviation over sample seeds. num: images
    per sample seed; sample_sets: number of sample seeds. sampling_macs: of one image. metrics: every metric
    by its name in evaluation.metric.columns, with "_std" over sample seeds and "_real" of held-out real
    images. settings: what else the study varies, by 'section.key'. protocol: a key of `About.protocols`.
    sampler, guidance: the complete parts as JSON (`cell`): {"name": "ddpm", "steps": 250, ...}, and a list of
    such.
    """

    name: str
    part: str
    size: str
    patch_size: int
    conditioning: str
    tokens: int
    params: int
    macs: int
    batch_size: int
    steps: int
    images: int
    train_macs: int
    seed: int
    loss: float | None
    fd: float | None
    fd_std: float | None
    sampler: str
    guidance: str
    decoder: str
    sampling_macs: int
    num: int
    sample_sets: int
    protocol: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """XL/1"""
        return f"{self.size}/{self.patch_size}"

    @property
    def area(self) -> int:
        """Pixels, or latents, of an input; results compare only at equal input sizes."""
        return self.tokens * self.patch_size**2

    @property
    def distance(self) -> float:
        """`fd` of a row that was evaluated."""
        assert self.fd is not None
        return self.fd

    @property
    def sampling_steps(self) -> int:
        return json.loads(self.sampler).get("steps", 0)

    @property
    def method(self) -> str:
        """The sampler without its steps, as JSON."""
        return cell({key: value for key, value in json.loads(self.sampler).items() if key != "steps"})

    @property
    def sampler_title(self) -> str:
        """The sampler's name in captions."""
        name = json.loads(self.sampler)["name"]
        known = part.members(Sampler).get(name)
        return name if known is None else known.TITLE

    @property
    def guidance_scale(self) -> float:
        """The scale of classifier-free guidance, or of CFG-Zero*; 1 without it."""
        return float(self._classifier_free.get("scale", 1.0))

    @property
    def guided_channels(self) -> str:
        """How many channels classifier-free guidance acts on, such as "3", or "all"."""
        return str(self._classifier_free.get("channels", "all"))

    @property
    def _classifier_free(self) -> dict[str, Any]:
        parts = json.loads(self.guidance)
        return next((entry for entry in parts if entry["name"] == ClassifierFree.NAME), {}) or next(
            (entry for entry in parts if entry["name"] == CFGZeroStar.NAME), {}
        )

    @property
    def other_guidance(self) -> str:
        """The parts beside classifier-free guidance, in words; "" if there are none."""
        others = [entry for entry in json.loads(self.guidance) if entry["name"] != ClassifierFree.NAME]
        return part.in_words(others) if others else ""

    @property
    def gflops(self) -> float:
        """1e9 multiply-adds of a forward pass, as the paper counts them."""
        return self.macs / 1e9

    def metric(self, name: str) -> float | None:
        return self.metrics.get(name)


def cell(value: Any) -> str:
    """A part, or a list of parts, as plain values, as the cell of a table."""
    return json.dumps(value)


class Loss(NamedTuple):
    """Training loss of a run: the mean over the logged steps since the previous entry of the run."""

    name: str
    steps: int
    loss: float


@dataclass(frozen=True)
class About:
    """The description of a study.

    command: reproduces it. distance: the title of `fd` ("FD-digits"). floor: `fd` of held-out real images,
    None if unknown. sizes: by rising size. protocols, configs: by the key that rows carry and by the run's
    name. made: processor and versions where the table was collected, and the hours of all workers. declared:
    the study's TOML. varied: of a sweep, the values of each run by 'section.key', without the seed; empty for
    studies of the paper's claims. failed: why runs of a sweep or of an ablation have no result. ablation: of
    a study of switches, its switches, seeds, budget, references and chosen rates (`ablation_verdicts`).
    """

    name: str
    title: str
    command: str
    distance: str
    floor: float | None = None
    sizes: tuple[str, ...] = ()
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    declared: str = ""
    varied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    ablation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The names of the sets that runs were trained on (`data.name`)."""
        data = (config.get("data") for config in self.configs.values() if isinstance(config, Mapping))
        names = (one.get("name") for one in data if isinstance(one, Mapping))
        return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))

    def to_json(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if value or key not in ("varied", "failed", "ablation")
        }


@dataclass(frozen=True)
class Table:
    """rows, losses: in the order of the study. pictures: by run, PNGs of samples from the same noise and
    labels."""

    about: About
    rows: tuple[Row, ...]
    losses: tuple[Loss, ...] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    def part(self, part: str, where: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        return [row for row in self.rows if row.part == part and where(row)]

    def models(self) -> list[Row]:
        """The grid of sizes and patches at the end of training, one row per (size, patch), seeds averaged, by
        rising multiply-adds. Of everything else that varies (block design, steps, input size, settings) the
        most frequent value is taken."""
        rows = usual(
            self.part(FINAL),
            lambda row: row.conditioning,
            lambda row: row.steps,
            lambda row: row.area,
            lambda row: dict(row.settings),
        )
        return sorted(over_seeds(rows, lambda row: (row.size, row.patch_size)), key=lambda row: row.macs)

    def trained(self) -> list[Row]:
        """Every training at its end, seeds averaged, in the study's order."""
        return over_seeds(self.part(FINAL), training_key)

    def blocks(self) -> list[Row]:
        """One row per block design, seeds averaged, at the model that was trained with most of them."""
        models = grouped(
            self.part(FINAL),
            lambda row: (row.size, row.patch_size, row.tokens, row.steps, str(dict(row.settings))),
        )
        rows = max(models.values(), key=lambda rows: len({row.conditioning for row in rows}), default=[])
        return over_seeds(rows, lambda row: row.conditioning)


def evaluated(rows: Iterable[Row]) -> list[Row]:
    """The rows that have a distance."""
    return [row for row in rows if row.fd is not None]


def usual(rows: Iterable[Row], *keys: Callable[[Row], Any]) -> list[Row]:
    """The rows with the most frequent value of each key, one key after the other; the first of several."""
    rows = list(rows)
    for key in keys:
        values = [key(row) for row in rows]
        most = max(values, key=values.count, default=None)
        rows = [row for row, value in zip(rows, values, strict=True) if value == most]
    return rows


def grouped(items: Iterable[T], key: Callable[[T], Key]) -> dict[Key, list[T]]:
    """The items by their key; keys and items in order of appearance."""
    groups: dict[Key, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def training_key(row: Row) -> tuple[Any, ...]:
    """Equal for training runs that differ only in their seed."""
    return (
        row.size,
        row.patch_size,
        row.conditioning,
        row.tokens,
        row.steps,
        row.batch_size,
        str(dict(row.settings)),
    )


def over_seeds(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> list[Row]:
    """One row per key, named after the first of its rows: loss, fd and metrics are means over them, fd_std is
    the deviation over them if there are several."""
    return [_mean(group) for group in grouped(rows, key).values()]


def _mean(group: Sequence[Row]) -> Row:
    if len(group) == 1:
        return group[0]

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    fd = mean(row.fd for row in group)
    known = [row.fd for row in group if row.fd is not None]
    spread = None
    if fd is not None and len(known) > 1:
        spread = math.sqrt(sum((value - fd) ** 2 for value in known) / (len(known) - 1))
    means = {name: mean(row.metric(name) for row in group) for name in group[0].metrics}
    metrics = {name: value for name, value in means.items() if value is not None}
    return dataclasses.replace(
        group[0], loss=mean(row.loss for row in group), fd=fd, fd_std=spread, metrics=metrics
    )


PLAIN = tuple(f.name for f in dataclasses.fields(Row) if f.name not in ("metrics", "settings"))
POSITIVE = ("fd", "patch_size", "tokens", "params", "macs", "batch_size")
"""Columns that are divided by, or whose logarithm is taken."""
MAX_DIGITS = 30
"""Of a whole number in a table."""
MAX_CSV_BYTES = 1 << 27


def to_csv(rows: Sequence[Row]) -> str:
    """A header and one line per row; metrics and settings are columns of their own. Numbers are written by
    repr, which reads back as the same number."""
    columns = _columns(rows)
    return _csv(columns, (_cells(row, columns) for row in rows))


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _columns(rows: Sequence[Row]) -> list[str]:
    names = {name for row in rows for name in row.metrics}
    own = [name for name in with_spreads(built_in_columns()) if name in names]
    settings = sorted({name for row in rows for name in row.settings})
    return [*PLAIN, *own, *sorted(names - set(own)), *settings]


def _cells(row: Row, columns: Sequence[str]) -> list[Any]:
    values = {name: getattr(row, name) for name in PLAIN} | dict(row.metrics) | dict(row.settings)
    return ["" if values.get(column) is None else values[column] for column in columns]


def with_spreads(keys: Iterable[str]) -> list[str]:
    """The columns of metrics: each, its deviation over sample seeds, and its value for real images."""
    return [name for key in keys for name in (key, f"{key}_std", f"{key}_real")]


def from_csv(text: str, name: str, metrics: Mapping[str, Column] | None = None) -> list[Row]:
    """The inverse of `to_csv`. name: of the file, for messages. metrics: the columns that hold metrics, None
    for scaledit's own. Raises UsageError."""
    metric_columns = frozenset(with_spreads(built_in_columns() if metrics is None else metrics))
    hints = get_type_hints(Row)
    rows = []
    with reading(name, "a study's table", error=UsageError):
        lines = csv.DictReader(io.StringIO(text))
        columns = list(lines.fieldnames or ())
        duplicates = [column for column in columns if columns.count(column) > 1]
        if duplicates:
            raise UsageError(f"{name}: the column {shown(duplicates[0])} appears twice")
        for number, line in enumerate(lines, start=2):
            try:
                rows.append(_row(old.row(line), hints, metric_columns))
            except ValueError as error:
                raise UsageError(f"{name}, line {number}: {error}") from None
    return rows


def _row(cells: dict[Any, Any], hints: Mapping[str, Any], metric_columns: frozenset[str]) -> Row:
    """Raises ValueError."""
    missing = [column for column in PLAIN if cells.get(column) is None]
    if missing:
        raise ValueError(f"it has no column {missing[0]}, so it may not be a study's table")
    if None in cells:
        raise ValueError("it has more cells than there are columns")
    plain = {column: _parse(hints[column], column, cells.pop(column)) for column in PLAIN}
    filled = {key: text for key, text in cells.items() if text}
    metrics = {key: _finite(key, text) for key, text in filled.items() if key in metric_columns}
    settings = {key: text for key, text in filled.items() if key not in metric_columns}
    return Row(**plain, metrics=metrics, settings=settings)


def _parse(kind: Any, column: str, text: str) -> Any:
    """The value of a cell of one of a Row's own columns. Raises ValueError."""
    if column in ("sampler", "guidance"):
        return _parse_parts(column, text)
    if kind is str:
        return text
    if kind is int:
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
            raise ValueError(f"{column} must be a whole number of at least 0, got {shown(text)}")
        return int(text)
    if text == "" and kind is not float:  # float | None
        return None
    return _finite(column, text)


def _parse_parts(column: str, text: str) -> str:
    """A part, or for "guidance" a list of parts, as `cell` writes them. Raises ValueError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{column} must be JSON of parts, got {shown(text)}") from None
    for entry in value if column == "guidance" and isinstance(value, list) else [value]:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{column} must be JSON of parts, each with its name, got {shown(text)}")
        steps, scale = entry.get("steps", 0), entry.get("scale", 1.0)
        if type(steps) is not int or steps < 0:
            raise ValueError(f"{column} has steps {shown(steps)}, which must be a whole number of at least 0")
        if type(scale) not in (int, float) or not math.isfinite(scale):
            raise ValueError(f"{column} has scale {shown(scale)}, which must be a finite number")
    return cell(value)


def _finite(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{column} must be a finite number, got {shown(text)}")
    return value


def write(table: Table, folder: Path) -> None:
    """Writes folder/table.csv, losses.csv, study.json and pictures/."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    about = json.dumps(table.about.to_json(), indent=1) + "\n"
    losses = _csv(Loss._fields, table.losses)
    for name, text in ((TABLE, to_csv(table.rows)), (LOSSES, losses), (ABOUT, about)):
        atomic_bytes(folder / name, text.encode())
    for name, png in table.pictures.items():
        atomic_bytes(folder / PICTURES / f"{file_name(name)}.png", png)


def read(folder: Path) -> Table:
    """The inverse of `write`. Raises UsageError if files are missing or corrupt."""
    path = folder / TABLE
    for name in (TABLE, ABOUT):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} contains no study: {folder / name} is missing")
    about = _about(folder / ABOUT)
    with reading(folder / ABOUT, "the description of a study", error=UsageError):
        metrics = columns(*about.protocols.values())
    rows = tuple(from_csv(_text(path), str(path), metrics))
    for number, row in enumerate(rows, start=2):
        for column in POSITIVE:
            value = getattr(row, column)
            if value is not None and value <= 0:
                raise UsageError(f"{path}, line {number}: {column} is {value}, which must be above 0")
    files = {row.name: f"{PICTURES}/{file_name(row.name)}.png" for row in rows}
    try:
        pictures = {run: picture_in(folder, file) for run, file in files.items() if (folder / file).exists()}
    except ValueError as reason:
        raise UsageError(f"{folder}: an image of the study cannot be shown: {reason}") from None
    return Table(about, rows, _losses(folder / LOSSES), pictures)


def _text(path: Path) -> str:
    with reading(path, "a study's table", error=UsageError):
        if path.stat().st_size > MAX_CSV_BYTES:
            raise ValueError(f"it has {path.stat().st_size / 1e6:.0f} MB")
        return path.read_text(encoding="utf-8")


def _losses(path: Path) -> tuple[Loss, ...]:
    losses = []
    with reading(path, "a study's losses", error=UsageError):
        for number, line in enumerate(csv.DictReader(io.StringIO(_text(path))), start=2):
            if any(line.get(column) is None for column in Loss._fields):
                raise ValueError(f"line {number} lacks one of {', '.join(Loss._fields)}")
            try:
                steps, loss = _parse(int, "steps", line["steps"]), _finite("loss", line["loss"])
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            losses.append(Loss(line["name"], steps, loss))
    return tuple(losses)


def _about(path: Path) -> About:
    """Raises UsageError."""
    what = "the description of a study"
    about = read_json(path, what, error=UsageError)
    with reading(path, what, error=UsageError):
        for key, value in about.items():
            if not _fits(key, value):
                raise ValueError(f"{key} is {shown(value)}")
        json.dumps(about, ensure_ascii=False).encode()  # lone surrogates could not be written again
        return About(**{**about, "sizes": tuple(about.get("sizes", ()))})


def _fits(key: str, value: Any) -> bool:
    """Whether the value of a key of study.json has the type of the field of About, which refuses unknown
    keys."""
    match key:
        case "name" | "title" | "command" | "distance" | "declared":
            return isinstance(value, str)
        case "floor":
            return value is None or (type(value) in (int, float) and math.isfinite(value))
        case "sizes":
            return isinstance(value, list) and all(isinstance(size, str) for size in value)
        case "protocols" | "configs" | "varied":
            return isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values())
        case "made" | "ablation":
            return isinstance(value, dict)
        case "failed":
            return isinstance(value, dict) and all(isinstance(reason, str) for reason in value.values())
    return True


def to_sqlite(table: Table, path: Path) -> None:
    """Writes the tables results, losses, protocols and configs, for queries in SQL."""
    columns = _columns(table.rows)
    with atomic_path(path) as partial, closing(sqlite3.connect(partial)) as base:
        base.execute(f"CREATE TABLE results ({', '.join(_quoted(column) for column in columns)})")
        marks = ", ".join("?" * len(columns))
        cells = (list(map(_in_sql, _cells(row, columns))) for row in table.rows)
        base.executemany(f"INSERT INTO results VALUES ({marks})", cells)
        base.execute("CREATE TABLE losses (name, steps, loss)")
        base.executemany("INSERT INTO losses VALUES (?, ?, ?)", table.losses)
        for name, values in (("protocols", table.about.protocols), ("configs", table.about.configs)):
            base.execute(f"CREATE TABLE {name} (key PRIMARY KEY, json)")
            pairs = ((key, json.dumps(value)) for key, value in values.items())
            base.executemany(f"INSERT INTO {name} VALUES (?, ?)", pairs)
        base.commit()


def _in_sql(cell: Any) -> Any:
    """A cell for SQLite, whose integers have 64 bits: larger ones are rounded to floats."""
    if isinstance(cell, int) and cell >= 1 << 63:
        return float(cell)
    return None if cell == "" else cell


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def file_name(run: str) -> str:
    """A run's name as the name of a file: 'XL/1 adaln' -> 'XL-1-adaln'."""
    return run.replace("/", "-").replace(" ", "-").replace(":", "-")  # as in my_blocks:Parallel
