"""report.html of an autoencoder's run: its reconstructions of held-out images, and how to reproduce it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scaledit.autoencoders.config import AutoencoderRun
from scaledit.errors import counted
from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.extractors.efficientnet import EfficientNetFeatures, EfficientNetTwin
from scaledit.files.reading import picture_in
from scaledit.report import page
from scaledit.report.page import Card, Chart
from scaledit.report.reproduce import reproduce
from scaledit.report.run import REPORT, WIDE, Events, curves, duration, read_events
from scaledit.training.folder import CONFIG

WIDEST = 1056
"""CSS pixels of the grid of reconstructions."""

EXTRACTORS: Mapping[str, Extractor] = {
    part.part_name(): part for part in (EfficientNetFeatures(), EfficientNetTwin())
}
"""The networks that a log may name."""


def write(run: Path) -> Path:
    """Writes run/report.html from the run's log and pictures, and returns its path."""
    config = AutoencoderRun.from_json(json.loads((run / CONFIG).read_bytes()))
    events, foreign = read_events(run)
    last, exported = _last(events, "reconstructed"), _last(events, "exported")
    sheets, missing = {}, []
    title = f"step {last['step']}"
    try:
        png = picture_in(run, last["path"])
        sheets[title] = page.sheet(png, f"Originals and reconstructions at {title}", WIDEST, False)
    except ValueError as reason:
        missing.append(str(reason))
    extractor = EXTRACTORS.get(last.get("extractor", ""))
    html = page.render(
        "autoencoder.html",
        images=_images(last),
        all_held_out=last.get("held_out") != 0,
        about_features=extractor.about if extractor else "",
        title=config.name,
        headline=_headline(config, events),
        foreign=foreign,
        sheets_of_pairs=sheets,
        missing=missing,
        curves=_over_training(events) | curves(events, "fitted"),
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


def _headline(config: AutoencoderRun, events: Events) -> list[Card]:
    started, fitted = _last(events, "started"), _last(events, "fitted")
    quality, exported = _last(events, "reconstructed"), _last(events, "exported")
    finished = [event["skipped"] for event in events if event["event"] == "finished"]
    skipped = (finished[-1] if finished else 0) or "none"
    rate = fitted["step"] * config.train.batch_size / fitted["seconds"]
    model, f = config.model, 2 ** (len(config.model.widths) - 1)
    trained = "the decoder alone" if config.train.decoder_only else "encoder and decoder"
    widths = ", ".join(map(str, model.widths))
    return [
        Card("PSNR", f"{quality['psnr']:.2f} dB", f"mean over {_images(quality)}"),
        Card("SSIM", f"{quality['ssim']:.3f}", "of the same images; 1 is identical"),
        *_feature_distances(quality),
        Card("Latents", f"f{f}", f"{model.channels} channels, scale factor {exported['scale']:.5f}"),
        Card("Parameters", f"{started['params'] / 1e6:.2f} M", f"widths {widths}"),
        Card("Compute", f"{started['macs'] / 1e6:,.0f} M", "multiply-adds per image"),
        Card(
            "Steps",
            f"{fitted['step']:,}",
            f"of batch {config.train.batch_size}, {skipped} skipped; {trained}",
        ),
        Card("Training time", duration(fitted["seconds"]), f"on {started['device']}, {rate:,.0f} images/s"),
    ]


def _images(quality: Mapping[str, Any]) -> str:
    """The images that were reconstructed, in words."""
    count, held_out = quality.get("images", 0), quality.get("held_out")
    if held_out == 0:
        return f"{counted(count, 'training image')}: no images are held out"
    if held_out is None or held_out == count:
        return counted(count, "held-out image")
    return f"{count} of {counted(held_out, 'held-out image')}"


def _feature_distances(quality: Mapping[str, Any]) -> list[Card]:
    """The distances in the features of a network; none for logs of earlier versions, which lack them."""
    extractor = EXTRACTORS.get(quality.get("extractor", ""))
    if extractor is None:
        return []
    fd, perceptual = quality.get("fd"), quality.get("perceptual")
    cards = []
    if fd is not None:
        same = f"of the same images; comparable only at {quality.get('images', 0)} images"
        cards.append(Card(extractor.distance(), f"{fd:.3g}", same))
    if perceptual is not None:
        cards.append(
            Card("Perceptual distance", f"{perceptual:.4f}", f"on {extractor.suffix}; 0 is identical")
        )
    return cards


def _over_training(events: Events) -> dict[str, Chart]:
    """A chart of PSNR over steps, if there are several."""
    reconstructed = [event for event in events if event["event"] == "reconstructed"]
    if len(reconstructed) < 2:
        return {}
    steps, values = np.array([(event["step"], event["psnr"]) for event in reconstructed], dtype=float).T
    which = "training images" if reconstructed[-1].get("held_out") == 0 else "held-out images"
    figure, axes = page.axes(*WIDE, "step", f"PSNR of {which} (dB)")
    axes.plot(steps, values, color=page.DARK, marker="o")
    return {f"PSNR of {which}": page.chart(figure, "PSNR over training steps")}
