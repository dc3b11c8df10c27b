"""The weights of a run averaged over any length of its training, from the snapshots that it kept.

weights = sum_i x_i snapshot_i       x = the least-squares fit of the average's profile (scaledit.averages)

Computed tensor by tensor in float64 when it is read, like all conversions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scaledit import checkpoint
from scaledit.averages import LARGEST_ERROR, Average, Kept, fit, reachable
from scaledit.checkpoint import AVERAGES, POWER, Checkpoint
from scaledit.errors import RunError, UsageError, counted
from scaledit.interop.lazy_tensors import Lazy, checked_finite, open_safetensors

SMALLEST = 1e-9
"""Snapshots with smaller coefficients are not read."""
TRAIN_WITH = "train with ema.power=[0.05,0.1]"


class Averaged(NamedTuple):
    """An average that was computed. step: of training, at which it ends. error: the relative residual of its
    profile. snapshots: how many it was computed from."""

    length: float
    step: int
    error: float
    snapshots: int

    def in_words(self) -> str:
        """One line for people."""
        return (
            f"weights averaged over the relative length {self.length:g} up to step {self.step}, from "
            f"{counted(self.snapshots, 'snapshot')}; predicted relative error of the profile {self.error:.2g}"
        )


class Computed(NamedTuple):
    """tensors: of the trained parameters. sha256: of what they are computed from, and how."""

    tensors: Mapping[str, Lazy]
    about: Averaged
    sha256: str
    notes: tuple[str, ...]


class _Track(NamedTuple):
    kept: Kept
    tensors: Mapping[str, Lazy]
    sha256: str


def snapshots_of(path: Path, folder: Path) -> Path:
    """The folder of the snapshots of a run. path: the run or one of its checkpoints. folder: the checkpoint
    itself."""
    return (path if path != folder else path.parent.parent) / AVERAGES


def compute(path: Path, folder: Path, average: Average, allow_nonfinite: bool = False) -> Computed:
    """The weights of the trained parameters of a run, averaged as asked.

    path, folder: as in `snapshots_of`; a checkpoint gives the average at its own step. Raises UsageError if
    no snapshots were kept, if there is none of that step, or if the length is outside of what they give.
    """
    snapshots = checkpoint.find(snapshots_of(path, folder))
    if not snapshots:
        raise UsageError(
            f"{path} has no snapshots of power-function averages, so the average {average.length:g} "
            f"cannot be computed; {TRAIN_WITH}, or leave the average out to use the EMA"
        )
    steps = [int(snapshot.name.removeprefix("step-")) for snapshot in snapshots]
    wanted = average.step
    if wanted is None and path == folder:
        wanted = checkpoint.open_checkpoint(folder).step
    end = steps[-1] if wanted is None else wanted
    if end not in steps:
        raise UsageError(f"{path} has no snapshot of its averages at step {end}; {_nearest(end, steps)}")
    tracks: list[_Track] = []
    notes: list[str] = []
    for snapshot, step in zip(snapshots, steps, strict=True):
        if step <= end:
            try:
                opened = checkpoint.open_checkpoint(snapshot)
                opened.verify()
            except RunError as error:
                notes.append(f"left out: {error}")
                continue
            tracks += _tracks(opened, allow_nonfinite)
    kept = [track.kept for track in tracks]
    found = fit(kept, average.length, end) if kept else None
    if found is None or found.error > LARGEST_ERROR:
        raise UsageError(_out_of_reach(path, average.length, kept, end))
    used = [(x, track) for x, track in zip(found.coefficients, tracks, strict=True) if abs(x) > SMALLEST]
    names = [(x, track.kept, track.sha256) for x, track in used]
    return Computed(
        {name: _combined([(x, track.tensors[name]) for x, track in used]) for name in tracks[0].tensors},
        Averaged(average.length, end, found.error, len({track.kept.step for _, track in used})),
        hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        tuple(notes),
    )


def _tracks(snapshot: Checkpoint, allow_nonfinite: bool) -> list[_Track]:
    """The tracks of a snapshot, whose file has the names LENGTH/NAME. Raises RunError for other names."""
    file = f"{POWER}.safetensors"
    if file not in snapshot.files:
        raise checkpoint.corrupt(snapshot.folder, f"it has no {file}")
    path = snapshot.folder / file
    tensors, _ = checked_finite(open_safetensors(path), path, allow_nonfinite)
    by_length: dict[str, dict[str, Lazy]] = {}
    for name, lazy in tensors.items():
        length, _, own = name.partition("/")
        by_length.setdefault(length, {})[own] = lazy
    try:
        lengths = {text: float(text) for text in by_length}
    except ValueError:
        raise checkpoint.corrupt(snapshot.folder, f"{file} has tensors without a length") from None
    sha256 = snapshot.files[file]["sha256"]
    return [_Track(Kept(lengths[text], snapshot.step), own, sha256) for text, own in by_length.items()]


def _combined(parts: list[tuple[float, Lazy]]) -> Lazy:
    def read() -> Tensor:
        total = torch.zeros(parts[0][1].shape, dtype=torch.float64)
        for x, lazy in parts:
            total.add_(lazy.read().double(), alpha=x)
        return total.float()

    return Lazy("F32", parts[0][1].shape, read)


def _nearest(end: int, steps: list[int]) -> str:
    before, after = [s for s in steps if s < end][-1:], [s for s in steps if s > end][:1]
    near = [*before, *after]
    return f"the nearest {'are' if len(near) > 1 else 'is'} {' and '.join(map(str, near))}"


def _out_of_reach(path: Path, length: float, kept: list[Kept], end: int) -> str:
    tracks, snapshots = {one.length for one in kept}, len({one.step for one in kept})
    of = " and ".join(f"{track:g}" for track in sorted(tracks))
    lengths = reachable(kept, end) if kept else None
    what = f"{counted(snapshots, 'snapshot')} of the averages {of}" if kept else "no intact snapshot"
    if lengths is None:
        return f"{path} has {what}, from which no other length can be computed; {TRAIN_WITH}"
    return (
        f"the average {length:g} is outside of what {path} kept: {what} give lengths from {lengths[0]:g} to "
        f"{lengths[1]:g}; choose one of these, or train with more snapshots (ema.snapshots) or lengths "
        "(ema.power)"
    )
