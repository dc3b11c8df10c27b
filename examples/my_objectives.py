"""An objective of your own with a trainable head, which predicts the clean image from block 3.

    scaledit train digits diffusion.objective=my_objectives:Aligned diffusion.objective.weight=0.25

L = || target - out ||^2 + weight || head(h_3) - patches of x_0 ||^2
"""

from dataclasses import dataclass

from torch import nn

from scaledit.diffusion.objectives import Objective, diffuse
from scaledit.models.layers import patchify
from scaledit.part import field


@dataclass(frozen=True)
class Aligned(Objective, name="aligned"):
    """The simple objective plus a linear head that predicts the image from one block's hidden states."""

    block: int = field(3, ge=0, doc="the block whose hidden states the head reads")
    weight: float = field(0.5, ge=0, doc="weight of the head's loss")

    def modules(self, config):
        return nn.Linear(config.hidden_size, config.in_channels * config.patch_size**2)

    def __call__(self, denoiser, x0, y, t, eps, *, context):
        x_t = diffuse(denoiser.schedule, x0, eps, t)
        out, hidden = denoiser.output(x_t, t, y, hidden=(self.block,))
        target = denoiser.parameterization.target(denoiser.schedule, x0, eps, t)
        mse = ((target - out) ** 2).flatten(1).mean(1)
        read = context.modules(hidden[self.block])
        patch = round((x0[0, 0].numel() / read.shape[1]) ** 0.5)
        align = ((read - patchify(x0, patch)) ** 2).flatten(1).mean(1)
        return {"total": mse + self.weight * align, "mse": mse, "align": align}
