"""Terms of the loss beside the base objective. One file per term.

    total = base + sum over terms of weight * term

    Early        the loss of an early head, for internal guidance          (arXiv:2512.24176)
    Contrastive  minus the error on another sample's target                (Stoica et al. 2025)
    Alignment    minus the cosine of tokens and a frozen teacher's tokens  (Yu et al. 2024; Singh et al. 2025)

All terms and the base objective share one forward pass (`losses`).
"""

from scaledit.diffusion.terms.alignment import Alignment
from scaledit.diffusion.terms.base import Partner, Seen, Term
from scaledit.diffusion.terms.contrastive import Contrastive
from scaledit.diffusion.terms.early import Early
from scaledit.diffusion.terms.total import Recording, all_draws, extra_macs, logged_names, losses

__all__ = [
    "Alignment",
    "Contrastive",
    "Early",
    "Partner",
    "Recording",
    "Seen",
    "Term",
    "all_draws",
    "extra_macs",
    "logged_names",
    "losses",
]
