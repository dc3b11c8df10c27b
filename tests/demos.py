"""Complete demos, trained by the command line in a separate process, and their metrics."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from scaledit import load
from scaledit.diffusion import ClassifierFree
from scaledit.evaluation.judge import open_judge, sample_sets
from scaledit.evaluation.result import MetricValue

SCALEDIT = [sys.executable, "-m", "scaledit.cli"]


def trained(recipe: str, out: Path, *overrides: str) -> Path:
    subprocess.run([*SCALEDIT, "train", recipe, "--out", str(out), *overrides], check=True)
    return out


def scores(run: Path, cfg_scale: float) -> dict[str, MetricValue]:
    """Metrics of 360 digits, equally many of each class, for each of three seeds."""
    pipeline = load(run)
    config = replace(
        pipeline.config.evaluate,
        reference="digits",
        guidance=(ClassifierFree(scale=cfg_scale),),
        seed=11,
        num=360,
        seeds=3,
        labels="equal",
    )
    judge = open_judge(config)
    return dict(judge.evaluate(sample_sets(judge, pipeline, config)).metrics)
