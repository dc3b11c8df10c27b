"""scaledit sample: images from a model, as a grid, a batch or a folder."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError
from scaledit.interop import hub

if TYPE_CHECKING:
    from scaledit.pipeline import Pipeline
    from scaledit.sampling.request import Request

SUMMARY = "sample images from a model"
DESCRIPTION = """Writes a grid of images, a batch for evaluation, or a folder of images. Image i depends on
the seed, its number i and its class only, and not on the batch size. To sample thousands of images, use
`scaledit generate`.

One or two of --sampler, --steps and --cfg-scale may be lists, such as 1,1.5,4: the grid then shows every
value with its name, from the same noise."""
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
        "scaledit sample runs/digits --classes 3,8 --steps 2,12 --cfg-scale 1,1.5,4 --out settings.png",
        "Compare settings on the same noise, in a grid with labelled rows and columns",
    ),
    Example(
        "scaledit sample runs/digits --size 8x16 --classes 3,5 --out wide.png",
        "Sample at another size and aspect ratio than that of the training",
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
    each = "the number of images of each class (default: the run's; at most 4 where settings are lists)"
    count.add_argument("--per-class", type=common.whole, metavar="N", help=each)
    total = "the number of images in total, of the classes in turn"
    count.add_argument("--num", type=common.whole, metavar="N", help=total)
    common.seed(parser)
    start = "the number of the first image; image i is the same in every call (default: 0)"
    add("--start", type=common.whole, default=0, metavar="I", help=start)
    common.sampling(parser, lists=True)
    common.size(parser)
    common.average(parser)
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
    lists = {option: value for option in LISTS if isinstance(value := getattr(args, option), tuple)}
    if lists:
        _grid(args, out, lists)
        return

    from scaledit.sampling import files
    from scaledit.sampling.request import run

    pipeline = _opened(args)
    request = _request(args, pipeline)
    with common.interruptible(), common.progress_bar("sampling") as progress:
        began = time.monotonic()
        samples = run(pipeline, request, args.batch_size, progress)
        seconds = time.monotonic() - began
    n = len(samples.images)
    with common.interruptible(lambda: _kept(out, n)):
        files.write(samples, out)
    _say(args, n, seconds, samples.origin)


LISTS = ("sampler", "steps", "cfg_scale")
"""Options that may be lists. Of two, the first one in this order gives the rows."""


def _opened(args: argparse.Namespace) -> Pipeline:
    pipeline = common.load_model(args, args.model)
    return pipeline.with_official_noise() if args.official_noise else pipeline


def _request(args: argparse.Namespace, pipeline: Pipeline, per_class: int | None = None) -> Request:
    """per_class: replaces that of the arguments."""
    from scaledit.sampling.request import Request, parse_classes

    return Request(
        classes=parse_classes(args.classes, pipeline),
        settings=pipeline.settings(args.seed),
        start=args.start,
        per_class=per_class or args.per_class,
        num=args.num,
    )


def _say(args: argparse.Namespace, n: int, seconds: float, origin: dict[str, Any]) -> None:
    if args.json:
        terminal.say_json({"out": str(args.out), **origin, **common.speed(n, seconds)})
    else:
        terminal.say(f"{common.images(n)} in {args.out}{common.speed_in_words(n, seconds)}")


def _grid(args: argparse.Namespace, out: Path, lists: dict[str, tuple[Any, ...]]) -> None:
    """Samples every combination of the values in lists, and draws them in one grid."""
    from scaledit import images
    from scaledit.sampling import settings
    from scaledit.sampling.request import run

    axes = [settings.Axis(option, values) for option, values in lists.items()]
    settings.check(axes)
    first = axes[0].flag
    if out.suffix != ".png":
        raise UsageError(f"{first} is a list, which makes a grid, so --out must be a .png file, got {out}")
    if args.num is not None:
        raise UsageError(f"{first} is a list, whose grid has one row per class: use --per-class, not --num")
    combinations = settings.combinations(axes)
    asked = [argparse.Namespace(**{**vars(args), **values}) for values in combinations]
    opened = _opened(_as_trained(args))
    configs = [common.as_asked(opened.config, one) for one in asked]
    pipelines = [replace(opened, config=replace(c, autoencoder=opened.config.autoencoder)) for c in configs]
    chosen = [pipeline.settings(args.seed) for pipeline in pipelines]
    for i, one in enumerate(chosen):
        if one in chosen[:i]:
            both = " and ".join(", ".join(map(str, combinations[k].values())) for k in (chosen.index(one), i))
            raise UsageError(
                f"{both} are the same settings here, because a section.key=value replaces the list; leave it "
                "out"
            )
    per_class = args.per_class or min(opened.config.sample.per_class, settings.MOST_PER_CLASS)
    requests = [_request(args, pipeline, per_class) for pipeline in pipelines]
    batches = -(-requests[0].n // args.batch_size)
    steps = [batches * request.settings.sampler.ticks for request in requests]
    made = []
    with common.interruptible(), common.progress_bar("sampling") as progress:
        began = time.monotonic()
        for i, (pipeline, request) in enumerate(zip(pipelines, requests, strict=True)):

            def on_step(done: int, _: int, before: int = sum(steps[:i])) -> None:
                progress(before + done, sum(steps))

            made.append(run(pipeline, request, args.batch_size, on_step))
        seconds = time.monotonic() - began
    with common.interruptible():
        model = opened.config.model
        drawn = settings.grid(axes, made, opened.class_names, model.num_classes)
        images.save_png(out, drawn.sheet.image, drawn.origin)
    _say(args, len(made) * requests[0].n, seconds, drawn.origin)


def _as_trained(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments without those that say how the model is sampled, which each cell changes for itself: a
    sampler keeps fields of the one that it replaces, which must be the run's, not that of another cell."""
    common.check_overrides(args.overrides, common.SECTIONS)
    kept = [word for word in args.overrides if word.startswith("autoencoder.")]
    return argparse.Namespace(**{**vars(args), **dict.fromkeys(common.SHORT), "overrides": kept})


def _kept(out: Path, n: int) -> str:
    """What a command says that was interrupted while it wrote `n` images."""
    if out.suffix:
        return common.NOTHING_WRITTEN
    written = sum(1 for _ in out.glob("*.png")) if out.is_dir() else 0
    return (
        f"{written} of {common.images(n)} are written in {out}; run the same command again to write them all"
    )
