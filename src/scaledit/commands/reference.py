"""scaledit reference: the statistics of real images, in ADM's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common
from scaledit.errors import UsageError

SUMMARY = """store the statistics of real images, to compare samples with

  scaledit reference photos/ --out photos.npz

ADM's format (mu, sigma, mu_s, sigma_s), with the images' features for precision and recall."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, metavar="IMAGES", help="a .npz, or a folder or tar of PNGs")
    common.extractor(parser)
    common.device(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="REF.npz", help="the file to write")
    common.as_json(parser)


def run(args: argparse.Namespace) -> None:
    out: Path = args.out
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: give a .npz")
    if not args.images.exists():
        raise UsageError(f"there is no {args.images}")
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
    with common.progress_bar("extracting features") as progress:
        features = write_reference(out, samples, extractor, str(args.images), progress)
    if args.json:
        terminal.say_json({"out": str(out), "n": features.n, "extractor_sha256": extractor.sha256})
    else:
        terminal.say(f"statistics of {common.images(features.n)} in {out}")
