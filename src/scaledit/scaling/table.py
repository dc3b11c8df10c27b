"""A study's table: a row a result, with what it cost and how it was measured; CSV and SQLite.

    images = batch_size * steps      train_macs = 3 macs * images      sampling_macs = macs * passes

A folder holds all that figures and verdicts are made from:

    table.csv   losses.csv   study.json (what was run, on what; protocols and configs by key)   pictures/
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from scaledit import part
from scaledit.config import old
from scaledit.diffusion import ClassifierFree, Sampler
from scaledit.errors import UsageError, reading, shown
from scaledit.evaluation.metric import Column, built_in_columns, columns
from scaledit.files.atomic import atomic_bytes, atomic_path
from scaledit.files.reading import picture_in, read_json

TABLE, LOSSES, ABOUT, PICTURES = "table.csv", "losses.csv", "study.json", "pictures"
SQLITE = "table.sqlite"
FINAL, TRAINING, SAMPLING, GUIDANCE, DECODER = "final", "training", "sampling", "guidance", "decoder"
"""Parts of a table: at the end of training, during it, over sampling steps, over guidance, over decoders."""


@dataclass(frozen=True)
class Row:
    """One result.

    name: the run's, such as "XL/1" or "XL/2 adaln seed 1". part: one of the names above. size: "XL", or
    depth x width where a study names no sizes. macs: multiply-adds of one forward pass at batch 1. steps,
    images, train_macs: of training, up to this result. loss: mean training loss of the last tenth of those
    steps. fd: the study's distance (`About.distance`), fd_std over sample seeds. num: images a sample seed;
    sample_sets: how many sample seeds. sampling_macs: of one image. metrics: every figure by its name in
    evaluation.metric.columns, with "_std" over sample seeds and "_real" of real held-out images. settings:
    what else the study varies, by 'section.key'. protocol: a key of `About.protocols`. sampler, guidance: the
    parts whole, as JSON (`cell`): {"name": "ddpm", "steps": 250, ...} and a list of such.
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
    def sampling_steps(self) -> int:
        """Of the sampler."""
        return json.loads(self.sampler).get("steps", 0)

    @property
    def method(self) -> str:
        """The sampler whole but for its steps, as JSON."""
        return cell({key: value for key, value in json.loads(self.sampler).items() if key != "steps"})

    @property
    def sampler_title(self) -> str:
        """The sampler's name for people."""
        name = json.loads(self.sampler)["name"]
        known = part.members(Sampler).get(name)
        return name if known is None else known.TITLE

    @property
    def guidance_scale(self) -> float:
        """Of classifier-free guidance; 1 where there is none."""
        return float(self._classifier_free.get("scale", 1.0))

    @property
    def guided_channels(self) -> str:
        """The first ones that classifier-free guidance is of, "3", or "all"."""
        return str(self._classifier_free.get("channels", "all"))

    @property
    def _classifier_free(self) -> dict[str, Any]:
        parts = json.loads(self.guidance)
        return next((one for one in parts if one["name"] == ClassifierFree.NAME), {})

    @property
    def gflops(self) -> float:
        """1e9 multiply-adds of a forward pass, as the paper counts them."""
        return self.macs / 1e9

    def metric(self, name: str) -> float | None:
        """A figure of `metrics`, or None where this result has none."""
        return self.metrics.get(name)


def cell(said: Any) -> str:
    """A part, or a list of parts, as a cell of a table: plain values as JSON."""
    return json.dumps(said)


class Loss(NamedTuple):
    """Training loss of a run: the mean over the logged steps since the loss before it in the list."""

    name: str
    steps: int
    loss: float


@dataclass(frozen=True)
class About:
    """What a study is.

    command: makes it again. distance: what `fd` is, as printed ("FD-digits"). floor: `fd` of real held-out
    images, None if unknown. sizes: from the smallest on. protocols, configs: by the key that rows carry and
    by the run's name. made: processor and versions where the table was put together, and the hours of all
    workers. declared: the study's TOML.
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


@dataclass(frozen=True)
class Table:
    """rows, losses in the order of the study. pictures: PNGs of the same noise and labels, by run."""

    about: About
    rows: tuple[Row, ...]
    losses: tuple[Loss, ...] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    def part(self, part: str, where: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        return [row for row in self.rows if row.part == part and where(row)]

    def models(self) -> list[Row]:
        """The grid of sizes and patches after all of its training: of what else varies (block design, steps,
        image size, settings) the value that most results have, a row a (size, patch), seeds averaged; from
        the fewest multiply-adds on."""
        rows = self.part(FINAL)
        for of in _BESIDES:
            values = [of(row) for row in rows]
            usual = max(values, key=values.count, default=None)
            rows = [row for row, value in zip(rows, values, strict=True) if value == usual]
        return sorted(over_seeds(rows, lambda row: (row.size, row.patch_size)), key=lambda row: row.macs)

    def trained(self) -> list[Row]:
        """Every training at its end, seeds averaged, in the study's order."""
        return over_seeds(self.part(FINAL), training)

    def blocks(self) -> list[Row]:
        """The block designs at the model that has most of them, a row each, seeds averaged."""

        def model(row: Row) -> tuple[Any, ...]:
            return (row.size, row.patch_size, row.tokens, row.steps, str(dict(row.settings)))

        final = self.part(FINAL)
        designs: dict[tuple[Any, ...], set[str]] = {}
        for row in final:
            designs.setdefault(model(row), set()).add(row.conditioning)
        most = max(designs, key=lambda key: len(designs[key]), default=None)
        rows = [row for row in final if model(row) == most]
        return over_seeds(rows, lambda row: (row.conditioning,))


_BESIDES: tuple[Callable[[Row], Any], ...] = (
    lambda row: row.conditioning,
    lambda row: row.steps,
    lambda row: row.tokens * row.patch_size**2,
    lambda row: dict(row.settings),
)
"""What a grid of sizes and patches is read at one value of."""


def training(row: Row) -> tuple[Any, ...]:
    """What two trainings share that differ in their seed only."""
    return (
        row.size,
        row.patch_size,
        row.conditioning,
        row.tokens,
        row.steps,
        row.batch_size,
        str(dict(row.settings)),
    )


def over_seeds(rows: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]) -> list[Row]:
    """A row a key: loss, fd and metrics are means over the rows of that key, fd_std the deviation over them
    where there are several, named after the first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [_mean(group) for group in groups.values()]


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
    metrics = {
        name: value
        for name in group[0].metrics
        if (value := mean(row.metric(name) for row in group)) is not None
    }
    return dataclasses.replace(
        group[0], loss=mean(row.loss for row in group), fd=fd, fd_std=spread, metrics=metrics
    )


PLAIN = tuple(f.name for f in dataclasses.fields(Row) if f.name not in ("metrics", "settings"))


def to_csv(rows: Sequence[Row]) -> str:
    """A header and a line a row; metrics and settings are columns of their own names. Numbers as Python's
    repr, which reads back as the same number."""
    columns = _columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(_cells(row, columns))
    return text.getvalue()


def _columns(rows: Sequence[Row]) -> list[str]:
    names = {name for row in rows for name in row.metrics}
    own = [name for name in with_spreads(built_in_columns()) if name in names]
    metrics = [*own, *sorted(names - set(own))]
    settings = sorted({name for row in rows for name in row.settings})
    return [*PLAIN, *metrics, *settings]


def _cells(row: Row, columns: Sequence[str]) -> list[Any]:
    values = {name: getattr(row, name) for name in PLAIN} | dict(row.metrics) | dict(row.settings)
    return ["" if values.get(column) is None else values[column] for column in columns]


POSITIVE = ("fd", "patch_size", "tokens", "params", "macs", "batch_size")
"""What laws and figures take the logarithm of, or divide by."""
DIGITS = 30
"""Of a whole number: more multiply-adds than there will be."""


def with_spreads(keys: Iterable[str]) -> list[str]:
    """The columns of metrics: each, its deviation over sample seeds, and that of real images."""
    return [name for key in keys for name in (key, f"{key}_std", f"{key}_real")]


def from_csv(text: str, name: str, metrics: Mapping[str, Column] | None = None) -> list[Row]:
    """The inverse of `to_csv`. name: of the file, for messages. metrics: the columns that hold metrics, None
    for scaledit's own. Raises UsageError."""
    known_metrics = frozenset(with_spreads(built_in_columns() if metrics is None else metrics))
    hints = get_type_hints(Row)
    rows = []
    with reading(name, "a study's table", error=UsageError):
        lines = csv.DictReader(io.StringIO(text))
        columns = list(lines.fieldnames or ())
        twice = [column for column in columns if columns.count(column) > 1]
        if twice:
            raise UsageError(f"{name}: the column {shown(twice[0])} is there twice")
        for number, values in enumerate(lines, start=2):
            try:
                values = old.row(values)
            except ValueError as error:
                raise UsageError(f"{name}, line {number}: {error}") from None
            missing = [column for column in PLAIN if values.get(column) is None]
            if missing:
                raise UsageError(f"{name}, line {number}: no column {missing[0]}; is it a study's table?")
            if None in values:
                raise UsageError(f"{name}, line {number} has more cells than there are columns")
            try:
                plain = {column: _read(hints[column], column, values.pop(column)) for column in PLAIN}
                filled = {key: value for key, value in values.items() if value}
                found = {key: _finite(key, value) for key, value in filled.items() if key in known_metrics}
            except ValueError as error:
                raise UsageError(f"{name}, line {number}: {error}") from None
            settings = {key: value for key, value in filled.items() if key not in known_metrics}
            rows.append(Row(**plain, metrics=found, settings=settings))
    return rows


def _read(kind: Any, column: str, text: str) -> Any:
    """A cell of one of a Row's own columns. Raises ValueError."""
    if column in ("sampler", "guidance"):
        return _read_parts(column, text)
    if kind is str:
        return text
    if kind is int:
        if not (text.isascii() and text.isdigit() and len(text) <= DIGITS):
            raise ValueError(f"{column} must be a whole number from 0 on, it is {shown(text)}")
        return int(text)
    if text == "" and kind is not float:  # float | None
        return None
    return _finite(column, text)


def _read_parts(column: str, text: str) -> str:
    """A part, or for "guidance" a list of parts, as `cell` writes them. Raises ValueError."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{column} must be JSON of parts, it is {shown(text)}") from None
    for one in said if column == "guidance" and isinstance(said, list) else [said]:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise ValueError(f"{column} must be JSON of parts, each with its name; it is {shown(text)}")
        if type(one.get("steps", 0)) is not int or one.get("steps", 0) < 0:
            raise ValueError(f"{column} has steps {shown(one['steps'])}, which is no whole number from 0 on")
        scale = one.get("scale", 1.0)
        if type(scale) not in (int, float) or not math.isfinite(scale):
            raise ValueError(f"{column} has the scale {shown(scale)}, which is no finite number")
    return cell(said)


def _finite(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{column} must be a finite number, it is {shown(text)}")
    return value


def write(table: Table, folder: Path) -> None:
    """Makes folder/table.csv, losses.csv, study.json and pictures/."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    losses = io.StringIO()
    writer = csv.writer(losses, lineterminator="\n")
    writer.writerow(Loss._fields)
    writer.writerows(table.losses)  # every digit: what is drawn from the file is what was drawn before
    about = json.dumps(dataclasses.asdict(table.about), indent=1) + "\n"
    for name, text in ((TABLE, to_csv(table.rows)), (LOSSES, losses.getvalue()), (ABOUT, about)):
        atomic_bytes(folder / name, text.encode())
    for name, png in table.pictures.items():
        atomic_bytes(folder / PICTURES / f"{file_name(name)}.png", png)


def read(folder: Path) -> Table:
    """The inverse of `write`. Raises UsageError where a study's files are missing or corrupt."""
    for name in (TABLE, ABOUT):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} holds no study: there is no {folder / name}")
    made = _about(folder / ABOUT)
    with reading(folder / ABOUT, "what a study is", error=UsageError):
        metrics = columns(*made.protocols.values())
    rows = tuple(from_csv(_text(folder / TABLE), str(folder / TABLE), metrics))
    for number, row in enumerate(rows, start=2):
        for column in POSITIVE:
            value = getattr(row, column)
            if value is not None and value <= 0:
                raise UsageError(
                    f"{folder / TABLE}, line {number}: {column} is {value}, which must be above 0"
                )
    losses = _losses(folder / LOSSES)
    names = dict.fromkeys(row.name for row in rows)
    files = {name: f"{PICTURES}/{file_name(name)}.png" for name in names}
    try:
        pictures = {
            name: picture_in(folder, file) for name, file in files.items() if (folder / file).exists()
        }
    except ValueError as reason:
        raise UsageError(f"{folder}: a study's picture cannot be shown: {reason}") from None
    return Table(made, rows, losses, pictures)


LARGEST_CSV = 1 << 27
"""Bytes."""


def _text(path: Path) -> str:
    with reading(path, "a study's table", error=UsageError):
        if path.stat().st_size > LARGEST_CSV:
            raise ValueError(f"it has {path.stat().st_size / 1e6:.0f} MB")
        return path.read_text(encoding="utf-8")


def _losses(path: Path) -> tuple[Loss, ...]:
    with reading(path, "a study's losses", error=UsageError):
        found = []
        for number, line in enumerate(csv.DictReader(io.StringIO(_text(path))), start=2):
            if any(line.get(column) is None for column in Loss._fields):
                raise ValueError(f"line {number} lacks one of {', '.join(Loss._fields)}")
            try:
                loss = Loss(line["name"], _read(int, "steps", line["steps"]), _finite("loss", line["loss"]))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            found.append(loss)
    return tuple(found)


def _about(path: Path) -> About:
    """Raises UsageError."""
    what = "what a study is"
    about = read_json(path, what, error=UsageError)
    with reading(path, what, error=UsageError):
        wrong = {key: shown(value) for key, value in about.items() if not _fits(key, value)}
        if wrong:
            raise ValueError(f"{next(iter(wrong))} is {next(iter(wrong.values()))}")
        json.dumps(about, ensure_ascii=False).encode()  # what is no text cannot be written again
        return About(**{**about, "sizes": tuple(about.get("sizes", ()))})


def _fits(key: str, value: Any) -> bool:
    """Whether a key of study.json holds what About says of it; unknown keys are About's to refuse."""
    match key:
        case "name" | "title" | "command" | "distance" | "declared":
            return isinstance(value, str)
        case "floor":
            return value is None or (type(value) in (int, float) and math.isfinite(value))
        case "sizes":
            return isinstance(value, list) and all(isinstance(size, str) for size in value)
        case "protocols" | "configs":
            return isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values())
        case "made":
            return isinstance(value, dict)
    return True


def to_sqlite(table: Table, path: Path) -> None:
    """Tables results, losses, protocols and configs, for those who would rather ask in SQL."""
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
    """A cell as SQLite holds it, whose whole numbers have 64 bits: larger ones are rounded to floats."""
    if isinstance(cell, int) and cell >= 1 << 63:
        return float(cell)
    return None if cell == "" else cell


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def file_name(run: str) -> str:
    """'XL/1 adaln' -> 'XL-1-adaln': a run's name as a file's."""
    return run.replace("/", "-").replace(" ", "-").replace(":", "-")  # as in my_blocks:Parallel
