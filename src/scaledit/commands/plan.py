"""scaledit plan: what training a recipe costs, and what a budget is best spent on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from scaledit import terminal
from scaledit.commands import common
from scaledit.errors import UsageError

if TYPE_CHECKING:
    from scaledit.scaling.plan import Hardware

SUMMARY = """compute what training a recipe costs, or what to train with a budget: MACs, hours, memory, money

  scaledit plan imagenet256-xl2                                 multiply-adds and memory
  scaledit plan imagenet256-xl2 --gpu h100 --devices 8 --price 2.5      and hours and money
  scaledit plan imagenet256-xl2 --iterations-per-second 5.7     the paper's: 19.5 hours
  scaledit plan --budget 1e20                                   what to train with it, by the paper
  scaledit plan --hours 24 --gpu h100 --devices 8 --study FOLDER        and by a study of your own"""

PRECISIONS = ("fp32", "tf32", "bf16")


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser, optional=True)
    add = parser.add_argument
    add("--budget", type=float, metavar="MACS", help="what to train with this many multiply-adds")
    add("--hours", type=float, metavar="H", help="the budget as time, with --gpu or --peak")
    add("--study", metavar="STUDY", help="folder of the study that answers, or paper (default: paper)")
    gpu = "h100, h200, a100, 4090, tpu-v3, ...: its dense peak in the run's precision"
    add("--gpu", metavar="NAME", help=gpu)
    peak = "dense peak of one device in the run's precision, as in 494.7e12; a multiply-add is 2 FLOPs"
    add("--peak", type=float, metavar="FLOPS", help=peak)
    add("--precision", choices=PRECISIONS, help="for a budget (default: tf32); a recipe has its own")
    add("--devices", type=common.integer(1, common.MOST_DEVICES), default=1, metavar="N", help="(default: 1)")
    add("--utilisation", type=float, metavar="U", help="share of the peak that is reached (default: 0.4)")
    add("--price", type=float, metavar="P", help="of one device for one hour")
    add("--iterations-per-second", type=float, metavar="R", help="a measured rate, instead of an estimate")
    common.as_json(parser)


more = partial(common.parts, "model", "diffusion", "sample")


def run(args: argparse.Namespace) -> None:
    if len(common.passed(args, ("recipe", "budget", "hours"))) != 1:
        raise UsageError(
            "pass exactly one of: a recipe, for its cost; --budget or --hours, for what to train"
        )
    _check_speed(args)
    if args.recipe is not None:
        if args.study is not None:
            raise UsageError("--study answers --budget or --hours; a recipe's cost needs none")
        if args.precision is not None:
            raise UsageError(f"--precision is for a budget; for a recipe: train.precision={args.precision}")
        _cost(args)
    elif args.iterations_per_second is not None:
        raise UsageError(
            "--iterations-per-second is of one recipe; a budget's hours come from --peak or --gpu"
        )
    else:
        _spend(args)


def _check_speed(args: argparse.Namespace) -> None:
    """Raises UsageError for options that mean nothing without a speed."""
    if args.utilisation is not None and args.iterations_per_second is not None:
        raise UsageError("a measured rate implies the utilisation; leave --utilisation out")
    has_peak = args.gpu is not None or args.peak is not None
    if args.utilisation is not None and not has_peak:
        raise UsageError("--utilisation is a share of a peak: pass --gpu or --peak")
    if args.price is not None and not has_peak and args.iterations_per_second is None:
        raise UsageError("--price needs hours, and so a speed: pass --gpu, --peak or a measured rate")


def _hardware(args: argparse.Namespace, precision: str) -> Hardware:
    from scaledit.scaling import devices
    from scaledit.scaling.plan import Hardware

    peak = None if args.gpu is None else devices.peak(args.gpu, precision)
    return Hardware(
        peak=peak if args.peak is None else args.peak,
        devices=args.devices,
        price=args.price,
        name=args.gpu,
        **common.passed(args, ["utilisation"]),
    )


def _cost(args: argparse.Namespace) -> None:
    from scaledit import config as configs
    from scaledit.scaling import plan as plans

    config = configs.load(args.recipe, args.overrides)
    hardware = _hardware(args, config.train.precision)
    plan = plans.plan(config, hardware, iterations_per_second=args.iterations_per_second)
    _show(args, config.name, plan.to_json(), plans.describe(plan))


def _spend(args: argparse.Namespace) -> None:
    from scaledit.scaling import budget as budgets
    from scaledit.scaling import comparable

    precision = args.precision or budgets.PRECISION
    hardware = _hardware(args, precision)
    macs = args.budget if args.hours is None else budgets.macs_in(args.hours, hardware)
    answer = budgets.answer(comparable.study(args.study or comparable.PAPER), macs, hardware, precision)
    _show(args, "budget", answer.to_json(), answer.describe())


def _show(
    args: argparse.Namespace, title: str, values: dict[str, Any], rows: Sequence[tuple[str, str]]
) -> None:
    if args.json:
        terminal.say_json(values)
        return
    terminal.say(title)
    terminal.facts(rows, width=22)
