"""scaledit generate: many samples, resumable and in shards."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common
from scaledit.errors import UsageError
from scaledit.interop import hub

SUMMARY = """sample many images (50,000 for FID): resumable, and shared by any number of processes

  scaledit generate runs/digits --num 50000 --out samples.npz
  scaledit generate runs/xl2 --shard 0/8 --out samples.npz      and 1/8 ... 7/8 on other devices

To resume after an interruption, run it again. The last shard to finish joins the parts."""


def arguments(parser: argparse.ArgumentParser) -> None:
    common.model(parser)
    add = parser.add_argument
    add("--num", type=int, default=50_000, metavar="N", help="images in total (default: 50000)")
    add("--classes", metavar="0,1,2", help=common.CLASSES)
    labels = "classes uniformly at random, as in the paper (default), or in turn"
    add("--labels", choices=["uniform", "equal"], default="uniform", help=labels)
    add("--seed", type=int, default=0, metavar="S", help="of the random numbers (default: 0)")
    common.sampling(parser)
    common.decoder(parser)
    common.allow_import(parser)
    add("--shard", default="0/1", metavar="i/n", help="generate only share i of n of the parts")
    add("--batch-size", type=int, default=125, metavar="N", help="images sampled at once (default: 125)")
    common.device(parser)
    out = "a batch in ADM's format (FILE.npz), or a folder of parts"
    add("--out", type=Path, required=True, metavar="OUT", help=out)
    common.as_json(parser)


more = partial(common.parts, "sample")


@common.short_warnings()
def run(args: argparse.Namespace) -> None:
    out: Path = args.out
    if out.suffix not in (".npz", ""):
        raise UsageError(f"--out {out}: give a .npz or a folder")
    common.at_least(args, 2, "num")
    common.at_least(args, 1, "batch_size")
    hub.check(args.model)

    from scaledit.files.shards import Shard
    from scaledit.sampling.generate import generate
    from scaledit.sampling.request import Request, parse_classes

    shard = Shard.parse(args.shard)
    pipeline = common.load_model(args, args.model)
    request = Request(
        classes=parse_classes(args.classes, pipeline),
        settings=pipeline.settings(args.seed),
        num=args.num,
        rule=args.labels,
    )
    with common.progress_bar("generating") as progress:
        result = generate(pipeline, request, out, shard, args.batch_size, progress)
    if args.json:
        terminal.say_json({"out": str(result.out), "images": result.images, "complete": result.complete})
    elif result.complete:
        terminal.say(f"{common.images(result.images)} in {result.out}")
    else:
        done = f"{result.images} of {request.num} images exist"
        terminal.say(f"this shard is done; {done}, other shards generate the rest")
