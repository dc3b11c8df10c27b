"""scaledit models: the paper's table 4, computed."""

from __future__ import annotations

import argparse

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example

SUMMARY = "list the paper's models with their parameters and multiply-adds"
DESCRIPTION = (
    """Both are computed from the description of each network and shown beside table 4 of the paper."""
)
EXAMPLES = (
    Example("scaledit models", "Print the table"),
    Example("scaledit models --json", "Print it as JSON"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    common.output(parser)


def run(args: argparse.Namespace) -> None:
    from scaledit.scaling import paper

    rows = paper.table4()
    if args.json:
        terminal.say_json([row.to_json() for row in rows])
    else:
        terminal.table(paper.HEADER, [row.cells() for row in rows])
