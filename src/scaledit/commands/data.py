"""scaledit data inspect: what a set of images, or of latents, holds, and what would be refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaledit.commands import common
from scaledit.commands.encode import BACKGROUND_HELP
from scaledit.data.background import background_color
from scaledit.errors import RunError, UsageError, printable

SUMMARY = """look at images or latents before training on them

  scaledit data inspect photos/ --sheet sheet.png
  scaledit data inspect latents/

Counts, classes, sizes, a contact sheet; which files are not used; what would be refused, and why (exit code 1
if anything)."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["inspect"])
    parser.add_argument("path", metavar="PATH", help="images, or what scaledit encode made")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="a row of pictures a class")
    parser.add_argument("--image-size", type=int, default=256, metavar="S", help="that they are wanted at")
    common.which_images(parser)
    parser.add_argument("--headers", action="store_true", help="look at headers only, decode nothing: faster")
    parser.add_argument("--background", default="white", metavar="COLOR", help=BACKGROUND_HELP)
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read images")
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    common.at_least(given, 1, "image_size", "workers")
    if given.sheet is not None and given.sheet.suffix != ".png":
        raise UsageError(f"--sheet {given.sheet}: give a .png")
    if given.sheet is not None:
        common.can_write(given.sheet, "--sheet")
    background_color(given.background)
    path = Path(given.path)
    if not path.exists():
        raise UsageError(f"there is no {path}")

    from scaledit.data import inspection
    from scaledit.data.latents import INDEX

    with common.shown_progress("looking") as progress:
        if (path / INDEX).is_file():
            common.no_choice_of_images(given, f"{path} holds encoded images")
            found = inspection.latents(path, progress)
        else:
            found = inspection.images(
                path,
                given.image_size,
                given.headers,
                given.workers,
                progress,
                background=given.background,
                split=given.split,
                image_key=given.image_key,
            )
    if given.sheet is not None and found.sheet is not None:
        from scaledit import images

        images.save_png(given.sheet, found.sheet, {"shows": str(path)})
    if given.json:
        print(json.dumps(found.to_json()))
    else:
        for line in found.lines():
            print(printable(line))
    if found.refused:
        raise RunError(f"{len(found.refused)} of what {path} holds cannot be used")
