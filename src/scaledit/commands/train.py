"""scaledit train: trains a recipe in a run folder and writes its report."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common
from scaledit.errors import UsageError

SUMMARY = """train a recipe in a run folder

  scaledit train digits
  scaledit train digits --out runs/wide --resume auto model.hidden_size=144
  scaledit train digits --sampler ddim sample.sampler.eta=0.5 diffusion.times=uniform
  scaledit train imagenet256-b2 --nproc 8 data.path=latents"""


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser)
    parser.add_argument("--sampler", metavar="NAME", help="of the run's images, as sample.sampler=NAME")
    parser.add_argument("--steps", action=_Steps, metavar="N", help=argparse.SUPPRESS)
    common.guidance(parser)
    common.run_folder(parser)
    common.device(parser)
    common.ranks(parser)
    common.as_json(parser)


class _Steps(argparse.Action):
    """Rejects --steps, which could be those of training or of sampling."""

    def __call__(self, parser: argparse.ArgumentParser, args: object, value: object, option: object = None):
        raise UsageError(
            f"--steps: write train.steps={value} for steps of training, or sample.sampler.steps={value} for "
            f"steps of the sampler"
        )


more = partial(common.parts, "model", "diffusion", "data", "optimizer", "sample", "evaluate")


def run(args: argparse.Namespace) -> int:
    from scaledit import config as configs

    config = configs.load(args.recipe, common.all_overrides(args))
    out = args.out or Path("runs") / config.name
    code = common.launch_ranks(args, ["train"])
    if code is not None:
        return code

    from scaledit.commands import rank
    from scaledit.report import run as report
    from scaledit.training import log
    from scaledit.training.dit import train

    def finish() -> None:
        with common.progress_bar("evaluating for the report") as progress:
            page = report.write(out, args.device, progress, config.modules())
        finished = {key: value for key, value in log.read(out)[-1].items() if key != "event"}
        if args.json:
            terminal.say_json({"run": str(out), "report": str(page), **finished})
        else:
            took = f"{finished['step']} steps in {finished['seconds']:.0f} s"
            terminal.say(f"trained {took}; the report is {page}")

    start = partial(train, config, out, resume=args.resume)
    return rank.run(config, out, args.device, lambda context: start(context=context), finish)
