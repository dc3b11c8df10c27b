"""Captions: the names of rows, columns and blocks in the margin of a grid of images.

    dog      guidance 1   guidance 4       title, columns
    12 steps  [] [] []     [] [] []        a row of cells; a cell is `images.grid` of its images in one row
    24 steps  [] [] []     [] [] []

Names are drawn beside the images, never on them: the box of each cell holds `images.grid` of its images bit
for bit, and the box of all cells of a block without columns is `images.grid` of all images. PNGs record the
boxes in their origin, and `images_in` cuts them out again."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scaledit import images
from scaledit.errors import printable

GAP = 2
"""Pixels between the images of a cell, as in `images.grid`."""
BETWEEN = 12
"""Pixels between columns of cells and between blocks; half of it between a name and its cells."""
SMALLEST_TYPE, SHARE = 13, 10
"""Pixels of the type, which grows with the images: a tenth of their height."""
LONGEST = 14
"""Width of the longest name in units of the type's size; longer ones are shortened."""
EDGE = 6
"""Pixels left of the longest name."""
INK = (40, 46, 52)
PAPER = 255
FONT, BOLD = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"
"""Fonts that are installed with matplotlib."""
ELLIPSIS, MISSING = "…", "\uffff"
"""MISSING: a character that no font has."""
BOX = "images"
"""The key of a PNG's origin with the box of all its images: left, top, right, bottom."""
LARGEST = 1 << 26
"""Pixels of a sheet whose images are cut out."""


class Box(NamedTuple):
    """A part of a sheet in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


class Block(NamedTuple):
    """cells: (R, C, N, H, W, 3) uint8, the N images of each cell. rows: a name for each row, or none.
    columns: a name for each column, or none. title: beside the columns' names. below: a name under each cell,
    in the order of `cells`, or none."""

    cells: np.ndarray
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    title: str = ""
    below: Sequence[str] = ()


class Sheet(NamedTuple):
    """image: (H, W, 3) uint8. cells: the box of each cell, block after block, row after row."""

    image: np.ndarray
    cells: tuple[Box, ...]

    @property
    def box(self) -> Box:
        """The box that holds all cells."""
        left, top, right, bottom = zip(*self.cells, strict=True)
        return Box(min(left), min(top), max(right), max(bottom))


def sheet(blocks: Sequence[Block]) -> Sheet:
    """Blocks of images of equal sizes below each other, on white, with their names. Names are shortened to
    LONGEST."""
    look = _Look.of(blocks)
    cells: list[tuple[Box, np.ndarray]] = []
    texts: list[_Text] = []
    bottom = 0
    for block in blocks:
        bottom = _lay_out(look.shortened(block), look, bottom + (BETWEEN if cells else 0), cells, texts)
    right = max(box.right for box, _ in cells)
    right = max([right, *(look.left + len(block.columns) * look.across - BETWEEN for block in blocks)])
    picture = Image.new("RGB", (right, bottom), (PAPER,) * 3)
    pen = ImageDraw.Draw(picture)
    for text in texts:
        font = _font(text.face, look.size)
        pen.text((text.x, text.y), text.text, fill=INK, font=font, anchor=text.anchor)
    canvas = np.array(picture)
    for box, pixels in cells:
        canvas[box.top : box.bottom, box.left : box.right] = pixels
    return Sheet(canvas, tuple(box for box, _ in cells))


class _Text(NamedTuple):
    """A name at a point of the sheet; anchor: as Pillow has it."""

    x: float
    y: float
    text: str
    anchor: str
    face: str = FONT


class _Look(NamedTuple):
    """Measures of a sheet in pixels. size: of the type. tall, wide: of a cell. left: where the cells begin.
    across: from a named column of cells to the next one. names: width of the longest name of a column."""

    size: int
    tall: int
    wide: int
    left: int
    across: int
    names: int

    @property
    def line(self) -> int:
        return round(1.5 * self.size)

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> _Look:
        first = blocks[0].cells[0, 0]
        tall, wide = images.grid(first, len(first), GAP).shape[:2]
        size = max(SMALLEST_TYPE, tall // SHARE)
        look = cls(size, tall, wide, 0, 0, 0)
        blocks = [look.shortened(block) for block in blocks]
        margin = max(
            max((_width(name, face, size) for name in names), default=0)
            for block in blocks
            for names, face in ((block.rows, FONT), ([block.title], BOLD))
        )
        names = max((_width(name, FONT, size) for block in blocks for name in block.columns), default=0)
        return look._replace(
            left=EDGE + margin + BETWEEN // 2 if margin else 0,
            across=max(wide - GAP, names) + BETWEEN,
            names=names,
        )

    def shortened(self, block: Block) -> Block:
        widest = LONGEST * self.size
        return block._replace(
            rows=[shortened(name, widest, FONT, self.size) for name in block.rows],
            columns=[shortened(name, widest, FONT, self.size) for name in block.columns],
            title=shortened(block.title, widest, BOLD, self.size),
            below=[shortened(name, self.wide, FONT, self.size) for name in block.below],
        )


def _lay_out(
    block: Block, look: _Look, top: int, cells: list[tuple[Box, np.ndarray]], texts: list[_Text]
) -> int:
    """Appends the cells and the names of a block that begins at `top`; returns where it ends."""
    columns: int = block.cells.shape[1]
    pitch = look.across if block.columns else look.wide - GAP
    if block.columns or block.title:
        texts.append(_Text(EDGE, top + look.line / 2, block.title, "lm", BOLD))
        for j, name in enumerate(block.columns):
            middle = (
                max(look.wide, look.names) / 2
            )  # a name that is wider than its cell begins where that does
            texts.append(_Text(look.left + j * pitch + middle, top + look.line / 2, name, "mm"))
        top += look.line
    down = look.tall - GAP + (look.line if block.below else 0)
    for i, row in enumerate(block.cells):
        y = top + i * down
        if block.rows:
            texts.append(_Text(look.left - BETWEEN // 2, y + look.tall / 2, block.rows[i], "rm"))
        for j, inside in enumerate(row):
            x = look.left + j * pitch
            box = Box(x, y, x + look.wide, y + look.tall)
            cells.append((box, images.grid(inside, len(inside), GAP)))
            if block.below:
                name = block.below[i * columns + j]
                texts.append(_Text(x + look.wide / 2, box.bottom + look.line / 2 - GAP, name, "mm"))
    return top + len(block.cells) * down + GAP


def rows(made: np.ndarray, columns: int, names: Sequence[str]) -> Sheet:
    """`images.grid` of (N, H, W, 3) images in rows of `columns`, with a name beside each row. N must be a
    multiple of `columns`."""
    cells = made.reshape(-1, 1, columns, *made.shape[1:])
    return sheet([Block(cells, names if any(names) else ())])


def one_by_one(made: np.ndarray, columns: int, names: Sequence[str]) -> Sheet:
    """`images.grid` of (N, H, W, 3) images in rows of `columns`, with a name below each image. The last row
    is filled up with white."""
    missing = -len(made) % columns
    made = np.concatenate([made, np.full((missing, *made.shape[1:]), PAPER, np.uint8)])
    cells = made.reshape(-1, columns, 1, *made.shape[1:])
    drawn = sheet([Block(cells, below=[*names, *[""] * missing] if any(names) else ())])
    return Sheet(drawn.image, drawn.cells[: len(made) - missing])


def class_labels(classes: Sequence[int], names: Sequence[str], num_classes: int) -> list[str]:
    """The names of classes as the font can draw them. A name with characters that it lacks, or that it would
    set in the wrong order, becomes the number of the class. Empty for the only class of a model, which needs
    none."""
    if num_classes == 1:
        return [""] * len(classes)
    return [drawable(names[c] if c < len(names) else "", f"class {c}") for c in classes]


def drawable(name: str, otherwise: str) -> str:
    """`name` on one line, or `otherwise` if it is empty or the font cannot draw it."""
    text = printable(unicodedata.normalize("NFC", name)).strip()
    return text if text and all(map(_has, text)) else otherwise


@functools.cache
def _has(character: str) -> bool:
    """Whether the font draws this character as itself and in its place: no combining marks, no writing from
    right to left, which only some installations of Pillow can arrange."""
    if character == " ":
        return True
    if unicodedata.category(character)[0] in "MC" or unicodedata.bidirectional(character) in ("R", "AL"):
        return False
    try:
        return _drawn(character) != _drawn(MISSING)
    except (UnicodeError, OSError):  # a bitmap font of Latin letters
        return character.isascii()


def _drawn(character: str) -> bytes:
    """The pixels of a character; those of MISSING if the font does not have it."""
    picture = Image.new("L", (4 * SMALLEST_TYPE, 2 * SMALLEST_TYPE))
    place = (SMALLEST_TYPE, SMALLEST_TYPE // 2)
    ImageDraw.Draw(picture).text(place, character, fill=255, font=_font(FONT, SMALLEST_TYPE))
    return picture.tobytes()


@functools.cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """matplotlib's copy of DejaVu Sans, found without importing matplotlib, else Pillow's own font."""
    found = importlib.util.find_spec("matplotlib")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / face
        if path.is_file():
            return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    return ImageFont.load_default(size)


def _width(text: str, face: str, size: int) -> int:
    return -int(-_font(face, size).getlength(text) // 1)


def shortened(text: str, widest: float, face: str = FONT, size: int = SMALLEST_TYPE) -> str:
    """`text`, or as many of its first characters as fit into `widest` pixels, and an ellipsis."""
    if _width(text, face, size) <= widest:
        return text
    mark = ELLIPSIS if _has(ELLIPSIS) else "..."
    kept = len(text)
    while kept and _width(f"{text[:kept].rstrip()}{mark}", face, size) > widest:
        kept -= 1
    return f"{text[:kept].rstrip()}{mark}"


def images_in(png: bytes) -> np.ndarray:
    """(H, W, 3) uint8: the images of a sheet without the names around them, by the box in its origin; all of
    a PNG without one. Raises ValueError if `png` is not an image or is too large."""
    try:
        picture = Image.open(io.BytesIO(png))
        width, height = picture.size
        if width * height > LARGEST:
            raise ValueError(f"it has {width}x{height} pixels")
        pixels = np.asarray(picture.convert("RGB"))
        box = _box(getattr(picture, "text", {}).get(images.ORIGIN), width, height)
    except Exception as error:  # Pillow raises many types for damaged bytes
        raise ValueError("it cannot be read as an image") from error
    return pixels[box.top : box.bottom, box.left : box.right]


def _box(origin: Any, width: int, height: int) -> Box:
    """The box in a PNG's origin; all of it if there is none or it is not within the PNG."""
    everything = Box(0, 0, width, height)
    try:
        box = Box(*json.loads(origin)[BOX])
    except (TypeError, ValueError, KeyError, IndexError, RecursionError):
        return everything
    whole = all(type(side) is int for side in box)
    inside = whole and 0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height
    return box if inside else everything
