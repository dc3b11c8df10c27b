"""examples/first_steps.ipynb: stored without outputs, and run from top to bottom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_steps.ipynb"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_stored_without_outputs(notebook: Any):
    nbformat.validate(notebook)
    for cell in code(notebook):
        assert not cell.outputs
        assert cell.execution_count is None
    [parameters] = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", ())]
    names = [line.partition(" = ")[0] for line in parameters.source.splitlines()]
    assert names == ["STEPS", "NUM", "RUN"]


@pytest.mark.slow
def test_it_runs(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With fewer steps and samples than it has. The kernel runs this Python."""
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    [parameters] = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = 'STEPS, NUM, RUN = 160, 50, "run"'
    client = nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", cwd=os.fspath(tmp_path))
    client.execute(cwd=os.fspath(tmp_path))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    images = [output for output in outputs if "image/png" in output.get("data", ())]
    assert len(images) == 6  # the loss, images of training, samples, scales, samplers, steps
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "guidance scale 1.5\n  fd_digits " in text
    assert (tmp_path / "run" / "report.html").is_file()
