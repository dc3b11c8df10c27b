"""scaledit autoencoder train: trains a recipe to an autoencoder in diffusers' format, with its report."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.errors import counted

SUMMARY = "train an autoencoder from a recipe"
DESCRIPTION = """The result is an autoencoder in diffusers' format inside of the run folder, with a report.
Pass the run folder to --autoencoder of other commands. For your own images, use images-ae-f4, -f8 or -f16:
a share of them is held out to measure the quality."""
EXAMPLES = (
    Example("scaledit autoencoder train photos-ae", "Train a small autoencoder on photographs"),
    Example(
        "scaledit autoencoder train images-ae-f4 data.path=pictures --out runs/own-ae",
        "Train one on your images, at 64x64",
    ),
    Example(
        "scaledit autoencoder train photos-ae --out runs/sharper train.init=runs/photos-ae "
        "train.decoder_only=true loss.gradient_weight=1",
        "Train a sharper decoder for the same latents",
    ),
)
METRICS = ("psnr", "ssim", "perceptual", "fd", "extractor", "images", "held_out")
"""The fields of the event `Reconstructed` that --json prints; null where an old log lacks one."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["train"], help="what to do: train")
    common.recipe(parser)
    common.run_folder(parser)
    common.device(parser)
    common.ranks(parser)
    common.output(parser)


def run(args: argparse.Namespace) -> int:
    from scaledit import config as configs
    from scaledit.autoencoders.config import AutoencoderRun

    config = configs.load(args.recipe, args.overrides, AutoencoderRun)
    out = args.out or Path("runs") / config.name
    code = common.launch_ranks(args, ["autoencoder", "train"])
    if code is not None:
        return code

    from scaledit.commands import rank
    from scaledit.report import autoencoder as report
    from scaledit.training import log
    from scaledit.training.autoencoder import train

    def finish() -> None:
        page = report.write(out)
        last = {event["event"]: event for event in log.read(out)}  # also of events before a resumption
        exported, metrics, finished = last["exported"], last["reconstructed"], last["finished"]
        result = {
            "run": str(out),
            "report": str(page),
            "autoencoder": str(out / exported["path"]),
            **{key: exported[key] for key in ("scale", "sha256", "encoder_sha256")},
            **{key: metrics.get(key) for key in METRICS},
            **{key: finished[key] for key in ("step", "seconds", "skipped")},
        }
        if args.json:
            terminal.say_json(result)
        else:
            trained = f"trained {counted(result['step'], 'step')} in {result['seconds']:.0f} s"
            on = "training images (none are held out)" if result["held_out"] == 0 else "held-out images"
            reached = f"{result['autoencoder']} reaches {result['psnr']:.2f} dB on {on}"
            common.say_reported(f"{trained}; {reached}", page)

    start = partial(train, config, out, resume=args.resume)
    return rank.run(config, out, args.device, lambda context: start(context=context), finish)
