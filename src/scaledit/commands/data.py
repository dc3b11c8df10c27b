"""scaledit data inspect: what a set of images or latents contains, and what would be refused."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.data.background import background_color
from scaledit.errors import RunError, UsageError, counted

SUMMARY = "inspect images or latents before training on them"
DESCRIPTION = """Reports counts, classes, sizes, files that are not used, and what training would refuse and
why. The exit code is 1 if anything would be refused."""
EXAMPLES = (
    Example(
        "scaledit data inspect pictures --sheet sheet.png",
        "Check a folder of images, and draw some of each class",
    ),
    Example("scaledit data inspect latents", "Check images that `scaledit encode` has encoded"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=["inspect"], help="what to do: inspect")
    add("path", metavar="PATH", help="images, or the folder of latents that `scaledit encode` wrote")
    add("--sheet", type=Path, metavar="FILE.png", help="draw images of each class, one row per class")
    add(
        "--image-size",
        type=int,
        default=256,
        metavar="S",
        help="the side in pixels to train at (default: 256)",
    )
    common.which_images(parser)
    add("--headers", action="store_true", help="read the headers of image files only, which is faster")
    add("--background", default="white", metavar="COLOR", help=common.BACKGROUND_HELP)
    add(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="the number of threads that read images (default: 2)",
    )
    common.output(parser)


def run(args: argparse.Namespace) -> None:
    common.at_least(args, 1, "image_size", "workers")
    if args.sheet is not None and args.sheet.suffix != ".png":
        raise UsageError(f"--sheet {args.sheet} must be the name of a .png file")
    if args.sheet is not None:
        common.check_writable(args.sheet, "--sheet")
    background_color(args.background)
    path = Path(args.path)
    if not path.exists():
        raise UsageError(f"{path} does not exist")

    from scaledit.data import inspection
    from scaledit.data.latents import INDEX

    with common.progress_bar("inspecting") as progress:
        if (path / INDEX).is_file():
            common.reject_image_options(args, f"{path} holds encoded images")
            result = inspection.latents(path, progress)
        else:
            result = inspection.images(
                path,
                args.image_size,
                args.headers,
                args.workers,
                progress,
                background=args.background,
                split=args.split,
                image_key=args.image_key,
            )
    if args.sheet is not None and result.sheet is not None:
        from scaledit import images

        images.save_png(args.sheet, result.sheet, {"shows": str(path)})
    if args.json:
        terminal.say_json(result.to_json())
    else:
        terminal.say(*result.lines())
    if result.refused:
        raise RunError(f"{path} has {counted(len(result.refused), 'item')} that training would refuse")
