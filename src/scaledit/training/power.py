"""Power-function averages of the weights, kept beside the EMA, and their snapshots in the run folder.

    a <- beta(n) a + (1 - beta(n)) w     after step n = 1, 2, ..., also a skipped one, for each ema.power
    out/averages/step-XXXXXXXX/  power.safetensors ("LENGTH/NAME")  manifest.json

scaledit.averages has the equations; scaledit.interop.averaged computes an average of any length from the
snapshots. All snapshots are kept, because each holds what the weights were at another time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scaledit import checkpoint
from scaledit.averages import decay_at, exponent
from scaledit.checkpoint import AVERAGES, POWER
from scaledit.config import EMAConfig, RunConfig, trained
from scaledit.errors import RunError, counted
from scaledit.training import ema
from scaledit.training.parallel import full, local
from scaledit.training.ranks import Ranks

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


class Tracks:
    """The averages of the trained parameters, one for each length of ema.power. They are as sharded as the
    parameters."""

    def __init__(self, config: EMAConfig, trained: Mapping[str, Tensor]):
        self.gammas = {length: exponent(length) for length in config.power}
        self.tensors = {
            length: {name: parameter.detach().clone() for name, parameter in trained.items()}
            for length in config.power
        }
        # Listed once, as in Learner.
        self._weights = [local(parameter.detach()) for parameter in trained.values()]
        self._averages = {length: list(map(local, own.values())) for length, own in self.tensors.items()}

    @torch.no_grad()
    def update(self, n: int) -> None:
        """After step n, from 1."""
        for length, gamma in self.gammas.items():
            ema.update(self._averages[length], self._weights, decay_at(gamma, n))

    def state_dict(self) -> dict[str, Tensor]:
        """{"0.05/NAME": tensor}"""
        return {
            f"{length:g}/{name}": tensor
            for length, tensors in self.tensors.items()
            for name, tensor in tensors.items()
        }


def interval(config: RunConfig) -> int:
    """The steps between two snapshots."""
    return -(-config.train.steps // config.ema.snapshots)


def remark(config: RunConfig, out: Path) -> str:
    """What the averages will take, in memory and on the disk, for people who start a run."""
    weights, tracks = trained.count(config).trained, len(config.ema.power)
    snapshots = -(-config.train.steps // interval(config))
    size = snapshots * tracks * weights * DTYPES[config.ema.snapshot_precision].itemsize
    folder = next(parent for parent in (out, *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    short = f"; only {_bytes(free)} are free there" if free < size else ""
    return (
        f"{counted(tracks, 'power-function average')}: {_bytes(4 * tracks * weights)} of memory, and "
        f"{_bytes(size)} on the disk for {counted(snapshots, 'snapshot')} in {out / AVERAGES}{short}"
    )


def _bytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


@dataclass
class Snapshots:
    """Writes the snapshots of a run. All ranks must call `keep` after each step."""

    tracks: Tracks
    config: RunConfig
    out: Path
    ranks: Ranks
    seen: int = -1

    @property
    def folder(self) -> Path:
        return self.out / AVERAGES

    def keep(self, step: int, last: bool) -> None:
        """Writes a snapshot if one is due after this step. Where the run continues from an earlier step, the
        snapshots after it are removed first: they are of steps that the run makes again. Raises RunError if
        it cannot be written."""
        if not self.config.ema.power:
            return
        if step != self.seen + 1:
            self.ranks.on_first(lambda: self._remove_after(step - 1))
        self.seen = step
        if not (last or step % interval(self.config) == 0):
            return
        dtype = DTYPES[self.config.ema.snapshot_precision]
        tensors = {}
        for name, tensor in self.tracks.state_dict().items():
            whole = full(tensor)  # one at a time: with shards all ranks gather it
            if self.ranks.first:
                tensors[name] = whole.to("cpu", dtype, copy=True)
        self.ranks.on_first(lambda: self._write(step, tensors))

    def _write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                precision = self.config.ema.snapshot_precision
                raise RunError(
                    f"the average of {name} is too large for {precision}; resume with "
                    "ema.snapshot_precision=fp32"
                    if precision == "fp16"
                    else f"the average of {name} is not finite"
                )
        self._remove_after(step - 1)
        checkpoint.finish(
            checkpoint.begin(self.folder, step),
            step,
            {POWER: tensors},
            self.config.to_json(),
            world=self.ranks.world,
            lengths=list(self.config.ema.power),
            precision=self.config.ema.snapshot_precision,
        )

    def _remove_after(self, step: int) -> None:
        checkpoint.clean(self.folder)
        for folder in checkpoint.find(self.folder):
            if int(folder.name.removeprefix("step-")) > step:
                checkpoint.remove(folder)
