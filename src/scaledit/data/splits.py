"""Splits: the parts of a data set that somebody keeps apart, told by their names, never read as one.

    train-00000-of-00001.parquet   data/test-00000-of-00001.parquet   imagenet-val-000007.tar     files
    train/CLASS/..   validation/CLASS/..   train/data-00000-of-00001.arrow                        folders

Words and places are those of Hugging Face's `datasets`: a word stands in a folder's or file's name between
what are no letters; before "-00000-of-00001" any word is a split.
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
"""Words that may stand beside a split's in the name of a folder: train_images, test-set, val2017."""
SHARD = re.compile(r"^(?P<before>.*?)[-_.]?\d+-of-\d+(?:[-_.].*)?$")
"""How `datasets` numbers files; what is before the numbers ends in the split."""
_BY_WORD = {word: split for split, words in WORDS.items() for word in words}


class Chosen(NamedTuple):
    """files: of the split that is read. name: of that split, "" where there are none. others: the files of
    the other splits, by split; "" are those of none."""

    files: list[str]
    name: str
    others: Mapping[str, list[str]]


def known(word: str) -> str:
    """The split that somebody asks for: "val" is validation. Other words are what they are."""
    return _BY_WORD.get(word.lower(), word)


def of_folder(name: str) -> str:
    """The split that a folder's name says, and nothing else: train2017 and train_images, not "train station".
    "" for none."""
    words = re.findall("[a-z]+", name.lower())
    splits = {_BY_WORD[word] for word in words if word in _BY_WORD}
    others = [word for word in words if word not in _BY_WORD and word not in BESIDE]
    return splits.pop() if len(splits) == 1 and not others else ""


def of_file(path: str) -> str:
    """The split of a shard or table by its path inside the set; "" for none."""
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


def choose(by_split: Mapping[str, Sequence[str]], wanted: str, where: Path) -> Chosen:
    """Of files by split ("" for none): those of the split that is wanted; "" wants `train` where there are
    several, ALL wants them together. Files without any split are all for training, as `datasets` has it.

    Raises UsageError where that split is not there, and where there are several but no `train`.
    """
    wanted = known(wanted)
    names = sorted(by_split, key=natural_key)
    if wanted == ALL:
        return Chosen(sorted(file for files in by_split.values() for file in files), _joined(names), {})
    if (not wanted and len(names) == 1) or (wanted == TRAIN and names == [""]):
        return Chosen(sorted(by_split[names[0]]), names[0], {})
    name = wanted or TRAIN
    if name not in by_split:
        there = [split for split in names if split]
        without = " and files of no split" if "" in by_split and there else ""
        said = f"it has {', '.join(there)}{without}" if there else "its files say of no split"
        what = f"no split {wanted!r}" if wanted else "several splits, none of them train"
        hint = f"; say which with --split or data.split ({ALL}: all of them as one set)" if there else ""
        raise UsageError(f"{where} has {what}: {said}{hint}")
    others = {split: sorted(files) for split, files in by_split.items() if split != name}
    return Chosen(sorted(by_split[name]), name, others)


def none_inside(wanted: str, where: Path) -> None:
    """Raises UsageError where a split is wanted of a set that has none. All of such a set is for training."""
    if known(wanted) not in ("", ALL, TRAIN):
        raise UsageError(f"{where} has no split {known(wanted)!r}: its files say of no split")


def _joined(names: Iterable[str]) -> str:
    return " + ".join(name for name in names if name)


def grouped(files: Iterable[str]) -> dict[str, list[str]]:
    """Shards or tables by their splits."""
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(of_file(file), []).append(file)
    return found
