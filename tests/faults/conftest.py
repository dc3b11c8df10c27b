"""Every row says what happened; with --table FILE all rows together become the table of that page.

`make test-faults` runs the whole matrix and writes docs/reliability.md. FAULTS=0.2 does a fifth of the
repeats.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from scaledit import machine

BEGIN, END = "<!-- table: made by make test-faults -->", "<!-- end of table -->"


class Row(NamedTuple):
    """Where the test stands, so that the order is that of the files; and what the page says."""

    file: str
    line: int
    test: str
    fault: str
    how: str
    what: str


FOUND: list[tuple[Row, float]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="write what happened between the marks of this page")


@pytest.fixture
def happened(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Call with how the fault was injected and what happened, once all of it has been asserted."""
    file, line, test = request.node.location
    fault = request.function.__doc__.strip().rstrip(".")

    def tell(how: str, what: str) -> None:
        request.node.user_properties.append(("row", (file, line, test, fault, how, what)))

    return tell


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that writes the page, of tests in any process."""
    if report.when == "call" and report.passed:
        FOUND.extend(
            (Row(*value), report.duration) for name, value in report.user_properties if name == "row"
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path = session.config.getoption("--table")
    if path is None or exitstatus != 0 or hasattr(session.config, "workerinput"):
        return
    about = machine.described()
    on = f"{about['processor']}, PyTorch {about['torch']}"
    lines = [
        f"All of them held: {len(FOUND)} rows, two at a time on {on}.",
        "",
        "| Fault | Injected by | What happened | Took |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.fault} | {row.how} | {row.what} | {took:.0f} s |" for row, took in sorted(FOUND)]
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


@pytest.fixture(scope="session")
def repeats() -> Callable[[int], int]:
    """So many of `n` repeats as FAULTS (1 for all) says, at least two."""
    share = float(os.environ.get("FAULTS", "1"))
    return lambda n: max(2, round(n * share))
