"""What guidance parts share: the base class, nesting, and one part for the rows of several jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from scaledit.conditions import Condition
from scaledit.diffusion.denoiser import Denoiser, NetDenoiser
from scaledit.diffusion.parameterization import LearnedRange, Prediction
from scaledit.diffusion.schedule import Schedule, broadcast_like
from scaledit.errors import UsageError
from scaledit.lazy import Tensor, torch
from scaledit.part import Part, field

ROUNDING = 1e-9
"""Of fractions of a schedule, so that a step at an end of a range is on the side that exact numbers say."""


class Guided(NamedTuple):
    """A guided prediction. plain: returns what the innermost denoiser predicts without guidance, which most
    parts have at no cost."""

    prediction: Prediction
    plain: Callable[[], Prediction]


class Target(NamedTuple):
    """What guidance must fit. guided: whether other guidance is inside. learns_variance: whether the network
    predicts a variance. early: the number of blocks before its early head; 0: it has none, None: unknown."""

    schedule: Schedule
    guided: bool
    learns_variance: bool
    early: int | None

    @classmethod
    def of(cls, denoiser: Denoiser) -> Target:
        guided = isinstance(denoiser, Guidance)
        inner = denoiser.innermost if isinstance(denoiser, Guidance) else denoiser
        if not isinstance(inner, NetDenoiser):
            return cls(inner.schedule, guided, False, None)
        early = getattr(getattr(inner.net, "config", None), "early_output", None)
        return cls(inner.schedule, guided, isinstance(inner.parameterization, LearnedRange), early)


class Opened(NamedTuple):
    """Another model that guidance needs. sha256: of its weights. has_null: whether its null label was
    trained."""

    denoiser: Denoiser
    sha256: str
    has_null: bool = True


@dataclass(frozen=True)
class Guidance(Part, kind="guidance", home="scaledit.diffusion.guidance", needs=("__call__|guide",)):
    """A denoiser that wraps another one, `self.denoiser`.

    BY_ROW: names of fields that may be a float64 tensor (N,), one value per row, so that images with
    different values can be sampled in one batch. uses_null: whether it needs predictions for the null label,
    which must then have been trained. modifies: whether it only changes what the parts before it do, so that
    it does nothing on its own. reads_plain: whether it needs the unguided prediction of the parts that it
    wraps.

    A part defines `__call__`, or `guide` if it has the unguided prediction at no cost.
    """

    BY_ROW: ClassVar[tuple[str, ...]] = ()
    uses_null: ClassVar[bool] = False
    modifies: ClassVar[bool] = False
    reads_plain: ClassVar[bool] = False

    inside: Denoiser | None = field(None, doc="the denoiser that is guided", inner=True)

    def check(self, where: str = "") -> None:
        super().check(where)
        if self.inside is not None and (obstacle := self.obstacle(Target.of(self.inside))):
            raise UsageError(f"{self.label()}: {obstacle}")

    def obstacle(self, target: Target) -> str:
        """Why it cannot guide such a model, with the fix; "" if it can."""
        return ""

    def opened(self, open_model: Callable[[str], Opened]) -> Self:
        """The same guidance with the other models that it names, for parts that need any."""
        return self

    @property
    def denoiser(self) -> Denoiser:
        """The wrapped denoiser. Raises UsageError if none was bound."""
        if self.inside is None:
            raise UsageError(
                f"{self.part_name()} has no denoiser to guide yet; bind one with .bind(denoiser)"
            )
        return self.inside

    @property
    def innermost(self) -> Denoiser:
        """The denoiser inside all guidance. Raises UsageError if none was bound."""
        denoiser = self.denoiser
        return denoiser.innermost if isinstance(denoiser, Guidance) else denoiser

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, so that it can be skipped."""
        return False

    @property
    def evaluations(self) -> int:
        """Evaluations of the wrapped denoiser per evaluation of this one."""
        return 1 if self.idle or self.modifies else 2

    def spent(self, inside: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        """Evaluations of networks for one image at each of the times t (n,), (n,) float64. inside: those of
        the wrapped denoiser, (n,)."""
        return inside * self.evaluations

    def bind(self, denoiser: Denoiser) -> Self:
        """The same guidance around `denoiser`."""
        return dataclasses.replace(self, inside=denoiser)

    def rows(self, index: Tensor) -> Self:
        """The same guidance for these rows of its batch, int64 indices on the CPU, all that it wraps
        included."""
        changed: dict[str, Any] = {
            name: value[index]
            for name in self.BY_ROW
            if isinstance(value := getattr(self, name), torch.Tensor)
        }
        if isinstance(self.inside, Guidance):
            changed["inside"] = self.inside.rows(index)
        return dataclasses.replace(self, **changed) if changed else self

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Guided:
        """The guided prediction with the unguided one; arguments as in `Denoiser`."""
        return Guided(self(x_t, t, y), lambda: self.innermost(x_t, t, y))

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Prediction:
        return self.guide(x_t, t, y).prediction


def guide(denoiser: Denoiser, x_t: Tensor, t: Tensor, y: Tensor | Condition | None) -> Guided:
    """`Guidance.guide` of any denoiser: both predictions are its own if it is not guided."""
    if isinstance(denoiser, Guidance):
        return denoiser.guide(x_t, t, y)
    prediction = denoiser(x_t, t, y)
    return Guided(prediction, lambda: prediction)


class Pair(NamedTuple):
    """The two predictions of classifier-free guidance; plain as in `Guided`."""

    conditional: Prediction
    null: Prediction
    plain: Callable[[], Prediction]


def conditional_and_null(denoiser: Denoiser, x_t: Tensor, t: Tensor, y: Tensor | Condition) -> Pair:
    """From one batch of 2N rows where the denoiser is a network."""
    if isinstance(denoiser, NetDenoiser):
        conditional, null = denoiser.conditional_and_null(x_t, t, y)
        return Pair(conditional, null, lambda: conditional)
    conditional, plain = guide(denoiser, x_t, t, y)
    return Pair(conditional, denoiser(x_t, t, None), plain)


def guide_where(
    on: Tensor, denoiser: Denoiser, plain: Denoiser, x_t: Tensor, t: Tensor, y: Tensor | Condition | None
) -> Guided:
    """`denoiser`, which is guided, in the rows where on (N,) bool on the CPU is true, and `plain` elsewhere.
    Each row costs the evaluations of its own denoiser only."""
    if bool(on.all()):
        return guide(denoiser, x_t, t, y)
    if not bool(on.any()):
        return guide(plain, x_t, t, y)
    t = t.expand(len(x_t))
    rows = [mask.nonzero().flatten() for mask in (on, ~on)]
    parts = []
    for index, inner in zip(rows, (denoiser, plain), strict=True):
        here = index.to(x_t.device)
        inner = inner.rows(index) if isinstance(inner, Guidance) else inner
        parts.append(guide(inner, x_t[here], t[index], None if y is None else y[here]))
    return Guided(
        _joined([part.prediction for part in parts], rows),
        lambda: _joined([part.plain() for part in parts], rows),
    )


def _joined(predictions: Sequence[Prediction], rows: Sequence[Tensor]) -> Prediction:
    """One prediction of predictions of different rows. rows: which ones, int64 indices on the CPU."""
    order = torch.cat(list(rows)).argsort()

    def join(values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values))[order.to(values[0].device)]

    variances = [prediction.log_variance for prediction in predictions]

    def log_variance(t: Tensor, s: Tensor) -> Tensor:
        t, s = t.expand(len(order)), s.expand(len(order))
        return join([f(t[i], s[i]) for f, i in zip(variances, rows, strict=True) if f is not None])

    return Prediction(
        join([prediction.x0 for prediction in predictions]),
        join([prediction.eps for prediction in predictions]),
        None if None in variances else log_variance,
    )


def extrapolated(
    towards: Prediction, away: Prediction, scale: float | Tensor, channels: int | None = None
) -> Prediction:
    """away + scale (towards - away), on the first `channels` channels (None: all). The other channels and the
    variance are those of `towards`. scale: a number or (N,)."""

    def extrapolate(towards: Tensor, away: Tensor) -> Tensor:
        if isinstance(scale, torch.Tensor):
            factor = broadcast_like(scale, towards)
            # Bit-identical to sampling the row alone, where a scale of 1 is skipped.
            result = torch.where(factor == 1, towards, away + factor * (towards - away))
        else:
            result = away + scale * (towards - away)
        if channels is None:
            return result
        return torch.cat([result[:, :channels], towards[:, channels:]], dim=1)

    # x0 and eps are affine in each other at a given x_t, so guiding both keeps them consistent.
    x0, eps = extrapolate(towards.x0, away.x0), extrapolate(towards.eps, away.eps)
    return Prediction(x0, eps, towards.log_variance)


def active(parts: Sequence[Guidance]) -> tuple[Guidance, ...]:
    """The parts that change something: idle ones are left out, and modifiers with nothing before them."""
    kept: list[Guidance] = []
    for part in parts:
        if not part.idle and (kept or not part.modifies):
            kept.append(part)
    return tuple(kept)


def guided(denoiser: Denoiser, parts: Sequence[Guidance]) -> Denoiser:
    """`denoiser` wrapped in the parts that are `active`, the first innermost."""
    for part in active(parts):
        denoiser = part.bind(denoiser)
    return denoiser


def spent(parts: Sequence[Guidance], schedule: Schedule, t: Tensor) -> Tensor:
    """Evaluations of networks for one image at each of the times t (n,), (n,) float64."""
    total, free = torch.ones(len(t), dtype=torch.float64), True
    for part in active(parts):
        total = part.spent(total, schedule, t) + (0 if free or not part.reads_plain else 1)
        free = free and type(part).guide is not Guidance.guide
    return total


def merge(guidances: Sequence[tuple[Guidance, ...]], sizes: Sequence[int]) -> tuple[Guidance, ...]:
    """One tuple of parts for a batch of jobs, of sizes[k] rows each, whose parts differ only in BY_ROW
    fields: those that differ become tensors with one value per row."""
    merged = []
    for parts in zip(*guidances, strict=True):
        by_row = {name: [getattr(part, name) for part in parts] for name in parts[0].BY_ROW}
        rows = {
            name: torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
            for name, values in by_row.items()
            if len(set(values)) > 1
        }
        merged.append(dataclasses.replace(parts[0], **rows) if rows else parts[0])
    return tuple(merged)
