"""What a user can put right. The command line prints these as one line, without a traceback.

`UsageError` (exit 2): the call was wrong, nothing was started. `RunError` (exit 1): the call was right
and the work failed. Each message names the culprit and says how to fix it.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UsageError(ValueError):
    """A wrong call: an unknown name, a size that does not fit, a file of another kind. Exit code 2."""


class RunError(RuntimeError):
    """A right call that failed: a corrupt file, numbers gone wrong, a full disk. Exit code 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the nearest known name, or the list of known names when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def printable(text: object) -> str:
    r"""`text` as it may be printed: what moves a terminal's cursor, colours it or turns the direction of
    writing is escaped (\x1b), and so are the bytes of file names that are not UTF-8 (\udcff). One line stays
    one line."""
    return "".join(
        c if c.isprintable() or c == JOINER else c.encode("unicode_escape").decode() for c in str(text)
    )


JOINER = "\u200d"
"""The zero-width joiner of emoji and several scripts: not "printable" to Python, harmless in a terminal."""


@contextmanager
def reading(path: Path | str, what: str, fix: str = "", error: type[Exception] = RunError) -> Iterator[None]:
    """Around the parsing of a file that somebody handed in: whatever a parser raises becomes one sentence.

        with reading(path, "a manifest", "restore it from a copy"):
            manifest = json.loads(path.read_bytes())

    Parsers of JSON, TOML, zip, npz, tar, Parquet and pictures raise some thirty types of exception on bytes
    of odd make, and their list changes with their versions; so this is the one place that catches them all.
    Messages of our own, and what the system says of a file (it is not there, it may not be read), pass as
    they are.

    what: with its article, as in "a manifest". fix: what to do about it. error: UsageError for a file of
    another kind, RunError (the default) for a corrupt one.
    """
    try:
        yield
    except (UsageError, RunError):
        raise
    except Exception as cause:
        if isinstance(cause, OSError) and cause.errno is not None and not _is_seek_to_nowhere(cause):
            raise
        said = f"{path} cannot be read as {what}: {reason(cause)}"
        raise error(f"{said}; {fix}" if fix else said) from cause


LONGEST_REASON = 300
"""Characters. Some parsers repeat the file in what they say of it."""


def reason(cause: BaseException) -> str:
    """What an exception says, as a part of a sentence: one line, not too long, never empty."""
    if isinstance(cause, MemoryError):
        return "it needs more memory than there is"
    if isinstance(cause, RecursionError):
        return "it is nested too deeply"
    if _is_seek_to_nowhere(cause):
        return "it points outside of itself"
    try:
        text = " ".join(str(cause).split())
    except Exception:  # a file name in it that is no text
        text = ""
    return _cut(text, LONGEST_REASON) or type(cause).__name__


def _is_seek_to_nowhere(cause: BaseException) -> bool:
    """Whether a parser went to a place that the file only claims to have. That is damage, though it is the
    system that refuses it."""
    return isinstance(cause, OSError) and cause.errno == errno.EINVAL


def shown(value: object) -> str:
    """A value of somebody's file as a message repeats it: as Python writes it, but no longer than a line."""
    try:
        return _cut(repr(value), 100)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists in lists
        return f"a {type(value).__name__} too large to show"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."
