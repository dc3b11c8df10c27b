"""scaledit sample: images from a model, as a grid, a batch or a folder."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError
from scaledit.interop import hub

SUMMARY = "sample images from a model"
DESCRIPTION = """Writes a grid of images, a batch for evaluation, or a folder of images. Image i depends on
the seed, its number i and its class only, and not on the batch size. To sample thousands of images, use
`scaledit generate`."""
EXAMPLES = (
    Example("scaledit sample runs/digits --out samples.png", "Draw a grid with 8 images of each class"),
    Example(
        "scaledit sample runs/digits --classes 3,5 --num 100 --cfg-scale 1.5 --out samples.npz",
        "Sample 100 guided images of two classes",
    ),
    Example(
        "scaledit sample runs/digits --sampler ddim sample.sampler.eta=0.5 --out samples.png",
        "Choose another sampler, and set one of its fields",
    ),
    Example(
        'scaledit sample xl2 --classes "golden retriever,macaw" --per-class 4 --cfg-scale 4 --out dogs.png',
        "Name ImageNet classes of an official checkpoint, converted by `scaledit convert`",
        needs="a converted DiT-XL/2",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    common.model(parser)
    add = parser.add_argument
    out = "what to write: a grid (FILE.png), a batch in ADM's format (FILE.npz), or a folder of images"
    add("--out", type=Path, required=True, metavar="OUT", help=out)
    add("--classes", metavar="A,B,...", help=common.CLASSES)
    count = parser.add_mutually_exclusive_group()
    each = "the number of images of each class (default: the run's)"
    count.add_argument("--per-class", type=common.whole, metavar="N", help=each)
    total = "the number of images in total, of the classes in turn"
    count.add_argument("--num", type=common.whole, metavar="N", help=total)
    common.seed(parser)
    start = "the number of the first image; image i is the same in every call (default: 0)"
    add("--start", type=common.whole, default=0, metavar="I", help=start)
    common.sampling(parser)
    common.decoder(parser)
    common.allow_import(parser)
    batch = "the number of images sampled at once; it changes the speed, not the images (default: 64)"
    add("--batch-size", type=common.whole, default=64, metavar="N", help=batch)
    official = (
        "use the random numbers of the official sample.py: the same seed and classes give the images of that "
        "program"
    )
    add("--official-noise", action="store_true", help=official)
    common.device(parser)
    common.output(parser)


more = partial(parts.in_sections, "sample")


@common.short_warnings()
def run(args: argparse.Namespace) -> None:
    out: Path = args.out
    if out.suffix not in (".png", ".npz", ""):
        raise UsageError(f"--out {out} must be a .png file (a grid), a .npz file (a batch) or a folder")
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
    with common.interruptible(), common.progress_bar("sampling") as progress:
        began = time.monotonic()
        samples = run(pipeline, request, args.batch_size, progress)
        seconds = time.monotonic() - began
    n = len(samples.images)
    with common.interruptible(lambda: _kept(out, n)):
        files.write(samples, out)
    if args.json:
        terminal.say_json({"out": str(out), **samples.origin, **common.speed(n, seconds)})
    else:
        terminal.say(f"{common.images(n)} in {out}{common.speed_in_words(n, seconds)}")


def _kept(out: Path, n: int) -> str:
    """What a command says that was interrupted while it wrote `n` images."""
    if out.suffix:
        return common.NOTHING_WRITTEN
    written = sum(1 for _ in out.glob("*.png")) if out.is_dir() else 0
    return (
        f"{written} of {common.images(n)} are written in {out}; run the same command again to write them all"
    )
