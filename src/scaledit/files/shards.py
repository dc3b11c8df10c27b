"""A long job split into parts: atomic files that any of n processes make in any order.

    shard i of n makes the parts k with k mod n = i

Processes share only the folder. The first one writes a file that describes the job, and the others compare
their own job with it. An interrupted job resumes when it is run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scaledit.errors import UsageError
from scaledit.files.atomic import atomic_bytes


class Shard(NamedTuple):
    """Share i of n of a job's parts."""

    i: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """'0/4' -> Shard(0, 4). Raises UsageError if `text` is not i/n with 0 <= i < n."""
        i, slash, n = text.partition("/")
        if slash and i.isdigit() and n.isdigit() and int(i) < int(n):
            return cls(int(i), int(n))
        raise UsageError(f"--shard must be I/N with I from 0 to N-1, such as 0/4; got {text!r}")

    def has(self, k: int) -> bool:
        return k % self.n == self.i


ALL = Shard(0, 1)


def begin_or_join(
    folder: Path,
    name: str,
    job: Mapping[str, Any],
    what: str,
    as_now: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found,
) -> None:
    """Begins a job in `folder` by writing its description `job` to folder/name, or joins it by comparing
    `job` with the description that another process or an earlier run wrote there.

    what: the parts, for messages. as_now: converts a description that an earlier version wrote. Raises
    UsageError if the folder contains another job or other files.
    """
    path, job = folder / name, json.loads(json.dumps(job))
    if not path.exists():
        if folder.is_file():
            raise UsageError(f"{folder} is a file; choose another --out")
        others = [p for p in folder.iterdir() if p.suffix != ".partial"] if folder.exists() else []
        if others and not path.exists():  # another process may have written it in this moment
            raise UsageError(f"{folder} is not empty and contains no {what}; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_bytes(path, (json.dumps(job, indent=1) + "\n").encode())
    try:
        begun = as_now(json.loads(path.read_bytes()))
        changed = [key for key in sorted(job.keys() | begun.keys()) if begun.get(key) != job.get(key)]
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"{path} cannot be read; choose another --out") from None
    if changed:
        key = changed[0]
        raise UsageError(
            f"{folder} contains {what} of another request ({key}: {begun.get(key)} -> {job.get(key)}); "
            "choose another --out, or delete it"
        )
