"""The paper's MLP: one hidden layer with GELU (Hendrycks & Gimpel 2016), in the tanh form.

MLP x = gelu(x W1 + b1) W2 + b2
"""

from __future__ import annotations

from dataclasses import dataclass

from scaledit.models import description
from scaledit.models.mlps import MLP


@dataclass(frozen=True)
class GELU(MLP, name="gelu"):
    """One hidden layer with GELU, as in the paper."""

    def layer(self, width: int, hidden: int, rows: int) -> description.MLP:
        return description.MLP(width, hidden, rows)
