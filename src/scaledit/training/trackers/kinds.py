"""The kinds of trackers, which [log] of a recipe chooses from. Imports no package of a tracker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaledit.part import Part, field

if TYPE_CHECKING:
    from scaledit.config import Config, LogConfig
    from scaledit.training.trackers.base import Tracker


class TrackerKind(Part, kind="tracker", home="scaledit.training.trackers.kinds", needs=("open",)):
    """Opens a tracker of a run."""

    def open(self, config: Config, out: Path) -> Tracker:
        """The tracker of the run in the folder `out`; writes nothing before the run starts. Raises UsageError
        if a package is not installed or nobody is logged in."""
        raise NotImplementedError


@dataclass(frozen=True)
class EventFiles(TrackerKind, name="tensorboard"):
    """TensorBoard's event files, in the folder tensorboard/ of the run."""

    def open(self, config: Config, out: Path) -> Tracker:
        from scaledit.training.trackers.tensorboard import TensorBoard

        return TensorBoard(config, out)


@dataclass(frozen=True)
class WandbProject(TrackerKind, name="wandb"):
    """A project of Weights & Biases."""

    project: str = field(doc="PROJECT, or ENTITY/PROJECT")
    mode: Literal["auto", "online", "offline"] = field(
        "auto", doc="auto: WANDB_MODE, or online; offline: files for `wandb sync`"
    )

    def open(self, config: Config, out: Path) -> Tracker:
        from scaledit.training.trackers.wandb import WeightsAndBiases

        log = replace(config.log, wandb=self.project, wandb_mode=self.mode)
        return WeightsAndBiases(replace(config, log=log), out)  # pyright: ignore[reportArgumentType]


def tracker_kinds(log: LogConfig) -> list[TrackerKind]:
    """The trackers that [log] chooses."""
    kinds: list[TrackerKind] = [EventFiles()] if log.tensorboard else []
    return [*kinds, WandbProject(log.wandb, log.wandb_mode)] if log.wandb else kinds
