"""The code blocks of README.md and docs/, as the tests run them.

The blocks of a page run from top to bottom in a working directory with the trained demo and some pictures.

    ```sh      lines that begin with scaledit are run; "# Needs ..." marks a block that needs data or GPUs
    ```python  run in one namespace per page; "# NAME.py" in the first line makes it a file of that name
    ```toml    a recipe, or a study; "# NAME.toml" in the first line makes it a file of that name
    ```bash    a script for a cluster, checked by `bash -n`
    ```text    output, layouts, fragments
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("sh", "bash", "python", "toml", "text", "json")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
NOT_RUN = (
    "make",
    "pip",
    "source",
    "git",
    "cd",
    "docker",
    "python",
    "pytest",
    "torchrun",
    ".ci/run",
    "pre-commit",
    "#",
)
"""First words of lines of ```sh blocks that set up a machine or take minutes; CI runs make and .ci/run."""


class Block(NamedTuple):
    """One fenced block. line: of its fence, from 1."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def needs(self) -> bool:
        """Whether it says that it needs what is not here."""
        return self.text.startswith("# Needs ")

    @property
    def file(self) -> str:
        """The name of the file that the block is, "" if it is none."""
        named = re.match(r"# ([\w-]+\.(?:py|toml))\n", self.text)
        return named[1] if named else ""

    @property
    def commands(self) -> list[str]:
        """Its lines, those that end with a backslash joined with the next."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        inside = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[2], inside)


def scaledit(command: str) -> list[str] | None:
    """The arguments of the call of scaledit in a line of a shell, None if there is none."""
    words = shlex.split(command, comments=True)
    for start in (["scaledit"], ["-m", "scaledit"], ["-m", "scaledit.cli"]):
        for i in range(len(words) - len(start) + 1):
            if words[i : i + len(start)] == start and (start != ["scaledit"] or _at_command(words[:i])):
                return words[i + len(start) :]
    return None


def _at_command(before: list[str]) -> bool:
    """Whether the word after these is a program: variables, exec, srun and their options may come first."""
    return all("=" in word or word in ("exec", "srun", "time") or word.startswith("-") for word in before)
