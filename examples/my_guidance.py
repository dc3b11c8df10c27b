"""Guidance of your own that depends on time: strong at high noise, none near the clean image.

    scaledit sample runs/demo 'sample.guidance=["my_guidance:Fading"]' sample.guidance.0.scale=3 --out x.png

scale(t) = 1 + (scale - 1) sigma(t)
"""

from dataclasses import dataclass

from scaledit.diffusion.guidance import ClassifierFree, Guidance
from scaledit.part import field


@dataclass(frozen=True)
class Fading(Guidance, name="fading"):
    """Classifier-free guidance whose scale falls to 1 as the noise level falls to 0."""

    scale: float = field(3.0, ge=1, doc="guidance scale at pure noise; 1 is no guidance")

    def __call__(self, x_t, t, y):
        strength = 1 + (self.scale - 1) * self.schedule.sigma(t)
        return ClassifierFree(self.denoiser, strength)(x_t, t, y)
