"""report.html of a run: one file with its images, on how good the model is and how to reproduce it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scaledit import diffusion, images
from scaledit.callbacks import Progress
from scaledit.captions import images_in
from scaledit.config import RunConfig, scaled, trained
from scaledit.data.datasets import attribution
from scaledit.diffusion.guidance import active
from scaledit.errors import RunError, UsageError, counted
from scaledit.evaluation.judge import Judge, is_data_set, open_run_judge, sample_sets
from scaledit.evaluation.own import HELD_OUT
from scaledit.evaluation.protocol import is_conclusive, real_name
from scaledit.evaluation.result import Result, class_table
from scaledit.files.atomic import atomic_bytes
from scaledit.files.reading import picture_in
from scaledit.models import flops
from scaledit.part import Allowed, in_words
from scaledit.pipeline import Pipeline, load
from scaledit.report import nearest, page, settings
from scaledit.report.breaks import Break, as_text, batches, breaks_of, images_seen
from scaledit.report.page import REPORT, Card, Chart, Sheet
from scaledit.report.reproduce import reproduce
from scaledit.training import log
from scaledit.training.events import Initialized

GUIDANCE = (1.0, 1.5, 4.0)
"""Scales shown side by side: none, the paper's best, and that of the paper's sample figures."""
WIDE, NARROW = (5.4, 3.0), (3.4, 2.3)
"""Inches of charts."""
MAX_EVENTS = 1_000_000
MAX_TERMS = 8
"""Terms of a loss that a page plots."""
MAX_PLOTTED = 1e30
MOST_CLASSES = 100
"""Classes that a page lists."""
FILM = 5
"""Grids of samples during training that a page shows."""
SHEET, SMALL_SHEET, FRAME = 500, 398, 160
"""CSS pixels of the widest grid of samples, of one of small images (6 to each of theirs), and of one during
training."""

Events = list[dict[str, Any]]


def write(
    run: Path,
    device: str = "auto",
    progress: Progress | None = None,
    allow_import: Iterable[str] = (),
    config: RunConfig | None = None,
) -> Path:
    """Writes run/report.html from the run's log and its latest checkpoint, and returns its path.

    allow_import: the modules outside scaledit that the run's config may name parts of, as in `scaledit.load`.
    config: whose [sample] and [evaluate] say what the report shows; by default that of the checkpoint. Raises
    UsageError if the run names another module.
    """
    pipeline = load(run, device, allow_import=allow_import, average=0)  # the log has evaluations of the EMA
    made_from = page.state_of(run)
    if config is not None:
        shown = replace(pipeline.config, sample=config.sample, evaluate=config.evaluate)
        pipeline = replace(pipeline, config=shown)
    events, foreign = read_events(run)
    breaks = breaks_of(events)
    sections: dict[str, object] = {"samples": None, "quality": None, "nearest": None, "decoders": None}
    headline = _headline(pipeline, events, breaks)
    judge, reasons = _judge(pipeline, Allowed.only(allow_import, str(run)))
    if judge is not None:
        results = _evaluated(pipeline, judge, events, progress)
        headline += _quality_cards(results)
        sections |= {"samples": _samples(pipeline, judge), "quality": _quality(pipeline, results)}
        sections |= {"nearest": nearest.section(pipeline, judge)}
        if pipeline.config.autoencoder.compare:
            sections["decoders"] = _decoders(pipeline, judge, results[0], run, device)
    html = page.render(
        "run.html",
        title=pipeline.config.name,
        headline=headline,
        foreign=[*foreign, *reasons],
        made_from=made_from,
        breaks=as_text(breaks),
        over_training=over_training(events),
        curves=curves(events, breaks=breaks),
        film=_film(run, events, pipeline),
        started_from=_started_from(events),
        settings=settings.section(run),
        attribution=attribution(pipeline.config.data.name, pipeline.class_names),
        reproduce=reproduce(pipeline.config, run, events, pipeline.origin),
        **sections,
    )
    path = run / REPORT
    atomic_bytes(path, html.encode())
    return path


def _judge(pipeline: Pipeline, allowed: Allowed) -> tuple[Judge | None, list[str]]:
    """The judge of a built-in reference or of held-out images, or why there is none: the data of a run may be
    elsewhere, or be another set's."""
    config = pipeline.config
    if not is_data_set(config.evaluate.reference) and config.evaluate.reference != HELD_OUT:
        return None, []
    try:
        judge = open_run_judge(
            config, pipeline.class_names, pipeline.device, pipeline.decoder, allowed=allowed
        )
    except (UsageError, RunError) as error:
        if config.data.name in ("images", "latents"):
            return None, [f"the evaluation ({error})"]
        raise
    return judge, []


def read_events(run: Path) -> tuple[Events, list[str]]:
    """The events of a run folder that a page can show, and a sentence on the lines of its log that it cannot.
    The log may be cut, edited or forged."""
    lines = log.lines(run)
    events = [
        event for event in lines.records[:MAX_EVENTS] if event["event"] != "evaluated" or _is_result(event)
    ]
    skipped = len(lines.records) - len(events) + len(lines.corrupt)
    return events, [f"{counted(skipped, 'line')} of {log.LOG} that cannot be read as events of a run"] * bool(
        skipped
    )


def _is_number(value: object) -> bool:
    """Includes "nan" and "inf", which a log has as strings."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def _is_result(event: Mapping[str, Any]) -> bool:
    try:
        result = Result.from_json({"name": "", **event})
        page.results([result])
    except Exception:  # a forged event can raise anything
        return False
    values = [value for metric in result.metrics.values() for value in metric if value is not None]
    return bool(result.metrics) and all(_is_number(value) and math.isfinite(value) for value in values)


def _headline(pipeline: Pipeline, events: Events, breaks: list[Break]) -> list[Card]:
    config = pipeline.config
    counts = flops.count(config.model)
    stepped = [event for event in events if event["event"] == "stepped"]
    seconds = float(stepped[-1]["seconds"]) if stepped else 0.0
    step, skipped = pipeline.origin["step"], sum(event["event"] == "skipped" for event in events)
    batch = config.train.batch_size
    rate = images_seen(breaks, step, batch) / seconds if seconds else float("nan")
    macs = counts.macs * flops.TRAIN_FORWARDS * rate
    devices = [event["device"] for event in events if event["event"] == "started"]
    mfu = [float(event["mfu"]) for event in stepped if _is_number(event.get("mfu"))]  # older logs have none
    share = f", {np.median(mfu):.0%} of the rate of large matrix products on this device" if mfu else ""
    block, parameters = config.model.block, trained.count(config)
    some = f"{parameters.trained:,} of them trained; " if parameters.trained < counts.params else ""
    name = block.label().replace(block.NAME, block.TITLE or block.NAME, 1)
    design = f"{name}, width {config.model.hidden_size}, depth {config.model.depth}"
    return [
        Card(
            "Parameters", f"{counts.params / 1e6:.2f} M", f"{some}{design}, patch {config.model.patch_size}"
        ),
        Card("Compute", f"{counts.macs / 1e6:,.1f} M", "multiply-adds per image and forward pass"),
        Card("Steps", f"{step:,}", f"of batch {batches(breaks, batch)}, {skipped or 'none'} skipped"),
        Card("Training time", duration(seconds), f"on {devices[-1] if devices else 'an unknown device'}"),
        Card("Speed", f"{rate:,.0f}", f"images/s in training: {macs / 1e9:,.1f} G multiply-adds/s{share}"),
    ]


def _started_from(events: Events) -> dict[str, object] | None:
    """The model that the run started from, and what became of its class table; None for random weights."""
    found = [event for event in events if event["event"] == "initialized"]
    if not found:
        return None
    fields = {key: found[-1].get(key) for key in Initialized._fields}
    try:
        words = Initialized(**fields).in_words()  # pyright: ignore[reportArgumentType]
    except Exception:  # a forged event can raise anything
        return None
    return {"words": words[:1].upper() + words[1:], "sha256": fields["sha256"]}


def duration(seconds: float) -> str:
    """72 s, 3 min 56 s, 5 h 07 min"""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    return (
        f"{minutes} min {whole % 60:02} s" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60:02} min"
    )


def _quality_cards(results: list[Result]) -> list[Card]:
    """The first metric of samples without guidance."""
    key, column = next(iter(results[0].columns.items()))
    metric = results[0].metrics[key]
    protocol = results[0].protocol
    if not is_conclusive(protocol):
        return []
    images = "training images" if "real" in protocol else "held-out real images"
    real = "" if metric.real is None else f"; {images}: {metric.real:.3g}"
    return [Card(column.title, metric.text(column.digits), f"without guidance{real}")]


def _scales(pipeline: Pipeline) -> tuple[float, ...]:
    """The scales of GUIDANCE that the model can be sampled with."""
    return GUIDANCE if pipeline.config.model.has_null_label else GUIDANCE[:1]


def _guidances(
    pipeline: Pipeline, guidance: Sequence[diffusion.Guidance]
) -> dict[str, tuple[diffusion.Guidance, ...]]:
    """What the report shows, by title: no guidance, and classifier-free guidance at several scales, or the
    run's own guidance if that is of another kind."""
    if any(not isinstance(part, diffusion.ClassifierFree) and not part.modifies for part in active(guidance)):
        return {_title(1): (), " and ".join(part.label() for part in active(guidance)): tuple(guidance)}
    return {_title(scale): scaled(guidance, scale) for scale in _scales(pipeline)}


def _title(scale: float) -> str:
    return "no guidance" if scale == 1 else f"guidance {scale}"


def _samples(pipeline: Pipeline, judge: Judge) -> dict[str, object]:
    """Samples at each guidance scale from the same noise, beside held-out real images."""
    settings, real = pipeline.config.sample, judge.real
    assert real is not None and real.labels is not None  # true of every built-in reference
    classes = settings.grid_classes(pipeline.config.model.num_classes)
    rows = [images.row(real.images[real.labels == c], settings.per_class) for c in dict.fromkeys(classes)]
    sheets = {
        f"Samples, {title}": pipeline(classes, seed=settings.seed, guidance=guidance)
        for title, guidance in _guidances(pipeline, settings.guidance).items()
    } | {"Real images (held out)": np.concatenate(rows)}
    return _sheets(sheets, pipeline)


def _sheets(sheets: Mapping[str, np.ndarray], pipeline: Pipeline) -> dict[str, object]:
    """Grids by their captions, with one row per class, and the names of the rows."""
    columns = pipeline.config.sample.per_class
    shown = {
        title: _sheet(page.png(images.grid(sheet, columns)), f"{title}: {columns} per class", pipeline)
        for title, sheet in sheets.items()
    }
    return {"sheets": shown, "names": _row_names(pipeline)}


def _sheet(png: bytes, alt: str, pipeline: Pipeline) -> Sheet:
    small = pipeline.decoder is None and np.max(pipeline.config.model.input_size) < images.SMALLEST_SHOWN
    return page.sheet(png, alt, SMALL_SHEET if small else SHEET, bool(small))


def _row_names(pipeline: Pipeline) -> list[str]:
    classes = dict.fromkeys(pipeline.config.sample.grid_classes(pipeline.config.model.num_classes))
    return page.row_names([pipeline.class_names[c] for c in classes])


def _evaluated(pipeline: Pipeline, judge: Judge, events: Events, progress: Progress | None) -> list[Result]:
    """Evaluates the model at each guidance scale, unless the log has that result for this step."""
    config = pipeline.config
    logged = {
        json.dumps(result.protocol.get("guidance")): result
        for event in events
        if event["event"] == "evaluated" and event["step"] == pipeline.origin["step"]
        for result in [Result.from_json(event)]
    }
    results, num = [], config.evaluate.num * config.evaluate.seeds
    shown = _guidances(pipeline, config.evaluate.guidance or config.sample.guidance)
    for i, (title, guidance) in enumerate(shown.items()):
        result = logged.get(json.dumps([part.to_json() for part in active(pipeline.opened(guidance))]))
        if result is None:
            sets = sample_sets(judge, pipeline, replace(config.evaluate, guidance=guidance))

            def on_image(done: int, _: int, before: int = i * num) -> None:
                if progress is not None:
                    progress(before + done, len(shown) * num)

            result = judge.evaluate(sets, on_image)
        results.append(replace(result, name=title))
    return results


def _quality(pipeline: Pipeline, results: list[Result]) -> dict[str, object]:
    return {
        "results": page.results(results, real=real_name(results[0].protocol)),
        "own": pipeline.config.evaluate.reference == HELD_OUT,
        "classes": class_table(results[0].by_class, MOST_CLASSES),
        "evaluate": pipeline.config.evaluate,
        "sampler": in_words(pipeline.config.sample.sampler.to_json()),
        "about": " ".join(column.about for column in results[0].columns.values() if column.about),
    }


def _decoders(
    pipeline: Pipeline, judge: Judge, unguided: Result, run: Path, device: str
) -> dict[str, object]:
    """The same latents through two decoders (the paper's table 5). unguided: the result with the run's own
    decoder."""
    config = pipeline.config
    compared = replace(config.autoencoder, path=config.autoencoder.compare)
    other = load(run, device, compared, allow_import=config.modules(), average=0)
    assert pipeline.decoder is not None and other.decoder is not None  # only runs on latents compare decoders
    name, other_name = Path(pipeline.decoder.where).name, Path(other.decoder.where).name
    result = judge.evaluate(sample_sets(judge, other, replace(config.evaluate, guidance=())))
    results = [replace(unguided, name=name), replace(result, name=other_name)]
    classes = config.sample.grid_classes(config.model.num_classes)
    sheets = {
        title: source(classes, seed=config.sample.seed)
        for title, source in ((name, pipeline), (other_name, other))
    }
    return {
        **_sheets(sheets, pipeline),
        "results": page.results(results, real=real_name(result.protocol)),
    }


def over_training(events: Events) -> dict[str, object] | None:
    """A chart of the first metric of every evaluation during training, and all metrics of the last one."""
    evaluated = [event for event in events if event["event"] == "evaluated"]
    if not evaluated:
        return None
    column = next(iter(Result.from_json(evaluated[0]).columns.values()))
    key, title = column.key, column.title
    evaluated = [event for event in evaluated if key in event]
    steps = [event["step"] for event in evaluated]
    figure, axes = page.axes(*WIDE, "step", title)
    spread = [event.get(f"{key}_std") or 0.0 for event in evaluated]
    axes.errorbar(
        steps, [event[key] for event in evaluated], yerr=spread, color=page.DARK, marker="o", capsize=3
    )
    if f"{key}_real" in evaluated[0]:
        real = evaluated[0][f"{key}_real"]
        label = real_name(evaluated[0]["protocol"])
        axes.axhline(real, color=page.REAL, linestyle="--", label=label)
        axes.legend(frameon=False, labelcolor=page.INK)
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    last = replace(Result.from_json(evaluated[-1]), name=f"step {steps[-1]}")
    caption = f"{title} of the EMA weights during training"
    return {"chart": {caption: page.chart(figure, caption)}, "results": page.results([last])}


def curves(events: Events, kind: str = "stepped", breaks: Sequence[Break] = ()) -> dict[str, Chart]:
    """Charts of the loss, its terms and, after a break, the learning rate, by their captions. A thin line
    marks each break."""
    marks = [one.step for one in breaks if one.is_of_training]
    loss = loss_curve(events, kind, marks)
    terms = loss_terms(events, kind, marks) if loss else {}
    rate = _rate_curve(events, kind, marks) if loss and marks else None
    return ({"Loss": loss} if loss else {}) | terms | ({"Learning rate": rate} if rate else {})


def loss_curve(events: Events, kind: str = "stepped", marks: Sequence[int] = ()) -> Chart | None:
    """A chart of the loss of every logged step (events of this kind) and its running mean. marks: steps to
    mark."""
    losses = [(event["step"], event["loss"]) for event in events if event["event"] == kind]
    return _curve(losses, "training loss", WIDE, marks)


def _rate_curve(events: Events, kind: str, marks: Sequence[int]) -> Chart | None:
    """A chart of the learning rate of every logged step; None if the log does not have it."""
    rates = [
        (event["step"], event["learning_rate"])
        for event in events
        if event["event"] == kind and _is_number(event.get("learning_rate"))
    ]
    return _curve(rates, "learning rate", NARROW, marks, average=False)


def loss_terms(events: Events, kind: str = "stepped", marks: Sequence[int] = ()) -> dict[str, Chart]:
    """A small chart of each term of the loss, by its name; none if there is only one term."""
    terms: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        if event["event"] == kind:
            for name, value in log.terms(event).items():
                terms.setdefault(name, []).append((event["step"], value))
    plotted = list(terms.items())[:MAX_TERMS] if len(terms) > 1 else []
    charts = {name: _curve(points, name, NARROW, marks) for name, points in plotted}
    return {name: chart for name, chart in charts.items() if chart is not None}


def _curve(
    points: list[tuple[int, float]],
    name: str,
    size: tuple[float, float],
    marks: Sequence[int] = (),
    *,
    average: bool = True,
) -> Chart | None:
    """A chart, in inches, of the (step, value) whose value is finite and below MAX_PLOTTED, and of their
    running mean if `average`, with a thin line at each step of `marks`; None if there are no values."""
    steps, loss = np.array(points, dtype=float).reshape(-1, 2).T
    plotted = np.abs(loss) < MAX_PLOTTED
    steps, loss = steps[plotted], loss[plotted]
    if not len(loss):
        return None
    figure, axes = page.axes(*size, "step", name)
    window = max(1, len(loss) // 20) if average else 1
    for mark in marks:
        axes.axvline(mark, color=page.REAL, linewidth=0.8)
    axes.plot(steps, loss, color=page.LIGHT if window > 1 else page.DARK, linewidth=1, label="one batch")
    if window > 1:
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=page.DARK, linewidth=2, label=f"mean of {window}")
        axes.legend(frameon=False, labelcolor=page.INK)
    lowest, highest = min(0.0, float(np.quantile(loss, 0.02))), max(0.0, float(np.quantile(loss, 0.98)))
    axes.set_ylim(lowest * 1.15, highest * 1.15 or 1.0)
    return page.chart(figure, f"{name} over training steps")


def _film(run: Path, events: Events, pipeline: Pipeline) -> dict[str, object] | None:
    """Samples from the same noise over training."""
    sampled = {event["step"]: event["path"] for event in events if event["event"] == "sampled"}
    steps = [step for step, path in sorted(sampled.items()) if not _is_deleted(run, path)]
    if not steps:
        return None
    sheets, reasons = {}, []
    for i in np.unique(np.linspace(0, len(steps) - 1, FILM).round().astype(int)):
        title = f"step {steps[i]}"
        try:
            png = page.png(images_in(picture_in(run, sampled[steps[i]])))
            sheets[title] = page.sheet(png, f"samples at {title}", FRAME, False)
        except ValueError as reason:
            reasons.append(f"{title}: {reason}")
    return {"sheets": sheets, "left_out": reasons, "names": _row_names(pipeline)}


def _is_deleted(run: Path, path: str) -> bool:
    """Whether an image is missing, which a page does not mention; False for a path that no file can have."""
    try:
        return not (run / path).exists()
    except (OSError, ValueError):
        return False
