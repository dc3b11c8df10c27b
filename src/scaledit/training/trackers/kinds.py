"""Kinds of trackers: [log] of a recipe says which are told. Packages are loaded when one is opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaledit.part import Part, field

if TYPE_CHECKING:
    from scaledit.config import Config, LogConfig
    from scaledit.training.trackers.base import Tracker


class TrackerKind(Part, kind="tracker", home="scaledit.training.trackers.kinds", needs=("open",)):
    """Opens a tracker of a run. Nothing is written before the run starts."""

    def open(self, config: Config, out: Path) -> Tracker:
        """out: the run folder. Raises UsageError where a package is not installed, or nobody is logged in."""
        raise NotImplementedError


@dataclass(frozen=True)
class EventFiles(TrackerKind, name="tensorboard"):
    """TensorBoard's event files, in the run folder's tensorboard/."""

    def open(self, config: Config, out: Path) -> Tracker:
        from scaledit.training.trackers.tensorboard import TensorBoard

        return TensorBoard(config, out)


@dataclass(frozen=True)
class WandbProject(TrackerKind, name="wandb"):
    """A project of Weights & Biases."""

    project: str = field(doc="PROJECT, or ENTITY/PROJECT")
    mode: Literal["auto", "online", "offline"] = field(
        "auto", doc="auto: what WANDB_MODE says, else online; offline: files for `wandb sync`"
    )

    def open(self, config: Config, out: Path) -> Tracker:
        from scaledit.training.trackers.wandb import WeightsAndBiases

        log = replace(config.log, wandb=self.project, wandb_mode=self.mode)
        return WeightsAndBiases(replace(config, log=log), out)  # pyright: ignore[reportArgumentType]


def asked_for(log: LogConfig) -> list[TrackerKind]:
    """Those that [log] names, in the order in which they are told."""
    found: list[TrackerKind] = [EventFiles()] if log.tensorboard else []
    return [*found, WandbProject(log.wandb, log.wandb_mode)] if log.wandb else found
