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
    parser.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE)")
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="never",
        help="auto: go on from the folder's latest checkpoint, or start if there is none",
    )
    common.device(parser)
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    from scaledit import config as configs

    config = configs.load(given.recipe, given.overrides)
    out = given.out or Path("runs") / config.name

    from rich.console import Console

    from scaledit.progress import TrainingProgress
    from scaledit.report import run as report
    from scaledit.training.events import Finished, Saved
    from scaledit.training.log import JsonLog
    from scaledit.training.loop import train

    console = Console(stderr=True)
    log, finished, saved = JsonLog(out), None, None
    try:
        with TrainingProgress(console) as progress:
            for event in train(config, out, resume=given.resume, device=given.device):
                log(event)
                progress(event)
                saved = event if isinstance(event, Saved) else saved
                finished = event if isinstance(event, Finished) else finished
    except KeyboardInterrupt:
        step = f"from step {saved.step} " if saved else ""
        console.print(
            f"interrupted; the same command with --resume auto goes on {step}in {out}", highlight=False
        )
        raise
    assert finished is not None
    with common.shown_progress("judging for the report") as judged:
        page = report.write(out, given.device, judged)
    result = {"run": str(out), "report": str(page), **finished._asdict()}
    if given.json:
        print(json.dumps(result))
    else:
        print(f"trained {finished.step} steps in {finished.seconds:.0f} s; the report is {page}")
