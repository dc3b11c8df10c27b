"""An objective as a user writes it: one file that touches no other, imported by its path.

SOURCE  ->  my_objective.py in a test's folder      chosen(monkeypatch, folder)  ->  runs train with it
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from scaledit.diffusion.denoiser import NetDenoiser
from scaledit.models.dit import DiT

SOURCE = '''
"""L = L_simple + weight (|| head(out) - x_0 ||^2 + || head(out) - x0 of the average at a later time ||^2)"""

from dataclasses import dataclass

import torch
from torch import nn

from scaledit.diffusion.objectives import Objective, diffuse
from scaledit.part import field


@dataclass(frozen=True)
class Reconstruction(Objective):
    """A linear head on the output reads off the image, and agrees with what the average sees in it."""

    weight: float = field(0.5, ge=0, doc="of what the head is trained on")
    draws = {"later": "uniform", "eps_2": "normal"}

    def modules(self, config):
        return nn.ModuleDict({"head": nn.Conv2d(config.in_channels, config.in_channels, 3, padding=1)})

    def __call__(self, denoiser, x0, y, t, eps, *, context):
        schedule = denoiser.schedule
        out = denoiser.output(diffuse(schedule, x0, eps, t), t, y)[:, : x0.shape[1]]
        target = denoiser.parameterization.target(schedule, x0, eps, t)
        read = context.modules["head"](out)
        later = schedule.time_at(context.draws["later"])
        with torch.no_grad():
            seen = context.average(diffuse(schedule, x0, context.draws["eps_2"], later), later, y).x0
        mse, head, agree = (
            (error**2).flatten(1).mean(1) for error in (target - out, read - x0, (read - seen).clamp(-3, 3))
        )
        return {"total": mse + self.weight * (head + agree), "mse": mse, "head": head, "agree": agree}
'''
HIDDEN = '''
"""L = L_simple + || head(tokens of block 1) - their mean image ||^2"""

from dataclasses import dataclass

from torch import nn

from scaledit.diffusion.objectives import Objective, diffuse


@dataclass(frozen=True)
class Hidden(Objective):
    """A linear head reads each image's mean off the hidden states of a block."""

    def modules(self, config):
        return nn.Linear(config.hidden_size, 1)

    def __call__(self, denoiser, x0, y, t, eps, *, context):
        schedule = denoiser.schedule
        out, hidden = denoiser.output(diffuse(schedule, x0, eps, t), t, y, hidden=(1,))
        target = denoiser.parameterization.target(schedule, x0, eps, t)
        mse = ((target - out[:, : x0.shape[1]]) ** 2).flatten(1).mean(1)
        head = (context.modules(hidden[1].float()).mean((1, 2)) - x0.flatten(1).mean(1)) ** 2
        return {"total": mse + head, "mse": mse, "head": head}
'''
MODULE = "my_objective"
OWN, OWN_HIDDEN = f"{MODULE}:Reconstruction", "my_objective_hidden:Hidden"
has_hidden = all("hidden" in inspect.signature(call).parameters for call in (DiT.forward, NetDenoiser.output))
"""Whether a network gives its hidden states on request."""


def written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files, where this process and those that it starts can import them."""
    (folder / "my_objective.py").write_text(SOURCE)
    (folder / "my_objective_hidden.py").write_text(HIDDEN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")


def chosen(name: str) -> str:
    """The override with which a run trains with it."""
    return f"diffusion.objective={name}"
