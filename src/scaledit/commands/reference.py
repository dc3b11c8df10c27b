"""scaledit reference: the statistics of real images, in ADM's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError, no_such

SUMMARY = "store the statistics of real images, to compare samples with"
DESCRIPTION = """Writes ADM's format (mu, sigma, mu_s, sigma_s), and the features of the images for
precision and recall. Pass the file to --reference of `scaledit evaluate`."""
EXAMPLES = (
    Example(
        "scaledit reference pictures --out pictures.npz",
        "Store the statistics of a folder of images",
        needs="the Inception weights (docs/evaluation.md)",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    images = "the real images: a .npz file, or a folder or a tar of PNGs"
    parser.add_argument("images", type=Path, metavar="IMAGES", help=images)
    parser.add_argument("--out", type=Path, required=True, metavar="REF.npz", help="the file to write")
    common.extractor(parser)
    common.device(parser)
    common.output(parser)


def run(args: argparse.Namespace) -> None:
    out: Path = args.out
    if out.suffix != ".npz":
        raise UsageError(f"--out {out} must be the name of a .npz file")
    if not args.images.exists():
        raise UsageError(no_such(args.images))
    common.check_writable(out, "--out")

    from scaledit import assemble
    from scaledit.config import EvaluateConfig
    from scaledit.evaluation.judge import chosen_extractor
    from scaledit.evaluation.reference import write_reference
    from scaledit.evaluation.samples import open_samples

    samples = open_samples(args.images, args.allow_jpeg)
    config = EvaluateConfig(
        inception=args.inception or "", any_inception=bool(args.any_inception), dinov2=args.dinov2 or ""
    )
    extractor = chosen_extractor(config).load(assemble.device(args.device))
    with common.interruptible(), common.progress_bar("extracting features") as progress:
        features = write_reference(out, samples, extractor, str(args.images), progress)
    if args.json:
        terminal.say_json({"out": str(out), "n": features.n, "extractor_sha256": extractor.sha256})
    else:
        terminal.say(f"statistics of {common.images(features.n)} in {out}")
