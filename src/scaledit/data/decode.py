"""One encoded image: looked at by its header, decoded, cropped as ADM crops.

    bytes --header--> size, mode, refusals --decode--> RGB
    RGB --halve with BOX while twice too large, then BICUBIC--> shorter side S --centre--> (S, S, 3) uint8

Dhariwal & Nichol 2021 (ADM); an orientation written by a camera is left alone, as ADM leaves it.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from scaledit.errors import RunError

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", *(("AVIF",) if features.check("avif") else ()))
"""Of a GIF the first frame. AVIF where this Pillow was built with it; elsewhere it is refused by name."""
LARGEST_PIXELS = 1 << 26
"""8192 x 8192, 200 MB decoded: what declares more is taken for a decompression bomb. Pillow warns later."""
ORIENTATION = 0x0112
"""The EXIF tag."""
ENDS = {b"\xff\xd8\xff": ("JPEG", b"\xff\xd9"), b"\x89PNG\r\n": ("PNG", b"IEND\xaeB`\x82")}
"""By how a file begins: its format, and how a whole one ends (after which there may be padding)."""
TAIL = 4096


class BadImage(RunError):
    """An image that cannot be used; the message names it and says why."""


class Header(NamedTuple):
    """What is known of an image before it is decoded. turned: a camera says that it lies on its side."""

    format: str
    width: int
    height: int
    mode: str
    turned: bool


def header(data: bytes, name: str) -> Header:
    """Raises BadImage for what is no image, declares too many pixels, or is cut short."""
    with _opened(data, name) as image:
        orientation = image.getexif().get(ORIENTATION, 1) if image.format in ("JPEG", "TIFF", "WEBP") else 1
        return Header(str(image.format), image.width, image.height, image.mode, orientation != 1)


def decode(data: bytes, name: str) -> Image.Image:
    """The image as RGB; transparency is dropped, as ADM drops it. Raises BadImage as `header` does, and for
    damage inside."""
    try:
        with _opened(data, name) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
        raise BadImage(f"{name} is damaged: {error}") from None


def _opened(data: bytes, name: str) -> Image.Image:
    for begin, (kind, end) in ENDS.items():
        if data.startswith(begin) and end not in data[-TAIL:]:
            raise BadImage(f"{name} is cut short: a {kind} ends in other bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        what = "is empty" if not data else f"is no image that can be read ({', '.join(FORMATS)})"
        raise BadImage(f"{name} {what}") from None
    except Image.DecompressionBombError:
        raise BadImage(f"{name} declares far more than {LARGEST_PIXELS} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImage(f"{name} is damaged: {error}") from None
    if image.width * image.height > LARGEST_PIXELS:
        raise BadImage(
            f"{name} declares {image.width}x{image.height} pixels, more than {LARGEST_PIXELS}; "
            "make it smaller"
        )
    return image


def crop(image: Image.Image, side: int) -> np.ndarray:
    """ADM's centre crop: (side, side, 3) uint8. Smaller images are enlarged."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]
