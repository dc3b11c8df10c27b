"""scaledit models: the paper's table 4, computed."""

from __future__ import annotations

import argparse

from scaledit import terminal
from scaledit.commands import common

SUMMARY = "the paper's models: parameters and multiply-adds, computed, beside its table 4"


def arguments(parser: argparse.ArgumentParser) -> None:
    common.as_json(parser)


def run(args: argparse.Namespace) -> None:
    from scaledit.scaling import paper

    rows = paper.table4()
    if args.json:
        terminal.say_json([row.to_json() for row in rows])
    else:
        terminal.table(paper.HEADER, [row.cells() for row in rows])
