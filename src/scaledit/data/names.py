r"""File names in data sets of unknown origin: their order, their bytes, and the encoding of lists of names.

"class2" < "class10"            numbers inside a name are compared as numbers
b"caf\xe9" -> 'caf\\xe9'        a name that is not UTF-8 becomes text that can be written anywhere
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from scaledit.errors import UsageError

LARGEST_TEXT = 1 << 24
"""Maximum bytes of a list of names."""
_NUMBER = re.compile(r"([0-9]+)")
_DRIVE = re.compile(r"^[A-Za-z]:$")
_BOMS = (  # UTF-32 before UTF-16, since its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def natural_key(name: str) -> tuple[tuple[object, ...], str]:
    """A sort key: "2" before "10", "class2" before "class10", other characters by their code points. Names
    with equal numbers ("01" and "1") are ordered as text."""
    pieces = (
        (len(digits := piece.lstrip("0")), digits) if i % 2 else piece  # of any length, unlike int(piece)
        for i, piece in enumerate(_NUMBER.split(name))
    )
    return tuple(pieces), name


def encoded(name: str) -> bytes:
    """A name's bytes for hashing: UTF-8, with surrogates passed through."""
    return name.encode("utf-8", "surrogatepass")


def as_text(name: str) -> str:
    r"""A name without surrogates that can be written to any file: bytes of a file name that are not UTF-8
    become \x and two digits."""
    if name.isascii():
        return name
    return "".join(
        f"\\x{ord(c) - 0xDC00:02x}"
        if 0xDC80 <= ord(c) <= 0xDCFF
        else c.encode(errors="backslashreplace").decode()
        for c in name
    )


def parts_of(name: str) -> tuple[str, ...]:
    """The folders and the file of a path in a set or an archive. A leading "/", a drive, "." and ".." are
    dropped, since nothing is unpacked."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return tuple(parts[1:] if len(parts) > 1 and _DRIVE.match(parts[0]) else parts)


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case, with its dot; "" if it has none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return dot + suffix.lower() if stem and suffix else ""


def hidden(parts: Iterable[str]) -> bool:
    """Whether a part of a path begins with a dot or was added by the archiver of macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def decoded(data: bytes) -> tuple[str, str]:
    """(text, encoding) of a text file. The encoding is known by a byte order mark, or guessed: UTF-16 if
    there are zeros, else UTF-8, else Windows' Latin-1, else Latin-1. Raises ValueError if that fails."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding), encoding.upper().removesuffix("-SIG")
    if b"\0" in data:
        encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
        return data.decode(encoding), encoding.upper()
    for encoding, name in (("utf-8", "UTF-8"), ("cp1252", "Latin-1")):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding), name
    return data.decode("latin-1"), "Latin-1"


def lines(path: Path) -> tuple[list[str], str]:
    """(non-blank lines, encoding) of a list of names. Raises UsageError if the file is not text."""
    size = path.stat().st_size
    if size > LARGEST_TEXT:
        raise UsageError(f"{path} has {size / 1e6:.0f} MB, which is too large for a list of names")
    try:
        text, encoding = decoded(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is not text in a known encoding ({error}); save it as UTF-8") from None
    if "\0" in text:
        raise UsageError(f"{path} is not text, because it contains zero bytes; save it as UTF-8")
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()], encoding
