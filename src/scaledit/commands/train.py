"""scaledit train: a recipe into a run folder, with its report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaledit.commands import common
from scaledit.errors import printable

SUMMARY = """train a recipe into a run folder

  scaledit train digits
  scaledit train digits --out runs/wide --resume auto model.hidden_size=144
  scaledit train imagenet256-b2 --nproc 8 data.path=latents"""


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser)
    common.run_folder(parser)
    common.device(parser)
    common.ranks(parser)
    common.as_json(parser)


def run(given: argparse.Namespace) -> int:
    from scaledit import config as configs

    config = configs.load(given.recipe, given.overrides)
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
            page = report.write(out, given.device, judged)
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
        lambda around: train(config, out, resume=given.resume, around=around),
        finish,
    )
