"""report.html of a run: one file, pictures inside: how good the model is and how to make it again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scaledit import images
from scaledit.config import RunConfig, changes, scaled
from scaledit.evaluation.judge import BUILT_IN, Judge, drawn, open_judge
from scaledit.evaluation.result import TITLES, Result
from scaledit.models import flops
from scaledit.part import in_words
from scaledit.parts import picture_in
from scaledit.pipeline import Pipeline, load
from scaledit.report import page
from scaledit.report.page import Html, html
from scaledit.training import log

REPORT = "report.html"
GUIDANCE = (1.0, 1.5, 4.0)
"""Shown side by side: none, the paper's best scale, and the scale of its pictures."""


def _scales(pipeline: Pipeline) -> tuple[float, ...]:
    """Those of GUIDANCE that the model can be sampled with."""
    return GUIDANCE if pipeline.config.model.has_null_label else GUIDANCE[:1]


PROGRESS = Callable[[int, int], None]
Events = list[dict[str, Any]]


def write(
    run: Path,
    device: str = "auto",
    progress: PROGRESS | None = None,
    allow_import: Iterable[str] = (),
) -> Path:
    """Makes run/report.html from the run's log and its latest checkpoint, and returns its path.
    allow_import: as of `scaledit.load`."""
    pipeline = load(run, device, allow_import=allow_import)
    events, foreign = logged(run)
    sections = [_headline(pipeline, events), foreign]
    if pipeline.config.evaluate.reference in BUILT_IN:
        judge = open_judge(pipeline.config.evaluate, pipeline.device)
        found = _judged(pipeline, judge, events, progress)
        sections += [_samples(pipeline, judge), _quality(pipeline, found)]
        if pipeline.config.autoencoder.compare:
            sections.append(_decoders(pipeline, judge, found[0], run, device))
    sections += [_over_training(events), loss_curve(events), _film(run, events), _origin(pipeline, run)]
    path = run / REPORT
    path.write_text(page.page(pipeline.config.name, sections), encoding="utf-8")
    return path


MOST_EVENTS = 1_000_000


def logged(run: Path) -> tuple[Events, Html]:
    """The events of a run folder that a page can show, and a line that says how many lines of its log are
    none: a log may come from elsewhere, cut, edited or made up."""
    lines = log.lines(run)
    events = [one for one in lines.records[:MOST_EVENTS] if one["event"] != "evaluated" or _is_result(one)]
    without = len(lines.records) - len(events) + len(lines.damaged)
    return events, page.left_out([f"{without} lines of {log.LOG} that are no event of a run"] * bool(without))


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
    values = [value for figure in result.figures.values() for value in figure if value is not None]
    return bool(result.figures) and all(_is_number(value) and math.isfinite(value) for value in values)


def _headline(pipeline: Pipeline, events: Events) -> Html:
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
    return page.facts(
        {
            "Model": f"{counts.params / 1e6:.2f} M parameters, {counts.macs / 1e6:.2f} M multiply-adds "
            f"an image ({config.model.conditioning}, width {config.model.hidden_size}, depth "
            f"{config.model.depth}, patch {config.model.patch_size})",
            "Trained": f"{step} steps of batch {config.train.batch_size}, {seconds:.0f} s on {device}",
            "Speed": f"{rate:.0f} images/s in training, {macs / 1e9:.1f} G multiply-adds/s"
            f"{_of_roof(stepped)}",
            "Skipped steps": f"{skipped}",
        }
    )


def _of_roof(stepped: Events) -> str:
    """The median of what was logged; older logs have none."""
    shares = [float(event["share_of_roof"]) for event in stepped if _is_number(event.get("share_of_roof"))]
    return f", {np.median(shares):.0%} of the rate of large matrix products here" if shares else ""


def _guidance(scale: float) -> str:
    return "unguided" if scale == 1 else f"guidance {scale}"


def _samples(pipeline: Pipeline, judge: Judge) -> Html:
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
    return html("<h2>One row per class</h2>{}<p class='small'>{}</p>", page.row(shown, width), names)


def _judged(pipeline: Pipeline, judge: Judge, events: Events, progress: PROGRESS | None) -> list[Result]:
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
        sets = drawn(judge, pipeline, replace(config.evaluate, guidance=guidance))

        def on_image(done: int, _: int, before: int = i * each) -> None:
            if progress is not None:
                progress(before + done, len(scales) * each)

        found.append(replace(judge.score(sets, on_image), name=_guidance(scale)))
    return found


def _quality(pipeline: Pipeline, found: list[Result]) -> Html:
    """At each guidance, and real held-out images judged the same way."""
    config = pipeline.config
    of = config.evaluate.reference
    copies = (
        " Nearest distance: to the nearest training image, over that of held-out ones; well below 1 the "
        "model copies."
        if "nearest" in found[0].figures
        else ""
    )
    text = (
        f"EMA weights; {config.evaluate.num} samples for each of {config.evaluate.seeds} seeds, mean ± "
        f"standard deviation over seeds; {in_words(config.sample.sampler.to_json())}, 8-bit. "
        f"FD-{of}: Fréchet distance to the training images on the features of a small classifier (not FID: "
        f"it compares with nothing else); FD-{of}-random: on the same network untrained, which sees fine "
        "noise. The last row is what real images that were held out score: at that distance nothing is left "
        "to gain. Class score: as the Inception Score, on that classifier; at most the number of classes."
        f"{copies}"
    )
    return html(
        "<h2>How good</h2>{}<p class='small'>{}</p>", page.results(found, real="real, held out"), text
    )


def _decoders(pipeline: Pipeline, judge: Judge, unguided: Result, run: Path, device: str) -> Html:
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
        replace(judge.score(drawn(judge, other, replace(config.evaluate, guidance=()))), name=others),
    ]
    classes = config.sample.grid_classes(config.model.num_classes)
    shown = {}
    for name, one in ((own, pipeline), (others, other)):
        sheet = one(classes, seed=config.sample.seed)
        shown[name] = page.png(images.grid(sheet, config.sample.per_class))
    width = max(250, images.SMALLEST_SHOWN * min(config.sample.per_class, 8))
    return html(
        "<h2>Two decoders of the same latents</h2>{}{}"
        "<p class='small'>The diffusion model and its latents are the same; only what turns them into "
        "pictures differs (the paper's table 5). Unguided for the figures.</p>",
        page.row(shown, width),
        page.results(found, real="real, held out"),
    )


def _over_training(events: Events) -> Html | None:
    """The first figure of every evaluation in training, over steps; the last one's figures as a table."""
    evaluated = [event for event in events if event["event"] == "evaluated"]
    if not evaluated:
        return None
    key = next(key for key in TITLES if key in evaluated[0])
    evaluated = [event for event in evaluated if key in event]
    steps = [event["step"] for event in evaluated]
    figure, axes = page.axes(7, 2.8, "step", TITLES[key])
    spread = [event.get(f"{key}_std") or 0.0 for event in evaluated]
    axes.errorbar(
        steps, [event[key] for event in evaluated], yerr=spread, color=page.DARK, marker="o", capsize=3
    )
    if f"{key}_real" in evaluated[0]:
        axes.axhline(evaluated[0][f"{key}_real"], color="#888", linestyle="--", label="real, held out")
        axes.legend(frameon=False)
    axes.set_yscale("log")
    last = replace(Result.from_json(evaluated[-1]), name=f"step {steps[-1]}")
    return html(
        "<h2>Evaluation in training</h2>{}{}",
        page.image(page.drawn(figure), width=700, alt=f"{TITLES[key]} over steps"),
        page.results([last]),
    )


def loss_curve(events: Events, kind: str = "stepped") -> Html | None:
    """The loss of every logged step (events of this kind) and its running mean."""
    stepped = [event for event in events if event["event"] == kind]
    steps, loss = (
        np.array([(event["step"], event["loss"]) for event in stepped], dtype=float).reshape(-1, 2).T
    )
    finite = np.isfinite(loss)
    steps, loss = steps[finite], loss[finite]
    if not len(loss):
        return None
    figure, axes = page.axes(7, 2.8, "step", "training loss")
    axes.plot(steps, loss, color=page.LIGHT, linewidth=1, label="one batch")
    window = max(1, len(loss) // 20)
    if window > 1:
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=page.DARK, linewidth=2, label=f"mean of {window}")
        axes.legend(frameon=False)
    axes.set_ylim(0, float(np.quantile(loss, 0.98)) * 1.15)
    curve = page.image(page.drawn(figure), width=700, alt="training loss over steps")
    return html("<h2>Loss</h2>{}", curve)


FILM = 5
"""Pictures of samples in training that a page shows."""


def _film(run: Path, events: Events) -> Html | None:
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
    return html("<h2>During training</h2>{}{}", page.row(pictures, width=200), page.left_out(reasons))


def _may_be_there(run: Path, path: str) -> bool:
    """Not so of a picture that somebody deleted, which a page need not speak of."""
    try:
        return (run / path).exists()
    except (OSError, ValueError):
        return True


def _origin(pipeline: Pipeline, run: Path) -> Html:
    config: RunConfig = pipeline.config
    settings, evaluate = config.sample, config.evaluate
    origin, written = json.dumps(pipeline.origin), json.dumps(config.to_json(), indent=1)
    lines = [
        " ".join(["scaledit train", config.name, *changes(config)]),
        f"scaledit sample {run} --per-class {settings.per_class} --seed {settings.seed} --out samples.png",
    ]
    if evaluate.reference:
        lines.append(f"scaledit evaluate {run} --reference {evaluate.reference}")
    return html(
        "<h2>Make it again</h2><pre>{}</pre><p class='small'>Weights: {}</p>"
        "<details><summary>config.json</summary><pre>{}</pre></details>",
        "\n".join(lines),
        origin,
        written,
    )
