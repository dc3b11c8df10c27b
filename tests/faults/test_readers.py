"""Corrupt files of every kind: readers return the original values or a one-line error, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fuzz import run
from readers import READERS

from processes import _server

pytestmark = pytest.mark.faults

TITLES = {
    "images BMP": "BMP images",
    "images GIF": "GIF images",
    "images JPEG": "JPEG images",
    "images PNG": "PNG images",
    "images TIFF": "TIFF images",
    "images WebP": "WebP images",
    "Arrow": "Arrow files",
    "Parquet": "Parquet files",
    "a folder of DINOv2": "a DINOv2 folder",
    "folders of diffusers": "diffusers folders",
    "an autoencoder of diffusers": "a diffusers autoencoder",
    "declarations of studies": "study files (TOML)",
    "overrides": "overrides (section.key=value)",
    "parts of scaledit encode": "scaledit encode, resumed",
    "recipes of autoencoders": "autoencoder recipes",
    "scaledit generate, gone on with": "scaledit generate, resumed",
    "weights of the digits and photos": "weights of the digits and photos extractors",
    "weights of Inception": "Inception weights",
}
"""Names of readers as the table shows them, if they differ. The names in READERS seed the corruption."""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for valid files, which are made once for all readers."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(base: Path, happened, repeats, name: str):
    """An input file is corrupt"""
    reader, results = READERS[name], base / f"{name.replace(' ', '-')}.results"
    process = _server.Process(target=run, args=(name, range(repeats(reader.count)), str(base), str(results)))
    process.start()
    process.join()
    said = results.with_suffix(".output")
    assert process.exitcode == 0, (
        said.read_text(errors="replace")[-3000:] if said.exists() else "the process printed nothing"
    )
    *failures, summary = (json.loads(line) for line in results.read_text().splitlines())
    listed = "\n".join(
        f"{f['number']!s:>5}  {f['file']}: {f['how'][:60]}: {f['wrong']}  {f['where']}" for f in failures
    )
    assert not failures, (
        f"{len(failures)} of {repeats(reader.count)} failed; one is kept in {failures[0].get('kept')}; "
        f'again: python tests/faults/fuzz.py "{name}" {failures[0]["number"]}\n{listed}'
    )
    counts = summary["counts"]
    happened(
        f"{TITLES.get(name, name)}: {repeats(reader.count)} corrupt copies",
        f"{counts['refused']} refused with a one-line error, {counts['as written']} read with their original "
        f"values, {counts['another file']} read as other valid files; at most {summary['megabytes']:.0f} MB",
    )
