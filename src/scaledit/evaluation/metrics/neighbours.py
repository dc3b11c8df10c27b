"""Precision, recall, density and coverage: who lies in whose neighbourhood, by tiles of bounded memory.

    B_k(x) = the ball around x that reaches its k-th nearest neighbour in its own set

    precision = share of samples in any B_3(reference)
    recall    = share of references in any B_3(sample)
    density   = mean over samples of #{B_5(reference) around it} / 5
    coverage  = share of B_5(reference) that hold a sample

Kynkäänniemi et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage). Balls are closed (<=),
and distances are squared: |u|^2 - 2 u.v + |v|^2, at least 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scaledit.errors import UsageError
from scaledit.evaluation.metric import DistancePrecision, Metric, MetricContext
from scaledit.evaluation.statistics import check_features
from scaledit.part import field

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from scaledit.evaluation.features import Features
    from scaledit.evaluation.reference import Reference
else:
    from scaledit.lazy import np, torch

K_PRECISION = 3
K_DENSITY = 5
TILE = 2048
"""Rows and columns of one tile of distances: 16 MB in float32."""


class _Neighbours(Metric):
    """What the four share: the distances, which are taken once for all of them."""

    better = "higher"
    of_reference = ("pool",)
    cost = "a distance of each sample and each reference image to all of both"

    def around(
        self, reference: Reference, samples: Features, given: MetricContext, ks: tuple[int, int]
    ) -> Neighbourhoods:
        """All four. ks: of precision and recall, of density and coverage."""
        pool = reference.pool
        assert pool is not None
        return given.once(
            ("neighbours", ks),
            lambda: neighbourhoods(pool, samples.pool, *ks, precision=given.precision, device=given.device),
        )


@dataclass(frozen=True)
class ImprovedPrecision(_Neighbours, name="precision"):
    """The share of samples in the neighbourhood of a reference image (Kynkäänniemi et al. 2019)."""

    fraction = True
    brief = True
    order = 20

    k: int = field(K_PRECISION, ge=1, doc="the neighbour that a neighbourhood reaches to")

    def compute(self, reference: Reference, samples: Features, given: MetricContext) -> float:
        return self.around(reference, samples, given, (self.k, K_DENSITY)).precision


@dataclass(frozen=True)
class ImprovedRecall(_Neighbours, name="recall"):
    """The share of reference images in the neighbourhood of a sample (Kynkäänniemi et al. 2019)."""

    fraction = True
    brief = True
    order = 21

    k: int = field(K_PRECISION, ge=1, doc="the neighbour that a neighbourhood reaches to")

    def compute(self, reference: Reference, samples: Features, given: MetricContext) -> float:
        return self.around(reference, samples, given, (self.k, K_DENSITY)).recall


@dataclass(frozen=True)
class Density(_Neighbours, name="density"):
    """How many reference images' neighbourhoods hold a sample, over k (Naeem et al. 2020); may exceed 1."""

    order = 22

    k: int = field(K_DENSITY, ge=1, doc="the neighbour that a neighbourhood reaches to")

    def compute(self, reference: Reference, samples: Features, given: MetricContext) -> float:
        return self.around(reference, samples, given, (K_PRECISION, self.k)).density


@dataclass(frozen=True)
class Coverage(_Neighbours, name="coverage"):
    """The share of reference images whose neighbourhood holds a sample (Naeem et al. 2020)."""

    fraction = True
    order = 23

    k: int = field(K_DENSITY, ge=1, doc="the neighbour that a neighbourhood reaches to")

    def compute(self, reference: Reference, samples: Features, given: MetricContext) -> float:
        return self.around(reference, samples, given, (K_PRECISION, self.k)).coverage


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


class Neighbourhoods(NamedTuple):
    """All four, from one pass over the distances."""

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

    precision="adm_fp16" takes distances as ADM does: a tile in float16, and in float32 where that overflows.
    Raises UsageError for features that are not finite or sets of k or fewer.
    """
    result = neighbourhoods(reference, samples, k, k, precision, device)
    return PrecisionRecall(result.precision, result.recall)


def density_coverage(
    reference: np.ndarray, samples: np.ndarray, k: int = K_DENSITY, device: str | torch.device = "cpu"
) -> DensityCoverage:
    """Density (may exceed 1) and coverage of (M, D) samples against (N, D) reference features. Raises as
    `precision_recall` does."""
    result = neighbourhoods(reference, samples, k, k, device=device)
    return DensityCoverage(result.density, result.coverage)


def neighbourhoods(
    reference: np.ndarray,
    samples: np.ndarray,
    k_precision: int = K_PRECISION,
    k_density: int = K_DENSITY,
    precision: DistancePrecision = "fp32",
    device: str | torch.device = "cpu",
) -> Neighbourhoods:
    """All four figures; each distance is taken once."""
    ks = (k_precision, k_density)
    real, made = (_prepare(features, max(ks), device) for features in (reference, samples))
    real_radii, real_wide = _radii(real, ks, precision)
    made_radii, _ = _radii(made, ks, precision)
    made_inside, real_inside, real_covered = (
        torch.zeros(len(features), dtype=torch.bool, device=features.device)
        for features in (made, real, real)
    )
    count = 0
    for rows in _slices(len(real)):
        for columns in _slices(len(made)):
            distances = _distances(real[rows], made[columns], precision)
            made_inside[columns] |= (distances <= real_radii[rows, None]).any(dim=0)
            real_inside[rows] |= (distances <= made_radii[None, columns]).any(dim=1)
            within = distances <= real_wide[rows, None]
            real_covered[rows] |= within.any(dim=1)
            count += int(within.sum())
    return Neighbourhoods(
        precision=made_inside.double().mean().item(),
        recall=real_inside.double().mean().item(),
        density=count / (k_density * len(made)),
        coverage=real_covered.double().mean().item(),
    )


def _prepare(features: np.ndarray, k: int, device: str | torch.device) -> Tensor:
    check_features(features)
    if len(features) <= k:
        raise UsageError(
            f"the {k} nearest neighbours need more than {k} samples in each set, got {len(features)}"
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
    """Squared distance of each feature to its k-th nearest other one, for each k. Itself, at distance 0,
    counts as the nearest. Each pair of tiles is taken once and serves its rows and its columns."""
    wanted = max(ks) + 1
    nearest = torch.full((len(features), wanted), torch.inf, device=features.device)

    def keep(where: slice, distances: Tensor) -> None:
        closest = distances.topk(min(wanted, distances.shape[1]), dim=1, largest=False).values
        both = torch.cat([nearest[where], closest], dim=1)
        nearest[where] = both.topk(wanted, dim=1, largest=False, sorted=True).values

    for rows in _slices(len(features)):
        for columns in _slices(len(features)):
            if columns.start < rows.start:
                continue
            distances = _distances(features[rows], features[columns], precision)
            keep(rows, distances)
            if columns.start > rows.start:
                keep(columns, distances.T)
    return nearest[:, ks[0]], nearest[:, ks[1]]
