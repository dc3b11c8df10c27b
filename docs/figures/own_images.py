"""A folder of 96 pictures as people have them: four subjects in parts of scikit-image's photographs, of mixed
sizes and formats, some gray, some transparent. And the figure of "Your own images".

    python docs/figures/own_images.py pictures                 writes the folder
    scaledit new pictures --out runs/own --minutes 15 --run    trains on it (docs/how-to/own-images.md)
    python docs/figures/own_images.py pictures runs/own        draws docs/figures/own-images.png

The docstring of scikit-image's function states the author and license of a photograph.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SUBJECTS = {"cat": "chelsea", "coffee": "coffee", "motorcycle": "stereo_motorcycle", "rocket": "rocket"}
"""The classes, and the functions of skimage.data."""
EACH = 24
SMALLEST, LARGEST = 90, 300
"""Sides of a part in pixels; the photographs are about 300 to 500 high."""
SUFFIXES = (".jpg", ".png", ".webp", ".jpg")
GRAY, TRANSPARENT = 11, 7
"""Every eleventh picture is gray, every seventh has corners that are transparent."""


def write_folder(folder: Path, each: int = EACH, seed: int = 0) -> Path:
    """Writes `each` pictures per class below `folder`, always the same ones."""
    import skimage.data

    random = np.random.default_rng(seed)
    for subject, function in SUBJECTS.items():
        pixels = getattr(skimage.data, function)()
        photograph = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")
        (folder / subject).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            part(photograph, i, random).save(folder / subject / f"{i:03d}{SUFFIXES[i % len(SUFFIXES)]}")
    return folder


def part(photograph: Image.Image, i: int, random: np.random.Generator) -> Image.Image:
    """Picture i of a class. JPEGs cannot be transparent, so transparency is for the other formats."""
    limits = np.minimum([LARGEST, LARGEST], photograph.size)
    width, height = random.integers(SMALLEST, limits + 1)
    left, top = random.integers(0, np.array(photograph.size) - (width, height) + 1)
    image = photograph.crop((left, top, left + width, top + height))
    if i % GRAY == GRAY - 1:
        return image.convert("L")
    if i % TRANSPARENT == TRANSPARENT - 1 and SUFFIXES[i % len(SUFFIXES)] != ".jpg":
        rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        image.putalpha(Image.fromarray(np.uint8(255 * (rows**2 + columns**2 < 1.8))))
    return image


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
