"""scaledit plan: what training a recipe costs, and what a budget is best spent on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError

if TYPE_CHECKING:
    from scaledit.scaling.plan import Hardware

SUMMARY = "compute the cost of a run, or what to train with a budget"
DESCRIPTION = """For a recipe: multiply-adds and memory, and with a device also hours and money. For a
budget: the model and the number of steps that are expected to give the best images, from the paper's
results or from a study of your own."""
EXAMPLES = (
    Example("scaledit plan imagenet256-xl2", "Multiply-adds and memory of the paper's largest model"),
    Example(
        "scaledit plan imagenet256-xl2 --gpu h100 --devices 8 --price 2.5",
        "Add hours and money on 8 GPUs",
    ),
    Example(
        "scaledit plan imagenet256-xl2 --iterations-per-second 5.7",
        "Compute hours from a measured speed, here that of the paper",
    ),
    Example(
        "scaledit plan --budget 1e20", "Ask what to train with 1e20 multiply-adds, by the paper's results"
    ),
    Example(
        "scaledit plan --hours 24 --gpu h100 --devices 8 --study docs/studies/digits",
        "Ask the same for a day on 8 GPUs, by the results of a study",
    ),
)

PRECISIONS = ("fp32", "tf32", "bf16")


def arguments(parser: argparse.ArgumentParser) -> None:
    common.recipe(parser, optional=True)
    add = parser.add_argument
    add("--budget", type=float, metavar="MACS", help="ask what to train with this many multiply-adds")
    hours = "ask what to train in this many hours, on the devices of --gpu or --peak"
    add("--hours", type=float, metavar="H", help=hours)
    study = "the folder of the study whose results answer, or paper for the paper's (default: paper)"
    add("--study", metavar="STUDY", help=study)
    gpu = "the device: h100, h200, a100, 4090, tpu-v3 or another one whose peak speed is known"
    add("--gpu", metavar="GPU", help=gpu)
    peak = (
        "the peak speed of one device in the precision of the run, for dense matrix products, such as "
        "494.7e12; a multiply-add counts as 2 FLOPs"
    )
    add("--peak", type=float, metavar="FLOPS", help=peak)
    precision = "the precision of training with a budget (default: tf32); a recipe has its own"
    add("--precision", choices=PRECISIONS, help=precision)
    devices = "the number of devices (default: 1)"
    add("--devices", type=common.integer(1, common.MOST_DEVICES), default=1, metavar="N", help=devices)
    share = "the share of the peak speed that training reaches (default: 0.4)"
    add("--utilization", "--utilisation", type=float, metavar="U", help=share)
    add("--price", type=float, metavar="P", help="the price of one device for one hour")
    rate = "a measured speed of training, which replaces the estimate"
    add("--iterations-per-second", type=float, metavar="R", help=rate)
    common.output(parser)


more = partial(parts.in_sections, "model", "diffusion", "sample")


def run(args: argparse.Namespace) -> None:
    if len(common.passed(args, ("recipe", "budget", "hours"))) != 1:
        raise UsageError(
            "pass exactly one of a recipe (to compute its cost), --budget or --hours (to ask what to train)"
        )
    _check_speed(args)
    if args.recipe is not None:
        if args.study is not None:
            raise UsageError("--study goes with --budget or --hours; the cost of a recipe needs no study")
        if args.precision is not None:
            raise UsageError(
                f"--precision goes with a budget; for a recipe, set train.precision={args.precision}"
            )
        _cost(args)
    elif args.iterations_per_second is not None:
        raise UsageError("--iterations-per-second goes with a recipe; for a budget, pass --gpu or --peak")
    else:
        _spend(args)


def _check_speed(args: argparse.Namespace) -> None:
    """Raises UsageError for options that mean nothing without a speed."""
    if args.utilization is not None and args.iterations_per_second is not None:
        raise UsageError("--iterations-per-second implies the utilization; leave --utilization out")
    has_peak = args.gpu is not None or args.peak is not None
    if args.utilization is not None and not has_peak:
        raise UsageError("--utilization is a share of the peak speed; pass --gpu or --peak, too")
    if args.price is not None and not has_peak and args.iterations_per_second is None:
        raise UsageError(
            "--price needs the hours, and so a speed; pass --gpu, --peak or --iterations-per-second"
        )


def _hardware(args: argparse.Namespace, precision: str) -> Hardware:
    from scaledit.scaling import devices
    from scaledit.scaling.plan import Hardware

    peak = None if args.gpu is None else devices.peak(args.gpu, precision)
    return Hardware(
        peak=peak if args.peak is None else args.peak,
        devices=args.devices,
        price=args.price,
        name=args.gpu,
        **common.passed(args, ["utilization"]),
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
