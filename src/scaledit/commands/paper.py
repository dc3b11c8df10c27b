"""scaledit paper: the tables of the paper, beside computed values and the results of a study."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common

SUMMARY = """the paper's tables 1 to 6, beside computed values and, with --study, measured ones

  scaledit paper --table 4
  scaledit paper --study docs/studies/digits"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=int, choices=range(1, 7), metavar="N", help="only table N")
    parser.add_argument("--study", metavar="FOLDER", help="a study whose results are shown below the paper's")
    common.as_json(parser)


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
