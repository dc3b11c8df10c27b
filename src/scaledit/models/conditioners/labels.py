"""Class labels: an embedding table with one extra row for the null label (paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaledit.conditions.labels import Labels
from scaledit.errors import UsageError, counted
from scaledit.lazy import torch
from scaledit.models.conditioners import Conditioner, EmbeddedCondition
from scaledit.models.description import Embedding, Layers

if TYPE_CHECKING:
    from scaledit.models.config import DiTConfig


@dataclass(frozen=True)
class LabelTable(Conditioner, name="labels"):
    """A learned vector for each class and for the null label."""

    def layers(self, config: DiTConfig) -> Layers:
        return {"label_embed": Embedding(config.num_classes + 1, config.hidden_size)}

    def condition(self, config: DiTConfig, y: object, n: int, device: torch.device) -> Labels:
        if y is None:
            return Labels.nulls(n, config.num_classes, device)
        if isinstance(y, Labels):
            if y.null_label != config.num_classes:
                raise UsageError(
                    f"these labels have {counted(y.null_label, 'class', 'classes')}, but this "
                    f"model has {config.num_classes}"
                )
            return y
        if isinstance(y, torch.Tensor):
            return Labels(y, config.num_classes)
        raise UsageError(f"this model accepts class labels, got {type(y).__name__}")

    def embed(self, net: Any, condition: Labels) -> EmbeddedCondition:
        return EmbeddedCondition(net.label_embed(condition.values))
