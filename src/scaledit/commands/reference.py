"""scaledit reference: the statistics of real images, in ADM's format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError, printable

if TYPE_CHECKING:
    from scaledit.evaluation.samples import SampleSet

SUMMARY = "store the statistics of real images, to compare samples with"
DESCRIPTION = """Writes ADM's format (mu, sigma, mu_s, sigma_s), and the features of the images for
precision and recall. Pass the file to --reference of `scaledit evaluate`. With --image-size, IMAGES are read
as training reads them: any layout, resized and cropped to a square."""
EXAMPLES = (
    Example(
        "scaledit reference pictures --image-size 32 --extractor efficientnet-lite0-random --out ref.npz",
        "Resize and crop a folder of photographs as training does, and store their statistics",
    ),
    Example(
        "scaledit reference real --out real.npz",
        "Store the statistics of a folder of PNGs of one size",
        needs="the Inception weights (docs/evaluation.md)",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    images = (
        "the real images: a .npz file, or a folder or a tar of PNGs; with --image-size anything that "
        "training reads"
    )
    add("images", type=Path, metavar="IMAGES", help=images)
    add("--out", type=Path, required=True, metavar="REF.npz", help="the file to write")
    size = (
        "resize and crop the images to squares of S pixels, as training does (default: use them as they are)"
    )
    add("--image-size", type=int, metavar="S", help=size)
    share = (
        "with --image-size: use only the images that a run with this data.holdout does not see (default: all)"
    )
    add("--holdout", type=float, metavar="SHARE", help=share)
    background = f"with --image-size: {common.BACKGROUND_HELP} (default: white)"
    add("--background", metavar="COLOR", help=background)
    common.which_images(parser)
    common.extractor(parser)
    common.device(parser)
    common.output(parser)


def run(args: argparse.Namespace) -> None:
    out: Path = args.out
    if out.suffix != ".npz":
        raise UsageError(f"--out {out} must be the name of a .npz file")
    if not args.images.exists():
        raise UsageError(f"{args.images} does not exist")
    common.check_writable(out, "--out")

    from scaledit import assemble
    from scaledit.config import EvaluateConfig
    from scaledit.evaluation.choice import choose
    from scaledit.evaluation.reference import write_reference
    from scaledit.evaluation.samples import open_samples

    if args.image_size is None:
        for option in ("holdout", "background", "split", "image_key"):
            if getattr(args, option) not in (None, ""):
                raise UsageError(
                    f"--{option.replace('_', '-')} needs --image-size S, with which the images are read as "
                    "in training"
                )
    samples = _resized(args) if args.image_size is not None else open_samples(args.images, args.allow_jpeg)
    choice = choose(
        EvaluateConfig(**common.passed(args, ("extractor", "inception", "any_inception", "dinov2")))
    )
    extractor = choice.extractor.load(assemble.device(args.device))
    with common.interruptible(), common.progress_bar("extracting features") as progress:
        features = write_reference(out, samples, extractor, samples.name, progress)
    facts = {"extractor": extractor.name, "extractor_sha256": extractor.sha256}
    if args.json:
        terminal.say_json({"out": str(out), "n": features.n, **facts, "warnings": choice.remarks})
    else:
        terminal.say(f"statistics of {common.images(features.n)} on {extractor.name} in {out}")
        for remark in choice.remarks:
            terminal.warn(remark)


def _resized(args: argparse.Namespace) -> SampleSet:
    """The images of --image-size, --holdout and the options that say which images are read."""
    from scaledit.data.background import background_color
    from scaledit.data.datasets.standard import ImagesInFiles
    from scaledit.evaluation.own import readable

    common.at_least(args, 1, "image_size")
    if args.holdout is not None and not 0 < args.holdout < 1:
        raise UsageError(f"--holdout must be between 0 and 1, got {args.holdout:g}")
    background_color(args.background or "")
    data = ImagesInFiles(
        str(args.images),
        args.image_size,
        background=args.background or "",
        split=args.split,
        image_key=args.image_key,
        holdout=args.holdout or 0.0,
    )
    files = data.held_out() if args.holdout else data.open()
    terminal.inform(*map(printable, files.remarks))
    held_out = f", held-out share {args.holdout:g}" if args.holdout else ""
    return readable(f"{args.images} at {args.image_size}x{args.image_size}{held_out}", files).samples()
