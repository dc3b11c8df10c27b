"""Precision, recall, density and coverage, computed from tiles of distances in bounded memory.

    B_k(x) = the ball around x that reaches its k-th nearest neighbor in its own set

    precision = share of samples in any B_3(reference)
    recall    = share of references in any B_3(sample)
    density   = mean over samples of #{B_5(reference) around it} / 5
    coverage  = share of B_5(reference) that hold a sample

Kynkäänniemi et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage). Balls are closed (<=).
Distances are squared: |u|^2 - 2 u.v + |v|^2, at least 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from scaledit.errors import UsageError
from scaledit.evaluation.metric import DistancePrecision, Metric, MetricContext
from scaledit.evaluation.statistics import check_features
from scaledit.lazy import Tensor, np, torch
from scaledit.part import field

if TYPE_CHECKING:
    from scaledit.evaluation.features import Features
    from scaledit.evaluation.reference import Reference

K_PRECISION = 3
K_DENSITY = 5
TILE = 2048
"""Rows and columns of one tile of distances: 16 MB in float32."""


@dataclass(frozen=True)
class _Neighbors(Metric):
    """One of `Neighborhoods`; metrics with the same k share the distances."""

    better = "higher"
    of_reference = ("pool",)
    value: ClassVar[Literal["precision", "recall", "density", "coverage"]]

    k: int = field(K_PRECISION, ge=1, doc="neighborhoods reach to the k-th nearest neighbor")

    @property
    def ks(self) -> tuple[int, int]:
        """The k of precision and recall, and that of density and coverage, in one pass over the distances."""
        return (self.k, K_DENSITY) if self.value in ("precision", "recall") else (K_PRECISION, self.k)

    @property
    def fewest(self) -> int:
        return max(self.ks) + 1

    def compute(self, reference: Reference, samples: Features, context: MetricContext) -> float:
        pool, ks = reference.pool, self.ks
        assert pool is not None
        values = context.once(
            ("neighbours", ks),
            lambda: neighborhoods(
                pool, samples.pool, *ks, precision=context.precision, device=context.device
            ),
        )
        return getattr(values, self.value)


@dataclass(frozen=True)
class ImprovedPrecision(_Neighbors, name="precision"):
    """The share of samples in the neighborhood of a reference image (Kynkäänniemi et al. 2019)."""

    value = "precision"
    fraction = True
    brief = True
    order = 20


@dataclass(frozen=True)
class ImprovedRecall(_Neighbors, name="recall"):
    """The share of reference images in the neighborhood of a sample (Kynkäänniemi et al. 2019)."""

    value = "recall"
    fraction = True
    brief = True
    order = 21


@dataclass(frozen=True)
class Density(_Neighbors, name="density"):
    """The mean number of reference neighborhoods that hold a sample, over k (Naeem et al. 2020); may exceed
    1."""

    value = "density"
    order = 22

    k: int = field(K_DENSITY, ge=1, doc="neighborhoods reach to the k-th nearest neighbor")


@dataclass(frozen=True)
class Coverage(_Neighbors, name="coverage"):
    """The share of reference images whose neighborhood holds a sample (Naeem et al. 2020)."""

    value = "coverage"
    fraction = True
    order = 23

    k: int = field(K_DENSITY, ge=1, doc="neighborhoods reach to the k-th nearest neighbor")


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


class Neighborhoods(NamedTuple):
    """All four values, from one pass over the distances."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    reference: np.ndarray,
    samples: np.ndarray,
    k: int = K_PRECISION,
    precision: DistancePrecision = "fp32",
    device: str | torch.device = "cpu",
) -> PrecisionRecall:
    """Improved precision and recall of (M, D) samples against (N, D) reference features.

    precision="adm_fp16" computes distances as ADM does: a tile in float16, or in float32 if that overflows.
    Raises UsageError for features that are not finite, and for sets of at most k features.
    """
    result = neighborhoods(reference, samples, k, k, precision, device)
    return PrecisionRecall(result.precision, result.recall)


def density_coverage(
    reference: np.ndarray, samples: np.ndarray, k: int = K_DENSITY, device: str | torch.device = "cpu"
) -> DensityCoverage:
    """Density (may exceed 1) and coverage of (M, D) samples against (N, D) reference features. Raises as
    `precision_recall` does."""
    result = neighborhoods(reference, samples, k, k, device=device)
    return DensityCoverage(result.density, result.coverage)


def neighborhoods(
    reference: np.ndarray,
    samples: np.ndarray,
    k_precision: int = K_PRECISION,
    k_density: int = K_DENSITY,
    precision: DistancePrecision = "fp32",
    device: str | torch.device = "cpu",
) -> Neighborhoods:
    """All four values; each distance is computed once. The arguments are those of `precision_recall`."""
    ks = (k_precision, k_density)
    real, fake = (_prepare(features, max(ks), device) for features in (reference, samples))
    real_radii, density_radii = _radii(real, ks, precision)
    fake_radii, _ = _radii(fake, ks, precision)
    precise, recalled, covered = (
        torch.zeros(len(features), dtype=torch.bool, device=features.device)
        for features in (fake, real, real)
    )
    count = 0
    for rows in _slices(len(real)):
        for columns in _slices(len(fake)):
            distances = _distances(real[rows], fake[columns], precision)
            precise[columns] |= (distances <= real_radii[rows, None]).any(dim=0)
            recalled[rows] |= (distances <= fake_radii[None, columns]).any(dim=1)
            within = distances <= density_radii[rows, None]
            covered[rows] |= within.any(dim=1)
            count += int(within.sum())
    return Neighborhoods(
        precision=precise.double().mean().item(),
        recall=recalled.double().mean().item(),
        density=count / (k_density * len(fake)),
        coverage=covered.double().mean().item(),
    )


def _prepare(features: np.ndarray, k: int, device: str | torch.device) -> Tensor:
    check_features(features)
    if len(features) <= k:
        raise UsageError(
            f"the {k} nearest neighbors need more than {k} samples in each set, got {len(features)}"
        )
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(device)


def _slices(n: int) -> Iterator[slice]:
    return (slice(first, min(first + TILE, n)) for first in range(0, n, TILE))


def _distances(u: Tensor, v: Tensor, precision: DistancePrecision) -> Tensor:
    """Squared distances (len(u), len(v)) float32."""
    if precision == "adm_fp16":
        rough = _squared(u.half(), v.half())
        if bool(rough.isfinite().all()):
            return rough.float()
    return _squared(u, v)


def _squared(u: Tensor, v: Tensor) -> Tensor:
    norms_u, norms_v = u.square().sum(dim=1), v.square().sum(dim=1)
    return (norms_u[:, None] - 2 * (u @ v.T) + norms_v[None, :]).clamp_(min=0)


def _radii(features: Tensor, ks: tuple[int, int], precision: DistancePrecision) -> tuple[Tensor, Tensor]:
    """The squared distance of each feature to its k-th nearest other one, for each k. The nearest is always
    the feature itself, at distance 0. Each pair of tiles is computed once, for its rows and its columns."""
    n = max(ks) + 1
    nearest = torch.full((len(features), n), torch.inf, device=features.device)

    def update(rows: slice, distances: Tensor) -> None:
        closest = distances.topk(min(n, distances.shape[1]), dim=1, largest=False).values
        both = torch.cat([nearest[rows], closest], dim=1)
        nearest[rows] = both.topk(n, dim=1, largest=False, sorted=True).values

    for rows in _slices(len(features)):
        for columns in _slices(len(features)):
            if columns.start < rows.start:
                continue
            distances = _distances(features[rows], features[columns], precision)
            update(rows, distances)
            if columns.start > rows.start:
                update(columns, distances.T)
    return nearest[:, ks[0]], nearest[:, ks[1]]
