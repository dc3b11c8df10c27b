"""scaledit generate: many samples, resumable, by shards."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaledit.commands import common
from scaledit.errors import UsageError, printable
from scaledit.interop import hub

SUMMARY = """draw many samples (50,000 for FID): resumable, and divisible among processes

  scaledit generate runs/digits --num 50000 --out samples.npz
  scaledit generate runs/xl2 --shard 0/8 --out samples.npz      and 1/8 ... 7/8 on other devices

To go on after an interruption, run it again. The last shard to finish joins the parts."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a run, a checkpoint, an exported folder, a .pt, hf://id"
    )
    common.keys(parser)
    parser.add_argument("--num", type=int, default=50_000, metavar="N", help="(default: 50000)")
    parser.add_argument("--classes", metavar="0,1,2", help=common.CLASSES)
    parser.add_argument(
        "--labels",
        choices=["uniform", "equal"],
        default="uniform",
        help="classes uniformly at random, as the paper (default), or in turn",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    common.sampling(parser)
    common.decoder(parser)
    common.allow_import(parser)
    parser.add_argument("--shard", default="0/1", metavar="i/n", help="make only this share of the parts")
    parser.add_argument("--batch-size", type=int, default=125, metavar="N")
    common.device(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="OUT", help="ADM's batch (FILE.npz), or a folder of parts"
    )
    common.as_json(parser)


def more() -> str:
    """Below the options of --help."""
    return common.parts("sample")


@common.told()
def run(given: argparse.Namespace) -> None:
    out: Path = given.out
    if out.suffix not in (".npz", ""):
        raise UsageError(f"--out {out}: give a .npz or a folder")
    common.at_least(given, 2, "num")
    common.at_least(given, 1, "batch_size")
    hub.check(given.model)

    from scaledit.files.shards import Shard
    from scaledit.sampling.generate import generate
    from scaledit.sampling.request import Request, parse_classes

    shard = Shard.parse(given.shard)
    pipeline = common.loaded(given, given.model)
    request = Request(
        classes=parse_classes(given.classes, pipeline),
        settings=pipeline.settings(given.seed),
        num=given.num,
        rule=given.labels,
    )
    with common.shown_progress("generating") as progress:
        made = generate(pipeline, request, out, shard, given.batch_size, progress)
    if given.json:
        print(json.dumps({"out": str(made.out), "images": made.images, "complete": made.complete}))
    elif made.complete:
        print(printable(f"{common.images(made.images)} in {made.out}"))
    else:
        rest = f"{made.images} of {request.num} images are there, other shards make the rest"
        print(printable(f"this shard is done; {rest}"))
