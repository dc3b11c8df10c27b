"""The user's cache folder, for files that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """$XDG_CACHE_HOME/scaledit, or ~/.cache/scaledit; it may not exist. Raises RuntimeError if the user has
    no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scaledit"
