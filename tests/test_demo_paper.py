"""The demo with the paper's objective: its digits are recognized as digits, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from demos import scores, trained


@pytest.mark.slow
def test_the_papers_objective(tmp_path: Path):
    # Training is complete; the samples of the report take 100 steps and are not needed here.
    few = ("sample.every=0", "evaluate.every=0", "evaluate.num=20", "evaluate.seeds=1")
    run = trained("digits-paper", tmp_path / "run", *few)
    # 0.944 on an AMD EPYC (Turin), 0.941 in the report of a run on an Intel Xeon; not over seeds. The
    # recipe that it extends has a standard deviation of 0.003 over them; 1,080 samples of one run have 0.007.
    assert scores(run, cfg_scale=1.0)["class_accuracy"].value >= 0.90
