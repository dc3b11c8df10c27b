"""scaledit sample: images from a run, as a grid, a batch or a folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaledit.commands import common
from scaledit.errors import UsageError, printable
from scaledit.interop import hub

SUMMARY = """draw images from a run

  scaledit sample runs/digits --out samples.png
  scaledit sample runs/digits --classes 3,5 --num 100 --cfg-scale 1.5 --out samples.npz
  scaledit sample runs/digits --sampler ddim sample.sampler.eta=0.5 --out samples.png"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a run, a checkpoint, an exported folder, a .pt, hf://id"
    )
    common.keys(parser)
    parser.add_argument("--classes", metavar="0,1,2", help=common.CLASSES)
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--per-class", type=int, metavar="N", help="N images of each class (default: 8)")
    how_many.add_argument("--num", type=int, metavar="N", help="N images, the classes taken in turn")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument(
        "--start", type=int, default=0, metavar="I", help="index of the first image (default: 0)"
    )
    common.sampling(parser)
    common.decoder(parser)
    common.allow_import(parser)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="changes speed, not images")
    parser.add_argument(
        "--official-noise",
        action="store_true",
        help="the official sample.py's random numbers: its pictures for the same seed and classes",
    )
    common.device(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="a grid (FILE.png), ADM's batch (FILE.npz), or a folder",
    )
    common.as_json(parser)


def more() -> str:
    """Below the options of --help."""
    return common.parts("sample")


@common.told()
def run(given: argparse.Namespace) -> None:
    out: Path = given.out
    if out.suffix not in (".png", ".npz", ""):
        raise UsageError(f"--out {out}: give a .png (a grid), a .npz (a batch) or a folder")
    common.at_least(given, 1, "per_class", "num", "batch_size")
    common.at_least(given, 0, "start")
    common.can_write(out if out.suffix else out / "000000-0.png", "--out")
    hub.check(given.model)

    from scaledit.sampling import files
    from scaledit.sampling.request import Request, parse_classes, run

    pipeline = common.loaded(given, given.model)
    if given.official_noise:
        pipeline = pipeline.with_official_noise()
    request = Request(
        classes=parse_classes(given.classes, pipeline),
        settings=pipeline.settings(given.seed),
        start=given.start,
        per_class=given.per_class,
        num=given.num,
    )
    with common.shown_progress("sampling") as progress:
        made = run(pipeline, request, given.batch_size, progress)
    files.write(made, out)
    if given.json:
        print(json.dumps({"out": str(out), **made.origin}))
    else:
        print(printable(f"{common.images(len(made.images))} in {out}"))
