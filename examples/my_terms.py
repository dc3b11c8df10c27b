"""A term of the loss of your own: differences between neighboring pixels, beside any objective.

    scaledit train digits diffusion.terms=my_terms:Edges diffusion.terms.0.weight=0.2

L = L_objective + weight alpha(t) || D x_hat - D x_0 ||^2,   D x: differences of neighbors in rows and columns
"""

from dataclasses import dataclass

from scaledit.diffusion.schedule import broadcast_like
from scaledit.diffusion.terms import Term
from scaledit.part import field


@dataclass(frozen=True)
class Edges(Term, name="edges"):
    """The squared error of the edges of the image that the network's output stands for."""

    weight: float = field(0.1, ge=0, doc="factor of the term in the loss")

    def __call__(self, seen):
        off = seen.denoiser.decode(seen.out, seen.x_t, seen.t).x0 - seen.x0
        squares = [off.diff(dim=dim).square().flatten(1).mean(1) for dim in (2, 3)]
        return broadcast_like(seen.denoiser.schedule.alpha(seen.t), squares[0]) * sum(squares)
