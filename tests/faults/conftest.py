"""Collects one table row per test; --table FILE writes all rows into that page.

`make test-faults` runs all tests and writes the table of docs/reliability.md. FAULTS=0.2 runs a fifth of the
repetitions.
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
    """The position of the test, which sorts the rows in the order of the files, and the cells of the page."""

    file: str
    line: int
    test: str
    fault: str
    how: str
    what: str


FOUND: list[tuple[Row, float]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="write the table of outcomes between the marks of this page")


@pytest.fixture
def happened(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Call it with how the fault was injected and what happened, after all of it has been asserted."""
    file, line, test = request.node.location
    fault = request.function.__doc__.strip().rstrip(".")

    def tell(how: str, what: str) -> None:
        request.node.user_properties.append(("row", (file, line, test, fault, how, what)))

    return tell


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Runs in the process that writes the page, for the tests of all processes."""
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
        f"All {len(FOUND)} tests passed, run two at a time on {on}.",
        "",
        "| Fault | How it was injected | Outcome | Duration |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.fault} | {row.how} | {row.what} | {took:.0f} s |" for row, took in sorted(FOUND)]
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


@pytest.fixture(scope="session")
def repeats() -> Callable[[int], int]:
    """How many of `n` repetitions to run: the share in FAULTS (1 for all), at least two."""
    share = float(os.environ.get("FAULTS", "1"))
    return lambda n: max(2, round(n * share))
