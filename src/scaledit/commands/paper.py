"""scaledit paper: the tables of the paper, beside computed values and the results of a study."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example

SUMMARY = "print the paper's tables beside computed and measured values"
DESCRIPTION = """Tables 1 to 6 as they are printed, with the values that scaledit computes and, with
--study, those that a study has measured."""
EXAMPLES = (
    Example("scaledit paper --table 4", "Print one table"),
    Example("scaledit paper --study docs/studies/digits", "Show the results of a study below the paper's"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    number = "the number of the table to print, from 1 to 6 (default: all tables)"
    parser.add_argument("--table", type=common.whole, choices=range(1, 7), metavar="N", help=number)
    folder = "the folder of a study whose results are shown below those of the paper"
    parser.add_argument("--study", metavar="FOLDER", help=folder)
    common.output(parser)


def run(args: argparse.Namespace) -> None:
    from scaledit.scaling import paper_tables, table

    study = None if args.study is None else table.read(Path(args.study))
    chosen = [entry for entry in paper_tables.all_tables(study) if args.table in (None, entry.number)]
    if args.json:
        terminal.say_json([entry.to_json() for entry in chosen])
        return
    for entry in chosen:
        terminal.table(entry.header, entry.rows, entry.title)
        if entry.note:
            terminal.note(entry.note)
        terminal.say("")
