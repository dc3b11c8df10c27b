"""report.html of a run: one file, pictures inside: how good the model is and how to make it again."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scaledit import images
from scaledit.config import RunConfig, changes
from scaledit.evaluation.judge import BUILT_IN, Judge, drawn, open_judge
from scaledit.evaluation.result import TITLES, Result
from scaledit.models import flops
from scaledit.pipeline import Pipeline, load
from scaledit.report import page
from scaledit.training import log

REPORT = "report.html"
GUIDANCE = (1.0, 1.5, 4.0)
"""Shown side by side: none, the paper's best scale, and the scale of its pictures."""

PROGRESS = Callable[[int, int], None]
Events = list[dict[str, Any]]


def write(run: Path, device: str = "auto", progress: PROGRESS | None = None) -> Path:
    """Makes run/report.html from the run's log and its latest checkpoint, and returns its path."""
    pipeline = load(run, device)
    events = log.read(run)
    sections = [_headline(pipeline, events)]
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


def _headline(pipeline: Pipeline, events: Events) -> str:
    config = pipeline.config
    counts = flops.count(config.model)
    stepped = [event for event in events if event["event"] == "stepped"]
    seconds = stepped[-1]["seconds"] if stepped else 0.0
    step = pipeline.origin["step"]
    rate = step * config.train.batch_size / seconds if seconds else float("nan")
    macs = counts.macs * flops.TRAIN_FORWARDS * rate
    devices = [event["device"] for event in events if event["event"] == "started"]
    device = devices[-1] if devices else "a device that the log does not name"
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
    shares = [event["share_of_roof"] for event in stepped if isinstance(event.get("share_of_roof"), float)]
    return f", {np.median(shares):.0%} of the rate of large matrix products here" if shares else ""


def _guidance(scale: float) -> str:
    return "unguided" if scale == 1 else f"guidance {scale}"


def _samples(pipeline: Pipeline, judge: Judge) -> str:
    """Samples at each guidance from the same noise, beside real held-out images."""
    settings, real = pipeline.config.sample, judge.real
    assert real is not None and real.labels is not None  # as every built-in reference has
    per_class = settings.per_class
    classes = settings.grid_classes(pipeline.config.model.num_classes)
    rows = [np.flatnonzero(real.labels == c)[:per_class] for c in dict.fromkeys(classes)]
    sheets = {
        f"Samples, {_guidance(scale)}": pipeline(classes, seed=settings.seed, cfg_scale=scale)
        for scale in GUIDANCE
    } | {"Real images (held out)": real.images[np.concatenate(rows)]}
    shown = {title: page.png(images.grid(sheet, per_class)) for title, sheet in sheets.items()}
    width = max(250, images.SMALLEST_SHOWN * min(per_class, 8))
    names = ", ".join(pipeline.class_names[c] for c in dict.fromkeys(classes))
    return f"<h2>One row a class</h2>{page.row(shown, width)}<p class='small'>{html.escape(names)}</p>"


def _judged(pipeline: Pipeline, judge: Judge, events: Events, progress: PROGRESS | None) -> list[Result]:
    """By the run's own judge, at each guidance; what training has measured at this step is taken from the
    log."""
    config = pipeline.config
    logged = {
        event["protocol"]["cfg_scale"]: Result.from_json(event)
        for event in events
        if event["event"] == "evaluated" and event["step"] == pipeline.origin["step"]
    }
    found, each = [], config.evaluate.num * config.evaluate.seeds
    for i, scale in enumerate(GUIDANCE):
        if scale in logged:
            found.append(replace(logged[scale], name=_guidance(scale)))
            continue
        sets = drawn(judge, pipeline, replace(config.evaluate, cfg_scale=scale))

        def on_image(done: int, _: int, before: int = i * each) -> None:
            if progress is not None:
                progress(before + done, len(GUIDANCE) * each)

        found.append(replace(judge.score(sets, on_image), name=_guidance(scale)))
    return found


def _quality(pipeline: Pipeline, found: list[Result]) -> str:
    """At each guidance, and real held-out images judged the same way."""
    config = pipeline.config
    of = config.evaluate.reference
    copies = (
        " Nearest distance: to the nearest training image, over that of held-out ones; well below 1 the "
        "model copies."
        if "nearest" in found[0].figures
        else ""
    )
    return (
        f"<h2>How good</h2>{page.results(found, real='real, held out')}<p class='small'>EMA weights; "
        f"{config.evaluate.num} samples for each of {config.evaluate.seeds} seeds, mean ± standard "
        f"deviation over seeds; {config.sample.sampler} with {config.sample.steps} steps, 8-bit. FD-{of}: "
        "Fréchet distance to the training images on the features of a small classifier (not FID: it "
        f"compares with nothing else); FD-{of}-random: on the same network untrained, which sees fine "
        "noise. The last row is what real images that were held out score: at that distance nothing is left "
        "to gain. Class score: as the Inception Score, on that classifier; at most the number of classes."
        f"{copies}</p>"
    )


def _decoders(pipeline: Pipeline, judge: Judge, unguided: Result, run: Path, device: str) -> str:
    """The same latents through two decoders (the paper's table 5). unguided: what the run's own scored."""
    config = pipeline.config
    other = load(run, device, replace(config.autoencoder, path=config.autoencoder.compare))
    assert pipeline.decoder is not None and other.decoder is not None  # only latents have decoders
    own, others = (Path(one.decoder.where).name for one in (pipeline, other) if one.decoder is not None)
    found = [
        replace(unguided, name=own),
        replace(judge.score(drawn(judge, other, replace(config.evaluate, cfg_scale=1.0))), name=others),
    ]
    classes = config.sample.grid_classes(config.model.num_classes)
    shown = {}
    for name, one in ((own, pipeline), (others, other)):
        sheet = one(classes, seed=config.sample.seed)
        shown[name] = page.png(images.grid(sheet, config.sample.per_class))
    width = max(250, images.SMALLEST_SHOWN * min(config.sample.per_class, 8))
    return (
        f"<h2>Two decoders of the same latents</h2>{page.row(shown, width)}"
        f"{page.results(found, real='real, held out')}"
        "<p class='small'>The diffusion model and its latents are the same; only what turns them into "
        "pictures differs (the paper's table 5). Unguided for the figures.</p>"
    )


def _over_training(events: Events) -> str:
    """The first figure of every evaluation in training, over steps; the last one's figures as a table."""
    evaluated = [event for event in events if event["event"] == "evaluated"]
    if not evaluated:
        return ""
    key = next(key for key in TITLES if key in evaluated[0])
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
    return (
        "<h2>Evaluation in training</h2>"
        + page.image(page.drawn(figure), width=700, alt=f"{TITLES[key]} over steps")
        + page.results([last])
    )


def loss_curve(events: Events, kind: str = "stepped") -> str:
    """The loss of every logged step (events of this kind) and its running mean."""
    stepped = [event for event in events if event["event"] == kind]
    if not stepped:
        return ""
    steps, loss = np.array([(event["step"], event["loss"]) for event in stepped], dtype=float).T
    figure, axes = page.axes(7, 2.8, "step", "training loss")
    axes.plot(steps, loss, color=page.LIGHT, linewidth=1, label="one batch")
    window = max(1, len(loss) // 20)
    if window > 1:
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=page.DARK, linewidth=2, label=f"mean of {window}")
        axes.legend(frameon=False)
    axes.set_ylim(0, float(np.quantile(loss, 0.98)) * 1.15)
    return f"<h2>Loss</h2>{page.image(page.drawn(figure), width=700, alt='training loss over steps')}"


def _film(run: Path, events: Events) -> str:
    """How the same noise turned into pictures over training."""
    sampled = {event["step"]: run / event["path"] for event in events if event["event"] == "sampled"}
    shown = [(step, path) for step, path in sorted(sampled.items()) if path.is_file()]
    if not shown:
        return ""
    chosen = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, 5).round().astype(int))]
    pictures = {f"step {step}": path.read_bytes() for step, path in chosen}
    return f"<h2>During training</h2>{page.row(pictures, width=200)}"


def _origin(pipeline: Pipeline, run: Path) -> str:
    config: RunConfig = pipeline.config
    settings, evaluate = config.sample, config.evaluate
    origin, written = json.dumps(pipeline.origin), json.dumps(config.to_json(), indent=1)
    lines = [
        " ".join(["scaledit train", config.name, *changes(config)]),
        f"scaledit sample {run} --per-class {settings.per_class} --seed {settings.seed} --out samples.png",
    ]
    if evaluate.reference:
        lines.append(f"scaledit evaluate {run} --reference {evaluate.reference}")
    return (
        f"<h2>Make it again</h2><pre>{html.escape(chr(10).join(lines))}</pre><p class='small'>Weights: "
        f"{html.escape(origin)}</p><details><summary>config.json</summary><pre>{html.escape(written)}</pre>"
        "</details>"
    )
