"""Detects changed files: by their size and SHA-256, or by a hash that a file contains of itself.

sealed(value) = JSON of {**value, "sha256": SHA-256 of value}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scaledit.errors import RunError, reading
from scaledit.files.reading import json_bytes, json_object


class FileHash(NamedTuple):
    """A file's entry in a manifest. size: in bytes. sha256: of its bytes, in hexadecimal."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileHash:
        """The size and hash of the file `path`. Raises OSError."""
        return cls(path.stat().st_size, sha256_of(path))

    @classmethod
    def of_bytes(cls, data: bytes) -> FileHash:
        """The size and hash of a file with the content `data`."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in blocks. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_sha256(value: object) -> bool:
    """Whether a value is 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def mismatch(path: Path, size: int, sha256: str | None = None) -> str:
    """How a file differs from its recorded size and hash, as a predicate that follows the file's name; "" if
    it does not. sha256: None to compare only the size. Raises OSError if the file cannot be read."""
    if not path.is_file():
        return "is missing"
    if (actual := path.stat().st_size) != size:
        return f"has {actual} bytes instead of {size}"
    if sha256 is not None and sha256_of(path) != sha256:
        return "does not match its SHA-256"
    return ""


def sealed(value: Mapping[str, Any]) -> bytes:
    """A JSON file of `value` and its SHA-256. `read_sealed` compares the complete file with this, so every
    byte counts, white space included."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**value, "sha256": digest}, indent=1) + "\n").encode()


def read_sealed(
    path: Path, what: str, fix: str = "", error: type[Exception] = RunError
) -> tuple[dict[str, Any], bool]:
    """The value in a file that `sealed` wrote, and whether every byte of the file is as written. what, fix,
    error, and the errors raised: see `read_json`."""
    with reading(path, what, fix, error):
        data = json_bytes(path)
        value = json_object(data)
        value.pop("sha256", None)
        return value, data == sealed(value)
