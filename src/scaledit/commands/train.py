"""scaledit train: trains a recipe in a run folder and writes its report."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError, counted

SUMMARY = "train a model from a recipe"
DESCRIPTION = """The run folder holds checkpoints, sample grids, the log and a report with figures. Ctrl-C
saves a checkpoint and stops; --resume auto continues from it. Any key of the recipe can be changed on the
command line; `scaledit recipes RECIPE` lists the keys."""
EXAMPLES = (
    Example("scaledit train digits", "Train on handwritten digits in runs/digits"),
    Example(
        "scaledit train digits --out runs/wide --resume auto model.hidden_size=144",
        "Train a wider model, and resume if it was interrupted",
    ),
    Example(
        "scaledit train digits --out runs/ddim --sampler ddim sample.sampler.eta=0.5 diffusion.times=uniform",
        "Choose another sampler and other training times",
    ),
    Example(
        "scaledit train imagenet256-b2 --nproc 8 data.path=latents",
        "Train DiT-B/2 on 8 GPUs of this machine",
        needs="ImageNet, encoded by `scaledit encode`, and 8 GPUs",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser)
    common.sampler(parser, "the recipe's")
    parser.add_argument("--steps", action=_Steps, metavar="N", help=argparse.SUPPRESS)
    common.guidance(parser, "the recipe's")
    common.run_folder(parser)
    common.device(parser)
    common.ranks(parser)
    common.output(parser)


class _Steps(argparse.Action):
    """Rejects --steps, which could be those of training or of sampling."""

    def __call__(self, parser: argparse.ArgumentParser, args: object, value: object, option: object = None):
        raise UsageError(
            f"--steps: write train.steps={value} for steps of training, or sample.sampler.steps={value} for "
            f"steps of the sampler"
        )


more = partial(parts.in_sections, "model", "diffusion", "data", "optimizer", "sample", "evaluate")


def run(args: argparse.Namespace) -> int:
    from scaledit import config as configs

    config = configs.load(args.recipe, common.all_overrides(args))
    out = args.out or Path("runs") / config.name
    code = common.launch_ranks(args, ["train"])
    if code is not None:
        return code

    from scaledit.commands import rank
    from scaledit.report import run as report
    from scaledit.report.live import LivePage
    from scaledit.training import log
    from scaledit.training.dit import train

    def finish() -> None:
        with common.progress_bar("evaluating for the report") as progress:
            page = report.write(out, args.device, progress, config.modules())
        finished = {key: value for key, value in log.read(out)[-1].items() if key != "event"}
        if args.json:
            terminal.say_json({"run": str(out), "report": str(page), **finished})
        else:
            common.say_reported(
                f"trained {counted(finished['step'], 'step')} in {finished['seconds']:.0f} s", page
            )

    live = LivePage(config, out)
    start = partial(train, config, out, resume=args.resume, reported=True)
    return rank.run(config, out, args.device, lambda context: start(context=context), finish, [live])
