"""Which run `scaledit train` and `scaledit autoencoder train` train: a recipe's, or that of a run folder.

RECIPE       the config of the recipe    --out, or runs/RECIPE    as --resume says
RUN_FOLDER   the folder's config.json    that folder              resumed, with the changes asked for
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from scaledit import terminal
from scaledit.autoencoders import kl
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.commands import common
from scaledit.config import COMMANDS, Config, RunConfig, changed, load, override, recipe_names
from scaledit.config.tables import section_types
from scaledit.errors import RunError, UsageError, reading
from scaledit.files.reading import read_json
from scaledit.part import Allowed

Kind = TypeVar("Kind", bound=Config)
CONFIG, CHECKPOINTS = "config.json", "checkpoints"
OF_A_RUN = (CHECKPOINTS, ".run", "log.jsonl", "status.json")
"""What tells a run folder from others with a config.json; a run that was killed early has only some."""


class Chosen(NamedTuple, Generic[Kind]):
    """What to train, where, and how to treat a run that is there: the arguments of `training.dit.train`."""

    config: Kind
    out: Path
    resume: Literal["auto", "never"]
    changes: Literal["refuse", "accept"]


def chosen(args: argparse.Namespace, kind: type[Kind]) -> Chosen[Kind]:
    """The run that the arguments name. Raises UsageError if they name none of this kind, or contradict each
    other."""
    overrides = _overrides(args)
    folder = Path(args.recipe)
    if (
        args.recipe in recipe_names(None)
        or args.recipe.endswith(".toml")
        or not _is_meant(folder, args.recipe)
    ):
        config = load(args.recipe, overrides, kind)
        return Chosen(config, args.out or Path("runs") / config.name, args.resume or "never", "refuse")
    config = read_run(folder, kind, args.allow_import)
    if args.resume == "never":
        raise UsageError(f"{folder} is a run, which can only be resumed; leave --resume never out")
    if args.out and args.out.resolve() != folder.resolve():
        raise UsageError(
            f"{folder} is a run, which is resumed where it is, not in {args.out}; leave --out out, or train "
            "a recipe"
        )
    return Chosen(changed(config, overrides), folder, "auto", "accept")


def _overrides(args: argparse.Namespace) -> list[str]:
    """The overrides, with --until as one. Raises UsageError if both set train.steps."""
    overrides = common.all_overrides(args)
    if args.until is None:
        return overrides
    for one in overrides:
        if one.startswith("train.steps="):
            raise UsageError(
                f"--until {args.until} and {one} both say when the run ends; leave one of them out"
            )
    return [*overrides, override("train.steps", args.until)]


def _is_meant(folder: Path, argument: str) -> bool:
    """Whether an argument names a folder, not a recipe. Raises UsageError for the path of a folder that does
    not exist."""
    if folder.is_dir():
        return True
    if "/" in argument and not folder.exists():
        raise UsageError(
            f"there is no run folder {argument}; a recipe has a name, or a path that ends in .toml"
        )
    return False


def read_run(folder: Path, kind: type[Kind], allow_import: list[str]) -> Kind:
    """The config of the run in `folder`. allow_import: the modules outside scaledit that it may name. Raises
    UsageError if there is no run of this kind, and imports nothing else."""
    path = folder / CONFIG
    if not _is_run(folder) and (run := _run_around(folder)) is not None:
        raise UsageError(f"{folder} is a part of a run; pass the run folder: {COMMANDS[kind.TRAINS]} {run}")
    if not path.is_file():
        raise UsageError(
            f"{folder} is no run folder, since it has no {CONFIG}; pass a folder that "
            f"{COMMANDS[kind.TRAINS]} made, or the name of a recipe"
        )
    if not _is_run(folder):
        raise UsageError(
            f"{folder} is a model that was written for use, without the optimizer's state, so that it cannot "
            "be trained on; pass the run folder that it comes from"
        )
    value = read_json(path, "a run's config", "restore it from a copy", UsageError)
    with reading(path, "a run's config", "restore it from a copy", UsageError):
        for other in (RunConfig, AutoencoderRun):
            if other is not kind and _fits(value, other) and not _fits(value, kind):
                raise UsageError(
                    f"{folder} is a run of another command; use {COMMANDS[other.TRAINS]} {folder}"
                )
        allowed = Allowed.only(allow_import, str(path))
        config = kind.from_json(value, allowed)
        for module in sorted(config.modules()):  # also those that are imported only when the run begins
            allowed.check(module, module)
    return config


def _fits(value: Mapping[str, Any], kind: type[Config]) -> bool:
    """Whether a config.json has no sections that this kind of run lacks."""
    return isinstance(value, Mapping) and value.keys() - {"name"} <= section_types(kind).keys()


def _run_around(folder: Path) -> Path | None:
    """The run that `folder` is a part of: its checkpoints, one of them, its samples or its autoencoder."""
    for up in (1, 2):
        run = folder.parents[up - 1] if len(folder.parts) > up else folder.absolute().parents[up - 1]
        if _is_run(run):
            return run
    return None


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and any((folder / name).exists() for name in OF_A_RUN)


def is_finished(config: Config, out: Path) -> bool:
    """Whether the run in `out` has this very config, has reached its last step, and has its results and its
    report, so that there is nothing to do."""
    from scaledit import checkpoint
    from scaledit.report.page import is_current
    from scaledit.training import log
    from scaledit.training.folder import with_background

    path = out / CONFIG
    if not path.is_file():
        return False
    now = json.loads(json.dumps(with_background(config, out).to_json()))
    with suppress(UsageError, RunError):  # what is wrong is reported when the run is resumed
        if read_json(path, "a run's config", error=UsageError) != now:
            return False
        records = log.lines(out).records
        if not records or records[-1]["event"] != "finished" or records[-1]["step"] != config.train.steps:
            return False
        exported = config.TRAINS != AutoencoderRun.TRAINS or (out / kl.SUBFOLDERS[0]).is_dir()
        latest = checkpoint.latest(out / CHECKPOINTS)
        reached = latest.checkpoint is not None and latest.checkpoint.step == config.train.steps
        return exported and reached and not latest.corrupt and is_current(out)
    return False


def say_finished(args: argparse.Namespace, out: Path, result: Callable[[Path], Mapping[str, Any]]) -> None:
    """Says that there is nothing to do, once for all ranks. result: what --json prints."""
    if int(os.environ.get("RANK", "0")) > 0:
        return
    if args.json:
        terminal.say_json(result(out))
    else:
        step = result(out)["step"]
        terminal.say(f"{out} is finished at step {step}; train longer with --until STEPS")
