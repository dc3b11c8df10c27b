"""scaledit autoencoder train: a recipe into an autoencoder in diffusers' format, with its report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaledit.commands import common
from scaledit.errors import printable

SUMMARY = """train an autoencoder: a recipe into a run folder, the result in diffusers' format

  scaledit autoencoder train photos-ae
  scaledit autoencoder train photos-ae --out runs/sharper train.init=runs/photos-ae \\
      train.decoder_only=true loss.gradient_weight=1"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["train"])
    common.recipe(parser)
    common.run_folder(parser)
    common.device(parser)
    common.ranks(parser)
    common.as_json(parser)


def run(given: argparse.Namespace) -> int:
    from scaledit import config as configs
    from scaledit.autoencoders.config import AutoencoderRun

    config = configs.load(given.recipe, given.overrides, AutoencoderRun)
    out = given.out or Path("runs") / config.name
    code = common.launched(given, ["autoencoder", "train"])
    if code is not None:
        return code

    from scaledit.commands import rank
    from scaledit.report import autoencoder as report
    from scaledit.training import log
    from scaledit.training.autoencoder import train

    def finish() -> None:
        page = report.write(out)
        last = {event["event"]: event for event in log.read(out)}  # what was done in earlier lives too
        exported, judged, finished = last["exported"], last["reconstructed"], last["finished"]
        result = {
            "run": str(out),
            "report": str(page),
            "autoencoder": str(out / exported["path"]),
            "scale": exported["scale"],
            "sha256": exported["sha256"],
            "encoder_sha256": exported["encoder_sha256"],
            "psnr": judged["psnr"],
            "ssim": judged["ssim"],
            "step": finished["step"],
            "seconds": finished["seconds"],
            "skipped": finished["skipped"],
        }
        if given.json:
            print(json.dumps(result))
        else:
            print(
                printable(
                    f"trained {result['step']} steps in {result['seconds']:.0f} s; {result['autoencoder']} "
                    f"reaches {result['psnr']:.2f} dB on held-out images; the report is {page}"
                )
            )

    return rank.run(
        config,
        out,
        given.device,
        lambda around: train(config, out, resume=given.resume, context=around),
        finish,
    )
