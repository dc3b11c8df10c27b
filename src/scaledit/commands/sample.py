"""scaledit sample: images from a model, as a grid, a batch or a folder."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common
from scaledit.errors import UsageError
from scaledit.interop import hub

SUMMARY = """sample images from a run

  scaledit sample runs/digits --out samples.png
  scaledit sample runs/digits --classes 3,5 --num 100 --cfg-scale 1.5 --out samples.npz
  scaledit sample runs/digits --sampler ddim sample.sampler.eta=0.5 --out samples.png"""


def arguments(parser: argparse.ArgumentParser) -> None:
    common.model(parser)
    add = parser.add_argument
    add("--classes", metavar="0,1,2", help=common.CLASSES)
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--per-class", type=int, metavar="N", help="N images of each class (default: 8)")
    count.add_argument("--num", type=int, metavar="N", help="N images, cycling through the classes")
    add("--seed", type=int, default=0, metavar="S", help="of the random numbers (default: 0)")
    add("--start", type=int, default=0, metavar="I", help="index of the first image (default: 0)")
    common.sampling(parser)
    common.decoder(parser)
    common.allow_import(parser)
    add("--batch-size", type=int, default=64, metavar="N", help="changes speed, not images (default: 64)")
    official = "the official sample.py's random numbers, which give its images for the same seed and classes"
    add("--official-noise", action="store_true", help=official)
    common.device(parser)
    out = "a grid (FILE.png), a batch in ADM's format (FILE.npz), or a folder"
    add("--out", type=Path, required=True, metavar="OUT", help=out)
    common.as_json(parser)


more = partial(common.parts, "sample")


@common.short_warnings()
def run(args: argparse.Namespace) -> None:
    out: Path = args.out
    if out.suffix not in (".png", ".npz", ""):
        raise UsageError(f"--out {out}: give a .png (a grid), a .npz (a batch) or a folder")
    common.at_least(args, 1, "per_class", "num", "batch_size")
    common.at_least(args, 0, "start")
    common.check_writable(out if out.suffix else out / "000000-0.png", "--out")
    hub.check(args.model)

    from scaledit.sampling import files
    from scaledit.sampling.request import Request, parse_classes, run

    pipeline = common.load_model(args, args.model)
    if args.official_noise:
        pipeline = pipeline.with_official_noise()
    request = Request(
        classes=parse_classes(args.classes, pipeline),
        settings=pipeline.settings(args.seed),
        start=args.start,
        per_class=args.per_class,
        num=args.num,
    )
    with common.progress_bar("sampling") as progress:
        samples = run(pipeline, request, args.batch_size, progress)
    files.write(samples, out)
    if args.json:
        terminal.say_json({"out": str(out), **samples.origin})
    else:
        terminal.say(f"{common.images(len(samples.images))} in {out}")
