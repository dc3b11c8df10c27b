"""A run small enough to train in a test: the digits recipe at width 16, depth 2, patch 4."""

from __future__ import annotations

from scaledit.config import RunConfig, load

TINY = (
    "model.hidden_size=16",
    "model.depth=2",
    "model.num_heads=2",
    "model.patch_size=4",
    "train.batch_size=16",
    "optimizer.decay=constant",
    "train.log_every=1",
    "sample.every=0",
    "evaluate.every=0",
    "sample.steps=4",
    "sample.per_class=2",
    "data.workers=0",  # a worker imports torch; tests of workers ask for some
)


def tiny(*overrides: str, recipe: str = "digits") -> RunConfig:
    return load(recipe, [*TINY, *overrides])
