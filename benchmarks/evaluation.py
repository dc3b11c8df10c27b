"""The cost of evaluation: Fréchet distance against SciPy's sqrtm, memory of neighborhoods, Inception's speed.

python benchmarks/evaluation.py         prints the numbers and writes results/evaluation.json (2 minutes)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import sqrtm

from scaledit.evaluation.inception import Inception, InceptionExtractor
from scaledit.evaluation.metrics import Statistics, frechet_distance, neighborhoods
from scaledit.machine import described, measured_peak, peak_memory, seconds

DIMENSION = 2048
REFERENCES, SAMPLES = 20_000, 10_000


def frechet() -> dict[str, float]:
    """Measures two full-rank covariances with a quickly falling spectrum, as real features have."""
    rng = np.random.default_rng(0)
    fall = np.exp(-np.arange(DIMENSION) / 300)

    def statistics() -> Statistics:
        return Statistics.of(
            rng.standard_normal((5000, DIMENSION)) @ (rng.standard_normal((DIMENSION,) * 2) * fall)
        )

    a, b = statistics(), statistics()
    ours = seconds(lambda: frechet_distance(a, b))
    root = []
    theirs = seconds(lambda: root.append(sqrtm(a.cov @ b.cov)), repeats=1)
    by_sqrtm = ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov) - 2 * np.trace(root[0]).real
    return {
        "seconds": ours,
        "sqrtm_seconds": theirs,
        "ratio": ours / theirs,
        "relative_difference": abs(frechet_distance(a, b) / float(by_sqrtm) - 1),
    }


def memory() -> dict[str, float]:
    """The peak memory of a separate process, before and after it computes the neighborhoods."""
    done = subprocess.run([sys.executable, __file__, "neighborhoods"], capture_output=True, check=True)
    return json.loads(done.stdout)


def _neighborhoods() -> None:
    rng = np.random.default_rng(0)
    real = rng.standard_normal((REFERENCES, DIMENSION), dtype=np.float32)
    made = rng.standard_normal((SAMPLES, DIMENSION), dtype=np.float32)
    before = peak_memory()
    took = seconds(lambda: neighborhoods(real, made), repeats=1)
    after = peak_memory()
    print(
        json.dumps(
            {
                "references": REFERENCES,
                "samples": SAMPLES,
                "seconds": took,
                "peak_gb": after / 1e9,
                "of_which_features_and_imports_gb": before / 1e9,
            }
        )
    )


def inception(n: int = 32) -> dict[str, float]:
    """256x256 images per second. Multiply-adds are counted from the shapes of the convolutions."""
    network = Inception().eval()
    macs = 0

    def count(module: torch.nn.Conv2d, _: Any, out: torch.Tensor) -> None:
        nonlocal macs
        macs += out[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.inference_mode():
        network(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    extractor = InceptionExtractor(network, sha256="")
    images = torch.randint(0, 256, (n, 3, 256, 256), dtype=torch.uint8)
    rate = n / seconds(lambda: extractor(images))
    with torch.inference_mode():
        plain = n / seconds(lambda: network(images))
    best = measured_peak()
    return {
        "images_per_second": rate,
        "baseline_images_per_second": plain,
        "macs_per_image": macs,
        "roof_flops": best,
        "share_of_peak": 2 * macs * rate / best,
    }


def main() -> None:
    found = {
        "machine": described(),
        "frechet_2048": frechet(),
        "neighborhoods": memory(),
        "inception": inception(),
    }
    print(json.dumps(found, indent=1))
    (Path(__file__).parent / "results" / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    _neighborhoods() if sys.argv[1:] == ["neighborhoods"] else main()
