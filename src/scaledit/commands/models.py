"""scaledit models: the paper's table 4, computed."""

from __future__ import annotations

import argparse
import json

from scaledit.commands import common

SUMMARY = "the paper's models: parameters and multiply-adds, computed, beside its table 4"


def arguments(parser: argparse.ArgumentParser) -> None:
    common.as_json(parser)


def run(given: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from scaledit.scaling import paper

    rows = paper.table4()
    if given.json:
        print(json.dumps([row.to_json() for row in rows]))
        return
    table = Table(box=None, header_style="bold")
    for i, name in enumerate(paper.HEADER):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row.cells())
    Console().print(table)
