"""A study's folder made presentable: its table, what it says of the paper's claims, figures, one page."""

from __future__ import annotations

from pathlib import Path

from scaledit.scaling import table as tables
from scaledit.scaling.table import Table

REPORT = "report.html"


def write(table: Table, folder: Path) -> Path:
    tables.write(table, folder)
    return folder / REPORT
