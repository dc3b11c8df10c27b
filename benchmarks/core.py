"""Compares the training and sampling speed of two source trees, to see what a change of the core costs.

    python -m benchmarks.core --against ../before/src --json benchmarks/results/core.json

Both trees run the same work alternately, one process each (A B, B A, A B, ...), so that a change of the
machine's clock rate affects both equally. The benchmark prints the median and range of the ratio within a
pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scaledit.machine import described

HERE = Path(__file__).resolve().parents[1] / "src"
TRAINING = {
    "digits": ["digits", "train.steps=120", "train.log_every=20"],
    "digits, paper's objective": ["digits-paper", "train.steps=120", "train.log_every=20"],
}
QUIET = [
    "sample.every=0",
    "evaluate.every=0",
    "checkpoint.every=100000",
    "evaluate.num=10",
    "evaluate.seeds=1",
]
SAMPLING = {
    "dpm, 12 steps, guided": {"sampler": "dpm", "steps": 12, "cfg_scale": 1.5},
    "ddim, 50 steps, guided": {"sampler": "ddim", "steps": 50, "cfg_scale": 1.5},
    "heun, 25 steps": {"sampler": "heun", "steps": 25, "cfg_scale": 1.0},
}
IMAGES = 64
WORK = """
import json, sys, time
import scaledit
pipeline = scaledit.load(sys.argv[1], device=sys.argv[4])
settings = json.loads(sys.argv[2])
classes = [i % 10 for i in range(int(sys.argv[3]))]
pipeline(classes[:8], **settings)
times = []
for _ in range(3):
    began = time.perf_counter()
    pipeline(classes, **settings)
    times.append(time.perf_counter() - began)
print(len(classes) / min(times))
"""


def python(tree: Path, *arguments: str) -> str:
    """The stdout of a Python process that imports scaledit from `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def train(tree: Path, words: list[str], out: Path, device: str) -> float:
    """Images per second: the median of the log's entries, without the first one, which warms up."""
    command = ["-m", "scaledit.cli", "train", *words, *QUIET, "--device", device, "--out", str(out), "--json"]
    python(tree, *command)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return statistics.median([line["images_per_second"] for line in lines if line["event"] == "stepped"][1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, required=True, help="the src folder of the other tree")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    trees = {"here": HERE, "against": given.against.resolve()}
    speeds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "model"
        train(trees["against"], TRAINING["digits"], run, given.device)
        for pair in range(given.pairs):
            order = list(trees) if pair % 2 == 0 else list(reversed(trees))
            for name in order:
                for work, words in TRAINING.items():
                    out = Path(scratch) / f"{pair}-{name}-{work.partition(',')[2]}"
                    speed = train(trees[name], words, out, given.device)
                    speeds.setdefault(f"training: {work}", {}).setdefault(name, []).append(speed)
                for work, settings in SAMPLING.items():
                    arguments = ["-c", WORK, str(run), json.dumps(settings), str(IMAGES), given.device]
                    speed = float(python(trees[name], *arguments))
                    speeds.setdefault(f"sampling: {work}", {}).setdefault(name, []).append(speed)
            print(f"pair {pair + 1} of {given.pairs}", file=sys.stderr)
    result = {
        "machine": described(),
        "device": given.device,
        "pairs": given.pairs,
        "unit": "images per second",
        "work": {
            work: {
                **{name: statistics.median(values) for name, values in both.items()},
                "ratio": statistics.median(ratios := [a / b for a, b in zip(*both.values(), strict=True)]),
                "ratios": [min(ratios), max(ratios)],
            }
            for work, both in ((w, {n: s[n] for n in trees}) for w, s in speeds.items())
        },
    }
    for work, found in result["work"].items():
        low, high = found["ratios"]
        print(
            f"{work:<42}{found['here']:9.1f}{found['against']:9.1f}  ratio {found['ratio']:.3f} "
            f"({low:.3f} to {high:.3f})"
        )
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
