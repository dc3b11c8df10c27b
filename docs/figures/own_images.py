"""A folder of 96 images as people have them: four subjects in parts of scikit-image's photographs, of mixed
sizes and formats, some gray, some transparent. The figure of "Your own images" is made from it:

    python docs/figures/own_images.py pictures
    scaledit new pictures --out runs/own --minutes 15 --run
    cp runs/own/beside-real.png docs/figures/own-images.png

The docstring of scikit-image's function states the author and license of a photograph.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Subject(NamedTuple):
    """function: of skimage.data. center: of the subject, as shares of the photograph's width and height."""

    function: str
    center: tuple[float, float]


SUBJECTS = {
    "cat": Subject("chelsea", (0.48, 0.5)),
    "coffee": Subject("coffee", (0.46, 0.45)),
    "motorcycle": Subject("stereo_motorcycle", (0.52, 0.6)),
    "rocket": Subject("rocket", (0.5, 0.6)),
}
"""The classes."""
EACH = 24
SHARES = (0.65, 1.0)
"""Height of a part, as a share of the photograph's."""
ASPECTS = (0.85, 1.2)
"""Width divided by height."""
JITTER = 0.12
"""How far the middle of a part is from the subject's, as a share of the part."""
SIDES = (90, 300)
"""Shorter side of a picture in pixels."""
SUFFIXES = (".jpg", ".png", ".webp", ".jpg")
GRAY, TRANSPARENT = 11, 7
"""Every eleventh picture is gray, every seventh has corners that are transparent."""


def write_folder(folder: Path, each: int = EACH, seed: int = 0) -> Path:
    """Writes `each` pictures per class below `folder`, always the same ones."""
    import skimage.data

    random = np.random.default_rng(seed)
    for name, subject in SUBJECTS.items():
        pixels = getattr(skimage.data, subject.function)()
        photograph = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            suffix = SUFFIXES[i % len(SUFFIXES)]
            made = styled(part(photograph, subject, random), i, suffix)
            made.save(folder / name / f"{i:03d}{suffix}", quality=92)
    return folder


def part(photograph: Image.Image, subject: Subject, random: np.random.Generator) -> Image.Image:
    """A part of the photograph around its subject, at another size."""
    size = np.array(photograph.size)
    height = random.uniform(*SHARES) * photograph.height
    extent = np.array([height * random.uniform(*ASPECTS), height]).round().astype(int)
    middle = size * subject.center + extent * random.uniform(-JITTER, JITTER, 2)
    corner = np.clip((middle - extent / 2).round().astype(int), 0, size - extent)
    cut = photograph.crop((*corner.tolist(), *(corner + extent).tolist()))
    scale = random.integers(*SIDES, endpoint=True) / min(cut.size)
    return cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.BICUBIC)


def styled(image: Image.Image, i: int, suffix: str) -> Image.Image:
    """Picture i of a class: some are gray, some have transparent corners, which JPEG cannot store."""
    if i % GRAY == GRAY - 1:
        return image.convert("L")
    if i % TRANSPARENT == TRANSPARENT - 1 and suffix != ".jpg":
        rows, columns = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
        image.putalpha(Image.fromarray(np.uint8(255 * (rows**2 + columns**2 < 1.8))))
    return image


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
