"""scaledit encode: encodes images into a folder of latents that training reads."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import part, terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.data.background import background_color
from scaledit.data.datasets import DataSet
from scaledit.errors import UsageError, no_such, printable
from scaledit.values import hints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaledit.autoencoders import Autoencoder
    from scaledit.autoencoders.cache import Encoded, Encoding
    from scaledit.data.files import Readable
    from scaledit.data.held_out import HeldOut
    from scaledit.data.holdout import Split
    from scaledit.data.sources import Source
    from scaledit.files.shards import Shard

SUMMARY = "encode images into latents once, so that training need not"
DESCRIPTION = """Images are encoded by an autoencoder into a folder that data.path=FOLDER of a recipe reads.
If the command is interrupted, run it again: it resumes. If images were added to a folder, it encodes only
those. --repair encodes again what is corrupt, and only that."""
EXAMPLES = (
    Example(
        "scaledit encode pictures --image-size 64 --autoencoder runs/photos-ae --out latents",
        "Encode a folder of images with an autoencoder of your own",
    ),
    Example(
        "scaledit encode pictures --image-size 64 --autoencoder pixels --out pixels",
        "Store the images themselves, without an autoencoder",
    ),
    Example(
        "scaledit encode pictures --image-size 64 --autoencoder runs/photos-ae --holdout 0.3 --out judged",
        "Keep a share of the images out, with which runs on the latents evaluate themselves",
    ),
    Example(
        "scaledit encode pictures --buckets 64x64,48x80,80x48 --autoencoder pixels --out mixed",
        "Encode images at the sizes of several buckets, each near its own aspect ratio",
    ),
    Example(
        "scaledit encode imagenet/train --autoencoder stabilityai/sd-vae-ft-ema --out latents --shard 0/8",
        "Encode ImageNet on 8 devices; the others run the same with --shard 1/8 to 7/8",
        needs="ImageNet and a download from the Hugging Face Hub",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    images = (
        "a folder with one folder per class, tar shards, Parquet files or a .zip; or the built-in photos or "
        "emoji"
    )
    parser.add_argument("images", metavar="IMAGES", help=images)
    autoencoder = "the autoencoder: a folder or a hub id, or pixels for none"
    parser.add_argument("--autoencoder", metavar="AE", required=True, help=autoencoder)
    folder = "the folder to write, which data.path of a recipe reads"
    parser.add_argument("--out", type=Path, metavar="LATENTS", required=True, help=folder)
    common.which_images(parser)
    _how_encoded(parser)
    _how_divided(parser)
    common.device(parser)
    common.output(parser)


def _how_encoded(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    size = "the side in pixels that images are resized and cropped to (default: 256)"
    add("--image-size", type=common.whole, metavar="S", help=size)
    buckets = (
        "sizes for data.buckets, such as 192x192,160x224 (height x width in pixels): each image is encoded "
        "at those whose aspect ratio is nearest to its own, emoji at all of them"
    )
    add("--buckets", metavar="HxW,...", help=buckets)
    background = f"{common.BACKGROUND_HELP} (default: white, or the color with which --out was begun)"
    add("--background", metavar="COLOR", help=background)
    add("--no-flip", action="store_true", help="store no mirrored images, which halves the size")
    share = (
        "hold out this share of each class: it is not encoded, but stored as pixels beside the latents, at "
        "most 1,000 images evenly over the classes, for evaluate.reference=held-out (default: 0)"
    )
    add("--holdout", type=float, metavar="SHARE", help=share)
    dtypes, precisions = ["float16", "bfloat16", "float32"], ["fp32", "bf16", "fp16"]
    dtype = "the number format of the stored latents (default: float16)"
    add("--dtype", choices=dtypes, default="float16", help=dtype)
    precision = "the number format in which the autoencoder computes (default: fp32)"
    add("--precision", choices=precisions, default="fp32", help=precision)
    batch = "the number of images encoded at once (default: 16)"
    add("--batch-size", type=common.whole, default=16, metavar="N", help=batch)


def _how_divided(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    threads = "the number of threads that read images (default: 2)"
    add("--workers", type=common.whole, default=2, metavar="N", help=threads)
    per_file = "the number of images in each file of latents (default: 1024)"
    add("--per-file", type=common.whole, default=1024, metavar="N", help=per_file)
    bad = "what to do at an image that cannot be read (default: stop)"
    add("--on-bad", choices=["stop", "skip"], default="stop", help=bad)
    most = "the number of images that --on-bad skip leaves out at most (default: 100)"
    add("--max-bad", type=common.whole, default=100, metavar="N", help=most)
    share = "encode only share i of n of the files, i from 0 to n-1 (default: 0/1, all files)"
    add("--shard", default="0/1", metavar="i/n", help=share)
    repair = "check every byte of the folder, and encode again what is corrupt"
    add("--repair", action="store_true", help=repair)
    update = "encode the files again whose images were removed or replaced since (default: refuse)"
    add("--update", action="store_true", help=update)


@common.short_warnings()
def run(args: argparse.Namespace) -> None:
    common.at_least(args, 1, "image_size", "batch_size", "workers", "per_file")
    common.at_least(args, 0, "max_bad")
    background_color(args.background or "")
    in_memory = _in_memory(args.images, args.image_size)
    if in_memory is None and not Path(args.images).exists():
        raise UsageError(no_such(args.images))

    from scaledit import assemble
    from scaledit.autoencoders import open_autoencoder
    from scaledit.autoencoders.cache import Encoding, begun_with, encode
    from scaledit.data.files import BuiltIn, ImageFiles
    from scaledit.data.held_out import write
    from scaledit.data.sets import Images
    from scaledit.data.sources import open_source
    from scaledit.files.shards import Shard

    shard, sizes = Shard.parse(args.shard), _sizes(args)
    if args.holdout is not None and not 0 <= args.holdout < 1:
        raise UsageError(f"--holdout must be at least 0 and less than 1, got {args.holdout:g}")
    held_out: ImageFiles | None = None
    images: Images | None = None
    source: Readable
    if in_memory is not None:
        opened = in_memory.open()
        assert isinstance(opened, Images)  # like all of scaledit's sets in memory
        images = opened
        source = BuiltIn(args.images, images)
        side = source.shape[1]
        if args.image_size not in (None, side) and not sizes:
            raise UsageError(f"the images of {args.images} have {side}x{side} pixels; leave --image-size out")
        if args.background is not None:
            raise UsageError(f"the images of {args.images} are not transparent; leave --background out")
        common.reject_image_options(args, f"the images of {args.images} are built in")
        if args.holdout:
            raise UsageError(
                f"{args.images} has held-out images of its own (evaluate.reference={args.images}); leave "
                "--holdout out"
            )
    else:
        files = open_source(args.images, args.split, args.image_key)
        for remark in () if terminal.is_quiet() else files.remarks():
            print(printable(remark), file=sys.stderr)
        size, background = args.image_size or 256, args.background or begun_with(args.out)
        source = ImageFiles(files, size, threads=args.workers, behind=background)
        if args.holdout:
            halves = _divided(files, args.holdout, args.out)
            held_out = replace(source, source=halves.held_out)
            source = replace(source, source=halves.training)
    device = str(assemble.device(args.device))
    name = args.autoencoder if args.autoencoder == "pixels" else common.absolute(args.autoencoder)
    autoencoder = open_autoencoder(name, device=device, precision=args.precision)
    encoding = Encoding(
        not args.no_flip, args.dtype, args.batch_size, args.per_file, args.on_bad, args.max_bad
    )
    if sizes:
        divided = _divided_by_size(source if images is None else images, args.images, sizes)
        _encode_buckets(args, divided, autoencoder, encoding, shard)
        return
    with (
        common.interruptible(lambda: _kept(args, len(source.names))),
        common.progress_bar("encoding") as progress,
    ):
        result = encode(source, autoencoder, args.out, encoding, shard, args.repair, progress, args.update)
        # After `encode`, which refuses a folder that holds something else; shards write it once.
        kept = None
        if held_out is not None and shard.i == 0:
            kept = write(args.out, held_out, args.holdout or 0.0, args.on_bad)
    if args.json:
        record = {} if kept is None else {"held_out": kept.held_out, "held_out_stored": kept.images}
        terminal.say_json({**result._asdict(), "out": str(result.out), **record})
        return
    _tell(result)
    if kept is not None:
        _tell_held_out(kept, result.out)


def _sizes(args: argparse.Namespace) -> tuple[tuple[int, int], ...]:
    """The sizes of --buckets. Raises UsageError for options that do not go with it, or if --out holds one
    size."""
    if args.buckets is None:
        return ()
    from scaledit import checks
    from scaledit.data.latents import INDEX

    sizes = checks.image_sizes(args.buckets.split(","), "--buckets")
    for option in ("image_size", "holdout"):
        if getattr(args, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} does not go with --buckets; leave it out")
    if (args.out / INDEX).exists():
        raise UsageError(f"{args.out} holds latents of one size; encode into another --out")
    return sizes


def _divided_by_size(
    source: Any, name: str, sizes: Sequence[tuple[int, int]]
) -> list[tuple[tuple[int, int], Readable]]:
    """Each size with its images. Raises UsageError if the images have one size only or a bucket stays
    empty."""
    from scaledit import checks
    from scaledit.data.files import BuiltIn, ImageFiles
    from scaledit.data.sets import AnySize, Images

    if not isinstance(source, AnySize):
        raise UsageError(f"the images of {name} have one size; leave --buckets out")
    members = source.members(sizes)
    divided: list[tuple[tuple[int, int], Readable]] = []
    for i, size in enumerate(sizes):
        images = source.at(*size)
        if isinstance(images, ImageFiles):
            assert members is not None
            if not len(members[i]):
                raise UsageError(
                    f"--buckets has {checks.size_in_words(size)}, but no image has an aspect ratio that is "
                    "nearest to it; leave this size out"
                )
            divided.append((size, replace(images, source=images.source.subset(members[i]))))
        else:
            assert isinstance(images, Images)
            divided.append((size, BuiltIn(name, images)))
    return divided


def _encode_buckets(
    args: argparse.Namespace,
    divided: Sequence[tuple[tuple[int, int], Readable]],
    autoencoder: Autoencoder,
    encoding: Encoding,
    shard: Shard,
) -> None:
    """Encodes each bucket into its folder, and records the sizes."""
    from scaledit.autoencoders.cache import encode
    from scaledit.data.latent_buckets import folder_of, write

    factor = autoencoder.downsampling
    for (height, width), _ in divided:
        if height % factor or width % factor:
            raise UsageError(
                f"--buckets has {height}x{width}, but {autoencoder.name} encodes multiples of {factor} pixels"
            )
    write(args.out, [size for size, _ in divided])
    results: list[Encoded] = []
    total, before = sum(len(source.names) for _, source in divided), 0
    with (
        common.interruptible(lambda: _kept(args, total)),
        common.progress_bar("encoding") as progress,
    ):
        for size, source in divided:

            def on_image(done: int, _: int, before: int = before) -> None:
                progress(before + done, total)

            folder = folder_of(args.out, size)
            results.append(
                encode(source, autoencoder, folder, encoding, shard, args.repair, on_image, args.update)
            )
            before += len(source.names)
    if args.json:
        listed = [{**result._asdict(), "out": str(result.out)} for result in results]
        complete = all(result.complete for result in results)
        terminal.say_json({"out": str(args.out), "complete": complete, "buckets": listed})
        return
    for result in results:
        _tell(result)


def _divided(files: Source, share: float, out: Path) -> Split:
    """The images to encode and the held-out ones; those that were divided before in `out` stay on their side.
    Raises UsageError if `out` was begun with another share, or nothing can be held out."""
    from scaledit.autoencoders.cache import encoded_names
    from scaledit.data.held_out import intact
    from scaledit.data.holdout import Sides, split

    stored, encoded = intact(out), encoded_names(out)
    if stored is not None and stored.share != share:
        raise UsageError(
            f"{out} was begun with --holdout {stored.share:g}; keep that share, or encode into another --out"
        )
    halves = split(files, share, Sides(encoded, frozenset(stored.names if stored else ())))
    if len(halves.held_out):
        return halves
    if encoded:
        raise UsageError(f"{out} was begun without --holdout; leave it out, or encode into another --out")
    raise UsageError(
        f"--holdout {share:g} holds no image out, because all classes are too small; choose a larger share"
    )


def _tell(result: Encoded) -> None:
    """Prints what was encoded, in words."""
    from scaledit.data.latents import INDEX

    if result.recounted:
        first, more = result.recounted[0], len(result.recounted) - 1
        others = f" and {more} more" if more else ""
        terminal.inform(f"counted again, because its record was wrong: {first}{others}")
    if result.index_repaired:
        terminal.inform(f"{INDEX} was wrong or corrupt and has been written again")
    terminal.inform(*(f"skipped: {name}" for name in result.skipped))
    if result.complete:
        kept = f", {result.kept:,} of them as before" if result.kept else ""
        terminal.say(f"{common.images(result.images, 'encoded ')} in {result.out}{kept}")
    else:
        done = f"{common.images(result.images)} in {result.out} so far"
        terminal.say(f"this shard is done; {done}, and other shards encode the rest")


def _tell_held_out(kept: HeldOut, out: Path) -> None:
    from scaledit.data.held_out import ARRAYS

    stored = f"{kept.images} of {kept.held_out}" if kept.images < kept.held_out else str(kept.images)
    terminal.inform(*(f"skipped: {name}" for name in kept.skipped))
    terminal.say(f"stored {stored} held-out images as pixels in {out / ARRAYS}; they were not encoded")


def _kept(args: argparse.Namespace, images: int) -> str:
    """What an interrupted command says. images: how many there are to encode."""
    written = sum(1 for _ in args.out.rglob("*.safetensors")) if args.out.is_dir() else 0
    return common.kept_parts(written, -(-images // args.per_file), "files", args.out)


def _in_memory(name: str, image_size: int | None) -> DataSet | None:
    """The color set in memory that IMAGES names, at this size if it can be drawn at any; None for a path."""
    chosen = part.members(DataSet).get(name)
    if chosen is None or not chosen.in_memory or chosen.channels != 3:
        return None
    size = {"image_size": image_size} if image_size and "image_size" in hints(chosen) else {}
    return part.build(DataSet, {"name": name, **size}, "images")
