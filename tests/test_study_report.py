"""A study's page is a function of its table: the committed ones can be reproduced, byte for byte."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scaledit import cli
from scaledit.config import RunConfig
from scaledit.scaling import study as studies
from scaledit.scaling import table as tables
from scaledit.scaling.findings import findings
from scaledit.scaling.table import SAMPLING
from scaledit.scaling.verdicts import CLAIMS, to_json, verdicts


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper") / "study"
    assert cli.main(["study", "paper", "--out", str(folder)]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_made_again_from_its_table_it_is_the_same(paper: Path, tmp_path: Path, capsys):
    assert cli.main(["study", str(paper), "--out", str(tmp_path / "again")]) == 0
    assert str(tmp_path / "again" / "report.html") in capsys.readouterr().out
    assert contents(tmp_path / "again") == contents(paper)


def test_the_page_says_every_verdict_and_shows_every_figure(paper: Path):
    page = (paper / "report.html").read_text(encoding="utf-8")
    report = json.loads((paper / "verdicts.json").read_text())
    assert [verdict["key"] for verdict in report["verdicts"]] == list(CLAIMS)
    for verdict in report["verdicts"]:
        assert verdict["outcome"] in ("holds", "does not hold", "undecided", "not measured")
        assert verdict["outcome"] in page
    sources = re.findall(r"src='(figures/[^']+)'", page)
    assert sources == sorted(f"figures/{path.name}" for path in (paper / "figures").iterdir())
    assert "08-compute.png" in page and "scaledit study paper" in page
    assert not re.search(r"\b(nan|None)\b", re.sub(r"<[^>]+>", " ", page))


def test_figures_are_shown_at_their_own_size(paper: Path):
    """Two dots of the file are one pixel of the page, which shrinks them to its width if it is narrower."""
    page = (paper / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r"width='(\d+)' height='(\d+)'[^>]* src='(figures/[^']+)'", page)
    assert len(shown) == len(list((paper / "figures").iterdir()))
    for width, height, file in shown:
        assert Image.open(paper / file).size == (2 * int(width), 2 * int(height))
    assert len({width for width, *_ in shown}) > 1
    assert "img { max-width: 100%; height: auto" in page


def test_fits_for_programs(paper: Path):
    fits = json.loads((paper / "fits.json").read_text())
    assert fits["correlation_gflops"]["r"] == pytest.approx(-0.9355, abs=1e-4)
    assert fits["held_out"]["actual"] == 19.47
    assert [point["name"] for point in fits["frontier"]][:3] == ["S/8", "S/4", "B/4"]


@pytest.mark.parametrize("option", [["--fast"], ["--join"], ["--dry-run"], ["--workers", "2"]])
def test_a_table_is_not_run(paper: Path, capsys, option: list[str]):
    assert cli.main(["study", str(paper), *option]) == 2
    assert f"{option[0]} is for running a study" in capsys.readouterr().err


def test_an_unknown_study_is_answered_with_the_nearest(capsys):
    assert cli.main(["study", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err


def test_tables_of_the_paper(paper: Path, capsys):
    assert cli.main(["paper", "--json"]) == 0
    tables = {one["table"]: one["rows"] for one in json.loads(capsys.readouterr().out)}
    assert sorted(tables) == [1, 2, 3, 4, 5, 6]
    assert len(tables[4]) == 19 and tables[4][11]["M here"] == "674.83" and tables[4][11]["FID"] == "19.47"
    assert tables[1][3]["Gflops, here"] == "29.04" and tables[1][3]["Gflops, paper"] == "29.1"
    assert [row["FID"] for row in tables[5]] == ["2.46", "2.3", "2.27"]
    assert tables[6][3] == {
        "": "ADM-U", "px": "256", "base Gflops": "110", "upsampler Gflops": "632", "total Gflops": "742"
    }  # fmt: skip
    assert cli.main(["paper", "--table", "4", "--study", str(paper), "--json"]) == 0
    [beside] = json.loads(capsys.readouterr().out)
    assert len(beside["rows"]) == 19 + 15


def test_the_committed_study_says_what_its_table_says():
    """docs/studies/digits, whose report can be reproduced on any machine."""
    folder = Path(__file__).parent.parent / "docs" / "studies" / "digits"
    table = tables.read(folder)
    alike(json.loads((folder / "verdicts.json").read_text()), to_json(table, verdicts(table)))
    alike(json.loads((folder / "fits.json").read_text()), findings(table).to_json())
    assert len(table.models()) == 12 and len(table.blocks()) == 4
    assert {row.sampling_steps for row in table.part(SAMPLING)} == {16, 32, 64, 128, 256, 1000}
    assert all(row.fd is not None for row in table.rows)
    declared = studies.load("digits")
    written = {name: RunConfig.from_json(config) for name, config in table.about.configs.items()}
    assert {run.name: meant(run.config) for run in declared.runs} == {
        name: meant(config) for name, config in written.items()
    }


def meant(config: RunConfig) -> dict[str, Any]:
    """A config without guidance that changes nothing: 0.1 always recorded the guided channels."""
    values = config.to_json()
    for section in ("sample", "evaluate"):
        values[section]["guidance"] = [part for part in values[section]["guidance"] if part["scale"] != 1]
    return values


def alike(expected: object, actual: object) -> None:
    """Asserts equality, of floats up to the effect of another machine's rounding on a fit."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict) and expected.keys() == actual.keys()
        for key, value in expected.items():
            alike(value, actual[key])
    elif isinstance(expected, list):
        assert isinstance(actual, list | tuple) and len(expected) == len(actual)
        for a, b in zip(expected, actual, strict=True):
            alike(a, b)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-3)
    else:
        assert expected == actual
