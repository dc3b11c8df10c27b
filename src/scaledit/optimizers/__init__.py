"""Optimizers: how the weights follow the gradient. [optimizer] of a recipe names one as `algorithm`, beside
the learning rate over a run and the clipping of gradients, which are the same for all.

    AdamW   theta <- (1 - lr decay) theta - lr m' / (sqrt(v') + 1e-8)
    Muon    W     <- (1 - lr decay) W - lr 0.2 sqrt(max(rows, columns)) NewtonSchulz(momentum)     matrices
                                                                                AdamW for the other weights

There is one file per optimizer; `base` is what they share. Files here need torch only to make an optimizer;
`updates` holds torch's side of those that torch lacks.
"""

from scaledit.optimizers.adamw import AdamW
from scaledit.optimizers.base import Optimizer
from scaledit.optimizers.muon import Muon

__all__ = ["AdamW", "Muon", "Optimizer"]
