"""A tree of images in a .zip, read in place.

Names are split at "/" and, since some programs on Windows write them, at backslashes. An entry is never read
beyond the size that it declares.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from scaledit.data.decode import SUFFIXES, BadImage
from scaledit.data.names import hidden, parts_of, suffix_of
from scaledit.data.sources import Source, by_folder, check_size
from scaledit.data.unused import HIDDEN, TWICE, LeftOut
from scaledit.errors import UsageError, reading, shown

READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
ENCRYPTED = 0x1
TAIL = 22 + 65535 + 20 + 56
"""Maximum bytes of the records at the end of a .zip, with the longest comment."""
LOCAL = 30
"""Bytes of an entry's own header, before its name."""
NAMELESS = "entries without a name"
STEP = {zipfile.ZIP_BZIP2: 4096, zipfile.ZIP_LZMA: 4096}
"""Bytes to request at once: these methods unpack all of their input, however little is requested."""


def open_zip(path: Path, split: str = "") -> Source:
    """Raises UsageError if `path` is not a .zip, or images are encrypted or packed by an unknown method."""
    with reading(path, "a .zip", error=UsageError):
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UsageError(f"{path} is not a .zip, or is cut short ({error})") from None
        declared, listed = _declared(path), len(archive.infolist())
        if declared not in (None, listed):
            raise UsageError(f"{path} is corrupt: it declares {declared} entries but lists {listed}")
        entries, folders, left = _entries(path, archive)
        _check_names(path, archive)
    tree = by_folder(entries, folders, path, split, left)
    # A forked process must not share a file position with its parent.
    archives = {os.getpid(): archive}

    def read(i: int) -> bytes:
        name = tree.names[i]
        entry = entries[name]
        check_size(entry.file_size, name)
        with reading(name, f"a file of {path.name}", error=BadImage):
            if os.getpid() not in archives:
                archives[os.getpid()] = zipfile.ZipFile(path)
            pieces, missing = [], entry.file_size
            with archives[os.getpid()].open(entry) as file:
                while missing and (piece := file.read(min(missing, STEP.get(entry.compress_type, missing)))):
                    pieces.append(piece)
                    missing -= len(piece)
        if missing:
            raise BadImage(f"{name} is corrupt: it is shorter than {path.name} says")
        return b"".join(pieces)

    return Source(path, "zip", **tree._asdict(), read=read, by_name=True)


def _declared(path: Path) -> int | None:
    """The number of entries that a .zip declares, which Python does not compare with those that it lists;
    None if it is unknown."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 12:
        return None
    count = int.from_bytes(tail[at + 10 : at + 12], "little")
    if count < 0xFFFF:
        return count
    at = tail.rfind(b"PK\6\6", 0, at)  # of a .zip with 64-bit sizes
    return int.from_bytes(tail[at + 32 : at + 40], "little") if at >= 0 else None


def _check_names(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises UsageError if the name of an entry in the list at the end, which has no checksum, differs from
    that in its own header: the name determines its class."""
    with path.open("rb") as file:
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            file.seek(info.header_offset)
            header = file.read(LOCAL)
            name = file.read(int.from_bytes(header[26:28], "little"))
            listed = info.orig_filename
            if name not in (listed.encode("utf-8", "surrogateescape"), listed.encode("cp437", "replace")):
                raise UsageError(f"{path} is corrupt: it lists {shown(listed)} where it stores {shown(name)}")


def _entries(path: Path, archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], list[str], LeftOut]:
    """(files by name, folders, files that are not used)."""
    entries: dict[str, zipfile.ZipInfo] = {}
    folders, left = [], LeftOut()
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        parts = parts_of(name)
        if name.endswith("/"):
            if parts and not hidden(parts):
                folders.append(name)
            continue
        if not parts or hidden(parts):
            left.add(HIDDEN if parts else NAMELESS, name or "''")
            continue
        if suffix_of(name) in SUFFIXES:
            if info.flag_bits & ENCRYPTED:
                raise UsageError(f"{path} is encrypted ({name}); unpack it and use the folder")
            if info.compress_type not in READABLE:
                raise UsageError(
                    f"{path}: {name} uses a compression that Python cannot read (method "
                    f"{info.compress_type}); create the archive again, or unpack it and use the folder"
                )
        if name in entries:
            left.add(TWICE, name)
        entries[name] = info
    return entries, folders, left
