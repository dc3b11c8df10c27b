"""Does the best learning rate of a narrow model hold for a wide one? With optimizer.base_width, and without.

    widths 48, 96, 192, 384  x  six rates  x  base_width = 48 or none        at width 48 both are the same run

The model is that of the recipe digits with two blocks, patches of 4x4 and heads of 24 channels. All runs
have 250 steps of 16 images, the same data, times and noise, and a linear decay of the rate to zero. What is
compared is the loss of the last weights (not averaged) on the held-out digits, at equal times and noise.

The rates were chosen so that the best one at width 48 is in their middle. The rule, written before any run
of another width: the rate that is best at width 48 is used at the others. `cost` is its loss there minus the
best loss at that width. The rate carries over if its cost at width 384 is at most half of what it is without
scaling.

`changes` are those of a coordinate check (Yang et al. 2022, appendix D.1), at the rate 5e-3 without warm-up:
the mean absolute change of the output after one step, and of the tokens after the last block after three.

python benchmarks/learning_rates.py [FOLDER] [--minutes M]     writes results/learning-rates.json (6 minutes
                                                               on one idle core)

Finished runs are kept in FOLDER (default: runs/learning-rates). --minutes: begins no run after that time; the
results are then of the widths that are done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scaledit import assemble
from scaledit.config import RunConfig, load
from scaledit.data.sets import digits
from scaledit.diffusion.objectives import Context, named_terms
from scaledit.machine import described
from scaledit.training.ranks import Ranks
from scaledit.training.state import TrainState

WIDTHS, BASE, HEAD = (48, 96, 192, 384), 48, 24
RATES = tuple(2e-3 * 2**i for i in range(6))
STEPS, BATCH, DRAWS = 250, 16, 16
OUT = Path(__file__).parent / "results" / "learning-rates.json"


class Run(NamedTuple):
    """base_width: 0 is none."""

    algorithm: str
    width: int
    rate: float
    base_width: int

    @property
    def config(self) -> RunConfig:
        return load(
            "digits",
            [
                f"model.hidden_size={self.width}",
                f"model.num_heads={self.width // HEAD}",
                "model.depth=2",
                "model.patch_size=4",
                f"train.steps={STEPS}",
                f"train.batch_size={BATCH}",
                f"optimizer.algorithm={self.algorithm}",
                f"optimizer.learning_rate={self.rate}",
                f"optimizer.base_width={self.base_width}",
                "optimizer.warmup_steps=20",
                "data.workers=0",
            ],
        )


def runs() -> list[Run]:
    """Narrow ones first. At the base width, scaling changes nothing."""
    return [
        Run("adamw", width, rate, base)
        for width in WIDTHS
        for base in (BASE, 0)
        for rate in RATES
        if not (base == 0 and width == BASE)
    ]


def trained(run: Run) -> float:
    """The held-out loss after training; infinite if a loss was not finite."""
    state = TrainState.create(run.config, digits(), Ranks(torch.device("cpu")))
    for _ in range(STEPS):
        if state.train_step().skipped:
            return math.inf
    return held_out_loss(state)


@torch.no_grad()
def held_out_loss(state: TrainState) -> float:
    """On DRAWS times and noises of each held-out digit."""
    data, diffusion = digits(held_out=True), state.config.diffusion
    denoiser = assemble.denoiser(diffusion, state.net.eval())
    draws = torch.Generator().manual_seed(0)
    x0, y = data.images.repeat(DRAWS, 1, 1, 1), data.labels.repeat(DRAWS)
    eps = torch.randn(x0.shape, generator=draws)
    times = diffusion.schedule.time_at(torch.rand(len(x0), generator=draws, dtype=torch.float64))
    total = 0.0
    for part in torch.arange(len(x0)).split(512):
        context = Context({}, None, denoiser)
        losses = diffusion.objective(denoiser, x0[part], y[part], times[part], eps[part], context=context)
        total += float(named_terms(diffusion.objective, losses, len(part))["total"].sum())
    return total / len(x0)


def table(losses: dict[Run, float], base_width: int) -> dict[int, dict[float, float]]:
    """{width: {rate: loss}} with this base width."""
    rows = {
        width: {
            run.rate: loss
            for run, loss in losses.items()
            if run.width == width and (run.base_width == base_width or width == BASE)
        }
        for width in WIDTHS
    }
    return {width: row for width, row in rows.items() if len(row) == len(RATES)}


def summary(losses: dict[Run, float], base_width: int) -> dict[str, Any]:
    """The best rate at each width with this base width, and the cost of the narrow one's rate."""
    found = table(losses, base_width)
    best = {width: min(row, key=lambda rate: row[rate]) for width, row in found.items()}
    carried = best[BASE]
    return {
        "base_width": base_width,
        "best_rate": best,
        "best_loss": {width: row[best[width]] for width, row in found.items()},
        "carried_rate": carried,
        "cost": {width: row[carried] - row[best[width]] for width, row in found.items()},
        "losses": {
            width: {rate: loss if math.isfinite(loss) else None for rate, loss in row.items()}
            for width, row in found.items()
        },
    }


def changes(width: int, base_width: int) -> list[float]:
    """The coordinate check: how far the output has changed after one step, the last tokens after three."""
    run = Run("adamw", width, 5e-3, base_width)
    config = dataclasses.replace(
        run.config, optimizer=dataclasses.replace(run.config.optimizer, warmup_steps=0)
    )
    state = TrainState.create(config, digits(), Ranks(torch.device("cpu")))
    draws = torch.Generator().manual_seed(0)
    x, t, y = torch.randn(16, 1, 8, 8, generator=draws), torch.linspace(0, 1000, 16), torch.arange(16) % 10
    last = config.model.depth - 1

    @torch.no_grad()
    def seen() -> list[torch.Tensor]:
        output = state.net(x, t, y, hidden=[last])
        return [output.out, output.hidden[last]]

    start, found = seen(), []
    for step in range(3):
        state.train_step()
        if step in (0, 2):
            which = 0 if step == 0 else 1
            found.append(float((seen()[which] - start[which]).abs().mean()))
    return found


def main(folder: Path, minutes: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    began, losses = time.monotonic(), {}
    for run in runs():
        file = folder / f"{run.algorithm}-{run.width}-{run.base_width}-{run.rate:g}.json"
        if not file.exists():
            if time.monotonic() - began > 60 * minutes:
                break
            start = time.monotonic()
            loss = trained(run)
            file.write_text(json.dumps({"loss": loss, "seconds": time.monotonic() - start}))
            print(f"{file.stem}: {loss:.4f} in {time.monotonic() - start:.0f} s", flush=True)
        losses[run] = json.loads(file.read_text())["loss"]
    if len(losses) < len(RATES):
        return  # not even the first width
    scaled, plain = (summary(losses, base) for base in (BASE, 0))
    costs = [found["cost"].get(WIDTHS[-1]) for found in (scaled, plain)]
    carries = None if None in costs else costs[0] <= 0.5 * costs[1]
    results = {
        "machine": described(),
        "steps": STEPS,
        "batch": BATCH,
        "carries_over": carries,
        "scaled": scaled,
        "plain": plain,
        "changes": {
            name: {width: changes(width, base) for width in WIDTHS}
            for name, base in (("scaled", BASE), ("plain", 0))
        },
    }
    print(f"changes: {results['changes']}")
    for name in ("plain", "scaled"):
        for width, row in results[name]["losses"].items():
            print(
                f"| {name} | {width} | "
                + " | ".join("diverged" if x is None else f"{x:.4f}" for x in row.values())
                + " |"
            )
    OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/learning-rates"))
    parser.add_argument("--minutes", type=float, default=math.inf)
    options = parser.parse_args()
    main(options.folder, options.minutes)
