"""Reads JSON and PNG files of unknown origin within limits.

Files are refused by their size, depth or location, before they take memory or time.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from scaledit.errors import RunError, reading, shown

LARGEST_JSON = 1 << 28
"""Bytes of a JSON file. scaledit writes no larger ones, and they would take many times as much memory."""
LARGEST_PICTURE = 32 << 20
"""Bytes of a PNG that is copied from a run folder into a report."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
DEEPEST = 50
"""Nested lists and tables; scaledit's own files have 6 levels. This is far below Python's recursion limit, so
that later code can process such a value recursively."""


def read_json(path: Path, what: str, fix: str = "", error: type[Exception] = RunError) -> dict[str, Any]:
    """The object in a JSON file of unknown origin. what, fix, error: as for `errors.reading`.

    Raises `error` if the file is not a JSON object, has a key twice, or is nested deeper than DEEPEST,
    OSError if it cannot be opened.
    """
    with reading(path, what, fix, error):
        return json_object(json_bytes(path))


def json_bytes(path: Path) -> bytes:
    """The content of a JSON file. Raises ValueError if it has more than LARGEST_JSON bytes, OSError."""
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"it has {path.stat().st_size / 1e6:.0f} MB")
    return path.read_bytes()


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises ValueError if `read_json` would refuse it."""
    value = json.loads(data, object_pairs_hook=_unique)
    if not isinstance(value, dict):
        raise ValueError("it contains no JSON object")
    check_depth(value)
    return value


def picture_in(folder: Path, name: object) -> bytes:
    """The PNG at the relative path `name` in `folder`. A path or symbolic link that leads out of the folder
    is refused, so that a report never contains foreign files.

    Raises ValueError if the file is outside, missing, too large, or not a PNG.
    """
    if not isinstance(name, str):
        raise ValueError(f"{name!r} is not a file name")
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"{name} is outside of the folder")
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size > LARGEST_PICTURE:
            raise ValueError(f"{name} has {path.stat().st_size / 1e6:.0f} MB")
        data = path.read_bytes()
    except (OSError, RuntimeError) as error:  # a loop of links; a name that is too long
        raise ValueError(f"{name} cannot be read: {error}") from None
    if not data.startswith(PNG_MAGIC):
        raise ValueError(f"{name} is not a PNG")
    return data


def check_depth(value: Any) -> None:
    """Raises ValueError if lists and tables are nested deeper than DEEPEST."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict | list):
                below.extend(item.values() if isinstance(item, dict) else item)
        level, depth = below, depth + 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated keys, of which json would keep the last."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"it has the key {shown(key)} twice")
        table[key] = value
    return table


def check_png(data: bytes) -> None:
    """Raises ValueError if a chunk of a PNG does not match its CRC-32. Pillow ignores the checksums of the
    chunks with pixels, and zlib's own checksum after the last pixel."""
    start, kind = len(PNG_MAGIC), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 8 + length
        if len(data) < end + 4:
            raise ValueError("it is truncated")
        if zlib.crc32(memoryview(data)[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"its chunk {kind.decode('latin-1')!r} does not match its checksum")
        start = end + 4
