"""scaledit plan: what training a recipe costs, and what a budget is best spent on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scaledit import terminal
from scaledit.commands import common
from scaledit.errors import UsageError

if TYPE_CHECKING:
    from scaledit.scaling.plan import Hardware

SUMMARY = """what training a recipe costs, or what to train with a budget: multiply-adds, hours, memory, money

  scaledit plan imagenet256-xl2                                 multiply-adds and memory
  scaledit plan imagenet256-xl2 --gpu h100 --devices 8 --price 2.5      and hours and money
  scaledit plan imagenet256-xl2 --iterations-per-second 5.7     the paper's: 19.5 hours
  scaledit plan --budget 1e20                                   what to train with it, by the paper
  scaledit plan --hours 24 --gpu h100 --devices 8 --study FOLDER        and by a study of one's own"""

PRECISIONS = ("fp32", "tf32", "bf16")


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser, optional=True)
    parser.add_argument(
        "--budget", type=float, metavar="MACS", help="multiply-adds of a training: what to train with them?"
    )
    parser.add_argument("--hours", type=float, metavar="H", help="the budget as time, with --gpu or --peak")
    parser.add_argument(
        "--study", metavar="STUDY", help="whose results answer: a study's folder, or paper (default: paper)"
    )
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="h100, h200, a100, 4090, tpu-v3, ...: its dense peak in the run's precision is used",
    )
    parser.add_argument(
        "--peak",
        type=float,
        metavar="FLOPS",
        help="of one device, dense, in the run's precision, e.g. 494.7e12; a multiply-add is 2",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of a budget's training (default: tf32); a recipe says its own",
    )
    parser.add_argument("--devices", type=common.integer(1, common.MOST_DEVICES), default=1, metavar="N")
    parser.add_argument(
        "--utilisation", type=float, metavar="U", help="share of the peak that is reached (default: 0.4)"
    )
    parser.add_argument("--price", type=float, metavar="P", help="of one device for one hour")
    parser.add_argument(
        "--iterations-per-second", type=float, metavar="R", help="a measured rate, instead of a guess"
    )
    common.as_json(parser)


def more() -> str:
    """Below the options of --help."""
    return common.parts("model", "diffusion", "sample")


def run(given: argparse.Namespace) -> None:
    asked = [name for name in ("budget", "hours") if getattr(given, name) is not None]
    if len(asked) + (given.recipe is not None) != 1:
        raise UsageError(
            "give one of: a recipe, to hear its cost; --budget or --hours, to hear what to train"
        )
    _no_speed_for(given)
    if given.recipe is not None:
        if given.study is not None:
            raise UsageError("--study answers --budget or --hours; a recipe's cost needs none")
        if given.precision is not None:
            raise UsageError(f"--precision is of a budget; of a recipe: train.precision={given.precision}")
        _cost(given)
    elif given.iterations_per_second is not None:
        raise UsageError(
            "--iterations-per-second is of one recipe; a budget's hours come from --peak or --gpu"
        )
    else:
        _spend(given)


def _no_speed_for(given: argparse.Namespace) -> None:
    """Raises UsageError for options that say nothing without a speed."""
    if given.utilisation is not None and given.iterations_per_second is not None:
        raise UsageError("a measured rate tells the utilisation; leave --utilisation out")
    has_peak = given.gpu is not None or given.peak is not None
    if given.utilisation is not None and not has_peak:
        raise UsageError("--utilisation is a share of a peak: give --gpu or --peak")
    if given.price is not None and not has_peak and given.iterations_per_second is None:
        raise UsageError("--price is of hours, which need a speed: give --gpu, --peak or a measured rate")


def _hardware(given: argparse.Namespace, precision: str) -> Hardware:
    from scaledit.scaling import devices
    from scaledit.scaling.plan import Hardware

    peak = None if given.gpu is None else devices.peak(given.gpu, precision)
    return Hardware(
        peak=peak if given.peak is None else given.peak,
        devices=given.devices,
        price=given.price,
        name=given.gpu,
        **({} if given.utilisation is None else {"utilisation": given.utilisation}),
    )


def _cost(given: argparse.Namespace) -> None:
    from scaledit import config as configs
    from scaledit.scaling import plan as plans

    config = configs.load(given.recipe, given.overrides)
    hardware = _hardware(given, config.train.precision)
    made = plans.plan(config, hardware, iterations_per_second=given.iterations_per_second)
    _show(given, config.name, made.to_json(), plans.describe(made))


def _spend(given: argparse.Namespace) -> None:
    from scaledit.scaling import budget as budgets
    from scaledit.scaling import comparable

    precision = given.precision or budgets.PRECISION
    hardware = _hardware(given, precision)
    macs = given.budget if given.hours is None else budgets.macs_in(given.hours, hardware)
    made = budgets.answer(comparable.study(given.study or comparable.PAPER), macs, hardware, precision)
    _show(given, "budget", made.to_json(), made.describe())


def _show(
    given: argparse.Namespace, title: str, values: dict[str, Any], rows: Sequence[tuple[str, str]]
) -> None:
    if given.json:
        terminal.say_json(values)
        return
    terminal.say(title)
    terminal.facts(rows, width=22)
