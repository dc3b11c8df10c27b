"""The demo with the paper's objective: its digits are digits, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from demos import scores, trained


@pytest.mark.slow
def test_the_papers_objective(tmp_path: Path):
    # Training and its end are real; what the report shows is drawn in 100 steps and not asked here.
    few = ("sample.every=0", "evaluate.every=0", "evaluate.num=20", "evaluate.seeds=1")
    run = trained("digits-paper", tmp_path / "run", *few)
    assert scores(run, cfg_scale=1.0)["class_accuracy"].value >= 0.90
