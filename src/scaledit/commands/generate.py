"""scaledit generate: many samples, resumable and in shards."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError, counted
from scaledit.interop import hub

SUMMARY = "sample many images in parts that can be resumed"
DESCRIPTION = """Samples the 50,000 images of an FID, for instance. Any number of processes can share the
work. If the command is interrupted, run it again: it resumes. The images are the same, however they were
divided. The last process to finish joins the parts."""
EXAMPLES = (
    Example(
        "scaledit generate runs/digits --num 1000 --out generated.npz", "Sample 1,000 images into one file"
    ),
    Example(
        "scaledit generate runs/digits --num 1000 --shard 0/8 --out shared.npz",
        "Do an eighth of the work; other devices do the rest with --shard 1/8 to 7/8",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    common.model(parser)
    add = parser.add_argument
    out = "what to write: a batch in ADM's format (FILE.npz), or a folder of parts"
    add("--out", type=Path, required=True, metavar="OUT", help=out)
    add(
        "--num",
        type=common.whole,
        default=50_000,
        metavar="N",
        help="the number of images in total (default: 50000)",
    )
    add("--classes", metavar="A,B,...", help=common.CLASSES)
    labels = "uniform: the classes are drawn at random, as in the paper; equal: in turn (default: uniform)"
    add("--labels", choices=["uniform", "equal"], default="uniform", help=labels)
    common.seed(parser)
    common.sampling(parser)
    common.size(parser)
    common.average(parser)
    common.decoder(parser)
    common.allow_import(parser)
    share = "generate only share i of n of the parts, i from 0 to n-1 (default: 0/1, all parts)"
    add("--shard", default="0/1", metavar="i/n", help=share)
    batch = "the number of images sampled at once (default: 125)"
    add("--batch-size", type=common.whole, default=125, metavar="N", help=batch)
    common.device(parser)
    common.output(parser)


more = partial(parts.in_sections, "sample")


@common.short_warnings()
def run(args: argparse.Namespace) -> None:
    out: Path = args.out
    if out.suffix not in (".npz", ""):
        raise UsageError(f"--out {out} must be a .npz file or a folder")
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
    with (
        common.interruptible(lambda: _kept(out, args.num)),
        common.progress_bar("generating") as progress,
    ):
        made = common.Speed(progress)
        result = generate(pipeline, request, out, shard, args.batch_size, made)
    seconds = time.monotonic() - made.began
    speed = common.speed_in_words(made.done, seconds)
    if args.json:
        values = {"out": str(result.out), "images": result.images, "complete": result.complete}
        terminal.say_json({**values, "generated": made.done, **common.speed(made.done, seconds)})
    elif result.complete:
        terminal.say(f"{common.images(result.images)} in {result.out}{speed}")
    else:
        done = f"{result.images} of {counted(request.n, 'image')} generated so far"
        terminal.say(f"this shard is done{speed}; {done}, and other shards generate the rest")


def _kept(out: Path, n: int) -> str:
    """What an interrupted command says that was to generate `n` images."""
    from scaledit.sampling.generate import PART, parts_folder

    folder = parts_folder(out)
    done = sum(1 for _ in folder.glob("part-*.npz")) if folder.is_dir() else 0
    return common.kept_parts(done, -(-n // PART), "parts", folder)
