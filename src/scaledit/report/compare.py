"""Runs side by side: what differs in their configs, their metrics, losses and costs, and their samples.

    config.json, log.jsonl, status.json of each run  ->  Comparison: tables of text     terminal, JSON, page
    the newest checkpoint of each run  --equal noise, classes and settings-->  grids    page

Image i is made from the noise of (seed, i), so runs whose samples have the same shape start from the same
noise. A folder that is only half written, or whose run is under way, is compared as far as it goes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaledit import checkpoint, images
from scaledit.callbacks import Progress
from scaledit.config import RunConfig, SampleConfig, differing
from scaledit.data.datasets import attributions
from scaledit.diffusion.guidance import active
from scaledit.errors import RunError, UsageError, counted, listed, reading
from scaledit.evaluation import protocol
from scaledit.evaluation.result import Result, side_by_side
from scaledit.files.atomic import atomic_bytes
from scaledit.files.reading import read_json
from scaledit.models import flops
from scaledit.part import Allowed, in_words
from scaledit.pipeline import Pipeline, load
from scaledit.report import page
from scaledit.report.page import Chart, Sheet
from scaledit.report.run import MAX_PLOTTED, WIDE, Events, duration, read_events
from scaledit.sampling.request import parse_classes
from scaledit.scaling.compute import train_macs_of
from scaledit.training.folder import CHECKPOINTS, CONFIG, STATUS

MOST = 6
"""Runs that one comparison shows, as many as a chart has colors for."""
RECENT = 0.1
"""The loss of a run is the mean over this last share of its logged steps."""
SMOOTH = 20
"""Lines of losses are means over one part in this many of the logged steps."""
PER_CLASS = 4
"""Images of each class by default."""
WIDEST, NARROWER = 340, 250
"""CSS pixels of a grid, beside one or two others and beside more."""
STATES = ("running", "stopped", "finished", "failed")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


@dataclass(frozen=True)
class ComparedRun:
    """What the files of a run say. label: its name in tables. state: one of STATES, or "unknown"."""

    label: str
    folder: Path
    config: RunConfig
    events: Events
    foreign: Sequence[str]
    state: str

    @property
    def stepped(self) -> Events:
        return [event for event in self.events if event["event"] == "stepped"]

    @property
    def step(self) -> int:
        """The last step of which the log or a checkpoint knows; 0 if there is none."""
        saved = checkpoint.find(self.folder / CHECKPOINTS)
        steps = [int(folder.name.removeprefix("step-")) for folder in saved[-1:]]
        return max([0, *steps, *(event["step"] for event in self.stepped[-1:])])

    @property
    def result(self) -> Result | None:
        """The last evaluation during training."""
        evaluated = [event for event in self.events if event["event"] == "evaluated"]
        return replace(Result.from_json(evaluated[-1]), name=self.label) if evaluated else None

    @property
    def evaluated_at(self) -> int | None:
        return next((event["step"] for event in reversed(self.events) if event["event"] == "evaluated"), None)

    @property
    def loss(self) -> float | None:
        """The mean of the last logged losses."""
        losses = [float(event["loss"]) for event in self.stepped]
        recent = losses[-max(1, round(RECENT * len(losses))) :]
        return float(np.mean(recent)) if recent else None


def open_runs(folders: Sequence[Path], allow_import: Iterable[str] = ()) -> list[ComparedRun]:
    """Reads configs, logs and states. allow_import: the modules that configs may name parts of.

    Raises UsageError for fewer than 2 or more than MOST folders, a folder named twice or without the config
    of a diffusion model's run, and a module that is not allowed.
    """
    if not 2 <= len(folders) <= MOST:
        raise UsageError(f"a comparison shows 2 to {MOST} runs, got {len(folders)}")
    places = [folder.resolve() for folder in folders]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise UsageError(f"{folders[i]} is named twice")
    short = [place.name for place in places]
    labels = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    return [_open(folder, label, allow_import) for folder, label in zip(folders, labels, strict=True)]


def _open(folder: Path, label: str, allow_import: Iterable[str]) -> ComparedRun:
    path = folder / CONFIG
    if not path.is_file():
        reason = "contains no config.json" if folder.is_dir() else "does not exist"
        raise UsageError(f"{folder} {reason}; name the folders of runs")
    value = read_json(path, "a run's config", error=UsageError)
    if "diffusion" not in value and "loss" in value:
        raise UsageError(
            f"{folder} is the run of an autoencoder; compare shows runs of diffusion models. Its PSNR and "
            f"SSIM are in {folder / 'report.html'}"
        )
    with reading(path, "a run's config", error=UsageError):
        config = RunConfig.from_json(value, Allowed.only(allow_import, str(path)))
    events, foreign = read_events(folder)
    return ComparedRun(label, folder, config, events, foreign, _state(folder))


def _state(folder: Path) -> str:
    try:
        state = read_json(folder / STATUS, "a status")["state"]
    except (OSError, RunError, KeyError):
        return "unknown"
    return state if state in STATES else "unknown"


class Table(NamedTuple):
    """A table of text with one column per run. warnings: what to mind when comparing its columns."""

    title: str
    header: list[str]
    rows: list[list[str]]
    warnings: Sequence[str] = ()
    empty: str = ""


class Comparison(NamedTuple):
    """differences: of the configs. metrics: of the last evaluations during training. costs: steps, time,
    size."""

    runs: Sequence[ComparedRun]
    differences: Table
    metrics: Table
    costs: Table

    @property
    def tables(self) -> tuple[Table, ...]:
        return self.differences, self.metrics, self.costs

    def to_json(self) -> dict[str, Any]:
        """Numbers as numbers, under the labels of the runs."""
        evaluated = {
            run.label: None if run.result is None else {"step": run.evaluated_at, **run.result.to_json()}
            for run in self.runs
        }
        return {
            "runs": {
                run.label: {
                    "folder": str(run.folder),
                    **Numbers.of(run).to_json(),
                    "evaluated": evaluated[run.label],
                }
                for run in self.runs
            },
            "differences": {
                key: dict(zip((run.label for run in self.runs), values, strict=True))
                for key, values in differing([run.config for run in self.runs]).items()
            },
            "warnings": [warning for table in self.tables for warning in table.warnings],
        }


def compare(runs: Sequence[ComparedRun]) -> Comparison:
    return Comparison(runs, _differences(runs), _metrics(runs), _costs(runs))


def _differences(runs: Sequence[ComparedRun]) -> Table:
    rows = [
        [key, *(str(page.plain(value)) for value in values)]
        for key, values in differing([run.config for run in runs]).items()
    ]
    header = ["key", *(run.label for run in runs)]
    return Table("What differs", header, rows, empty="The configs are equal.")


def _metrics(runs: Sequence[ComparedRun]) -> Table:
    header = ["metric", *(run.label for run in runs)]
    results = [run.result for run in runs]
    known = [result for result in results if result is not None]
    if not known:
        empty = "No run was evaluated during training; `scaledit evaluate RUN --reference REF` measures one."
        return Table("Metrics", header, [], empty=empty)
    titles, by_run = side_by_side(known)
    columns = {row[0]: row[1:] for row in by_run}
    rows = [
        [title, *(columns[run.label][i] if run.label in columns else "" for run in runs)]
        for i, title in enumerate(titles[1:])
    ]
    steps = ["" if run.evaluated_at is None else f"{run.evaluated_at:,}" for run in runs]
    rows.append(["measured after step", *steps])
    return Table("Metrics", header, rows, _metric_warnings(runs))


def _metric_warnings(runs: Sequence[ComparedRun]) -> list[str]:
    measured = [run for run in runs if run.result is not None]
    results = [run.result for run in measured if run.result is not None]
    found = [
        f"not comparable, measured with another {what}: {_by_run(measured, values)}"
        for what, values in protocol.differences([result.protocol for result in results]).items()
    ]
    own = [{str(warning): None for warning in result.warnings} for result in results]
    for warning in dict.fromkeys(warning for one in own for warning in one):
        of = [run.label for run, one in zip(measured, own, strict=True) if warning in one]
        found.append(warning if len(of) == len(runs) else f"{listed(of, 'and')}: {warning}")
    missing = [run.label for run in runs if run.result is None]
    if missing:
        found.append(f"not evaluated during training: {listed(missing, 'and')}")
    return found


def _by_run(runs: Sequence[ComparedRun], values: Sequence[Any]) -> str:
    """'3 for a and 4 for b', with equal values together."""
    groups: dict[str, list[str]] = {}
    for run, value in zip(runs, values, strict=True):
        groups.setdefault(_words(value), []).append(run.label)
    return "; ".join(f"{words} for {listed(labels, 'and')}" for words, labels in groups.items())


def _words(value: Any) -> str:
    if value is None:
        return "not stated"
    text = in_words(value) if isinstance(value, list | tuple | Mapping) else str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


class Numbers(NamedTuple):
    """What a run has cost and reached; None for what its files do not say. images: seen in training. macs:
    multiply-adds, of one forward pass and of all training so far. seconds: of training."""

    state: str
    step: int
    steps: int
    batch_size: int
    images: int
    parameters: int
    macs_per_image: int
    training_macs: int
    seconds: float | None
    images_per_second: float | None
    device: str | None
    skipped_steps: int
    loss: float | None

    @classmethod
    def of(cls, run: ComparedRun) -> Numbers:
        counts, batch = flops.count(run.config.model), run.config.train.batch_size
        last = run.stepped[-1] if run.stepped else None
        seconds = None if last is None else float(last["seconds"])
        devices = [event["device"] for event in run.events if event["event"] == "started"]
        return cls(
            state=run.state,
            step=run.step,
            steps=run.config.train.steps,
            batch_size=batch,
            images=run.step * batch,
            parameters=counts.params,
            macs_per_image=counts.macs,
            training_macs=train_macs_of(run.config, run.step),
            seconds=seconds,
            images_per_second=last["step"] * batch / seconds if last and seconds else None,
            device=devices[-1] if devices else None,
            skipped_steps=sum(event["event"] == "skipped" for event in run.events),
            loss=run.loss,
        )

    def to_json(self) -> dict[str, Any]:
        values = self._asdict()
        if self.loss is not None and not math.isfinite(self.loss):
            values["loss"] = str(self.loss)  # JSON has no nan
        return values


def _costs(runs: Sequence[ComparedRun]) -> Table:
    columns = [Numbers.of(run) for run in runs]

    def row(title: str, text: Callable[[Numbers], str]) -> list[str]:
        return [title, *map(text, columns)]

    rows = [
        row("state", lambda one: one.state),
        row("steps", lambda one: f"{one.step:,} of {one.steps:,}"),
        row("batch size", lambda one: f"{one.batch_size:,}"),
        row("training images", lambda one: f"{one.images:,}"),
        row("loss, mean of the last tenth", lambda one: "" if one.loss is None else f"{one.loss:.4g}"),
        row("parameters", lambda one: f"{one.parameters / 1e6:.2f} M"),
        row("multiply-adds per image", lambda one: _prefixed(one.macs_per_image)),
        row("multiply-adds of training", lambda one: _prefixed(one.training_macs)),
        row("training time", lambda one: "" if one.seconds is None else duration(one.seconds)),
        row(
            "images/s",
            lambda one: "" if one.images_per_second is None else f"{one.images_per_second:,.0f}",
        ),
        row("device", lambda one: one.device or ""),
        row("skipped steps", lambda one: f"{one.skipped_steps:,}"),
    ]
    return Table("Speed and cost", ["", *(run.label for run in runs)], rows, _loss_warnings(runs))


def _loss_warnings(runs: Sequence[ComparedRun]) -> list[str]:
    """Losses of other objectives, times or data measure something else."""
    keys = [
        key
        for key in differing([run.config for run in runs])
        if key.startswith(
            ("diffusion.", "data.", "model.in_channels", "model.input_size", "autoencoder.path")
        )
        and not key.startswith(("data.workers", "data.verify", "data.changed"))
    ]
    return [f"the losses are not comparable: {listed(keys, 'and')} differ"] if keys else []


def _prefixed(number: int) -> str:
    """11.3 M, 1.74 T"""
    for unit, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= unit:
            return f"{number / unit:,.3g} {prefix}"
    return f"{number / 1e6:,.3g} M"


class ComparedSamples(NamedTuple):
    """sheets: a grid of each run that could be sampled, by its label. steps: of its checkpoint. names: of the
    rows. notes: what is missing or not equal, in sentences. settings: with which all were sampled."""

    sheets: Mapping[str, np.ndarray]
    steps: Mapping[str, int]
    names: Sequence[str]
    notes: Sequence[str]
    settings: SampleConfig
    per_class: int


def sample(
    runs: Sequence[ComparedRun],
    settings: SampleConfig,
    classes: str | None = None,
    per_class: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    allow_import: Iterable[str] = (),
    progress: Progress = lambda done, total: None,
) -> ComparedSamples:
    """Samples each run's newest checkpoint with the same settings, from the noise of the same indices.

    classes: as for `parse_classes`, of the first run that has a checkpoint; by default those of its grids. A
    run whose classes have other names is asked for them by name. What cannot be loaded or sampled is left
    out, with a note. Raises UsageError for a class that the first run does not have.
    """
    allowed = tuple(allow_import)
    per_class = per_class or min(settings.per_class, PER_CLASS)
    sheets: dict[str, np.ndarray] = {}
    steps: dict[str, int] = {}
    notes: list[str] = []
    shapes: dict[tuple[int, ...], list[str]] = {}
    chosen: list[int] = []
    names: tuple[str, ...] | None = None
    for number, run in enumerate(runs):

        def on_row(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(runs) * total)

        try:
            pipeline = load(run.folder, device, allow_import=allowed, average=0)
        except (UsageError, RunError) as error:
            notes.append(f"{run.label} could not be sampled: {error}")
            continue
        if names is None:
            names = pipeline.class_names
            chosen = _chosen(pipeline, classes, settings)
        labels = [_label(pipeline, c, names) for c in chosen]
        try:
            sheets[run.label] = _grid(pipeline, labels, settings, per_class, batch_size, on_row)
        except (UsageError, RunError) as error:
            notes.append(f"{run.label} could not be sampled: {error}")
            continue
        steps[run.label] = pipeline.origin["step"]
        shapes.setdefault(pipeline.config.model.shape, []).append(run.label)
        if missing := [_name(names, c) for c, label in zip(chosen, labels, strict=True) if label is None]:
            notes.append(f"{run.label} has no class {listed(missing, 'and')}, so these rows are empty")
    if len(shapes) > 1:
        each = "; ".join(
            f"{'x'.join(map(str, shape))} for {listed(of, 'and')}" for shape, of in shapes.items()
        )
        notes.insert(0, f"samples of different shapes cannot start from the same noise: {each}")
    return ComparedSamples(sheets, steps, [_name(names or (), c) for c in chosen], notes, settings, per_class)


def _chosen(pipeline: Pipeline, classes: str | None, settings: SampleConfig) -> list[int]:
    if classes is not None:
        return list(parse_classes(classes, pipeline))
    return list(dict.fromkeys(settings.grid_classes(pipeline.config.model.num_classes)))


def _name(names: Sequence[str], c: int) -> str:
    return names[c] if c < len(names) else f"class {c}"


def _label(pipeline: Pipeline, c: int, of_first: Sequence[str]) -> int | None:
    """The number of the first run's class `c` in another run: the same if all names are equal, else that of
    the class with its name; None if there is no such class, or several."""
    names = pipeline.class_names
    if tuple(names) == tuple(of_first):
        return c
    numbers = [number for number, name in enumerate(names) if name == _name(of_first, c)]
    return numbers[0] if len(numbers) == 1 else None


def _grid(
    pipeline: Pipeline,
    labels: Sequence[int | None],
    settings: SampleConfig,
    per_class: int,
    batch_size: int,
    progress: Progress,
) -> np.ndarray:
    """One row per label, white for None. Rows are sampled one by one, so that image i is the image with index
    i whichever rows there are."""
    rows: list[np.ndarray | None] = []
    for i, label in enumerate(labels):
        asked = [label] * per_class if label is not None else None
        rows.append(None if asked is None else pipeline.sample(asked, settings, i * per_class, batch_size))
        progress(i + 1, len(labels))
    known = [row for row in rows if row is not None]
    if not known:
        raise UsageError("it has none of the classes")
    blank = np.full_like(known[0], 255)
    return images.grid(np.concatenate([blank if row is None else row for row in rows]), per_class)


def write(comparison: Comparison, samples: ComparedSamples, out: Path, command: str) -> Path:
    """Writes the page. command: what makes it again. Raises OSError, which names `out`."""
    runs = comparison.runs
    html = page.render(
        "compare.html",
        title=listed([run.label for run in runs], "and"),
        differences=comparison.differences,
        metrics=comparison.metrics,
        costs=comparison.costs,
        left_out=[f"{run.label}: {text}" for run in runs for text in run.foreign],
        samples=_shown(samples, runs),
        attributions=attributions(run.config.data.name for run in runs),
        curves=_curves(runs),
        command=command,
        folders={run.label: str(run.folder.resolve()) for run in runs},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_bytes(out, html.encode())
    return out


def _shown(samples: ComparedSamples, runs: Sequence[ComparedRun]) -> dict[str, object]:
    small = {run.label: np.max(run.config.model.input_size) < images.SMALLEST_SHOWN for run in runs}
    widest = WIDEST if len(runs) <= 3 else NARROWER
    sheets: dict[str, Sheet] = {
        f"{label}, step {samples.steps[label]:,}": page.sheet(
            page.png(grid), f"samples of {label}", widest, bool(small[label])
        )
        for label, grid in samples.sheets.items()
    }
    settings = samples.settings
    guidance = in_words([part.to_json() for part in active(settings.guidance)])
    return {
        "sheets": sheets,
        "names": page.row_names(samples.names),
        "notes": samples.notes,
        "settings": {
            "sampler": in_words(settings.sampler.to_json()),
            "guidance": guidance,
            "seed": settings.seed,
            "images per class": samples.per_class,
        },
    }


def _curves(runs: Sequence[ComparedRun]) -> dict[str, Chart]:
    """The losses of all runs in one chart, and the first metric that several evaluations have."""
    losses = {run.label: [(run, event["step"], event["loss"]) for event in run.stepped] for run in runs}
    charts = {"Loss, running mean": _chart(losses, "training loss", smooth=True)}
    keyed: dict[str, str] = {}
    for run in runs:
        if run.result is not None:
            keyed |= {key: column.title for key, column in run.result.columns.items()}
    for key, title in list(keyed.items())[:1]:
        evaluated = {
            run.label: [
                (run, event["step"], event[key])
                for event in run.events
                if event["event"] == "evaluated" and key in event
            ]
            for run in runs
        }
        charts[f"{title} during training"] = _chart(evaluated, title, smooth=False)
    return {caption: chart for caption, chart in charts.items() if chart is not None}


def _chart(
    lines: Mapping[str, Sequence[tuple[ComparedRun, int, Any]]], ylabel: str, smooth: bool
) -> Chart | None:
    """Lines over training steps; over training images where batch sizes differ. None if there is nothing to
    show."""
    from matplotlib import rc_context

    batches = {run.config.train.batch_size for points in lines.values() for run, _, _ in points[:1]}
    figure, axes = page.axes(*WIDE, "step" if len(batches) < 2 else "training images", ylabel)
    handles, highest = [], []
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's font lacks are drawn by the browser
        for (label, points), color, style in zip(lines.items(), page.LINES, LINE_STYLES, strict=False):
            scale = points[0][0].config.train.batch_size if points and len(batches) > 1 else 1
            values = np.array([(step * scale, float(value)) for _, step, value in points]).reshape(-1, 2)
            values = values[np.abs(values[:, 1]) < MAX_PLOTTED]
            if not len(values):
                continue
            x, y = values.T
            if smooth:
                window = max(1, len(y) // SMOOTH)
                x, y = x[window - 1 :], np.convolve(y, np.ones(window) / window, mode="valid")
                highest.append(float(np.quantile(y, 0.98)))
            mark = "" if smooth else "o"
            [line] = axes.plot(x, y, color=color, linestyle=style, linewidth=1.8, marker=mark, markersize=4)
            handles.append((line, f" {page.readable(page.row_names([label])[0])}"))  # "_a" would be hidden
        if not handles:
            return None
        if highest:
            axes.set_ylim(0, max(highest) * 1.15 or 1.0)
        axes.legend(*zip(*handles, strict=True), frameon=False, labelcolor=page.INK)
        return page.chart(figure, f"{ylabel} of {counted(len(handles), 'run')}")
