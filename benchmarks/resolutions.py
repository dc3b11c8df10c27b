"""Other sizes and aspect ratios on emoji, which are known at every size (docs/how-to/resolutions.md).

    python benchmarks/resolutions.py              the pieces that results/resolutions.json lacks; verdicts
    python benchmarks/resolutions.py --workers 2  the same, two pieces at a time with one thread each
    python benchmarks/resolutions.py --only T     one piece, such as train-mixed; each takes under 20 minutes
    python benchmarks/resolutions.py --toy        all pieces with 20 steps of a tiny model, in another folder

Written before the runs:

- Emoji are drawn at 24x24, 32x32, 48x48 and 32x48 (height x width), each as large as fits, centered on white.
  A model of width 128 (6 blocks, 4 heads, patch 4) is trained with the settings of the recipe `emoji`, 1,800
  steps of 64 images, whatever the sizes: one rotary model in buckets of all four sizes, one rotary model at
  each size alone, and one with the paper's table at 32x32 alone.
- Each model samples 3 x 411 images (seeds 1 to 3) of the classes of the held-out emoji with the sampler and
  the guidance of the recipe. The metric is the class accuracy of the extractor `emoji`.
- Mixed sizes: at each size, the accuracy of the mixed model must be at least 0.9 times that of the model
  trained at that size alone, which saw four times as many images of that size.
- Sizes never trained: the models trained at 32x32 alone sample the other sizes. The rotary model with
  `interpolate` is compared with the interpolated table, because both then scale the coordinates of a drawing
  that is scaled with its frame. It is "not worse" if its accuracy is not lower by more than two standard
  errors of the difference of the two means over seeds. The other scalings are reported beside them.
- At 32x32 the same two models must agree within two standard errors.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import scaledit
from scaledit import DiT, Pipeline, captions, config
from scaledit.config import RunConfig
from scaledit.evaluation.judge import Judge, open_run_judge
from scaledit.evaluation.samples import PipelineSamples
from scaledit.models.positions import Position
from scaledit.models.positions.rotary import Rotary
from scaledit.models.positions.sincos import SinCos
from scaledit.sampling.request import Request
from scaledit.training.dit import train
from scaledit.training.events import Finished, Stepped

SIZES = ((24, 24), (32, 32), (48, 48), (32, 48))
TRAINED = (32, 32)
SEEDS = (1, 2, 3)
HELD_OUT = 411
RESULTS = Path(__file__).parent / "results" / "resolutions.json"
PICTURE = Path(__file__).parent.parent / "docs" / "figures" / "resolutions.png"
RUNS = Path("runs/resolutions")
MODEL = (
    "model.hidden_size=128",
    "model.depth=6",
    "model.num_heads=4",
    "sample.every=0",
    "evaluate.every=0",
    "data.workers=0",
)
TOY = (
    "model.hidden_size=32",
    "model.depth=1",
    "train.steps=20",
    "checkpoint.every=20",
    "train.batch_size=8",
    "sample.steps=2",
)
ELSEWHERE: dict[str, Position] = {
    "rotary interpolate": Rotary("interpolate"),
    "rotary none": Rotary("none"),
    "rotary ntk": Rotary("ntk"),
    "sincos interpolate": SinCos(),
    "sincos none": SinCos(scaling="none"),
}
"""Ways to sample the models trained at one size at others."""
SHOWN = (0, 1, 2, 3, 4, 5, 6, 7)
"""Classes that are drawn."""


def words(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def elsewhere(way: str, size: tuple[int, int]) -> str:
    """The name of the piece that samples a model trained at one size at another."""
    return f"only-32-{way.replace(' ', '-')}-{words(size)}"


def models() -> dict[str, list[str]]:
    """{name: overrides} of the models."""
    rotary = "model.position=rotary"
    each = {f"rotary-{words(size)}": [rotary, f'data.buckets=["{words(size)}"]'] for size in SIZES}
    sizes = ", ".join(f'"{words(size)}"' for size in SIZES)
    mixed = {"mixed": [rotary, f"data.buckets=[{sizes}]"]}
    return {**mixed, **each, f"sincos-{words(TRAINED)}": []}


class Experiment:
    """The pieces, and what they found so far. A record is written after each piece."""

    def __init__(self, toy: bool):
        self.toy = toy
        self.runs = RUNS.with_name("resolutions-toy") if toy else RUNS
        self.path = self.runs / "results.json" if toy else RESULTS
        self.found = self.read()
        self._judge: Judge | None = None

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def pieces(self) -> dict[str, Callable[[], dict[str, Any]]]:
        pieces: dict[str, Callable[[], dict[str, Any]]] = {}
        for name in models():
            pieces[f"train-{name}"] = lambda name=name: self.train(name)
        for size in SIZES:
            pieces[f"mixed-{words(size)}"] = lambda size=size: self.judged("mixed", size)
            alone = f"rotary-{words(size)}"
            pieces[f"alone-{words(size)}"] = lambda size=size, alone=alone: self.judged(alone, size)
            for way, position in ELSEWHERE.items():
                if size == TRAINED and way != "sincos interpolate":
                    continue  # all scalings are the same function there, and "alone" has the rotary one
                model = f"{way.partition(' ')[0]}-{words(TRAINED)}"
                pieces[elsewhere(way, size)] = lambda m=model, s=size, p=position: self.judged(m, s, p)
        pieces["picture"] = self.picture
        return pieces

    def config(self, name: str) -> RunConfig:
        more = TOY if self.toy else ()
        return replace(config.load("emoji", [*MODEL, *more, *models()[name]]), name=f"resolutions-{name}")

    def train(self, name: str) -> dict[str, Any]:
        """Trains a model, from its last checkpoint if the piece was interrupted."""
        run, began = self.config(name), time.monotonic()
        for event in train(run, self.runs / name, resume="auto"):
            if isinstance(event, Stepped) and (event.step % 100 == 0 or isinstance(event, Finished)):
                print(f"  step {event.step} of {run.train.steps}, loss {event.loss:.4f}", flush=True)
        return {"steps": run.train.steps, "seconds": round(time.monotonic() - began, 1)}

    def pipeline(self, name: str, size: tuple[int, int], position: Position | None = None) -> Pipeline:
        """A trained model at a size, with another position encoding if one is passed: the weights are the
        same."""
        loaded = scaledit.load(self.runs / name)
        if position is not None:
            model = replace(loaded.config.model, position=position)
            net = DiT(model).to(loaded.device).eval()
            net.load_state_dict(loaded.net.state_dict())
            loaded = replace(loaded, net=net, config=replace(loaded.config, model=model))
        return loaded.at(size)

    def judged(self, name: str, size: tuple[int, int], position: Position | None = None) -> dict[str, Any]:
        """The class accuracy of each seed."""
        pipeline, began = self.pipeline(name, size, position), time.monotonic()
        evaluate = replace(pipeline.config.evaluate, reference="emoji", labels="real")
        run = replace(pipeline.config, evaluate=evaluate)
        if self._judge is None:
            self._judge = open_run_judge(run, pipeline.class_names)
        real = self._judge.real
        assert real is not None and real.labels is not None
        settings = pipeline.config.sample
        accuracies = []
        for seed in SEEDS:
            num = 16 if self.toy else HELD_OUT
            request = Request(tuple(real.labels.tolist()), replace(settings, seed=seed), num=num, rule="real")
            with torch.no_grad():
                result = self._judge.evaluate([PipelineSamples(pipeline, request)])
            accuracies.append(result.metrics["class_accuracy"].value)
        return {
            "accuracy": statistics.mean(accuracies),
            "seeds": accuracies,
            "images": num * len(SEEDS),
            "seconds": round(time.monotonic() - began, 1),
        }

    def picture(self) -> dict[str, Any]:
        """Samples of the mixed model at each size, from the same seed, in one picture."""
        rows = []
        for size in SIZES:
            pipeline = self.pipeline("mixed", size)
            images = pipeline(SHOWN, seed=0)
            rows.append(captions.one_by_one(images, len(SHOWN), ()).image)
        drawn = [Image.fromarray(row) if not isinstance(row, Image.Image) else row for row in rows]
        gap = 8
        canvas = Image.new(
            "RGB",
            (max(row.width for row in drawn), sum(row.height + gap for row in drawn) - gap),
            (255, 255, 255),
        )
        top = 0
        for row in drawn:
            canvas.paste(row, (0, top))
            top += row.height + gap
        path = self.runs / "resolutions.png" if self.toy else PICTURE
        canvas.save(path)
        return {"file": path.name}

    def run(self, only: str | None, workers: int) -> None:
        pieces = self.pieces()
        if only is not None and only not in pieces:
            raise SystemExit(f"no piece {only}; there are {', '.join(pieces)}")
        missing = [name for name in pieces if name not in self.found and only in (None, name)]
        if workers == 1:
            for name in missing:
                print(name, flush=True)
                self.record(name, pieces[name]())
            return
        command = [sys.executable, __file__, *(["--toy"] if self.toy else []), "--only"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        training = [name for name in missing if name.startswith("train-")]
        for group in (training, [name for name in missing if name not in training]):
            with ThreadPoolExecutor(workers) as pool:
                done = pool.map(lambda name: subprocess.run([*command, name], env=environment), group)
            for process in done:
                process.check_returncode()
        self.found = self.read()

    def record(self, name: str, found: dict[str, Any]) -> None:
        """Adds what a piece found to the file, which other pieces may be writing to."""
        self.runs.mkdir(parents=True, exist_ok=True)
        with (self.runs / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.found = {**self.read(), name: found}
            order = {piece: i for i, piece in enumerate(self.pieces())}
            ordered = sorted(self.found.items(), key=lambda item: order[item[0]])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(dict(ordered), indent=1) + "\n")

    def verdicts(self) -> list[str]:
        """A sentence for each rule, as far as its pieces are there."""
        said = []
        for size in SIZES:
            mixed, alone = (self.found.get(f"{which}-{words(size)}") for which in ("mixed", "alone"))
            if mixed and alone and alone["accuracy"]:
                ratio = mixed["accuracy"] / alone["accuracy"]
                verdict = "within 0.9" if ratio >= 0.9 else "BELOW 0.9"
                said.append(
                    f"{words(size)}: mixed {mixed['accuracy']:.3f}, alone {alone['accuracy']:.3f}: ratio "
                    f"{ratio:.3f}, {verdict}"
                )
        for size in SIZES:
            ways = {way: self.found.get(elsewhere(way, size)) for way in ELSEWHERE}
            if size == TRAINED:
                alone = self.found.get(f"alone-{words(size)}")
                ways = {"rotary interpolate": alone, "sincos interpolate": ways["sincos interpolate"]}
            if not all(ways.values()):
                continue
            a, b = ways["rotary interpolate"], ways["sincos interpolate"]
            assert a is not None and b is not None
            error = math.sqrt(sum(statistics.variance(one["seeds"]) / len(SEEDS) for one in (a, b)))
            difference = a["accuracy"] - b["accuracy"]
            if size == TRAINED:
                verdict = "equal within noise" if abs(difference) <= 2 * error else "NOT equal within noise"
            else:
                verdict = "not worse" if difference >= -2 * error else "WORSE"
            values = ", ".join(f"{way} {found['accuracy']:.3f}" for way, found in ways.items() if found)
            said.append(
                f"{words(size)}, trained at 32x32 only: {values}; rotary - sincos (interpolate) "
                f"{difference:+.3f} ± {error:.3f}: {verdict}"
            )
        return said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", metavar="PIECE")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--workers", metavar="N", type=int, default=1)
    args = parser.parse_args()
    experiment = Experiment(args.toy)
    experiment.run(args.only, 1 if args.only else args.workers)
    print("\n".join(experiment.verdicts()))


if __name__ == "__main__":
    main()
