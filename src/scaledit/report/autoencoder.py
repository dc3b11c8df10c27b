"""report.html of an autoencoder's run: its reconstructions of held-out images, and how to reproduce it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import changes
from scaledit.files.reading import picture_in
from scaledit.report import page
from scaledit.report.run import REPORT, Events, loss_curve, loss_terms, read_events
from scaledit.training.folder import CONFIG


def write(run: Path) -> Path:
    """Writes run/report.html from the run's log and pictures, and returns its path."""
    config = AutoencoderRun.from_json(json.loads((run / CONFIG).read_bytes()))
    events, foreign = read_events(run)
    last = _last(events, "reconstructed")
    pictures, missing = {}, []
    try:
        pictures[f"step {last['step']}"] = picture_in(run, last["path"])
    except ValueError as reason:
        missing.append(str(reason))
    html = page.render(
        "autoencoder.html",
        title=config.name,
        headline=_headline(config, events),
        foreign=foreign,
        pictures=pictures,
        missing=missing,
        psnr=_over_training(events),
        loss=loss_curve(events, "fitted"),
        loss_terms=loss_terms(events, "fitted"),
        commands=[" ".join(["scaledit autoencoder train", config.name, *changes(config), f"--out {run}"])],
        config=json.dumps(config.to_json(), indent=1),
    )
    path = run / REPORT
    path.write_text(html, encoding="utf-8")
    return path


def _last(events: Events, kind: str) -> dict:
    return [event for event in events if event["event"] == kind][-1]


def _headline(config: AutoencoderRun, events: Events) -> dict[str, str]:
    started, fitted = _last(events, "started"), _last(events, "fitted")
    quality, exported = _last(events, "reconstructed"), _last(events, "exported")
    skipped = [event["skipped"] for event in events if event["event"] == "finished"]
    rate = fitted["step"] * config.train.batch_size / fitted["seconds"]
    model, f = config.model, 2 ** (len(config.model.widths) - 1)
    trained = "the decoder alone" if config.train.decoder_only else "encoder and decoder"
    return {
        "Model": f"{started['params'] / 1e6:.2f} M parameters, {started['macs'] / 1e6:.0f} M "
        f"multiply-adds per image (widths {', '.join(map(str, model.widths))}; f{f}, {model.channels} "
        "channels)",
        "Trained": f"{trained}, {fitted['step']} steps of batch {config.train.batch_size}, "
        f"{fitted['seconds']:.0f} s on {started['device']}",
        "Speed": f"{rate:.0f} images/s in training",
        "PSNR": f"{quality['psnr']:.2f} dB on {quality['images']} held-out images",
        "SSIM": f"{quality['ssim']:.3f}",
        "Scale": f"{exported['scale']:.5f}",
        "Weights": f"SHA-256 {exported['sha256'][:16]}; encoder {exported['encoder_sha256'][:16]}",
        "Skipped steps": f"{skipped[-1] if skipped else 0}",
    }


def _over_training(events: Events) -> bytes | None:
    """A plot of PSNR over steps, if there are several."""
    reconstructed = [event for event in events if event["event"] == "reconstructed"]
    if len(reconstructed) < 2:
        return None
    steps, values = np.array([(event["step"], event["psnr"]) for event in reconstructed], dtype=float).T
    figure, axes = page.axes(7, 2.8, "step", "PSNR of held-out images (dB)")
    axes.plot(steps, values, color=page.DARK, marker="o")
    return page.rendered(figure)
