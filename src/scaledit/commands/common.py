"""Arguments that several commands share."""

from __future__ import annotations

import argparse


def recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or the path of a .toml file")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="changes to the recipe: train.steps=100"
    )


def device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")


def as_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
