"""scaledit encode: images into a folder of latents that training reads."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from scaledit import part
from scaledit.commands import common
from scaledit.data.background import background_color
from scaledit.data.datasets import DataSet
from scaledit.errors import UsageError, printable

SUMMARY = """encode images once, so that training reads latents

  scaledit encode photos/ --autoencoder stabilityai/sd-vae-ft-ema --out latents
  scaledit encode photos/ --autoencoder AE --out latents --shard 0/8      and 1/8 ... 7/8 on other devices

To go on after an interruption, run it again. --repair encodes again what is corrupt, and only that."""

BACKGROUND_HELP = 'what shows where images are transparent: white, black, "#rrggbb", or drop (ignore alpha)'


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help='a folder with one folder per class, tar shards, Parquet, a .zip; or "photos" (built in)',
    )
    common.which_images(parser)
    parser.add_argument("--autoencoder", metavar="AE", required=True, help="a folder, a hub id, or pixels")
    parser.add_argument("--out", type=Path, metavar="LATENTS", required=True)
    parser.add_argument("--image-size", type=int, metavar="S", help="of files (default: 256)")
    parser.add_argument(
        "--background", metavar="COLOR", help=f"{BACKGROUND_HELP} (default: white, or what --out began with)"
    )
    parser.add_argument("--no-flip", action="store_true", help="no mirrored images: half the size")
    parser.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"], default="float16", help="(default: float16)"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of encoding")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read images")
    parser.add_argument("--per-file", type=int, default=1024, metavar="N", help="images (default: 1024)")
    parser.add_argument("--on-bad", choices=["stop", "skip"], default="stop", help="at an image that is bad")
    parser.add_argument("--max-bad", type=int, default=100, metavar="N", help="skip at most so many")
    parser.add_argument("--shard", default="0/1", metavar="i/n", help="make only this share of the files")
    parser.add_argument("--repair", action="store_true", help="check every byte; encode again what differs")
    common.device(parser)
    common.as_json(parser)


@common.told()
def run(given: argparse.Namespace) -> None:
    common.at_least(given, 1, "image_size", "batch_size", "workers", "per_file")
    common.at_least(given, 0, "max_bad")
    background_color(given.background or "")
    in_memory = _in_memory(given.images)
    if in_memory is None and not Path(given.images).exists():
        raise UsageError(f"there is no {given.images}")

    from scaledit import assemble
    from scaledit.autoencoders import open_autoencoder
    from scaledit.autoencoders.cache import Encoding, begun_with, encode
    from scaledit.data.files import BuiltIn, ImageFiles, Readable
    from scaledit.data.latents import INDEX
    from scaledit.data.sets import Images
    from scaledit.data.sources import open_source
    from scaledit.files.shards import Shard

    shard = Shard.parse(given.shard)
    source: Readable
    if in_memory is not None:
        held = in_memory.open()
        assert isinstance(held, Images)  # as all of scaledit's sets in memory
        source = BuiltIn(given.images, held)
        side = source.shape[1]
        if given.image_size not in (None, side):
            raise UsageError(f"{given.images} are {side}x{side}; leave --image-size out")
        if given.background is not None:
            raise UsageError(f"{given.images} are not transparent; leave --background out")
        common.no_choice_of_images(given, f"{given.images} are built in")
    else:
        found = open_source(given.images, given.split, given.image_key)
        for remark in found.remarks():
            print(printable(remark), file=sys.stderr)
        source = ImageFiles(
            found,
            given.image_size or 256,
            threads=given.workers,
            behind=given.background or begun_with(given.out),
        )
    device = str(assemble.device(given.device))
    where = given.autoencoder if given.autoencoder == "pixels" else _absolute(given.autoencoder)
    autoencoder = open_autoencoder(where, device=device, precision=given.precision)
    how = Encoding(
        not given.no_flip, given.dtype, given.batch_size, given.per_file, given.on_bad, given.max_bad
    )
    with common.shown_progress("encoding") as progress:
        made = encode(source, autoencoder, given.out, how, shard, given.repair, progress)
    if given.json:
        print(json.dumps({**made._asdict(), "out": str(made.out)}))
        return
    if made.recounted:
        first, more = made.recounted[0], len(made.recounted) - 1
        others = f" and {more} more" if more else ""
        print(printable(f"counted again, because its record could not be believed: {first}{others}"))
    if made.index_mended:
        print(printable(f"{INDEX} was wrong or corrupt and has been written again"))
    for name in made.skipped:
        print(printable(f"left out: {name}"))
    if made.complete:
        print(printable(f"{common.images(made.images, 'encoded ')} in {made.out}"))
    else:
        print(printable(f"this share is done; {made.images} images are there, other shards make the rest"))


def _in_memory(name: str) -> DataSet | None:
    """The set in memory that IMAGES names, in colour, as autoencoders want it; None for a path."""
    chosen = part.members(DataSet).get(name)
    return chosen() if chosen is not None and chosen.in_memory and chosen.channels == 3 else None


def _absolute(where: str) -> str:
    """A folder's full path, so that the run that reads the latents finds it; a hub id as it is."""
    path = Path(where).expanduser()
    return str(path.resolve()) if path.exists() else where
