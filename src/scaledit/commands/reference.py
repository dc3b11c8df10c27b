"""scaledit reference: the statistics of real images, in ADM's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common
from scaledit.errors import UsageError

SUMMARY = """keep the statistics of real images, to compare samples with

  scaledit reference photos/ --out photos.npz

ADM's format (mu, sigma, mu_s, sigma_s), with the images' features for precision and recall."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, metavar="IMAGES", help="a .npz, or a folder or tar of PNGs")
    common.extractor(parser)
    common.device(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="REF.npz")
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    out: Path = given.out
    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: give a .npz")
    if not given.images.exists():
        raise UsageError(f"there is no {given.images}")
    common.can_write(out, "--out")

    from scaledit import assemble
    from scaledit.config import EvaluateConfig
    from scaledit.evaluation.judge import chosen_extractor
    from scaledit.evaluation.reference import write_reference
    from scaledit.evaluation.samples import open_samples

    samples = open_samples(given.images, given.allow_jpeg)
    config = EvaluateConfig(
        inception=given.inception or "", any_inception=bool(given.any_inception), dinov2=given.dinov2 or ""
    )
    extractor = chosen_extractor(config).load(assemble.device(given.device))
    with common.shown_progress("extracting features") as progress:
        features = write_reference(out, samples, extractor, str(given.images), progress)
    if given.json:
        terminal.say_json({"out": str(out), "n": features.n, "extractor_sha256": extractor.sha256})
    else:
        terminal.say(f"the statistics of {features.n} images in {out}")
