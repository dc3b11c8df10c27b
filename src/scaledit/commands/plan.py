"""scaledit plan: what training a recipe costs."""

from __future__ import annotations

import argparse
import json

from scaledit.commands import common

SUMMARY = """what training a recipe costs: multiply-adds, hours, memory, money

  scaledit plan imagenet256-xl2 --peak 989e12 --devices 8 --utilisation 0.4 --price 2.5
  scaledit plan imagenet256-xl2 --iterations-per-second 5.7     the paper's: 19.5 hours"""


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser)
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
    from scaledit import config as configs
    from scaledit.scaling import plan as plans

    config = configs.load(given.recipe, given.overrides)
    hardware = plans.Hardware(
        peak=given.peak,
        devices=given.devices,
        utilisation=given.utilisation,
        price=given.price,
    )
    made = plans.plan(config, hardware, iterations_per_second=given.iterations_per_second)
    if given.json:
        print(json.dumps(made.to_json()))
        return
    print(config.name)
    for label, value in plans.describe(made):
        print(f"  {label:<22}{value}")
