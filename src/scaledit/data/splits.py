"""Splits of a data set, recognized by the names of files and folders. Different splits are never mixed.

    train-00000-of-00001.parquet   data/test-00000-of-00001.parquet   imagenet-val-000007.tar     files
    train/CLASS/..   validation/CLASS/..   train/data-00000-of-00001.arrow                        folders

The rules are those of Hugging Face's `datasets`: a word counts if it is delimited by non-letters in the name
of a folder or file; before "-00000-of-00001" any word is a split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scaledit.data.names import natural_key, parts_of
from scaledit.errors import UsageError

TRAIN, ALL = "train", "all"
WORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
BESIDE = ("set", "images", "imgs", "img", "data", "split")
"""Words that may accompany a split in the name of a folder: train_images, test-set, val2017."""
SHARD = re.compile(r"^(?P<before>.*?)[-_.]?\d+-of-\d+(?:[-_.].*)?$")
"""The numbered file names of `datasets`; `before` ends in the split."""
_BY_WORD = {word: split for split, words in WORDS.items() for word in words}


class Chosen(NamedTuple):
    """files: of the chosen split. name: of that split, "" if there are none. others: the files of the other
    splits; the key "" has those that belong to no split."""

    files: list[str]
    name: str
    others: Mapping[str, list[str]]


def known(word: str) -> str:
    """The full name of a split: "val" is validation. Unknown words are returned as they are."""
    return _BY_WORD.get(word.lower(), word)


def of_folder(name: str) -> str:
    """The split that a folder's name denotes, as in train2017 and train_images but not "train station"; "" if
    it denotes none."""
    words = re.findall("[a-z]+", name.lower())
    splits = {_BY_WORD[word] for word in words if word in _BY_WORD}
    others = [word for word in words if word not in _BY_WORD and word not in BESIDE]
    return splits.pop() if len(splits) == 1 and not others else ""


def of_file(path: str) -> str:
    """The split that the path of a shard or table denotes; "" if it denotes none."""
    *folders, file = parts_of(path)
    stem = file.rpartition(".")[0] or file
    numbered = SHARD.match(stem)
    if numbered:
        last = re.split(r"[-.]", numbered["before"])[-1]
        if last.lower() in _BY_WORD:
            return _BY_WORD[last.lower()]
        if last and last != "data" and not re.search("shard|part|file|chunk", last.lower()):
            return last
    words = [word for word in re.findall("[a-z]+", stem.lower()) if word in _BY_WORD]
    if words:
        return _BY_WORD[words[0]]
    return next(filter(None, map(of_folder, reversed(folders))), "")


def choose(by_split: Mapping[str, Sequence[str]], split: str, path: Path) -> Chosen:
    """The files of a split among `by_split` (the key "" has files of no split). split: its name; "" means
    `train` if there are several, ALL means all of them. As in `datasets`, files without any split are for
    training. path: of the set, for messages.

    Raises UsageError if the split is missing, or if split is "" and there are several but no `train`.
    """
    split = known(split)
    names = sorted(by_split, key=natural_key)
    named = [name for name in names if name]
    if split == ALL:
        return Chosen(sorted(file for files in by_split.values() for file in files), " + ".join(named), {})
    if (not split and len(names) == 1) or (split == TRAIN and names == [""]):
        return Chosen(sorted(by_split[names[0]]), names[0], {})
    name = split or TRAIN
    if name not in by_split:
        problem = f"no split {split!r}" if split else "several splits, none of them train"
        if not named:
            raise UsageError(f"{path} has {problem}: its file names contain no split")
        others = " and files of no split" if "" in by_split else ""
        raise UsageError(
            f"{path} has {problem}: it has {', '.join(named)}{others}; choose one with --split or data.split "
            f"({ALL}: all of them as one set)"
        )
    others = {other: sorted(files) for other, files in by_split.items() if other != name}
    return Chosen(sorted(by_split[name]), name, others)


def check_none(split: str, path: Path) -> None:
    """Raises UsageError if a split other than `train` is requested of a set without splits."""
    if known(split) not in ("", ALL, TRAIN):
        raise UsageError(f"{path} has no split {known(split)!r}: its file names contain no split")


def grouped(files: Iterable[str]) -> dict[str, list[str]]:
    """Shards or tables by their splits."""
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(of_file(file), []).append(file)
    return by_split
