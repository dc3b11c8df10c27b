"""Guidance: Denoiser -> Denoiser, independent of samplers and networks.

    classifier_free   null + scale (conditional - null)
    cfg_zero_star     the same for flows, with the null velocity projected, and zero velocity at first
    autoguidance      weaker + scale (full - weaker)         another model
    internal          early + scale (full - early)           an early head of the same network
    interval          the guidance before it in the list, where low < t <= high
    scheduled         plain + f(t) (guided - plain)          of the guidance before it
    rescale           the guidance before it, with the unguided standard deviation

A guidance part has a field for the denoiser that it wraps, which recipes cannot set: `part.bind(denoiser)`
fills it, and `guided(denoiser, parts)` nests a list of parts, the first innermost. Some parts guide; others
(`modifies`) change what the parts before them do.

There is one file per part; `base` is what they share.
"""

from scaledit.diffusion.guidance.autoguidance import Autoguidance
from scaledit.diffusion.guidance.base import Guidance, Guided, Target, active, guide, guided, merge, spent
from scaledit.diffusion.guidance.cfg_zero_star import CFGZeroStar
from scaledit.diffusion.guidance.classifier_free import ClassifierFree
from scaledit.diffusion.guidance.internal import Internal
from scaledit.diffusion.guidance.interval import Interval
from scaledit.diffusion.guidance.rescale import Rescale
from scaledit.diffusion.guidance.scheduled import Scheduled

__all__ = [
    "Autoguidance",
    "CFGZeroStar",
    "ClassifierFree",
    "Guidance",
    "Guided",
    "Internal",
    "Interval",
    "Rescale",
    "Scheduled",
    "Target",
    "active",
    "guide",
    "guided",
    "merge",
    "spent",
]
