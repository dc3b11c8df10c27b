"""The names of ImageNet's classes, for models that were trained on it elsewhere.

    names()[207] = "golden retriever"      lemmas()[0] = "tench, Tinca tinca"

Two names belong to two classes each: crane (134, 517) and maillot (638, 639).
"""

from __future__ import annotations

import functools
from pathlib import Path

FILE = Path(__file__).with_name("imagenet_classes.txt")


@functools.cache
def lemmas() -> tuple[str, ...]:
    """All names of each class, separated by commas, by the number of the class."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return tuple(line.partition(" ")[2] for line in lines if not line.startswith("#"))


@functools.cache
def names() -> tuple[str, ...]:
    """The first name of each class, by its number."""
    return tuple(one.partition(",")[0] for one in lemmas())
