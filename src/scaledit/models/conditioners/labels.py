"""Class labels: a row of a table each, and one more for the null label (paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaledit.conditions.labels import Labels
from scaledit.errors import UsageError
from scaledit.models.conditioners import Asked, Conditioner
from scaledit.models.description import Embedding, Layers

if TYPE_CHECKING:
    import torch

    from scaledit.models.config import DiTConfig
else:
    from scaledit.lazy import torch


@dataclass(frozen=True)
class LabelTable(Conditioner, name="labels"):
    """A learned vector for each class and for the null label."""

    def layers(self, config: DiTConfig) -> Layers:
        return {"label_embed": Embedding(config.num_classes + 1, config.hidden_size)}

    def condition(self, config: DiTConfig, asked: object, n: int, device: torch.device) -> Labels:
        if asked is None:
            return Labels.nulls(n, config.num_classes, device)
        if isinstance(asked, Labels):
            if asked.null_label != config.num_classes:
                raise UsageError(
                    f"these labels are of {asked.null_label} classes, and this model has {config.num_classes}"
                )
            return asked
        if isinstance(asked, torch.Tensor):
            return Labels(asked, config.num_classes)
        raise UsageError(f"this model is asked for class labels, not for {type(asked).__name__}")

    def embed(self, net: Any, condition: Labels) -> Asked:
        return Asked(net.label_embed(condition.values))
