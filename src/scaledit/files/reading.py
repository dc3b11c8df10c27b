"""JSON and PNG files that somebody handed in, read within limits.

What is refused is refused before it takes memory or time: by its size, its depth, its place.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from scaledit.errors import RunError, reading, shown

LARGEST_JSON = 1 << 28
"""Bytes of a JSON file; what is larger is none of ours, and would take many times its size in memory."""


def read_json(path: Path, what: str, fix: str = "", error: type[Exception] = RunError) -> dict[str, Any]:
    """The object in a JSON file that somebody handed in. what, fix, error: as of `errors.reading`.

    Raises `error` for what is no JSON object, has a key twice, or is nested deeper than DEEPEST; OSError
    where the file cannot be opened.
    """
    with reading(path, what, fix, error):
        return json_object(json_bytes(path))


def json_bytes(path: Path) -> bytes:
    """What a JSON file holds. Raises ValueError for more than LARGEST_JSON bytes; OSError."""
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"it has {path.stat().st_size / 1e6:.0f} MB")
    return path.read_bytes()


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` is. Raises ValueError for what `read_json` refuses."""
    value = json.loads(data, object_pairs_hook=_once)
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    check_depth(value)
    return value


LARGEST_PICTURE = 32 << 20
"""Bytes of a picture that is taken out of somebody's folder and put into a report."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def picture_in(folder: Path, name: object) -> bytes:
    """The PNG `name`, a path below `folder`. What a report holds is never from outside of the folder that it
    is of, whatever a log or a symbolic link in there says.

    Raises ValueError with the reason where it is outside, missing, too large, or no PNG.
    """
    if not isinstance(name, str):
        raise ValueError(f"{name!r} is no file's name")
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"{name} is outside of the folder")
        if not path.is_file():
            raise ValueError(f"{name} is not there")
        if path.stat().st_size > LARGEST_PICTURE:
            raise ValueError(f"{name} has {path.stat().st_size / 1e6:.0f} MB")
        data = path.read_bytes()
    except (OSError, RuntimeError) as error:  # a loop of links; a name that is too long
        raise ValueError(f"{name} cannot be read: {error}") from None
    if not data.startswith(PNG_MAGIC):
        raise ValueError(f"{name} is no PNG")
    return data


DEEPEST = 50
"""Lists and tables inside each other; ours have 6. Far below what Python's own recursion bears, so that
whatever is done with such a value later bears it too."""


def check_depth(value: Any) -> None:
    """Raises ValueError for lists and tables that lie deeper in each other than DEEPEST."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict | list):
                below.extend(one.values() if isinstance(one, dict) else one)
        level, depth = below, depth + 1


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which each key is there once; json would keep the last."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"it has the key {shown(key)} twice")
        table[key] = value
    return table


def check_png(data: bytes) -> None:
    """Raises ValueError where a chunk of a PNG is not the one that was written, by its own CRC-32. Pillow
    does not look at those of the chunks that hold the pixels, nor at zlib's own once the last pixel is
    there."""
    at, kind = len(PNG_MAGIC), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if len(data) < end + 4:
            raise ValueError("it is cut short")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"its chunk {kind!r} does not match its checksum")
        at = end + 4
