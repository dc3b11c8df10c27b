"""Fine-tuning against training from nothing: is 100 steps from a checkpoint worth more than 300 from noise?

    some digits --train--> run --convert--> official layout --train.init--> other digits

    half     a model of all ten digits continues with the digits 0 to 4
    others   a model of the digits 0 to 4 continues with the digits 5 to 9

The model is that of the recipe digits-paper (1.1 M parameters, linear betas, epsilon), but with patches of
4x4 pixels, so that a step takes 50 ms on one core. The official layout stores no class names, so all five
rows of the class table are new and start as the null row. `half_by_name` continues from the run folder,
which has the names, so that its five rows are taken over.

The rule, written before the first run: over three seeds, the training loss of the fine-tuned model at step
100 (mean of steps 91 to 110) is below that of training from nothing at step 300 (mean of steps 291 to 310).
Both have the same recipe, learning rate, data order, times and noise. `holds` says for each case in how many
seeds.

python benchmarks/fine_tuning.py [FOLDER]     writes results/fine-tuning.json (4 minutes); the runs are kept
                                              in FOLDER (default: runs/fine-tuning) and not repeated
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import torch

from scaledit.config import RunConfig, load
from scaledit.data.sets import Images, digits
from scaledit.machine import described
from scaledit.training import log
from scaledit.training.dit import train
from scaledit.training.log import JsonLog

SEEDS = (0, 1, 2)
BASE_STEPS, TUNED, SCRATCH, AROUND = 600, 100, 300, 10
"""Steps of the models that are fine-tuned; the steps at which losses are compared, and half of the steps in
their means."""
FIRST, LAST = range(5), range(5, 10)
CASES = {"half": (range(10), FIRST), "others": (FIRST, LAST), "half_by_name": (range(10), FIRST)}
"""The digits of the model, and those that it continues with."""
OUT = Path(__file__).parent / "results" / "fine-tuning.json"


def some(classes: range) -> Images:
    """The training digits of these classes, with their names."""
    every = digits()
    chosen = torch.isin(every.labels, torch.tensor(list(classes)))
    return dataclasses.replace(
        every,
        images=every.images[chosen],
        labels=every.labels[chosen] - classes[0],
        class_names=every.class_names[classes.start : classes.stop],
    )


def config(classes: range, steps: int, seed: int, init: str = "") -> RunConfig:
    overrides = [f"model.num_classes={len(classes)}", f"train.steps={steps}", f"train.seed={seed}"]
    overrides += ["model.patch_size=4", "train.log_every=1", "sample.every=0", "evaluate.every=0"]
    return load("digits-paper", [*overrides, *([f"train.init={init}"] if init else [])])


def trained(out: Path, classes: range, steps: int, seed: int, init: str = "") -> Path:
    """The run folder `out`, trained unless it is finished."""
    listen = JsonLog(out)
    for event in train(config(classes, steps, seed, init), out, resume="auto", dataset=some(classes)):
        listen(event)
    print(f"{out.name}: {steps} steps", flush=True)
    return out


def official(run: Path, classes: range) -> str:
    """A folder converted from the run in the official layout: run -> official .pt -> folder."""
    pickled, folder = run.with_suffix(".pt"), run.with_name(f"{run.name}-official")
    scaledit = [sys.executable, "-m", "scaledit.cli", "convert", "--quiet"]
    if not folder.exists():
        pickled.unlink(missing_ok=True)
        subprocess.run([*scaledit, run, pickled, "--to", "official"], check=True)
        stated = ["--heads", str(config(classes, 1, 0).model.num_heads), "--num-classes", str(len(classes))]
        subprocess.run([*scaledit, pickled, folder, "--to", "scaledit", *stated], check=True)
    return str(folder)


def loss(run: Path, step: int) -> float:
    """The mean of the logged losses around a step."""
    losses = {event["step"]: event["loss"] for event in log.read(run) if event["event"] == "stepped"}
    window = range(step - AROUND + 1, step + AROUND + 1)
    return sum(losses[i] for i in window) / len(window)


def main(folder: Path) -> None:
    bases = {classes: folder / f"base-{len(classes)}" for classes, _ in CASES.values()}
    for classes, base in bases.items():
        trained(base, classes, BASE_STEPS, seed=0)
    found = []
    for case, (classes, goal) in CASES.items():
        base = bases[classes]
        init = str(base) if case == "half_by_name" else official(base, classes)
        for seed in SEEDS:
            tuned = trained(folder / f"{case}-{seed}", goal, TUNED + AROUND, seed, init)
            nothing = folder / f"nothing-{goal[0]}-{seed}"
            trained(nothing, goal, SCRATCH + AROUND, seed)
            found.append(
                {
                    "case": case,
                    "seed": seed,
                    "tuned_at_100": loss(tuned, TUNED),
                    "nothing_at_100": loss(nothing, TUNED),
                    "nothing_at_300": loss(nothing, SCRATCH),
                }
            )
    rows = {case: [row for row in found if row["case"] == case] for case in CASES}
    holds = {case: sum(row["tuned_at_100"] < row["nothing_at_300"] for row in rows[case]) for case in CASES}
    print("| case | seed | fine-tuned, step 100 | from nothing, step 100 | from nothing, step 300 |")
    print("|---|---|---|---|---|")
    for row in found:
        losses = [f"{row[key]:.4f}" for key in ("tuned_at_100", "nothing_at_100", "nothing_at_300")]
        print(f"| {row['case']} | {row['seed']} | {' | '.join(losses)} |")
    print(holds)
    results = {"machine": described(), "base_steps": BASE_STEPS, "holds": holds, "losses": found}
    OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "runs/fine-tuning"))
