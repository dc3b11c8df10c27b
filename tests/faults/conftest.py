"""Every row says what happened; with --table FILE all rows together become the table of that page.

`make test-faults` runs the whole matrix and writes docs/reliability.md. FAULTS=0.2
does a fifth of the repeats.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROWS: list[tuple[str, str, str, float]] = []
BEGIN, END = "<!-- table: made by make test-faults -->", "<!-- end of table -->"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="write what happened between the marks of this page")


@pytest.fixture
def happened(request: pytest.FixtureRequest) -> Iterator[Callable[[str, str], None]]:
    """Call with how the fault was injected and what happened, once all of it has been asserted."""
    began, told = time.monotonic(), []
    yield lambda how, what: told.append((how, what))
    fault = request.function.__doc__.strip().rstrip(".")
    ROWS.extend((fault, how, what, time.monotonic() - began) for how, what in told)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path = session.config.getoption("--table")
    if path is None or exitstatus != 0:
        return
    lines = ["| Fault | Injected by | What happened | Took |", "|---|---|---|---|"]
    lines += [f"| {fault} | {how} | {what} | {seconds:.0f} s |" for fault, how, what, seconds in ROWS]
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


@pytest.fixture(scope="session")
def repeats() -> Callable[[int], int]:
    """So many of `n` repeats as FAULTS (1 for all) says, at least two."""
    share = float(os.environ.get("FAULTS", "1"))
    return lambda n: max(2, round(n * share))
