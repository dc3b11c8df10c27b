"""scaledit new: from a folder of images to a recipe for them, and with --run to samples."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError, no_such, printable

if TYPE_CHECKING:
    from scaledit.newrun.plan import Places, Plan

SUMMARY = "look at your images, and write and run a recipe for them"
DESCRIPTION = """Chooses everything that a run of your own images needs: their size, pixels or latents, the
model, the length of training within --minutes, and what to hold out. It measures the speed of this machine,
writes a recipe in which each value has its reason, and says what it chose and what it will cost.

--run trains it, too: the autoencoder where one pays, the latents, the model, and an image of samples beside
your images. If it is interrupted, run the same command again: it resumes."""
EXAMPLES = (
    Example("scaledit new pictures", "Write runs/pictures.toml for the images in the folder pictures"),
    Example(
        "scaledit new pictures --out runs/quick --minutes 15 --run",
        "Train on them, from the images to samples, in a quarter of an hour",
    ),
    Example(
        "scaledit new pictures --out mine.toml --image-size 32 sample.sampler.steps=20",
        "Choose some values yourself",
    ),
)
LATENTS = ("auto", "none", "f4", "f8", "f16")
SHORTEST, MOST_MINUTES = 1.0, 60.0 * 24 * 365
LATE, SLACK = 1.25, 20.0
"""A stage is called late if it takes this many times the planned seconds, and as many more."""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    images = "a folder with one folder per class or with images alone, tar shards, Parquet files or a .zip"
    add("images", metavar="IMAGES", type=Path, help=images)
    common.overrides(parser, "values of keys of the recipe that you choose, such as model.depth=8")
    out = (
        "the run folder, with its recipe beside it (OUT.toml); or the path of the recipe (default: runs/NAME)"
    )
    add("--out", type=Path, metavar="OUT", help=out)
    minutes = "the minutes that everything may take on this machine (default: 30)"
    add("--minutes", type=float, default=30.0, metavar="M", help=minutes)
    size = "the side in pixels of the images to generate (default: by the images and the minutes)"
    add("--image-size", type=common.integer(8, 4096), metavar="S", help=size)
    latents = (
        "the autoencoder of the latents: none for pixels, or f4, f8 or f16, for 1/4, 1/8 or 1/16 of the side "
        "(default: auto, by the size)"
    )
    add("--latents", choices=LATENTS, default="auto", help=latents)
    common.which_images(parser)
    add("--run", action="store_true", help="also train, sample and write the report")
    common.device(parser)
    common.output(parser)


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    if not SHORTEST <= args.minutes <= MOST_MINUTES:
        raise UsageError(f"--minutes must be at least {SHORTEST:g} and at most a year, got {args.minutes:g}")
    images = args.images.expanduser()
    if not images.exists():
        raise UsageError(no_such(images))
    for path in filter(None, (images, args.out)):
        if printable(path) != str(path):
            raise UsageError(f"the name {path} has characters that a recipe cannot hold; rename it")
    with common.interruptible():
        from scaledit.newrun import header
        from scaledit.newrun.plan import Places

        places = Places.of((args.out or Path("runs") / (images.stem or "images")).expanduser())
        request = _request(args)
        written = header.request_of(places.recipe) if places.recipe.exists() else None
        _check_places(places, written, request, args.run)
        plan = None if places.recipe.exists() else _planned(args, images, places, request, began)
    if plan is not None and not args.run:
        _tell_next(args, places, plan)
        return 0
    return _run(args, images, places, plan, began) if args.run else 0


def _note(line: str) -> None:
    """Says on stderr what happens; nothing with --quiet."""
    terminal.inform_on(terminal.console(stderr=True), line)


def _request(args: argparse.Namespace) -> str:
    """The command line without what does not change the recipe."""
    words = ["scaledit", "new", str(args.images)]
    words += ["--out", str(args.out)] if args.out else []
    words += ["--minutes", f"{args.minutes:g}"]
    words += ["--image-size", str(args.image_size)] if args.image_size else []
    words += ["--latents", args.latents] if args.latents != "auto" else []
    words += ["--split", args.split] if args.split else []
    words += ["--image-key", args.image_key] if args.image_key else []
    return shlex.join([*words, *args.overrides])


def _check_places(places: Places, written: str | None, request: str, runs: bool) -> None:
    """Raises UsageError if what is at the places is not of this command."""
    if not places.recipe.exists():
        for folder in (places.run, places.autoencoder, places.latents):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UsageError(
                    f"{folder} exists, but its recipe {places.recipe} does not; choose another --out"
                )
        common.check_writable(places.recipe, "--out")
        return
    if written is None:
        raise UsageError(f"{places.recipe} exists and was not written by this command; choose another --out")
    if written != request:
        raise UsageError(
            f"{places.recipe} was written by another command ({written}); run that one, or choose another "
            "--out"
        )
    if not runs:
        raise UsageError(
            f"{places.recipe} exists already; add --run to train it, delete it, or choose another --out"
        )


def _planned(args: argparse.Namespace, images: Path, places: Places, request: str, began: float) -> Plan:
    """Looks at the images, plans the run, writes its recipes and says what was chosen."""
    from scaledit.newrun import facts as looking
    from scaledit.newrun import header, plan, stages, timing
    from scaledit.newrun.rules import Wish

    with common.progress_bar("looking at the images") as progress:
        facts = looking.look_at(images, args.split, args.image_key, progress=progress)
    for remark in facts.remarks:
        _note(remark)
    wish = Wish(args.minutes, args.image_size, args.latents)
    machine = timing.this_machine(args.device)
    spent = lambda: time.monotonic() - began  # noqa: E731
    made = plan.made(facts, machine, wish, places, args.overrides, args.device, spent, _note)
    commands = stages.commands(places, made.autoencoder_config, args.device)
    model, autoencoder = header.texts(made, request, commands)
    if autoencoder is not None:
        common.write(places.autoencoder_recipe, autoencoder.encode())
    common.write(places.recipe, model.encode())
    if not args.json:
        terminal.facts(plan.rows(made), width=12)
    return made


def _tell_next(args: argparse.Namespace, places: Places, plan: Plan) -> None:
    from scaledit.newrun.plan import to_json

    if args.json:
        terminal.say_json(to_json(plan))
        return
    terminal.say(f"wrote {places.recipe}; the same command with --run trains it")


def _run(args: argparse.Namespace, images: Path, places: Places, plan: Plan | None, began: float) -> int:
    """The stages that are not finished, each in a process of its own, and the image at the end."""
    from scaledit.newrun import stages

    todo = stages.stages(places, args.device)
    if plan is None:
        left = [stage.name for stage in todo if not stage.done]
        where = f"resuming with {left[0]}" if left else "all stages are finished"
        _note(f"{places.recipe} is there already: {where}")
    planned = {} if plan is None else plan.seconds
    taken: dict[str, float] = {}
    for stage in todo:
        if stage.done:
            continue
        _note(f"{stage.name}: {stage.command}")
        options = ["--quiet"] if args.quiet else []
        ended = stages.run(stage, options, silent=args.json)
        if ended.code:
            _note(f"{stage.name} is not finished; {common.RESUMES}")
            return ended.code
        taken[stage.name] = ended.seconds
        _tell_late(stage.name, ended.seconds, planned)
    return _finish(args, images, places, taken, time.monotonic() - began)


def _tell_late(name: str, seconds: float, planned: Any) -> None:
    """Says so if a stage took much longer than planned."""
    before = planned.get(name)
    if before and seconds > LATE * before + SLACK:
        _note(
            f"{name} took {seconds / 60:.1f} min instead of {before / 60:.1f}: this machine was slower than "
            "when its speed was measured"
        )


def _finish(
    args: argparse.Namespace, images: Path, places: Places, taken: dict[str, float], seconds: float
) -> int:
    """Draws samples beside real images, and says where everything is."""
    from scaledit.config import load
    from scaledit.newrun import beside
    from scaledit.report.page import REPORT

    config = load(str(places.recipe))
    with common.interruptible(f"the model is trained; {common.RESUMES}"):
        picture = beside.draw(places.run, beside.real(config, images, places), args.device)
    report, more = places.run / REPORT, f"scaledit train {places.run} --until {2 * config.train.steps}"
    if args.json:
        terminal.say_json(
            {
                "recipe": str(places.recipe),
                "run": str(places.run),
                "report": str(report),
                "samples": str(picture),
                "train_longer": more,
                "seconds": round(seconds, 1),
                "seconds_of_stages": {name: round(value, 1) for name, value in taken.items()},
            }
        )
        return 0
    rows = [
        ("samples", f"{picture} shows them beside your images"),
        ("report", report),
        ("more", f"scaledit sample {places.run} --out samples.png"),
        ("longer", more),
    ]
    terminal.say(f"finished in {seconds / 60:.1f} min")
    terminal.facts(rows, width=12)
    return 0
