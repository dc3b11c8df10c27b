"""scaledit paper: the tables of the paper, beside what is computed here and what a study measured."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaledit import terminal
from scaledit.commands import common

SUMMARY = """the paper's tables 1 to 6, beside what is computed here and, with --study, measured

  scaledit paper --table 4
  scaledit paper --study docs/studies/digits"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=int, choices=range(1, 7), metavar="N", help="only table N")
    parser.add_argument("--study", metavar="FOLDER", help="a study whose results go below the paper's")
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    from scaledit.scaling import paper_tables, table

    study = None if given.study is None else table.read(Path(given.study))
    chosen = [one for one in paper_tables.all_tables(study) if given.table in (None, one.number)]
    if given.json:
        terminal.say_json([one.to_json() for one in chosen])
        return
    for one in chosen:
        terminal.table(one.header, one.rows, one.title)
        if one.note:
            terminal.note(one.note)
        terminal.say("")
