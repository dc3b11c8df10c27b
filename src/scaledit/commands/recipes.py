"""scaledit recipes: the recipes that can be trained."""

from __future__ import annotations

import argparse
from typing import Any

from scaledit import terminal
from scaledit.commands import common

SUMMARY = "list the recipes that come with scaledit"


def arguments(parser: argparse.ArgumentParser) -> None:
    common.as_json(parser)


def run(args: argparse.Namespace) -> None:
    from scaledit.config import RECIPES, recipe_names, trained_by

    rows: list[dict[str, Any]] = []
    for name in recipe_names(None):
        lines = (RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        rows.append({"name": name, "trains": trained_by(name), "summary": lines[0].removeprefix("# ")})
    if args.json:
        terminal.say_json(rows)
    else:
        terminal.say(*(f"{row['name']:<34}{row['summary']}" for row in rows))
