"""What a user can put right. The command line prints these as one line, without a traceback.

`UsageError` (exit 2): the call was wrong, nothing was started. `RunError` (exit 1): the call was right
and the work failed. Each message names the culprit and says how to fix it.
"""

from __future__ import annotations

import difflib
import errno
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class UsageError(ValueError):
    """A wrong command: an unknown name, a size that does not fit, a file of another kind. Exit code 2."""


class RunError(RuntimeError):
    """A correct call that failed: a corrupt file, values that are not finite, a full disk. Exit code 1."""


class Diverged(RunError):
    """A training whose losses, weights or samples are not finite, or whose loss keeps spiking."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the closest known name, or the list of known names if none is close."""
    known = sorted(known)
    near = closest(word, known)
    if not known:
        return ""
    return f"; did you mean {near!r}?" if near else f"; known: {', '.join(known)}"


def closest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The known name that is most similar to `word`; '' if none is."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def no_such(path: Path | str) -> str:
    """'pictrues does not exist; did you mean pictures?', with the closest name in the folder where it should
    be."""
    return f"{path} does not exist{near_path(path)}"


def near_path(path: Path | str) -> str:
    """'; did you mean pictures?' for a path that does not exist, beside a file or folder of nearly that name;
    "" if there is none."""
    path = Path(path)
    try:
        first = next(part for part in (*reversed(path.parents), path) if not part.exists())
        names = [entry.name for entry in itertools.islice(first.parent.iterdir(), MOST_BESIDE)]
    except (OSError, ValueError, StopIteration):
        return ""
    near = closest(first.name, names, cutoff=0.6)
    meant = first.with_name(near) / path.relative_to(first) if near else path
    return f"; did you mean {printable(meant)}?" if near and meant.exists() else ""


MOST_BESIDE = 10_000
"""Names in a folder among which `near_path` looks."""


def listed(words: Sequence[str], last: str) -> str:
    """'a', 'a or b', 'a, b or c', with `last` as the conjunction."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def counted(number: int, noun: str, plural: str = "") -> str:
    """'1 image', '2 images'. plural: of a noun that takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def and_more(number: int) -> str:
    """' and 3 more'; '' for none."""
    return f" and {number:,} more" if number else ""


def printable(text: object) -> str:
    r"""`text` made safe to print on one line: characters that move a terminal's cursor, change its colors or
    reverse the writing direction are escaped (\x1b), and so are bytes of file names that are not UTF-8
    (\udcff)."""
    return "".join(
        c if c.isprintable() or c == JOINER else c.encode("unicode_escape").decode() for c in str(text)
    )


JOINER = "\u200d"
"""The zero-width joiner of emoji and several scripts: not "printable" to Python, harmless in a terminal."""


@contextmanager
def reading(path: Path | str, what: str, fix: str = "", error: type[Exception] = RunError) -> Iterator[None]:
    """A context manager for parsing a user's file: whatever a parser raises becomes a one-line error.

        with reading(path, "a manifest", "restore it from a copy"):
            manifest = json.loads(path.read_bytes())

    Parsers of JSON, TOML, zip, npz, tar, Parquet and images raise some thirty types of exception on malformed
    bytes, and the list changes with their versions; so this is the one place that catches them all.
    UsageError, RunError and the system's errors (no such file, permission denied) pass unchanged.

    what: the kind of file with its article, as in "a manifest". fix: what to do about it. error: UsageError
    for a file of another kind, RunError (the default) for a corrupt one.
    """
    try:
        yield
    except (UsageError, RunError):
        raise
    except Exception as cause:
        if isinstance(cause, OSError) and cause.errno is not None and not _is_seek_to_nowhere(cause):
            raise
        message = f"{path} cannot be read as {what}: {reason(cause)}"
        raise error(f"{message}; {fix}" if fix else message) from cause


OBJECT = re.compile(r" ?<[\w.]+ object at 0x[0-9a-f]+>")
"""Objects without a name, as some parsers mention them."""
LONGEST_REASON = 300
"""Characters. Some parsers repeat the file in their message."""


def reason(cause: BaseException) -> str:
    """The message of an exception as part of a sentence: one line, not too long, never empty."""
    if isinstance(cause, MemoryError):
        return "it needs more memory than there is"
    if isinstance(cause, RecursionError):
        return "it is nested too deeply"
    if _is_seek_to_nowhere(cause):
        return "it points outside of itself"
    try:
        text = " ".join(OBJECT.sub("", str(cause)).split())
    except Exception:  # a file name in it is not text
        text = ""
    return _cut(text, LONGEST_REASON) or type(cause).__name__


def _is_seek_to_nowhere(cause: BaseException) -> bool:
    """Whether a parser followed an offset that lies outside the file: a corrupt file, reported by the
    system."""
    return isinstance(cause, OSError) and cause.errno == errno.EINVAL


def shown(value: object) -> str:
    """A value from a user's file as messages repeat it: its repr, no longer than a line."""
    try:
        return _cut(repr(value), 100)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists in lists
        return f"a value of type {type(value).__name__} that is too large to show"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."
