"""report.html of an autoencoder's run: what it keeps of held-out images, and how to make it again."""

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
    """Makes run/report.html from the run's log and pictures, and returns its path."""
    config = AutoencoderRun.from_json(json.loads((run / CONFIG).read_bytes()))
    events, foreign = read_events(run)
    pictures, missing = _reconstructions(run, events)
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
    judged, exported = _last(events, "reconstructed"), _last(events, "exported")
    rate = fitted["step"] * config.train.batch_size / fitted["seconds"]
    model, f = config.model, 2 ** (len(config.model.widths) - 1)
    trained = "the decoder alone" if config.train.decoder_only else "encoder and decoder"
    return {
        "Model": f"{started['params'] / 1e6:.2f} M parameters, {started['macs'] / 1e6:.0f} M "
        f"multiply-adds an image (widths {', '.join(map(str, model.widths))}; f{f}, {model.channels} "
        "channels)",
        "Trained": f"{trained}, {fitted['step']} steps of batch {config.train.batch_size}, "
        f"{fitted['seconds']:.0f} s on {started['device']}",
        "Speed": f"{rate:.0f} images/s in training",
        "PSNR": f"{judged['psnr']:.2f} dB on {judged['images']} held-out images",
        "SSIM": f"{judged['ssim']:.3f}",
        "Scale": f"{exported['scale']:.5f}",
        "Weights": f"SHA-256 {exported['sha256'][:16]}; encoder {exported['encoder_sha256'][:16]}",
        "Skipped steps": f"{_last(events, 'finished')['skipped'] if _has(events, 'finished') else 0}",
    }


def _has(events: Events, kind: str) -> bool:
    return any(event["event"] == kind for event in events)


def _reconstructions(run: Path, events: Events) -> tuple[dict[str, bytes], list[str]]:
    """(the last picture of them under its caption, what is left out instead)."""
    last = _last(events, "reconstructed")
    try:
        return {f"step {last['step']}": picture_in(run, last["path"])}, []
    except ValueError as reason:
        return {}, [str(reason)]


def _over_training(events: Events) -> bytes | None:
    """A plot of PSNR over steps, where there are two or more."""
    judged = [event for event in events if event["event"] == "reconstructed"]
    if len(judged) < 2:
        return None
    steps, values = np.array([(event["step"], event["psnr"]) for event in judged], dtype=float).T
    figure, axes = page.axes(7, 2.8, "step", "PSNR of held-out images (dB)")
    axes.plot(steps, values, color=page.DARK, marker="o")
    return page.rendered(figure)
