"""The table of the page "What helps", in Markdown: the switches of a study with their verdicts, as far as
they were measured.

    studies/modern.toml (what was reported elsewhere)  +  verdicts.json (what was measured here)  ->  table
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaledit import config as configs
from scaledit.errors import UsageError, reading
from scaledit.files.reading import read_json
from scaledit.report.ablation import VERDICTS
from scaledit.scaling.ablation import Switch, switch_of
from scaledit.scaling.ablation_verdicts import percent
from scaledit.scaling.study import STUDIES

STUDY, SECOND = "modern", "modern-emoji"
NOT_YET = "not measured yet"
BEGIN, END = "<!-- what helps: made by docs/site/what_helps.py -->", "<!-- end of what helps -->"
"""The lines of a page between which the table stands."""


def switches(study: str = STUDY) -> dict[str, Switch]:
    """The switches that a built-in study declares."""
    table, _ = configs.read_toml(STUDIES / f"{study}.toml")
    return {name: switch_of(name, declared) for name, declared in table["switches"].items()}


def verdicts(folder: Path) -> Mapping[str, Any] | None:
    """The verdicts.json of a published study; None if it is not published. Raises UsageError if corrupt."""
    path = folder / VERDICTS
    return read_json(path, "the verdicts of a study", error=UsageError) if path.is_file() else None


def table(
    declared: Mapping[str, Switch], first: Mapping[str, Any] | None, second: Mapping[str, Any] | None
) -> str:
    """One row per declared switch. first: verdicts of the study of all switches. second: of the study of the
    finalists on other data; None for what is not measured yet. Raises UsageError for verdicts of another
    form."""
    distances = [NOT_YET if one is None else str(one.get("distance", "")) for one in (first, second)]
    header = [
        "Switch",
        "Reported elsewhere",
        "Alone",
        "In the full set",
        "Smallest effect",
        "Verdict",
        "On emoji, alone",
    ]
    rows = [header, ["---"] * len(header)]
    with reading(VERDICTS, "the verdicts of a study", error=UsageError):
        found, again = (
            {} if one is None else {entry["name"]: entry for entry in one["switches"]}
            for one in (first, second)
        )
        for name, switch in declared.items():
            entry = found.get(name, {})
            cells = [_change(entry.get(role)) for role in ("alone", "removed")]
            emoji = again.get(name, {}).get("alone")
            rows.append([
                switch.title,
                switch.gain or "nothing",
                *cells,
                _least(entry),
                _outcome(entry),
                "not a finalist" if again and not emoji else _change(emoji) + _outcome_of(emoji),
            ])  # fmt: skip
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    measured = [name for name in distances if name != NOT_YET]
    note = f"Changes are of {' and '.join(dict.fromkeys(measured))}; negative is better." if measured else ""
    return "\n".join([*lines, *(["", note] if note else [])])


def _outcome_of(compared: Mapping[str, Any] | None) -> str:
    return f", {compared['outcome']}" if compared and compared["distance"] else ""


def _outcome(entry: Mapping[str, Any]) -> str:
    outcome = str(entry.get("outcome", "not measured"))
    return NOT_YET if outcome == "not measured" else outcome


def _change(compared: Mapping[str, Any] | None) -> str:
    """'-18 %'"""
    if not compared or compared["ratio"] is None:
        return NOT_YET
    return percent(math.log(float(compared["ratio"])), True)


def _least(entry: Mapping[str, Any]) -> str:
    """'9 %': the smallest change that the seeds can show."""
    known = [
        one["distance"]["least"] for one in map(entry.get, ("alone", "removed")) if one and one["distance"]
    ]
    shown = dict.fromkeys(percent(float(value)) for value in known if value is not None)
    return ", ".join(shown) or (NOT_YET if not known else "unknown: one seed")


def filled(page: str, text: str) -> str:
    """A page with `text` between the lines BEGIN and END. Raises UsageError if it does not have both."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the page lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def page_of(docs: Path) -> str:
    """The page as it should be, from the studies published in docs/studies."""
    path = docs / "concepts" / "what-helps.md"
    published = [verdicts(docs / "studies" / name) for name in (STUDY, SECOND)]
    return filled(path.read_text(encoding="utf-8"), table(switches(), *published))
