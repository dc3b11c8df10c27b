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

Two windows of a training loss see different images, times and noise. Therefore the losses of the final
weights (steps 110 and 310) are also measured on the held-out digits, on equal times and noise. This was added
after the first figures had been seen.

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

from scaledit import assemble
from scaledit.config import RunConfig, load
from scaledit.data.sets import Images, digits
from scaledit.diffusion.objectives import Context, named_terms
from scaledit.interop.convert import open_model
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
DRAWS = 32
OUT = Path(__file__).parent / "results" / "fine-tuning.json"


def some(classes: range, *, held_out: bool = False) -> Images:
    """The training digits, or the held-out ones, of these classes, with their names."""
    every = digits(held_out=held_out)
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


@torch.no_grad()
def held_out_loss(run: Path, classes: range) -> float:
    """The loss of a run's last weights, not averaged, on held-out digits: DRAWS times and noises of each."""
    model, data = open_model(run, weights="model"), some(classes, held_out=True)
    diffusion, net = model.config.diffusion, model.network().eval()
    denoiser = assemble.denoiser(diffusion, net)
    draws = torch.Generator().manual_seed(0)
    x0, y = data.images.repeat(DRAWS, 1, 1, 1), data.labels.repeat(DRAWS)
    eps = torch.randn(x0.shape, generator=draws)
    times = diffusion.schedule.time_at(torch.rand(len(x0), generator=draws, dtype=torch.float64))
    context = Context({}, None, denoiser)
    losses = diffusion.objective(denoiser, x0, y, times, eps, context=context)
    return float(named_terms(diffusion.objective, losses, len(x0))["total"].mean())


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
                    "tuned_held_out_at_110": held_out_loss(tuned, goal),
                    "nothing_held_out_at_310": held_out_loss(nothing, goal),
                }
            )
    rows = {case: [row for row in found if row["case"] == case] for case in CASES}
    holds = {case: sum(row["tuned_at_100"] < row["nothing_at_300"] for row in rows[case]) for case in CASES}
    for row in found:
        print(
            "| " + " | ".join(f"{value:.4f}" if key.count("_") else str(value) for key, value in row.items())
        )
    lower = {
        case: sum(row["tuned_held_out_at_110"] < row["nothing_held_out_at_310"] for row in rows[case])
        for case in CASES
    }
    results = {"machine": described(), "base_steps": BASE_STEPS, "holds": holds, "held_out_lower": lower}
    print(results)
    results["losses"] = found
    OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "runs/fine-tuning"))
