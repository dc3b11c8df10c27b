"""Whether files are still the ones that were written: by their size and SHA-256, or by a hash inside of them.

sealed(value) = JSON of {**value, "sha256": SHA-256 of value}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scaledit.errors import RunError, reading
from scaledit.files.reading import json_bytes, json_object


class FileHash(NamedTuple):
    """What a manifest says of a file. size: in bytes. sha256: of its bytes, in hexadecimal."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileHash:
        """Of the file `path`. Raises OSError."""
        return cls(path.stat().st_size, sha256_of(path))

    @classmethod
    def of_bytes(cls, data: bytes) -> FileHash:
        """Of a file with the content `data`."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


def sha256_of(path: Path) -> str:
    """Of a file's bytes, read in blocks. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(path: Path, size: int, sha256: str | None = None) -> str:
    """How a file differs from what was written down of it, as a sentence goes on after the file's name; ""
    where it does not. sha256: None to compare the size alone. Raises OSError where it cannot be read."""
    if not path.is_file():
        return "is missing"
    found = path.stat().st_size
    if found != size:
        return f"has {found} bytes instead of {size}"
    if sha256 is not None and sha256_of(path) != sha256:
        return "does not match its SHA-256"
    return ""


def sealed(value: Mapping[str, Any]) -> bytes:
    """A JSON file of `value` and the SHA-256 of it. A reader compares the whole file with this, so that every
    byte counts, white space too."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**value, "sha256": digest}, indent=1) + "\n").encode()


def read_sealed(
    path: Path, what: str, fix: str = "", error: type[Exception] = RunError
) -> tuple[dict[str, Any], bool]:
    """The `value` of a file that `sealed` made, and whether every byte of the file is as it was written.
    what, fix, error: as of `errors.reading`. Raises what `read_json` raises."""
    with reading(path, what, fix, error):
        data = json_bytes(path)
        value = json_object(data)
        value.pop("sha256", None)
        return value, data == sealed(value)
