"""scaledit train: a recipe into a run folder, with its report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaledit.commands import common
from scaledit.errors import UsageError, printable

SUMMARY = """train a recipe into a run folder

  scaledit train digits
  scaledit train digits --out runs/wide --resume auto model.hidden_size=144
  scaledit train digits --sampler ddim sample.sampler.eta=0.5 diffusion.times=uniform
  scaledit train imagenet256-b2 --nproc 8 data.path=latents"""


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser)
    parser.add_argument("--sampler", metavar="NAME", help="of the run's samples, as sample.sampler=NAME")
    parser.add_argument("--steps", action=_Steps, metavar="N", help=argparse.SUPPRESS)
    common.guidance(parser)
    common.run_folder(parser)
    common.device(parser)
    common.ranks(parser)
    common.as_json(parser)


class _Steps(argparse.Action):
    """Of training or of sampling: one has to say."""

    def __call__(self, parser: argparse.ArgumentParser, given: object, value: object, option: object = None):
        raise UsageError(
            f"--steps: write train.steps={value} for steps of training, or sample.sampler.steps={value} for "
            f"steps of the sampler"
        )


def more() -> str:
    """Below the options of --help."""
    return common.parts("model", "diffusion", "data", "optimizer", "sample", "evaluate")


def run(given: argparse.Namespace) -> int:
    from scaledit import config as configs

    config = configs.load(given.recipe, common.overrides(given))
    out = given.out or Path("runs") / config.name
    code = common.launched(given, ["train"])
    if code is not None:
        return code

    from scaledit.commands import rank
    from scaledit.report import run as report
    from scaledit.training import log
    from scaledit.training.dit import train

    def finish() -> None:
        with common.shown_progress("judging for the report") as judged:
            page = report.write(out, given.device, judged, config.modules())
        finished = {key: value for key, value in log.read(out)[-1].items() if key != "event"}
        if given.json:
            print(json.dumps({"run": str(out), "report": str(page), **finished}))
        else:
            took = f"{finished['step']} steps in {finished['seconds']:.0f} s"
            print(printable(f"trained {took}; the report is {page}"))

    return rank.run(
        config,
        out,
        given.device,
        lambda around: train(config, out, resume=given.resume, context=around),
        finish,
    )
