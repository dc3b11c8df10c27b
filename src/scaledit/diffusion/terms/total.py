"""The loss of an objective with further terms, from one forward pass.

total = base + sum over terms of weight * term
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scaledit.diffusion.denoiser import NetDenoiser
from scaledit.diffusion.objectives import Context, Objective, named_terms
from scaledit.diffusion.terms.base import Partner, Seen, Term
from scaledit.errors import UsageError
from scaledit.lazy import Tensor


def logged_names(terms: Sequence[Term]) -> list[str]:
    """The names of terms in the log, of which no two are equal: alignment, alignment_2, ..."""
    names: list[str] = []
    for term in terms:
        name, number = term.logged_name, 2
        while name in names:
            name, number = f"{term.logged_name}_{number}", number + 1
        names.append(name)
    return names


def draw_name(term: str, name: str) -> str:
    """The name by which the draw `name` of a term is keyed. term: the term's name in the log."""
    return f"{term}.{name}"


def all_draws(objective: Objective, terms: Sequence[Term]) -> dict[str, str]:
    """{name: kind} of the draws of an objective and of all terms."""
    found = dict(objective.draws)
    for logged, term in zip(logged_names(terms), terms, strict=True):
        found |= {draw_name(logged, name): kind for name, kind in term.draws.items()}
    return found


def extra_macs(terms: Sequence[Term], config: Any, steps: int) -> int:
    """Multiply-adds that the terms add to `steps` steps of one image each, forward and backward, teachers'
    included; those of the network are `scaledit.models.flops.train_macs`. config: the DiTConfig."""
    return sum(term.extra_macs(config) * sum(map(term.active, range(steps))) for term in terms)


class Call(NamedTuple):
    """An evaluation of the network: its arguments, and its result with all that was asked for."""

    x_t: Tensor
    t: Tensor
    out: Tensor
    hidden: Mapping[int, Tensor]
    early: Tensor | None


class WithHidden(NamedTuple):
    """The result of a caller that asked for hidden states only; see `NetDenoiser.output`."""

    out: Tensor
    hidden: Mapping[int, Tensor]


@dataclass(frozen=True)
class Recording(NetDenoiser):
    """A denoiser whose first evaluation also gives the hidden states and the early output that terms need,
    and which keeps it. Its caller gets what it would get without them."""

    blocks: frozenset[int] = frozenset()
    with_early: bool = False
    calls: list[Call] = dataclasses.field(default_factory=list, compare=False)

    @classmethod
    def of(cls, denoiser: NetDenoiser, terms: Sequence[Term]) -> Recording:
        blocks = frozenset(block for term in terms for block in term.hidden)
        early = any(term.early for term in terms)
        return cls(denoiser.net, denoiser.schedule, denoiser.parameterization, blocks, early)

    def output(self, x_t, t, y, second=None, hidden=(), early=False) -> Any:
        if self.calls:
            return super().output(x_t, t, y, second, hidden, early)
        blocks, both = sorted({*hidden, *self.blocks}), early or self.with_early
        result = super().output(x_t, t, y, second, blocks, both)
        plain = not (blocks or both)
        out, states = (result, {}) if plain else (result.out, result.hidden)
        self.calls.append(Call(x_t, t, out, states, result.early if both else None))
        if early:
            return result
        return WithHidden(out, states) if hidden else out


def losses(
    objective: Objective,
    terms: Sequence[Term],
    denoiser: NetDenoiser,
    x0: Tensor,
    y: Any,
    t: Tensor,
    eps: Tensor,
    context: Context,
    *,
    images: Tensor | None = None,
    partner: Partner | None = None,
    modules: Mapping[str, Any] | None = None,
    frozen: Mapping[str, Any] | None = None,
    step: int = 0,
) -> dict[str, Tensor]:
    """{"total": (N,), ...} of an objective and the terms that are active at `step`, without their weights.

    denoiser, x0, y, t, eps: as in `Objective.__call__`. context: of the objective, with the draws of the
    terms too (`all_draws`). images, partner: as in `Seen`, needed if a term asks for them. modules, frozen:
    what the terms' methods built, by their names in the log.

    Raises UsageError if the objective's first evaluation of the network is not one of the N samples, or if a
    term has the name of one of the objective's.
    """
    named = dict(zip(logged_names(terms), terms, strict=True))
    named = {name: term for name, term in named.items() if term.early or term.active(step)}
    if not named:
        return named_terms(objective, objective(denoiser, x0, y, t, eps, context=context), len(x0))
    recording = Recording.of(denoiser, list(named.values()))
    found = named_terms(objective, objective(recording, x0, y, t, eps, context=context), len(x0))
    if not recording.calls or recording.calls[0].x_t.shape != x0.shape:
        raise UsageError(
            f"{objective.part_name()} does not evaluate the network on its batch first, so the terms "
            f"{', '.join(named)} have nothing to read; leave them out"
        )
    if taken := found.keys() & named.keys():
        raise UsageError(
            f"{objective.part_name()} and diffusion.terms both log {min(taken)}; give your term another name"
        )
    call, total = recording.calls[0], found["total"]
    for name, term in named.items():
        seen = Seen(
            objective=objective,
            denoiser=denoiser,
            x0=x0,
            y=y,
            t=call.t,
            eps=eps,
            x_t=call.x_t,
            out=call.out,
            hidden={block: call.hidden[block] for block in term.hidden},
            early=call.early if term.early else None,
            images=images if term.images else None,
            partner=partner if term.partner else None,
            draws={draw: context.draws[draw_name(name, draw)] for draw in term.draws},
            modules=(modules or {}).get(name),
            frozen=(frozen or {}).get(name),
            average=context.average,
        )
        value = term(seen)
        if tuple(value.shape) != (len(x0),):
            raise UsageError(
                f"{term.part_name()} returned the shape {tuple(value.shape)}; return one value for each of "
                f"the {len(x0)} samples, ({len(x0)},)"
            )
        found[name] = value
        total = total + term.weight * value
    return {**found, "total": total}
