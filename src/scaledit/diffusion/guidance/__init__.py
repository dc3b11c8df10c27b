"""Guidance: Denoiser -> Denoiser, independent of samplers and networks.

    classifier_free   eps(x_t, null) + scale (eps(x_t, y) - eps(x_t, null))
    interval          the guidance before it in the list, only where low < t <= high

A guidance part has a field for the denoiser that it wraps, which recipes cannot set: `part.bind(denoiser)`
fills it, and `guided(denoiser, parts)` nests a list of parts, the first innermost. Some parts guide; others
(`modifies`) change what the parts before them do.

There is one file per part; `base` is what they share.
"""

from scaledit.diffusion.guidance.base import Guidance, Guided, active, guide, guided, merge
from scaledit.diffusion.guidance.classifier_free import ClassifierFree
from scaledit.diffusion.guidance.interval import Interval

__all__ = [
    "ClassifierFree",
    "Guidance",
    "Guided",
    "Interval",
    "active",
    "guide",
    "guided",
    "merge",
]
