"""The map of `scaledit sweep` in the report of its run: a section of report.html between two comments.

The section is made from RUN/sweep.json alone. It can be exchanged in a page without evaluating the run again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from scaledit.errors import RunError, UsageError
from scaledit.files.atomic import atomic_bytes
from scaledit.report import page
from scaledit.report.figures import settings as figures
from scaledit.tuning import found as maps

BEGIN, END = "<!-- settings -->", "<!-- end of settings -->"
"""What run.html has around the section."""
MOST_ROWS = 30
"""Rows of the table; the files have all."""


def section(run: Path) -> dict[str, Any] | None:
    """What settings.html shows; None if the run has no map, or one that cannot be read."""
    try:
        found = maps.read(run)
    except (UsageError, RunError, OSError):
        found = None
    if found is None:
        return None
    chart, rows = figures.chart(found), found.rows()
    return {
        "found": found,
        "chart": {} if chart is None else {f"{found.main.title}, the best in bold": chart},
        "header": found.header(),
        "rows": rows[:MOST_ROWS],
        "more": len(rows) - MOST_ROWS,
        "json": maps.JSON,
        "csv": maps.CSV,
    }


def insert(run: Path) -> Path | None:
    """Exchanges the section in RUN/report.html. Returns the page, or None if there is none, or if it is of a
    version without such a section."""
    path = run / page.REPORT
    if not path.is_file():
        return None
    shown = section(run)
    text = "" if shown is None else page.render("settings.html", settings=shown)
    html = path.read_text(encoding="utf-8", errors="replace")
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    changed, count = re.subn(pattern, lambda _: f"{BEGIN}{text}{END}", html, count=1, flags=re.DOTALL)
    if not count:
        return None
    atomic_bytes(path, changed.encode())
    return path
