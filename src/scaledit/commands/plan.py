"""scaledit plan: what training a recipe costs, and what a budget is best spent on."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from scaledit.commands import common
from scaledit.errors import UsageError

if TYPE_CHECKING:
    from scaledit.scaling.plan import Hardware

SUMMARY = """what training a recipe costs, or what to train with a budget: multiply-adds, hours, memory, money

  scaledit plan imagenet256-xl2 --peak 989e12 --devices 8 --utilisation 0.4 --price 2.5
  scaledit plan imagenet256-xl2 --iterations-per-second 5.7     the paper's: 19.5 hours
  scaledit plan --budget 1e20                                   what to train with it, by the paper
  scaledit plan --hours 24 --peak 989e12 --devices 8 --study FOLDER    and by a study of one's own"""


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser, optional=True)
    parser.add_argument(
        "--budget", type=float, metavar="MACS", help="multiply-adds of a training: what to train with them?"
    )
    parser.add_argument("--hours", type=float, metavar="H", help="the budget as time, with --peak")
    parser.add_argument(
        "--study", metavar="STUDY", help="whose results answer: a study's folder, or paper (default: paper)"
    )
    parser.add_argument(
        "--peak",
        type=float,
        metavar="FLOPS",
        help="of one device as vendors print it, e.g. 989e12; a multiply-add is 2",
    )
    parser.add_argument("--devices", type=int, default=1, metavar="N")
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        metavar="U",
        help="share of the peak that is reached (default: 0.4)",
    )
    parser.add_argument("--price", type=float, metavar="P", help="of one device for one hour")
    parser.add_argument(
        "--iterations-per-second", type=float, metavar="R", help="a measured rate, instead of a guess"
    )
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    from scaledit.scaling.plan import Hardware

    hardware = Hardware(
        peak=given.peak,
        devices=given.devices,
        utilisation=given.utilisation,
        price=given.price,
    )
    asked = [name for name in ("budget", "hours") if getattr(given, name) is not None]
    if len(asked) + (given.recipe is not None) != 1:
        raise UsageError(
            "give one of: a recipe, to hear its cost; --budget or --hours, to hear what to train"
        )
    if given.recipe is not None:
        if given.study is not None:
            raise UsageError("--study answers --budget or --hours; a recipe's cost needs none")
        _cost(given, hardware)
    elif given.iterations_per_second is not None:
        raise UsageError("--iterations-per-second is of one recipe; a budget's hours come from --peak")
    else:
        _spend(given, hardware)


def _cost(given: argparse.Namespace, hardware: Hardware) -> None:
    from scaledit import config as configs
    from scaledit.scaling import plan as plans

    config = configs.load(given.recipe, given.overrides)
    made = plans.plan(config, hardware, iterations_per_second=given.iterations_per_second)
    _show(given, config.name, made.to_json(), plans.describe(made))


def _spend(given: argparse.Namespace, hardware: Hardware) -> None:
    from scaledit.scaling import budget as budgets
    from scaledit.scaling import comparable

    macs = given.budget if given.hours is None else budgets.macs_in(given.hours, hardware)
    made = budgets.answer(comparable.study(given.study or comparable.PAPER), macs, hardware)
    _show(given, "budget", made.to_json(), made.describe())


def _show(given: argparse.Namespace, title: str, values: dict[str, Any], rows: list[tuple[str, str]]) -> None:
    if given.json:
        print(json.dumps(values))
        return
    print(title)
    for label, value in rows:
        print(f"  {label:<22}{value}")
