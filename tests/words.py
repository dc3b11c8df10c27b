"""Words and phrases that must not come back, checked by `make check`: python tests/words.py

tests/words.toml lists each as a regular expression with what to write instead. The documentation and the
code are searched; a line break counts as a space.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_suffix(".toml")
SEARCHED = (
    "*.md",
    "docs/**/*.md",
    "src/**/*.py",
    "src/**/*.toml",
    "src/**/*.html",
    "examples/**/*",
    "benchmarks/*.py",
    "docker/*",
    ".github/**/*.md",
)


class Word(NamedTuple):
    pattern: str
    instead: str


class Hit(NamedTuple):
    path: Path
    line: int
    text: str
    instead: str


def listed() -> list[Word]:
    return [Word(**word) for word in tomllib.loads(LIST.read_text(encoding="utf-8"))["words"]]


def searched() -> list[Path]:
    return sorted({path for pattern in SEARCHED for path in ROOT.glob(pattern) if path.is_file()})


def hits(paths: Iterable[Path], words: Iterable[Word]) -> Iterator[Hit]:
    """Where the words are."""
    patterns = {word: re.compile(word.pattern.replace(" ", r"\s+(?:#\s+)?"), re.IGNORECASE) for word in words}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for word, pattern in patterns.items():
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                yield Hit(path, line, " ".join(match[0].split()), word.instead)


def main() -> int:
    found = list(hits(searched(), listed()))
    for hit in found:
        print(f"{hit.path.relative_to(ROOT)}:{hit.line}: {hit.text!r}: write {hit.instead}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
