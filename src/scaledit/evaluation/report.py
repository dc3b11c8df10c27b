"""report.html of a run: one file, pictures inside: how good the model is and how to make it again."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from scaledit import images
from scaledit.config import RunConfig, changes
from scaledit.evaluation import digits as digit_scores
from scaledit.models import flops
from scaledit.pipeline import Pipeline, load
from scaledit.training import log

REPORT = "report.html"
SCORED_PER_CLASS = 50
GUIDED_SCALE = 1.5
"""Shown beside the unguided samples: the paper's best scale."""


def write(run: Path, device: str = "auto") -> Path:
    """Makes run/report.html from the run's log and its latest checkpoint, and returns its path."""
    pipeline = load(run, device)
    events = log.read(run)
    sections = [_headline(pipeline, events)]
    if pipeline.config.data.name == "digits":
        sections += [_samples(pipeline), _scores(pipeline)]
    sections += [_loss(events), _film(run, events), _origin(pipeline, run)]
    page = Template(PAGE).substitute(
        title=html.escape(pipeline.config.name), body="\n".join(section for section in sections if section)
    )
    path = run / REPORT
    path.write_text(page, encoding="utf-8")
    return path


def _headline(pipeline: Pipeline, events: list[dict[str, Any]]) -> str:
    config = pipeline.config
    counts = flops.count(config.model)
    stepped = [event for event in events if event["event"] == "stepped"]
    seconds = stepped[-1]["seconds"] if stepped else 0.0
    step = pipeline.origin["step"]
    rate = step * config.train.batch_size / seconds if seconds else float("nan")
    macs = counts.macs * flops.TRAIN_FORWARDS * rate
    device = [event for event in events if event["event"] == "started"][-1]["device"]
    skipped = sum(event["event"] == "skipped" for event in events)
    rows = {
        "Model": f"{counts.params / 1e6:.2f} M parameters, {counts.macs / 1e6:.2f} M multiply-adds an image "
        f"({config.model.conditioning}, width {config.model.hidden_size}, depth {config.model.depth}, "
        f"patch {config.model.patch_size})",
        "Trained": f"{step} steps of batch {config.train.batch_size}, {seconds:.0f} s on {device}",
        "Speed": f"{rate:.0f} images/s in training, {macs / 1e9:.1f} G multiply-adds/s",
        "Skipped steps": f"{skipped}",
    }
    return _table(rows)


def _table(rows: dict[str, str]) -> str:
    cells = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in rows.items())
    return f"<table>{cells}</table>"


def _loss(events: list[dict[str, Any]]) -> str:
    from matplotlib.figure import Figure  # 0.5 s to import

    stepped = [event for event in events if event["event"] == "stepped"]
    if not stepped:
        return ""
    steps, loss = np.array([(event["step"], event["loss"]) for event in stepped], dtype=float).T
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, loss, color="#9ecae1", linewidth=1, label="one batch")
    window = max(1, len(loss) // 20)
    if window > 1:
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="#08519c", linewidth=2, label=f"mean of {window}")
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_ylim(0, float(np.quantile(loss, 0.98)) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return f"<h2>Loss</h2>{_image(buffer.getvalue(), width=700, alt='training loss over steps')}"


def _samples(pipeline: Pipeline) -> str:
    """Samples, unguided and guided from the same noise, beside real digits of the held-out split."""
    from scaledit.data.sets import digits

    settings = pipeline.config.sample
    per_class = settings.per_class
    classes = settings.grid_classes(pipeline.config.model.num_classes)
    real = digits(held_out=True)
    rows = [np.flatnonzero(real.labels.numpy() == c)[:per_class] for c in dict.fromkeys(classes)]
    sheets = {
        "Samples, unguided": pipeline(classes, seed=settings.seed, cfg_scale=1.0),
        f"Samples, guidance {GUIDED_SCALE}": pipeline(classes, seed=settings.seed, cfg_scale=GUIDED_SCALE),
        "Real digits (held out)": images.to_uint8(real.images[np.concatenate(rows)]),
    }
    figures = "".join(
        f"<figure>{_image(_png(images.grid(sheet, per_class)), width=330, alt=title)}"
        f"<figcaption>{title}</figcaption></figure>"
        for title, sheet in sheets.items()
    )
    return f"<h2>One row a class</h2><div class='row'>{figures}</div>"


def _scores(pipeline: Pipeline) -> str:
    settings = pipeline.config.sample
    classes = np.repeat(np.arange(pipeline.config.model.num_classes), SCORED_PER_CLASS)
    lines = []
    for scale in (1.0, GUIDED_SCALE):
        made = pipeline(classes.tolist(), seed=settings.seed + 1, cfg_scale=scale, batch_size=250)
        result = digit_scores.score(made, classes)
        name = "unguided" if scale == 1 else f"guidance {scale}"
        lines.append(f"<tr><td>{name}</td><td>{result.accuracy:.1%}</td><td>{result.nearest:.3f}</td></tr>")
        ceiling = result.held_out_accuracy
    return (
        "<h2>How good</h2>"
        "<table><tr><th></th><th>class accuracy</th><th>nearest distance</th></tr>"
        + "".join(lines)
        + f"<tr><td>real, held out</td><td>{ceiling:.1%}</td><td>1.000</td></tr></table>"
        f"<p class='small'>{len(classes)} samples, {SCORED_PER_CLASS} a class, seed {settings.seed + 1}, "
        f"{settings.sampler} with {settings.steps} steps, 8-bit. "
        f"Class accuracy by {digit_scores.CLASSIFIER}. Nearest distance: mean pixel distance to the nearest "
        "training digit, divided by that of held-out digits; well below 1 the model copies its training "
        "set.</p>"
    )


def _film(run: Path, events: list[dict[str, Any]]) -> str:
    """How the same noise turned into digits over training."""
    sampled = {event["step"]: run / event["path"] for event in events if event["event"] == "sampled"}
    shown = [(step, path) for step, path in sorted(sampled.items()) if path.is_file()]
    if not shown:
        return ""
    chosen = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, 5).round().astype(int))]
    figures = "".join(
        f"<figure>{_image(path.read_bytes(), width=200, alt=f'samples at step {step}')}"
        f"<figcaption>step {step}</figcaption></figure>"
        for step, path in chosen
    )
    return f"<h2>During training</h2><div class='row'>{figures}</div>"


def _origin(pipeline: Pipeline, run: Path) -> str:
    config: RunConfig = pipeline.config
    settings = config.sample
    origin = json.dumps(pipeline.origin)
    train = html.escape(" ".join(["scaledit train", config.name, *changes(config)]))
    return (
        f"<h2>Make it again</h2><pre>{train}\n"
        f"scaledit sample {html.escape(str(run))} --per-class {settings.per_class} --seed {settings.seed} "
        f"--out samples.png</pre><p class='small'>Weights: {html.escape(origin)}</p>"
        f"<details><summary>config.json</summary><pre>{html.escape(json.dumps(config.to_json(), indent=1))}"
        "</pre></details>"
    )


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def _image(png: bytes, width: int, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<img alt='{html.escape(alt)}' style='width:{width}px' src='data:image/png;base64,{data}'>"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>scaledit: $title</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1, h2 { font-weight: 600; margin: 1.4em 0 .4em } h1 { margin-top: 0 }
table { border-collapse: collapse } th, td { text-align: left; padding: .2em 1.2em .2em 0 }
th { font-weight: 600 } .row { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0 }
figcaption { font-size: 14px; color: #555 } img { max-width: 100% } .row img { image-rendering: pixelated }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; font-size: 14px }
.small { font-size: 14px; color: #555 }
</style></head><body>
<h1>scaledit: $title</h1>
$body
</body></html>
"""
