"""The command line: parse, call, print. Each command imports what it needs when it runs, so that --help and
wrong calls are answered at once.

Exit codes: 0 done, 1 the work failed, 2 a wrong call, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from scaledit import __version__
from scaledit.errors import RunError, UsageError, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError with the nearest option, and lets options and words mix."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        parsed, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            options = [
                option for action in self._actions for option in action.option_strings if option[1] == "-"
            ]
            word = unknown[0].partition("=")[0]
            hint = did_you_mean(word, options) if word.startswith("-") else f"; see {self.prog} --help"
            raise UsageError(f"unknown argument {unknown[0]!r}{hint}")
        return parsed


@dataclass(frozen=True)
class Command:
    summary: str
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UsageError as error:
        print(f"scaledit: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"scaledit: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"scaledit: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scaledit: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"scaledit {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}")
    command = COMMANDS[name]
    parser = Parser(
        prog=f"scaledit {name}",
        description=command.summary,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.arguments(parser)
    command.run(parser.parse(arguments[1:]))
    return 0


def _overview() -> str:
    lines = [f"  {name:<10}{command.summary.splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: scaledit COMMAND ...",
            "",
            "Diffusion Transformers end to end.",
            "",
            *lines,
            "",
            "scaledit COMMAND --help says more.",
        ]
    )


def _recipe_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or the path of a .toml file")
    parser.add_argument(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        help="changes to the recipe, as in train.steps=100",
    )


def _json_argument(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


# train


def _train_arguments(parser: Parser) -> None:
    _recipe_arguments(parser)
    parser.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE)")
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="never",
        help="auto: go on from the folder's latest checkpoint, or start if there is none",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    _json_argument(parser)


def _train(arguments: argparse.Namespace) -> None:
    from scaledit import config as configs

    config = configs.load(arguments.recipe, arguments.overrides)
    out = arguments.out or Path("runs") / config.name

    from rich.console import Console

    from scaledit.evaluation import report
    from scaledit.progress import TrainingProgress
    from scaledit.training.events import Finished, Saved
    from scaledit.training.log import JsonLog
    from scaledit.training.loop import train

    console = Console(stderr=True)
    log, finished, saved = JsonLog(out), None, None
    try:
        with TrainingProgress(console) as progress:
            for event in train(config, out, resume=arguments.resume, device=arguments.device):
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
    with console.status("drawing samples for the report"):
        page = report.write(out, arguments.device)
    result = {"run": str(out), "report": str(page), **finished._asdict()}
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"trained {finished.step} steps in {finished.seconds:.0f} s; the report is {page}")


# sample


def _sample_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run folder or a checkpoint")
    parser.add_argument("--classes", metavar="0,1,2", help="class numbers or names (default: all)")
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--per-class", type=int, metavar="N", help="N images of each class (default: 8)")
    how_many.add_argument("--num", type=int, metavar="N", help="N images, the classes taken in turn")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--start", type=int, default=0, metavar="I", help="index of the first image (default: 0)"
    )
    parser.add_argument(
        "--sampler", choices=["ddpm", "ddim", "dpm", "heun", "euler"], help="(default: the run's)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: the run's)")
    parser.add_argument(
        "--cfg-scale", type=float, metavar="S", help="guidance; 1 is none (default: the run's)"
    )
    parser.add_argument(
        "--cfg-channels", choices=["3", "all"], help="which channels are guided (default: the run's)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="changes speed, not images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="a grid (FILE.png), ADM's batch (FILE.npz), or a folder",
    )
    _json_argument(parser)


def _sample(arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    if out.suffix not in (".png", ".npz", ""):
        raise UsageError(f"--out {out}: give a .png (a grid), a .npz (a batch) or a folder")
    for name in ("per_class", "num", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if arguments.start < 0:
        raise UsageError(f"--start must be at least 0, got {arguments.start}")
    if not Path(arguments.model).exists():
        raise UsageError(f"there is no {arguments.model}")

    from rich.console import Console

    from scaledit import sampling
    from scaledit.pipeline import load
    from scaledit.progress import bar

    pipeline = load(arguments.model, arguments.device)
    request = sampling.Request(
        classes=sampling.parse_classes(arguments.classes, pipeline),
        per_class=arguments.per_class,
        num=arguments.num,
        seed=arguments.seed,
        start=arguments.start,
        sampler=arguments.sampler,
        steps=arguments.steps,
        cfg_scale=arguments.cfg_scale,
        cfg_channels=arguments.cfg_channels,
    )
    with bar(Console(stderr=True)) as progress:
        task = progress.add_task("sampling", total=None, note="")
        made = sampling.run(
            pipeline,
            request,
            arguments.batch_size,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    sampling.write(made, out)
    if arguments.json:
        print(json.dumps({"out": str(out), **made.origin}))
    else:
        print(f"{len(made.images)} images in {out}")


# models


def _models(arguments: argparse.Namespace) -> None:
    from scaledit.scaling import paper

    rows = paper.table4()
    if arguments.json:
        print(json.dumps([row.to_json() for row in rows]))
        return
    _print_table(paper.HEADER, [row.cells() for row in rows])


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


# plan


def _plan_arguments(parser: Parser) -> None:
    _recipe_arguments(parser)
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
    _json_argument(parser)


def _plan(arguments: argparse.Namespace) -> None:
    from scaledit import config as configs
    from scaledit.scaling import plan as plans

    config = configs.load(arguments.recipe, arguments.overrides)
    hardware = plans.Hardware(
        peak=arguments.peak,
        devices=arguments.devices,
        utilisation=arguments.utilisation,
        price=arguments.price,
    )
    made = plans.plan(config, hardware, iterations_per_second=arguments.iterations_per_second)
    if arguments.json:
        print(json.dumps(made.to_json()))
        return
    print(config.name)
    for label, value in plans.describe(made):
        print(f"  {label:<22}{value}")


def _no_arguments(parser: Parser) -> None:
    _json_argument(parser)


def _recipes(arguments: argparse.Namespace) -> None:
    from scaledit.config import RECIPES, recipe_names

    rows: list[dict[str, Any]] = []
    for name in recipe_names():
        lines = (RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        rows.append({"name": name, "summary": lines[0].removeprefix("# ")})
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['name']:<34}{row['summary']}")


COMMANDS = {
    "train": Command(
        "train a recipe into a run folder\n\n"
        "  scaledit train digits\n"
        "  scaledit train digits --out runs/wide --resume auto model.hidden_size=128",
        _train_arguments,
        _train,
    ),
    "sample": Command(
        "draw images from a run\n\n"
        "  scaledit sample runs/digits --out samples.png\n"
        "  scaledit sample runs/digits --classes 3,5 --num 100 --cfg-scale 1.5 --out samples.npz",
        _sample_arguments,
        _sample,
    ),
    "models": Command(
        "the paper's models: parameters and multiply-adds, computed, beside its table 4",
        _no_arguments,
        _models,
    ),
    "plan": Command(
        "what training a recipe costs: multiply-adds, hours, memory, money\n\n"
        "  scaledit plan imagenet256-xl2 --peak 989e12 --devices 8 --utilisation 0.4 --price 2.5\n"
        "  scaledit plan imagenet256-xl2 --iterations-per-second 5.7     the paper's: 19.5 hours",
        _plan_arguments,
        _plan,
    ),
    "recipes": Command("the recipes that come with scaledit", _no_arguments, _recipes),
}


if __name__ == "__main__":
    sys.exit(main())
