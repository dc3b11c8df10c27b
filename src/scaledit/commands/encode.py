"""scaledit encode: encodes images into a folder of latents that training reads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scaledit import part, terminal
from scaledit.commands import common
from scaledit.data.background import background_color
from scaledit.data.datasets import DataSet
from scaledit.errors import UsageError, printable

SUMMARY = """encode images once, so that training reads latents

  scaledit encode photos/ --autoencoder stabilityai/sd-vae-ft-ema --out latents
  scaledit encode photos/ --autoencoder AE --out latents --shard 0/8      and 1/8 ... 7/8 on other devices

To resume after an interruption, run it again. --repair encodes again what is corrupt, and only that."""

BACKGROUND_HELP = 'background of transparent images: white, black, "#rrggbb", or drop (ignore alpha)'


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    images = 'a folder with one folder per class, tar shards, Parquet, a .zip; or "photos" (built in)'
    add("images", metavar="IMAGES", help=images)
    common.which_images(parser)
    add("--autoencoder", metavar="AE", required=True, help="a folder, a hub id, or pixels")
    add("--out", type=Path, metavar="LATENTS", required=True)
    add("--image-size", type=int, metavar="S", help="size that files are resized to (default: 256)")
    background = f"{BACKGROUND_HELP} (default: white, or what --out was begun with)"
    add("--background", metavar="COLOR", help=background)
    add("--no-flip", action="store_true", help="no mirrored images: half the size")
    dtypes = ["float16", "bfloat16", "float32"]
    add("--dtype", choices=dtypes, default="float16", help="of the latents (default: float16)")
    add("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of encoding (default: fp32)")
    add("--batch-size", type=int, default=16, metavar="N", help="images encoded at once (default: 16)")
    add("--workers", type=int, default=2, metavar="N", help="threads that read images (default: 2)")
    add("--per-file", type=int, default=1024, metavar="N", help="images per file (default: 1024)")
    add("--on-bad", choices=["stop", "skip"], default="stop", help="at a bad image (default: stop)")
    add("--max-bad", type=int, default=100, metavar="N", help="skip at most N images (default: 100)")
    add("--shard", default="0/1", metavar="i/n", help="encode only share i of n of the files")
    add("--repair", action="store_true", help="check every byte; encode again what differs")
    common.device(parser)
    common.as_json(parser)


@common.short_warnings()
def run(args: argparse.Namespace) -> None:
    common.at_least(args, 1, "image_size", "batch_size", "workers", "per_file")
    common.at_least(args, 0, "max_bad")
    background_color(args.background or "")
    in_memory = _in_memory(args.images)
    if in_memory is None and not Path(args.images).exists():
        raise UsageError(f"there is no {args.images}")

    from scaledit import assemble
    from scaledit.autoencoders import open_autoencoder
    from scaledit.autoencoders.cache import Encoding, begun_with, encode
    from scaledit.data.files import BuiltIn, ImageFiles, Readable
    from scaledit.data.latents import INDEX
    from scaledit.data.sets import Images
    from scaledit.data.sources import open_source
    from scaledit.files.shards import Shard

    shard = Shard.parse(args.shard)
    source: Readable
    if in_memory is not None:
        images = in_memory.open()
        assert isinstance(images, Images)  # like all of scaledit's sets in memory
        source = BuiltIn(args.images, images)
        side = source.shape[1]
        if args.image_size not in (None, side):
            raise UsageError(f"{args.images} are {side}x{side}; leave --image-size out")
        if args.background is not None:
            raise UsageError(f"{args.images} are not transparent; leave --background out")
        common.reject_image_options(args, f"{args.images} are built in")
    else:
        files = open_source(args.images, args.split, args.image_key)
        for remark in files.remarks():
            print(printable(remark), file=sys.stderr)
        size, background = args.image_size or 256, args.background or begun_with(args.out)
        source = ImageFiles(files, size, threads=args.workers, behind=background)
    device = str(assemble.device(args.device))
    name = args.autoencoder if args.autoencoder == "pixels" else common.absolute(args.autoencoder)
    autoencoder = open_autoencoder(name, device=device, precision=args.precision)
    encoding = Encoding(
        not args.no_flip, args.dtype, args.batch_size, args.per_file, args.on_bad, args.max_bad
    )
    with common.progress_bar("encoding") as progress:
        result = encode(source, autoencoder, args.out, encoding, shard, args.repair, progress)
    if args.json:
        terminal.say_json({**result._asdict(), "out": str(result.out)})
        return
    if result.recounted:
        first, more = result.recounted[0], len(result.recounted) - 1
        others = f" and {more} more" if more else ""
        terminal.say(f"counted again, because its record was wrong: {first}{others}")
    if result.index_mended:
        terminal.say(f"{INDEX} was wrong or corrupt and has been written again")
    terminal.say(*(f"skipped: {name}" for name in result.skipped))
    if result.complete:
        terminal.say(f"{common.images(result.images, 'encoded ')} in {result.out}")
    else:
        terminal.say(f"this shard is done; {result.images} images exist, other shards encode the rest")


def _in_memory(name: str) -> DataSet | None:
    """The color set in memory that IMAGES names, None for a path."""
    chosen = part.members(DataSet).get(name)
    return chosen() if chosen is not None and chosen.in_memory and chosen.channels == 3 else None
