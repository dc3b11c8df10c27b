"""scaledit data inspect: what a set of images or latents contains, and what would be refused."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaledit import part, terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.data.background import background_color
from scaledit.data.datasets import DataSet, attribution
from scaledit.errors import RunError, UsageError, counted, no_such

SUMMARY = "inspect images or latents before training on them"
DESCRIPTION = """Reports counts, classes, sizes, files that are not used, and what training would refuse and
why. The exit code is 1 if anything would be refused."""
EXAMPLES = (
    Example("scaledit data inspect digits", "Show the classes of a built-in set"),
    Example(
        "scaledit data inspect pictures --sheet sheet.png",
        "Check a folder of images, and draw some of each class",
    ),
    Example("scaledit data inspect latents", "Check images that `scaledit encode` has encoded"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=["inspect"], help="what to do: inspect")
    where = "images, the folder of latents that `scaledit encode` wrote, or digits, photos or emoji"
    add("path", metavar="PATH", help=where)
    add("--sheet", type=Path, metavar="FILE.png", help="draw images of each class, one row per class")
    add(
        "--image-size",
        type=common.whole,
        metavar="S",
        help="the side in pixels to train at (default: the largest usual one that 9 in 10 images reach)",
    )
    common.which_images(parser)
    add("--headers", action="store_true", help="read the headers of image files only, which is faster")
    add("--background", default="white", metavar="COLOR", help=common.BACKGROUND_HELP)
    add(
        "--workers",
        type=common.whole,
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
    is_built_in = not path.exists() and args.path in _built_in()
    if not (path.exists() or is_built_in):
        raise UsageError(no_such(path))

    from scaledit.data import inspection
    from scaledit.data.latents import INDEX

    with common.progress_bar("inspecting") as progress:
        if is_built_in:
            common.reject_image_options(args, f"{path} is a built-in set")
            result = inspection.built_in(args.path, args.image_size)
        elif (path / INDEX).is_file():
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

        credit = attribution(args.path) if is_built_in else ""
        origin = {"shows": str(path), **({"attribution": credit} if credit else {})}
        images.save_png(args.sheet, result.sheet, origin)
    if args.json:
        terminal.say_json(result.to_json())
    else:
        terminal.say(*result.lines())
    if result.refused:
        raise RunError(f"{path} has {counted(len(result.refused), 'item')} that training would refuse")


def _built_in() -> list[str]:
    """The names of the sets that come with packages."""
    return [name for name, data_set in part.members(DataSet).items() if data_set.in_memory]
