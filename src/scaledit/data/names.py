r"""Names in sets that somebody handed in: their order, their bytes, the encodings of lists of them.

"class2" < "class10"            numbers inside a name are compared as numbers
b"caf\xe9" -> 'caf\\xe9'        a name that is not UTF-8, as text that can be written anywhere
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

from scaledit.errors import UsageError

LARGEST_TEXT = 1 << 24
"""Bytes of a list of names."""
_NUMBER = re.compile(r"([0-9]+)")
_DRIVE = re.compile(r"^[A-Za-z]:$")
_BOMS = (  # UTF-32 before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def natural_key(name: str) -> tuple[tuple[object, ...], str]:
    """To sort names by: "2" before "10", "class2" before "class10"; what is not a digit by its code point.
    "01" and "1", equal as numbers, come in the order of the text."""
    pieces: list[object] = []
    for i, piece in enumerate(_NUMBER.split(name)):
        digits = piece.lstrip("0")
        # A longer number is the larger one; of any length, unlike int(piece).
        pieces.append((len(digits), digits) if i % 2 else piece)
    return tuple(pieces), name


def encoded(name: str) -> bytes:
    """The bytes that stand for a name in hashes: UTF-8, also for names that are none."""
    return name.encode("utf-8", "surrogatepass")


def as_text(name: str) -> str:
    r"""A name without surrogates, so that it can be written into any file: bytes of a file name that are not
    UTF-8 become \x and two digits."""
    if name.isascii():
        return name
    return "".join(
        f"\\x{ord(c) - 0xDC00:02x}"
        if 0xDC80 <= ord(c) <= 0xDCFF
        else (f"\\u{ord(c):04x}" if 0xD800 <= ord(c) <= 0xDFFF else c)
        for c in name
    )


def parts_of(name: str) -> tuple[str, ...]:
    """The folders and the file of a path inside a set or an archive: without a leading "/", ".", ".." or
    drive, which mean nothing where nothing is unpacked."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return tuple(parts[1:] if len(parts) > 1 and _DRIVE.match(parts[0]) else parts)


def suffix_of(name: str) -> str:
    """In lower case, with its dot; "" for none."""
    base = name.rpartition("/")[2]
    stem, dot, suffix = base.rpartition(".")
    return dot + suffix.lower() if stem and suffix else ""


def hidden(parts: Iterable[str]) -> bool:
    """Whether a path is none of the set's own: a part begins with a dot, or macOS's archiver made it."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def decoded(data: bytes) -> tuple[str, str]:
    """(text, encoding) of a file that some editor wrote: by its byte order mark; UTF-16 without one by its
    zeros; else UTF-8; else Latin-1 (Windows' kind, where it differs). Raises ValueError."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding), encoding.upper().removesuffix("-SIG")
    if b"\0" in data:
        encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
        return data.decode(encoding), encoding.upper()
    try:
        return data.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252"), "Latin-1"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "Latin-1"


def lines(path: Path) -> tuple[list[str], str]:
    """(the lines that are not blank, the encoding that they were in) of a list of names, whatever ends its
    lines. Raises UsageError for what is no text."""
    size = path.stat().st_size
    if size > LARGEST_TEXT:
        raise UsageError(f"{path} has {size / 1e6:.0f} MB; that is no list of names")
    try:
        text, encoding = decoded(path.read_bytes())
    except ValueError as error:
        raise UsageError(
            f"{path} is no text in an encoding that can be told ({error}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UsageError(f"{path} is no text: it holds zeros; save it as UTF-8")
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()], encoding
