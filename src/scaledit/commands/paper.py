"""scaledit paper: the tables of the paper, beside what is computed here and what a study measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaledit.commands import common

SUMMARY = """the paper's tables 1 to 6, beside what is computed here and, with --study, measured

  scaledit paper --table 4
  scaledit paper --study docs/studies/digits"""


WIDEST = 1000
"""Columns of a terminal in which any of the tables has room."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=int, choices=range(1, 7), metavar="N", help="only table N")
    parser.add_argument("--study", metavar="FOLDER", help="a study whose results go below the paper's")
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from scaledit.scaling import paper_tables, table

    study = None if given.study is None else table.read(Path(given.study))
    chosen = [one for one in paper_tables.all_tables(study) if given.table in (None, one.number)]
    if given.json:
        print(json.dumps([one.to_json() for one in chosen]))
        return
    console = Console()
    for one in chosen:
        shown = Table(box=None, header_style="bold", title=one.title, title_justify="left", title_style="")
        for i, name in enumerate(one.header):
            shown.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for row in one.rows:
            shown.add_row(*row)
        # As wide as it is: a number that is cut off is worse than a line that wraps.
        console.width = max(console.width, Console(width=WIDEST).measure(shown).maximum)
        console.print(shown)
        console.print(f"  {one.note}\n" if one.note else "", highlight=False, soft_wrap=True)
