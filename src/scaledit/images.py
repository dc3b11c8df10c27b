"""Images: from a model's range to bytes, grids, and PNG files that record how they were made.

byte = floor(clamp(127.5 x + 128, 0, 255))            (the official sampler's rounding)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from scaledit.errors import RunError
from scaledit.files.atomic import atomic_write

ROUNDING = "floor(clamp(127.5 x + 128, 0, 255))"
ORIGIN = "scaledit"
"""The text chunk of a PNG that says how to reproduce it, as JSON."""
SMALLEST_SHOWN = 64
"""Images with smaller sides are enlarged in grids, by repeating pixels."""


def to_uint8(x: Tensor) -> np.ndarray:
    """(N, C, H, W) in [-1, 1], C 1 or 3 -> (N, H, W, 3) uint8.

    Raises RunError if a pixel is not finite, which would become plain black or white.
    """
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        wrong = (~finite).nonzero().flatten().tolist()
        raise RunError(
            f"{len(wrong)} of {len(x)} images have pixels that are not finite, first image {wrong[0]}"
        )
    x = (127.5 * x.float() + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu()
    return np.ascontiguousarray(x.expand(-1, -1, -1, 3).numpy())


def grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """(N, H, W, 3) uint8 -> one image with the N images in rows of `columns`, on white, small ones enlarged.
    gap: pixels between images."""
    n, h, w, _ = images.shape
    zoom = max(1, SMALLEST_SHOWN // max(h, w))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    h, w = h * zoom, w * zoom
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def row(images: np.ndarray, columns: int) -> np.ndarray:
    """The first `columns` of (N, H, W, 3) uint8, followed by white images if there are fewer."""
    missing = max(0, columns - len(images))
    return np.concatenate([images[:columns], np.full((missing, *images.shape[1:]), 255, np.uint8)])


def save_png(path: Path, image: np.ndarray, origin: Mapping[str, Any]) -> None:
    """Writes (H, W, 3) uint8 as a PNG, atomically. origin: how to reproduce it, stored as JSON in the text
    chunk ORIGIN. Makes the folder of `path`. Raises OSError, which names `path`."""
    info = PngInfo()
    info.add_text(ORIGIN, json.dumps(origin))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(image).save(file, "PNG", pnginfo=info)
