"""One encoded image: its header, its pixels as 8-bit RGB, and ADM's center crop of them.

    bytes --header--> size, mode, refusals --decode--> RGB
    v of n bits --> round(255 v / (2^n - 1))
    c, alpha, background b --> round((alpha c + (255 - alpha) b) / 255)
    RGB --halve with BOX while twice too large, then BICUBIC--> shorter side S --center--> (S, S, 3) uint8
                                                                (or a height and width)

The crop is that of ADM (Dhariwal & Nichol 2021). Like ADM, it ignores an orientation written by a camera.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from scaledit.data.background import NAMED, Color
from scaledit.errors import RunError, reading
from scaledit.files.reading import check_png

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", *(("AVIF",) if features.check("avif") else ()))
"""AVIF only if this Pillow was built with it; otherwise such images are refused by name."""
LARGEST_PIXELS = 1 << 26
"""8192 x 8192, 200 MB decoded. Larger images count as decompression bombs; Pillow allows more."""
ORIENTATION = 0x0112
"""The EXIF tag."""
ENDS = {b"\xff\xd8\xff": ("JPEG", b"\xff\xd9"), b"\x89PNG\r\n": ("PNG", b"IEND\xaeB`\x82")}
"""{first bytes: (format, last bytes of a complete file)}. Padding may follow the last bytes."""
TAIL = 4096
"""Bytes at the end of a file in which its last bytes are searched."""
TILE = 512
"""Side of the tiles in which deep and transparent images are converted, to save a second copy in memory."""
EXTREME = 16
"""Aspect ratio above which `crop` computes only the center and `inspect` warns."""
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's names of the modes with at most 8 bits per channel."""
GRAY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
PNG_DEPTH = 24
"""Offset of the bits per channel in a PNG file."""
BITS, WHITE_IS_ZERO, SAMPLE_FORMAT, SIGNED = 258, 262, 339, 2
"""TIFF's tags BitsPerSample, PhotometricInterpretation (0 means that white is zero) and SampleFormat, and the
SampleFormat of signed integers."""


class BadImage(RunError):
    """An image that cannot be used. The message names it and gives the reason."""


class Header(NamedTuple):
    """What is known about an image before it is decoded.

    turned: its EXIF orientation is not upright. bits: per channel, in the file. alpha: whether it has an
    alpha channel or a transparent color. frames: whether it has several frames or pages.
    """

    format: str
    width: int
    height: int
    mode: str
    turned: bool
    bits: int = 8
    alpha: bool = False
    frames: bool = False

    @property
    def extreme(self) -> bool:
        """Whether the center crop shows less than 1 / EXTREME of the image."""
        return max(self.width, self.height) > EXTREME * min(self.width, self.height)


def header(data: bytes, name: str) -> Header:
    """Reads the header of an encoded image; `name` is used in messages. Raises BadImage if `data` is not an
    image, is cut short, declares too many pixels, or has pixels of unknown range."""
    with _reading(name), _opened(data, name) as image:
        frames, orientation = False, 1
        # Neither changes the decoded pixels, so corrupt metadata does not make an image unusable.
        with suppress(Exception):
            frames = bool(getattr(image, "is_animated", False))
        with suppress(Exception):
            if image.format in ("JPEG", "MPO", "TIFF", "WEBP"):
                orientation = image.getexif().get(ORIENTATION, 1)
        bits, turned = _checked_bits(image, data, name), orientation != 1
        shape = (image.width, image.height, image.mode)
        return Header(str(image.format), *shape, turned, bits, _transparent(image), frames)


def decode(data: bytes, name: str, background: Color | None = NAMED["white"]) -> Image.Image:
    """The image as RGB with 8 bits per channel; the first frame if there are several.

    Gray with 12 or 16 bits is scaled by its range. Color with 16 bits keeps the upper byte, as in Pillow.
    Transparent images are composited on `background`. None drops their alpha channel, as the first versions
    of scaledit did, and refuses gray with more than 8 bits, which those versions read as white.

    Raises BadImage as `header` does, and if the pixels are corrupt.
    """
    with _reading(name), _opened(data, name) as image:
        bits = _checked_bits(image, data, name)
        deep = image.mode not in MODES
        if background is None and deep:
            raise BadImage(
                f"{name} has {bits} bits per channel, which the version of scaledit that began this read as "
                "white; start again with a background"
            )
        if image.format == "PNG":
            check_png(data)
        image.load()
        if deep or (_transparent(image) and background is not None):
            return _flattened(image, bits, name, background or NAMED["white"])
        return image if image.mode == "RGB" else image.convert("RGB")


def _flattened(image: Image.Image, bits: int, name: str, background: Color) -> Image.Image:
    """Converts a deep or transparent image on `background`, tile by tile."""
    keyed = image.mode in ("1", "L", "RGB", "I", *GRAY_16)
    key = image.info.pop("transparency", None) if keyed else None
    if key is not None and image.format == "PNG":
        if image.mode == "RGB" and bits == 16:
            raise BadImage(
                f"{name} has one transparent color of 16 bits per channel, but only upper bytes are read; "
                "save it with 8 bits or with an alpha channel"
            )
        key = _in_eight_bits(key, bits) if image.mode in ("1", "L", "RGB") else key
    inverted = image.format == "TIFF" and _tag(image, WHITE_IS_ZERO, 0) == (0,)
    levels = _levels(bits)[::-1] if inverted else _levels(bits)
    canvas, (width, height) = Image.new("RGB", image.size, background), image.size
    corners = itertools.product(range(0, height, TILE), range(0, width, TILE))
    for box in ((left, top, min(left + TILE, width), min(top + TILE, height)) for top, left in corners):
        part = image.crop(box)
        if not keyed:
            # Pillow cannot convert premultiplied gray to RGBA directly.
            rgba = (part.convert("LA") if part.mode == "La" else part).convert("RGBA")
            canvas.paste(rgba.convert("RGB"), box, rgba.getchannel("A"))
            continue
        values = np.asarray(part.convert("L") if part.mode == "1" else part)
        deep = image.mode not in MODES
        rgb = Image.fromarray(levels[np.minimum(values, len(levels) - 1)]) if deep else part
        mask = None
        if key is not None:
            same = values == np.asarray(key)
            same = same.all(-1) if same.ndim == 3 else same
            mask = Image.fromarray(np.where(same, 0, 255).astype(np.uint8))
        canvas.paste(rgb.convert("RGB"), box, mask)
    return canvas


def _in_eight_bits(key: int | tuple[int, ...], bits: int) -> int | tuple[int, ...]:
    """A PNG's transparent color, from the file's bits per channel to the 8 bits of Pillow's pixels."""
    if isinstance(key, tuple):
        return tuple(channel & 255 for channel in key)
    return key & 255 if bits in (1, 8) else (key & (1 << bits) - 1) * 255 // ((1 << bits) - 1)


@cache
def _levels(bits: int) -> np.ndarray:
    """(2^bits,) uint8: round(255 v / (2^bits - 1)) for each value v, which is round(v / 257) for 16 bits."""
    most = (1 << bits) - 1
    return ((np.arange(most + 1) * 255 + most // 2) // most).astype(np.uint8)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns whatever Pillow's plugins raise into a BadImage."""
    with reading(name, "an image", "save it again, or leave it out", BadImage):
        try:
            yield
        except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
            raise BadImage(f"{name} is corrupt: {error}") from None


def _opened(data: bytes, name: str) -> Image.Image:
    for begin, (kind, end) in ENDS.items():
        if data.startswith(begin) and end not in data[-TAIL:]:
            raise BadImage(f"{name} is cut short: it does not end as a {kind} does")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if not data:
            raise BadImage(f"{name} is empty") from None
        if data.startswith((b"II*\0", b"MM\0*")):
            raise BadImage(
                f"{name} is corrupt or a TIFF of an unsupported kind (several channels of floats, for "
                "instance); save it with 8 or 16 bits per channel"
            ) from None
        raise BadImage(f"{name} is not a readable image ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BadImage(f"{name} declares far more than {LARGEST_PIXELS:,} pixels; make it smaller") from None
    if image.width * image.height > LARGEST_PIXELS:
        raise BadImage(
            f"{name} declares {image.width}x{image.height} pixels, more than {LARGEST_PIXELS:,}; "
            "make it smaller"
        )
    return image


def _checked_bits(image: Image.Image, data: bytes, name: str) -> int:
    """Bits per channel in the file. Raises BadImage if the file does not define which value is white."""
    mode, bits, signed = image.mode, 8, False
    if image.format == "PNG":
        bits = data[PNG_DEPTH]
    elif image.format == "TIFF":
        bits = max(_tag(image, BITS, 1))
        signed = SIGNED in _tag(image, SAMPLE_FORMAT, 1)
    if signed or not (mode in MODES or mode in GRAY_16 or (mode == "I" and image.format == "PNG")):
        kind = {"F": "floats", "I": "integers of 32 bits, or signed ones"}.get(mode, f"of the mode {mode}")
        kind = "signed integers" if signed else kind
        raise BadImage(
            f"{name} has pixels that are {kind}, so it is unknown which value is white; scale it to 8 or 16 "
            "unsigned bits per channel"
        )
    if not 1 <= bits <= 16:
        raise BadImage(f"{name} is corrupt: it claims {bits} bits per channel")
    return bits


def _transparent(image: Image.Image) -> bool:
    """Whether there is an alpha channel or a transparent color, even if every pixel is opaque."""
    palette = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info or palette


def _tag(image: Image.Image, tag: int, default: int) -> tuple[int, ...]:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def crop(image: Image.Image, height: int, width: int | None = None) -> np.ndarray:
    """ADM's center crop, (height, width, 3) uint8; a square without a width. Smaller images are enlarged. For
    other shapes the same is done: halved while both sides are twice too large, then scaled until both sides
    are large enough, and cropped at the center.

    A square is equal to ADM's bit for bit up to an aspect ratio of EXTREME. Beyond it, ADM would enlarge the
    full image (20,000 x 1 pixels to 5,120,000 x 256) and keep its middle. Here only the middle is computed,
    which rounds some values differently (by 1 or 2 in smooth pictures, tests/test_images.py).
    """
    width = height if width is None else width
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    size = (round(image.width * scale), round(image.height * scale))
    if size[0] > EXTREME * width or size[1] > EXTREME * height:
        return np.asarray(_middle(image, size, (width, height)))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _middle(image: Image.Image, size: tuple[int, int], target: tuple[int, int]) -> Image.Image:
    """The center of image.resize(size, BICUBIC), of the target's width and height. The source is cropped
    first to the pixels that the filter reaches: Pillow keeps a box in float32, which is exact enough only for
    small coordinates."""
    source, box = [], []
    for length, full, side in zip(image.size, size, target, strict=True):
        step = length / full
        first = (full - side) // 2
        begin, end = first * step, min((first + side) * step, length)
        margin = math.ceil(2 * max(step, 1)) + 1
        left, right = max(0, math.floor(begin) - margin), min(length, math.ceil(end) + margin)
        source.append((left, right))
        box.append((begin - left, end - left))
    (left, right), (top, bottom) = source
    (x0, x1), (y0, y1) = box
    part = image.crop((left, top, right, bottom))
    return part.resize(target, Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
