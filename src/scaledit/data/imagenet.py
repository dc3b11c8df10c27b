"""The names of ImageNet's classes, for models that were trained on it elsewhere.

    names()[207] = "golden retriever"      lemmas()[0] = "tench, Tinca tinca"      synsets()[0] = "n01440764"

Two names belong to two classes each: crane (134, 517) and maillot (638, 639).
"""

from __future__ import annotations

import functools
from pathlib import Path

FILE = Path(__file__).with_name("imagenet_classes.txt")


@functools.cache
def _lines() -> tuple[tuple[str, str], ...]:
    """(id of the synset, lemmas) of each class."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    split = [line.partition(" ") for line in lines if not line.startswith("#")]
    return tuple((synset, lemmas) for synset, _, lemmas in split)


def synsets() -> tuple[str, ...]:
    """The WordNet ids of the classes, which name their folders, by the numbers of the classes."""
    return tuple(synset for synset, _ in _lines())


def lemmas() -> tuple[str, ...]:
    """All names of each class, separated by commas, by the number of the class."""
    return tuple(lemmas for _, lemmas in _lines())


@functools.cache
def names() -> tuple[str, ...]:
    """The first name of each class, by its number."""
    return tuple(one.partition(",")[0] for one in lemmas())
