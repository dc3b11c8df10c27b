"""What a user can put right. The command line prints these as one line, without a traceback.

`UsageError` (exit 2): the call was wrong, nothing was started. `RunError` (exit 1): the call was right
and the work failed. Each message names the culprit and says how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A wrong call: an unknown name, a size that does not fit, a file of another kind. Exit code 2."""


class RunError(RuntimeError):
    """A right call that failed: a damaged file, numbers gone wrong, a full disk. Exit code 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the nearest known name, or the list of known names when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
