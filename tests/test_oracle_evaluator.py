"""Agreement with ADM's TensorFlow evaluator: every entry of tests/oracle/adm_evaluator.npz."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from oracle import formulas
from scaledit.evaluation.inception import Inception, InceptionExtractor
from scaledit.evaluation.metrics import Statistics, frechet_distance, inception_score, precision_recall

ORACLE = np.load(Path(__file__).parent / "oracle" / "adm_evaluator.npz")
ACTIVATIONS, METRICS, DISTANCE = 2e-4, 2e-5, 1e-6


@cache
def extractor() -> InceptionExtractor:
    network = Inception()
    weights = {
        key: torch.from_numpy(formulas.inception_weight(key, tuple(value.shape)))
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(weights)
    return InceptionExtractor(network, sha256="none: made by a formula")


@cache
def features(name: str) -> dict[str, np.ndarray]:
    n, size = {"ref": (64, 256), "smp": (48, 256), "small": (4, 64), "big": (2, 512)}[name]
    pictures = formulas.images(name, n, size)
    if name == "smp":
        pictures = np.clip(pictures.astype(int) * 9 // 10 + 15, 0, 255).astype(np.uint8)
    nchw = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    parts = [extractor()(part) for part in nchw.split(16)]
    return {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}


def activations(name: str) -> None:
    kind, _, images = name.partition("_")
    expected = ORACLE[name]
    assert np.abs(features(images)[kind][: len(expected)] - expected).max() <= ACTIVATIONS


def near(name: str, value: float, tolerance: float) -> None:
    expected = float(ORACLE[name])
    assert abs(value - expected) <= tolerance * abs(expected)


def fid(name: str) -> None:
    kind = {"fid": "pool", "sfid": "spatial"}[name]
    near(name, frechet_distance(features("ref")[kind], features("smp")[kind]), METRICS)


def inception(name: str) -> None:
    near(name, inception_score(features("smp")["logits"]), METRICS)


def neighbors(name: str) -> None:
    result = precision_recall(features("ref")["pool"], features("smp")["pool"], precision="adm_fp16")
    assert abs(getattr(result, name) - ORACLE[name]) <= 0.05


def arrays() -> tuple[np.ndarray, np.ndarray]:
    a = formulas.array("A", (1500, 48))
    return a, (formulas.rng("B").standard_normal((1300, 48)) * 1.1 + 0.2).astype(np.float32)


def frechet(name: str) -> None:
    a, b = (x[:30] if name == "frechet_AB_singular" else x for x in arrays())
    for kind in (np.asarray, Statistics.of):  # both routes: from features, and from statistics
        near(name, frechet_distance(kind(a), kind(b)), DISTANCE)


def fp32(name: str) -> None:
    a, b = arrays()
    assert list(precision_recall(a * 64, b * 64)) == ORACLE[name].tolist()


def fp16(name: str) -> None:
    a, b = arrays()
    result = precision_recall(a, b, precision="adm_fp16")
    assert np.abs(np.array(result) - ORACLE[name]).max() <= 0.003


CHECKS: dict[str, Callable[[str], None]] = {
    **{name: activations for name in ORACLE.files if name.startswith(("pool_", "spatial_"))},
    "fid": fid,
    "sfid": fid,
    "inception_score": inception,
    "precision": neighbors,
    "recall": neighbors,
    "frechet_AB": frechet,
    "frechet_AB_singular": frechet,
    "pr_AB_fp32": fp32,
    "pr_AB_fp16": fp16,
}


@pytest.mark.parametrize("name", ORACLE.files)
def test_entry(name: str):
    CHECKS[name](name)
