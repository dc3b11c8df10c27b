"""report.html of a run: one file, pictures inside: how good the model is and how to make it again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scaledit import images
from scaledit.callbacks import Progress
from scaledit.config import RunConfig, changes, scaled
from scaledit.evaluation.judge import Judge, is_data_set, open_judge, sample_sets
from scaledit.evaluation.result import Result
from scaledit.files.reading import picture_in
from scaledit.models import flops
from scaledit.part import in_words
from scaledit.pipeline import Pipeline, load
from scaledit.report import page
from scaledit.training import log

REPORT = "report.html"
GUIDANCE = (1.0, 1.5, 4.0)
"""Shown side by side: none, the paper's best scale, and the scale of its pictures."""


def _scales(pipeline: Pipeline) -> tuple[float, ...]:
    """Those of GUIDANCE that the model can be sampled with."""
    return GUIDANCE if pipeline.config.model.has_null_label else GUIDANCE[:1]


Events = list[dict[str, Any]]


def write(
    run: Path,
    device: str = "auto",
    progress: Progress | None = None,
    allow_import: Iterable[str] = (),
) -> Path:
    """Makes run/report.html from the run's log and its latest checkpoint, and returns its path.
    allow_import: as of `scaledit.load`."""
    pipeline = load(run, device, allow_import=allow_import)
    events, foreign = logged(run)
    sections: dict[str, object] = {"samples": None, "quality": None, "decoders": None}
    if is_data_set(pipeline.config.evaluate.reference):
        judge = open_judge(pipeline.config.evaluate, pipeline.device)
        found = _judged(pipeline, judge, events, progress)
        sections |= {"samples": _samples(pipeline, judge), "quality": _quality(pipeline, found)}
        if pipeline.config.autoencoder.compare:
            sections["decoders"] = _decoders(pipeline, judge, found[0], run, device)
    html = page.render(
        "run.html",
        title=pipeline.config.name,
        headline=_headline(pipeline, events),
        foreign=foreign,
        over_training=_over_training(events),
        loss=loss_curve(events),
        loss_terms=loss_terms(events),
        film=_film(run, events),
        commands=_commands(pipeline.config, run),
        weights=json.dumps(pipeline.origin),
        config=json.dumps(pipeline.config.to_json(), indent=1),
        **sections,
    )
    path = run / REPORT
    path.write_text(html, encoding="utf-8")
    return path


MOST_EVENTS = 1_000_000


def logged(run: Path) -> tuple[Events, list[str]]:
    """The events of a run folder that a page can show, and what is left out: how many lines of its log are
    none. A log may come from elsewhere, cut, edited or made up."""
    lines = log.lines(run)
    events = [one for one in lines.records[:MOST_EVENTS] if one["event"] != "evaluated" or _is_result(one)]
    without = len(lines.records) - len(events) + len(lines.corrupt)
    return events, [f"{without} lines of {log.LOG} that are no event of a run"] * bool(without)


def _is_number(value: object) -> bool:
    """Also "nan" and "inf", as which a log has them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def _is_result(line: Mapping[str, Any]) -> bool:
    try:
        result = Result.from_json({"name": "", **line})
        page.results([result])
    except Exception:  # whatever is wrong with it
        return False
    values = [value for figure in result.metrics.values() for value in figure if value is not None]
    return bool(result.metrics) and all(_is_number(value) and math.isfinite(value) for value in values)


def _headline(pipeline: Pipeline, events: Events) -> dict[str, str]:
    config = pipeline.config
    counts = flops.count(config.model)
    stepped = [event for event in events if event["event"] == "stepped"]
    seconds = float(stepped[-1]["seconds"]) if stepped else 0.0
    step = pipeline.origin["step"]
    rate = step * config.train.batch_size / seconds if seconds else float("nan")
    macs = counts.macs * flops.TRAIN_FORWARDS * rate
    started = [event for event in events if event["event"] == "started"]
    device = started[-1]["device"] if started else "a device that its log does not name"
    skipped = sum(event["event"] == "skipped" for event in events)
    return {
        "Model": f"{counts.params / 1e6:.2f} M parameters, {counts.macs / 1e6:.2f} M multiply-adds "
        f"an image ({config.model.block.label()}, width {config.model.hidden_size}, depth "
        f"{config.model.depth}, patch {config.model.patch_size})",
        "Trained": f"{step} steps of batch {config.train.batch_size}, {seconds:.0f} s on {device}",
        "Speed": f"{rate:.0f} images/s in training, {macs / 1e9:.1f} G multiply-adds/s{_mfu(stepped)}",
        "Skipped steps": f"{skipped}",
    }


def _mfu(stepped: Events) -> str:
    """The median of what was logged; older logs have none."""
    shares = [float(event["mfu"]) for event in stepped if _is_number(event.get("mfu"))]
    return f", {np.median(shares):.0%} of the rate of large matrix products here" if shares else ""


def _guidance(scale: float) -> str:
    return "unguided" if scale == 1 else f"guidance {scale}"


def _samples(pipeline: Pipeline, judge: Judge) -> dict[str, object]:
    """Samples at each guidance from the same noise, beside real held-out images."""
    settings, real = pipeline.config.sample, judge.real
    assert real is not None and real.labels is not None  # as every built-in reference has
    per_class = settings.per_class
    classes = settings.grid_classes(pipeline.config.model.num_classes)
    rows = [np.flatnonzero(real.labels == c)[:per_class] for c in dict.fromkeys(classes)]
    sheets = {
        f"Samples, {_guidance(scale)}": pipeline(
            classes, seed=settings.seed, guidance=scaled(settings.guidance, scale)
        )
        for scale in _scales(pipeline)
    } | {"Real images (held out)": real.images[np.concatenate(rows)]}
    shown = {title: page.png(images.grid(sheet, per_class)) for title, sheet in sheets.items()}
    width = max(250, images.SMALLEST_SHOWN * min(per_class, 8))
    names = ", ".join(str(pipeline.class_names[c]) for c in dict.fromkeys(classes))
    return {"pictures": shown, "width": width, "names": names}


def _judged(pipeline: Pipeline, judge: Judge, events: Events, progress: Progress | None) -> list[Result]:
    """By the run's own judge, at each guidance; what training has measured at this step is taken from the
    log."""
    config = pipeline.config
    logged = {
        json.dumps(result.protocol.get("guidance")): result
        for event in events
        if event["event"] == "evaluated" and event["step"] == pipeline.origin["step"]
        for result in [Result.from_json(event)]
    }
    found, each = [], config.evaluate.num * config.evaluate.seeds
    scales = _scales(pipeline)
    for i, scale in enumerate(scales):
        guidance = scaled(config.evaluate.guidance or config.sample.guidance, scale)
        said = json.dumps([part.to_json() for part in guidance if not part.idle])
        if said in logged:
            found.append(replace(logged[said], name=_guidance(scale)))
            continue
        sets = sample_sets(judge, pipeline, replace(config.evaluate, guidance=guidance))

        def on_image(done: int, _: int, before: int = i * each) -> None:
            if progress is not None:
                progress(before + done, len(scales) * each)

        found.append(replace(judge.evaluate(sets, on_image), name=_guidance(scale)))
    return found


def _quality(pipeline: Pipeline, found: list[Result]) -> dict[str, object]:
    """At each guidance, and real held-out images judged the same way."""
    return {
        "results": page.results(found, real="real, held out"),
        "evaluate": pipeline.config.evaluate,
        "sampler": in_words(pipeline.config.sample.sampler.to_json()),
        "about": " ".join(column.about for column in found[0].columns.values() if column.about),
    }


def _decoders(
    pipeline: Pipeline, judge: Judge, unguided: Result, run: Path, device: str
) -> dict[str, object]:
    """The same latents through two decoders (the paper's table 5). unguided: what the run's own scored."""
    config = pipeline.config
    other = load(
        run,
        device,
        replace(config.autoencoder, path=config.autoencoder.compare),
        allow_import=config.modules(),
    )
    assert pipeline.decoder is not None and other.decoder is not None  # only latents have decoders
    own, others = (Path(one.decoder.where).name for one in (pipeline, other) if one.decoder is not None)
    found = [
        replace(unguided, name=own),
        replace(
            judge.evaluate(sample_sets(judge, other, replace(config.evaluate, guidance=()))), name=others
        ),
    ]
    classes = config.sample.grid_classes(config.model.num_classes)
    shown = {}
    for name, one in ((own, pipeline), (others, other)):
        sheet = one(classes, seed=config.sample.seed)
        shown[name] = page.png(images.grid(sheet, config.sample.per_class))
    width = max(250, images.SMALLEST_SHOWN * min(config.sample.per_class, 8))
    return {"pictures": shown, "width": width, "results": page.results(found, real="real, held out")}


def _over_training(events: Events) -> dict[str, object] | None:
    """The first figure of every evaluation in training, over steps; the last one's figures as a table."""
    evaluated = [event for event in events if event["event"] == "evaluated"]
    if not evaluated:
        return None
    column = next(iter(Result.from_json(evaluated[0]).columns.values()))
    key, title = column.key, column.title
    evaluated = [event for event in evaluated if key in event]
    steps = [event["step"] for event in evaluated]
    figure, axes = page.axes(7, 2.8, "step", title)
    spread = [event.get(f"{key}_std") or 0.0 for event in evaluated]
    axes.errorbar(
        steps, [event[key] for event in evaluated], yerr=spread, color=page.DARK, marker="o", capsize=3
    )
    if f"{key}_real" in evaluated[0]:
        axes.axhline(evaluated[0][f"{key}_real"], color="#888", linestyle="--", label="real, held out")
        axes.legend(frameon=False)
    axes.set_yscale("log")
    last = replace(Result.from_json(evaluated[-1]), name=f"step {steps[-1]}")
    return {"plot": page.rendered(figure), "alt": f"{title} over steps", "results": page.results([last])}


MOST_TERMS = 8
"""Terms of a loss that a page plots."""
LARGEST = 1e30
"""What is larger cannot be plotted."""


def loss_curve(events: Events, kind: str = "stepped") -> bytes | None:
    """A plot of the loss of every logged step (events of this kind) and its running mean."""
    stepped = [(event["step"], event["loss"]) for event in events if event["event"] == kind]
    return _curve(stepped, "training loss", 7, 2.8)


def loss_terms(events: Events, kind: str = "stepped") -> dict[str, bytes]:
    """A small plot of each term of the loss, by its name; none where there is only one."""
    terms: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        if event["event"] == kind:
            for name, value in log.terms(event).items():
                terms.setdefault(name, []).append((event["step"], value))
    shown = list(terms.items())[:MOST_TERMS] if len(terms) > 1 else []
    plots = {name: _curve(points, name, 3.4, 2.2) for name, points in shown}
    return {name: png for name, png in plots.items() if png is not None}


def _curve(points: list[tuple[int, float]], name: str, width: float, height: float) -> bytes | None:
    """A plot in inches of the values among (step, value) that are finite and below LARGEST, and of their
    running mean; None where there is none."""
    steps, loss = np.array(points, dtype=float).reshape(-1, 2).T
    shown = np.abs(loss) < LARGEST
    steps, loss = steps[shown], loss[shown]
    if not len(loss):
        return None
    figure, axes = page.axes(width, height, "step", name)
    axes.plot(steps, loss, color=page.LIGHT, linewidth=1, label="one batch")
    window = max(1, len(loss) // 20)
    if window > 1:
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=page.DARK, linewidth=2, label=f"mean of {window}")
        axes.legend(frameon=False)
    lowest, highest = min(0.0, float(np.quantile(loss, 0.02))), max(0.0, float(np.quantile(loss, 0.98)))
    axes.set_ylim(lowest * 1.15, highest * 1.15 or 1.0)
    return page.rendered(figure)


FILM = 5
"""Pictures of samples in training that a page shows."""


def _film(run: Path, events: Events) -> dict[str, object] | None:
    """How the same noise turned into pictures over training."""
    sampled = {event["step"]: event["path"] for event in events if event["event"] == "sampled"}
    there = [step for step, path in sorted(sampled.items()) if _may_be_there(run, path)]
    if not there:
        return None
    chosen = [there[i] for i in np.unique(np.linspace(0, len(there) - 1, FILM).round().astype(int))]
    pictures, reasons = {}, []
    for step in chosen:
        try:
            pictures[f"step {step}"] = picture_in(run, sampled[step])
        except ValueError as reason:
            reasons.append(f"step {step}: {reason}")
    return {"pictures": pictures, "left_out": reasons}


def _may_be_there(run: Path, path: str) -> bool:
    """Not so of a picture that somebody deleted, which a page need not speak of."""
    try:
        return (run / path).exists()
    except (OSError, ValueError):
        return True


def _commands(config: RunConfig, run: Path) -> list[str]:
    """What makes the run, its samples and its figures again."""
    settings, evaluate = config.sample, config.evaluate
    lines = [
        " ".join(["scaledit train", config.name, *changes(config)]),
        f"scaledit sample {run} --per-class {settings.per_class} --seed {settings.seed} --out samples.png",
    ]
    if evaluate.reference:
        lines.append(f"scaledit evaluate {run} --reference {evaluate.reference}")
    return lines
