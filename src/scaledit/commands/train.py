"""scaledit train: a recipe into a run folder, with its report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaledit.commands import common

SUMMARY = """train a recipe into a run folder

  scaledit train digits
  scaledit train digits --out runs/wide --resume auto model.hidden_size=144"""


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser)
    common.run_folder(parser)
    common.device(parser)
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    from scaledit import config as configs

    config = configs.load(given.recipe, given.overrides)
    out = given.out or Path("runs") / config.name

    from scaledit.report import run as report
    from scaledit.training.events import Finished
    from scaledit.training.loop import train
    from scaledit.training.trackers import trackers

    told = trackers(config, out)
    events = train(config, out, resume=given.resume, device=given.device)
    finished = common.shown_training(events, out, told)[Finished]
    assert isinstance(finished, Finished)
    with common.shown_progress("judging for the report") as judged:
        page = report.write(out, given.device, judged)
    result = {"run": str(out), "report": str(page), **finished._asdict()}
    if given.json:
        print(json.dumps(result))
    else:
        print(f"trained {finished.step} steps in {finished.seconds:.0f} s; the report is {page}")
