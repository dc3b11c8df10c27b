"""scaledit autoencoder train: a recipe into an autoencoder in diffusers' format, with its report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaledit.commands import common

SUMMARY = """train an autoencoder: a recipe into a run folder, the result in diffusers' format

  scaledit autoencoder train photos-ae
  scaledit autoencoder train photos-ae --out runs/sharper train.init=runs/photos-ae \\
      train.decoder_only=true loss.gradient_weight=1"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["train"])
    common.recipe(parser)
    common.run_folder(parser)
    common.device(parser)
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    from scaledit import config as configs
    from scaledit.autoencoders.config import AutoencoderRun

    config = configs.load(given.recipe, given.overrides, AutoencoderRun)
    out = given.out or Path("runs") / config.name

    from scaledit.report import autoencoder as report
    from scaledit.training import log
    from scaledit.training.autoencoder import train
    from scaledit.training.trackers import trackers

    told = trackers(config, out)
    common.shown_training(train(config, out, resume=given.resume, device=given.device), out, told)
    page = report.write(out)
    last = {event["event"]: event for event in log.read(out)}  # a run that was done already has no new ones
    exported, judged = last["exported"], last["reconstructed"]
    result = {
        "run": str(out),
        "report": str(page),
        "autoencoder": str(out / exported["path"]),
        "scale": exported["scale"],
        "sha256": exported["sha256"],
        "encoder_sha256": exported["encoder_sha256"],
        "psnr": judged["psnr"],
        "ssim": judged["ssim"],
        "step": last["finished"]["step"],
        "seconds": last["finished"]["seconds"],
        "skipped": last["finished"]["skipped"],
    }
    if given.json:
        print(json.dumps(result))
    else:
        print(
            f"trained {result['step']} steps in {result['seconds']:.0f} s; {result['autoencoder']} reaches "
            f"{result['psnr']:.2f} dB on held-out images; the report is {page}"
        )
