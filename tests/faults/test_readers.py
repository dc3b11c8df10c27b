"""Corrupt files of every kind through their readers: a sentence, or what was written; never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fuzz import run
from readers import READERS

from processes import _server

pytestmark = pytest.mark.faults


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where valid files are made, once for all readers."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(base: Path, happened, repeats, name: str):
    """A file that was handed in is corrupt"""
    reader, results = READERS[name], base / f"{name.replace(' ', '-')}.results"
    process = _server.Process(target=run, args=(name, range(repeats(reader.count)), str(base), str(results)))
    process.start()
    process.join()
    said = results.with_suffix(".output")
    assert process.exitcode == 0, (
        said.read_text(errors="replace")[-3000:] if said.exists() else "nothing was said"
    )
    *failures, summary = (json.loads(line) for line in results.read_text().splitlines())
    listed = "\n".join(
        f"{f['number']!s:>5}  {f['file']}: {f['how'][:60]}: {f['wrong']}  {f['where']}" for f in failures
    )
    assert not failures, (
        f"{len(failures)} of {repeats(reader.count)} failed; one of them lies in {failures[0].get('kept')}; "
        f'again: python tests/faults/fuzz.py "{name}" {failures[0]["number"]}\n{listed}'
    )
    counts = summary["counts"]
    happened(
        f"{name}: {repeats(reader.count)} with flipped, lost, repeated or moved bytes, odd numbers and types",
        f"{counts['refused']} refused in a sentence, {counts['as written']} read as they were written, "
        f"{counts['another file']} read as other valid files; at most {summary['megabytes']:.0f} MB",
    )
