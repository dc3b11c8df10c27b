"""scaledit sweep: the quality of a run's samples by the settings that they are sampled with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError, no_such

if TYPE_CHECKING:
    from scaledit.pipeline import Pipeline

SUMMARY = "find the best settings to sample a run with"
DESCRIPTION = """Samples a run with every combination of the values that are lists, judges them as
`scaledit evaluate` does, and draws a map of the quality into the run's report. The settings share the noise,
and no evaluation of the network is made twice: guidance scales share their trajectory until the interval of
the guidance begins, and the predictions with and without the class afterwards. Results are kept in the run
folder, so the same command continues after an interruption, and only new values are sampled.

A study that varies keys of the training is `scaledit study`."""
EXAMPLES = (
    Example(
        "scaledit sweep runs/digits --cfg-scale 1,1.5,2 --steps 8,20 --num 200",
        "Map guidance scales and steps",
    ),
    Example(
        "scaledit sweep runs/digits --cfg-scale 1.5,2,3 --cfg-interval 0-1,0.2-0.8 --num 200 --write",
        "Limit the guidance to an interval of times, and make the best setting the run's own",
    ),
    Example(
        "scaledit sweep runs/big --average 0.05,0.1,0.15 --cfg-scale 1,1.5,2 --seeds 3 --halving",
        "Vary the average of the weights too, with three seeds for the settings that can still win",
        needs="a run trained with ema.power=[0.05,0.1]",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="the folder of a trained run")
    changes = "new values of keys that say how the model is sampled and judged, such as sample.sampler=dpm"
    common.overrides(parser, changes)
    lists: list[tuple[str, Callable[[str], Any], str, str]] = [
        ("--average", common.average_text, "L,...", "averages of the weights, as of `scaledit sample`"),
        ("--steps", common.whole, "N,...", "numbers of sampling steps"),
        ("--cfg-scale", float, "S,...", "guidance scales; 1 means no guidance"),
        (
            "--cfg-interval",
            _interval,
            "LOW-HIGH,...",
            "intervals of times in which is guided, fractions of the schedule from 0, the image, to 1, noise",
        ),
    ]
    for flag, kind, metavar, text in lists:
        add(flag, type=_list(kind), metavar=metavar, help=f"{text} (default: the run's)")
    common.sampler(parser, "the run's")
    channels = "guide the first N channels only, or all of them (default: the run's)"
    add("--cfg-channels", metavar="N|all", help=channels)
    number = "the number of images of each setting and seed (default: the run's evaluate.num)"
    add("--num", type=common.integer(2, common.MOST_IMAGES), metavar="N", help=number)
    seeds = "the number of seeds, over which the metrics' spread is reported (default: the run's)"
    add("--seeds", type=common.integer(1, common.MOST_SEEDS), metavar="K", help=seeds)
    halving = (
        "after two seeds, give no more to settings that are worse than the best one by more than four "
        "standard errors, whose spread is pooled over all settings"
    )
    add("--halving", action="store_true", help=halving)
    write = "make the best setting the run's own, in its config.json and its log"
    add("--write", action="store_true", help=write)
    reference = "the real images, as of `scaledit evaluate` (default: the run's)"
    add("--reference", metavar="REF", help=reference)
    metrics = "compute only these; the first one decides (default: the run's)"
    add("--metrics", metavar="A,B,...", help=metrics)
    common.decoder(parser)
    common.allow_import(parser)
    common.device(parser)
    common.output(parser)


more = partial(parts.in_sections, "sample")


def _list(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """The type of an option that is a list of values, or one."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(word.strip()) for word in text.split(","))

    parse.__name__ = kind.__name__  # argparse names it: "invalid float value"
    return parse


def _interval(text: str) -> tuple[float, float]:
    from scaledit.config.short import interval

    try:
        return interval(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@common.short_warnings()
def run(args: argparse.Namespace) -> None:
    folder: Path = args.run
    if not folder.exists():
        raise UsageError(no_such(folder))
    if not (folder / "checkpoints").is_dir() or not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is not a run folder, in which a map and its results are kept; train a run, or vary "
            "the settings of a model with `scaledit sample`"
        )
    from scaledit.tuning.cells import Axes

    axes = Axes(args.average or (), args.steps or (), args.cfg_scale or (), args.cfg_interval or ())
    if args.write and any("@" in average for average in axes.averages):
        raise UsageError(
            "--write makes the average the run's own, at its last step; leave @STEP out of --average"
        )
    _sweep(args, folder, axes)


def _sweep(args: argparse.Namespace, folder: Path, axes: Any) -> None:
    from scaledit import averages, checkpoint
    from scaledit.evaluation.judge import open_run_judge
    from scaledit.part import Allowed
    from scaledit.report import settings as report
    from scaledit.tuning import found as maps
    from scaledit.tuning.chosen import write_best
    from scaledit.tuning.judged import judge_cells

    kept_steps = checkpoint.find(folder / checkpoint.AVERAGES)
    newest = kept_steps[-1].name.removeprefix("step-") if kept_steps else ""

    @lru_cache(maxsize=1)
    def opened(average: str | None) -> Pipeline:
        if average and newest and "@" not in average and averages.asked(average):
            average = f"{average}@{int(newest)}"  # a run may still be training: all averages of one step
        words = {"average": average, "steps": None, "cfg_scale": None, "cfg_interval": None}
        alone = argparse.Namespace(**{**vars(args), **words, "sampler": None, "cfg_channels": None})
        return common.load_model(alone, folder)

    cells, options = axes.cells(), common.passed(args, ("sampler", "cfg_channels"))
    pipeline = opened(cells[0].average)
    evaluate = replace(
        pipeline.config.evaluate, **common.passed(args, ("reference", "metrics", "num", "seeds"))
    )
    if args.halving and evaluate.seeds < 3:
        raise UsageError("--halving saves the seeds after the first two, so it needs --seeds 3 or more")
    named = [
        word.partition(":")[0] for word in (args.reference or "", *(args.metrics or "").split(",")) if word
    ]
    allowed = Allowed.only([*named, *args.allow_import], f"the config of {folder}")
    with common.progress_bar("reading the reference") as progress:
        judge = open_run_judge(
            replace(pipeline.config, evaluate=evaluate),
            pipeline.class_names,
            pipeline.device,
            pipeline.decoder,
            progress=progress,
            allowed=allowed,
        )
    kept = f"the results so far are kept in {folder / 'sweep'}; {common.RESUMES}"
    with common.interruptible(kept), common.progress_bar("sampling settings") as progress:
        made = judge_cells(folder, cells, opened, judge, evaluate, options, args.halving, progress)
    found = maps.finding(folder, made, axes, options)
    maps.write(found, folder)
    page = report.insert(folder)
    changes: list[str] | None = None
    if args.write and found.best is not None:
        best = made.cells[found.best]
        modules = Allowed.only([*args.allow_import, *pipeline.config.modules()], str(folder))
        changes = write_best(folder, best.section, best.cell.average, modules)
    if args.json:
        terminal.say_json({**maps.to_json(found), "written": changes})
        return
    terminal.table(found.header(), found.rows())
    terminal.say("", found.verdict())
    if found.command:
        terminal.say(f"Sample with it: {found.command}")
    terminal.inform(f"{found.work}.")
    where = f"{folder / maps.JSON} and {folder / maps.CSV}"
    terminal.inform(f"The map is in {where}" + (f", and in {page}." if page else "."))
    if changes is not None:
        listed = "; ".join(changes)
        terminal.say(
            f"written to {folder / 'config.json'}: {listed}" if changes else "the run has it already"
        )
