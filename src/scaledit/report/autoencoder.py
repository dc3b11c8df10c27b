"""report.html of an autoencoder's run: its reconstructions of held-out images, and how to reproduce it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from scaledit.autoencoders.config import AutoencoderRun
from scaledit.errors import counted
from scaledit.files.reading import picture_in
from scaledit.report import page
from scaledit.report.breaks import Break, as_text, batches, breaks_of, images_seen
from scaledit.report.page import REPORT, Card, Chart
from scaledit.report.reproduce import reproduce
from scaledit.report.run import WIDE, Events, curves, duration, read_events
from scaledit.training.folder import CONFIG

WIDEST = 1056
"""CSS pixels of the grid of reconstructions."""


def write(run: Path) -> Path:
    """Writes run/report.html from the run's log and pictures, and returns its path."""
    config = AutoencoderRun.from_json(json.loads((run / CONFIG).read_bytes()))
    events, foreign = read_events(run)
    breaks = breaks_of(events)
    last, exported = _last(events, "reconstructed"), _last(events, "exported")
    sheets, missing = {}, []
    title = f"step {last['step']}"
    try:
        png = picture_in(run, last["path"])
        sheets[title] = page.sheet(png, f"Originals and reconstructions at {title}", WIDEST, False)
    except ValueError as reason:
        missing.append(str(reason))
    html = page.render(
        "autoencoder.html",
        title=config.name,
        made_from=page.state_of(run),
        headline=_headline(config, events, breaks),
        breaks=as_text(breaks),
        foreign=foreign,
        sheets_of_pairs=sheets,
        missing=missing,
        curves=_over_training(events) | curves(events, "fitted", breaks),
        reproduce=reproduce(
            config,
            run,
            events,
            {"SHA-256": exported["sha256"], "SHA-256 of the encoder": exported["encoder_sha256"]},
        ),
    )
    path = run / REPORT
    path.write_text(html, encoding="utf-8")
    return path


def _last(events: Events, kind: str) -> dict:
    return [event for event in events if event["event"] == kind][-1]


def _headline(config: AutoencoderRun, events: Events, breaks: list[Break]) -> list[Card]:
    started, fitted = _last(events, "started"), _last(events, "fitted")
    quality, exported = _last(events, "reconstructed"), _last(events, "exported")
    finished = [event["skipped"] for event in events if event["event"] == "finished"]
    skipped = (finished[-1] if finished else 0) or "none"
    batch = config.train.batch_size
    rate = images_seen(breaks, fitted["step"], batch) / fitted["seconds"]
    model, f = config.model, 2 ** (len(config.model.widths) - 1)
    trained = "the decoder alone" if config.train.decoder_only else "encoder and decoder"
    widths = ", ".join(map(str, model.widths))
    return [
        Card("PSNR", f"{quality['psnr']:.2f} dB", f"mean over {quality['images']} held-out images"),
        Card("SSIM", f"{quality['ssim']:.3f}", "of the same images; 1 is identical"),
        Card("Latents", f"f{f}", f"{counted(model.channels, 'channel')}, scale {exported['scale']:.5f}"),
        Card("Parameters", f"{started['params'] / 1e6:.2f} M", f"widths {widths}"),
        Card("Compute", f"{started['macs'] / 1e6:,.0f} M", "multiply-adds per image"),
        Card(
            "Steps",
            f"{fitted['step']:,}",
            f"of batch {batches(breaks, batch)}, {skipped} skipped; {trained}",
        ),
        Card("Training time", duration(fitted["seconds"]), f"on {started['device']}, {rate:,.0f} images/s"),
    ]


def _over_training(events: Events) -> dict[str, Chart]:
    """A chart of PSNR over steps, if there are several."""
    reconstructed = [event for event in events if event["event"] == "reconstructed"]
    if len(reconstructed) < 2:
        return {}
    steps, values = np.array([(event["step"], event["psnr"]) for event in reconstructed], dtype=float).T
    figure, axes = page.axes(*WIDE, "step", "PSNR of held-out images (dB)")
    axes.plot(steps, values, color=page.DARK, marker="o")
    return {"PSNR of held-out images": page.chart(figure, "PSNR over training steps")}
