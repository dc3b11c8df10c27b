"""What samples are compared with: real images, their statistics, or both, in ADM's reference format.

REF.npz   mu (2048,)  sigma (2048, 2048)       of pool       FID
          mu_s (2023,)  sigma_s (2023, 2023)   of spatial    sFID
          arr_0 (N, H, W, 3) uint8             images        precision, recall and the like
and, where scaledit wrote it:  pool (N, 2048) instead of arr_0,  origin (JSON: extractor, n, source)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaledit.callbacks import Progress
from scaledit.errors import UsageError, shown
from scaledit.evaluation.features import FeatureNetwork, Features, extract
from scaledit.evaluation.samples import Npz, SampleSet, arrays_of, open_samples, origin_of, small_array
from scaledit.evaluation.statistics import Statistics
from scaledit.files.manifest import sha256_of
from scaledit.sampling.files import write_arrays

KNOWN = ("mu", "sigma", "mu_s", "sigma_s", "pool", "origin")
TOLERANCE = 1e-5
"""Of a covariance's symmetry and of its negative eigenvalues, relative to its largest element: rounding of
float32, in which some files hold it."""


@dataclass(frozen=True)
class Reference:
    """What is known of the real images. pool: their features (some of them, in ADM's files), for what needs
    neighbours. size: of the images, where known. sha256: of the file, or of the images' names and bytes."""

    name: str
    sha256: str
    statistics: Statistics | None = None
    spatial: Statistics | None = None
    pool: np.ndarray | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, name: str, sha256: str, features: Features) -> Reference:
        """Of real images' features."""
        return cls(name, sha256, Statistics.of(features.pool), features.spatial, features.pool, features.size)

    @property
    def n(self) -> int | None:
        """How many images the statistics are of, where known."""
        return None if self.statistics is None else self.statistics.n


def open_reference(
    path: Path,
    extractor: FeatureNetwork,
    needs_images: bool,
    allow_jpeg: bool = False,
    progress: Progress | None = None,
) -> Reference:
    """A reference for `extractor`: an .npz in ADM's format, or any sample set of real images.

    needs_images: whether features of single images are wanted; without, an ADM file's images are not looked
    at where it has statistics. Raises UsageError for a file of neither kind, or of another extractor.
    """
    if path.suffix == ".npz" and path.is_file():
        held = _arrays(path)
        if held.keys() & {"mu", "sigma", "mu_s", "sigma_s", "pool"}:
            return _of_statistics(path, held, extractor, needs_images, progress)
    samples = open_samples(path, allow_jpeg)
    [features] = extract(samples, [extractor], progress)
    return Reference.of(str(path), fingerprint(path), features)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that are known, but the images."""
    with arrays_of(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        return {name: small_array(archive, name, path) for name in names if name in KNOWN}


def _of_statistics(
    path: Path,
    held: dict[str, np.ndarray],
    extractor: FeatureNetwork,
    needs_images: bool,
    progress: Progress | None,
) -> Reference:
    origin = origin_of(held["origin"], path) if "origin" in held else {}
    made_with = origin.get("extractor_sha256")
    if made_with is not None and made_with != extractor.sha256:
        raise UsageError(
            f"{path} was made with the extractor {str(origin.get('extractor'))[:40]} (SHA-256 "
            f"{str(made_with)[:8]}...), not with {extractor.name} ({extractor.sha256[:8]}...); "
            "make it again with scaledit reference"
        )
    n = origin.get("n")
    if n is not None and (type(n) is not int or n < 2):
        raise UsageError(f"{path} says that it is of {shown(n)} images")
    pool, size = _pool(path, held), None
    if pool is None and needs_images and Npz.has_images(path):
        [features] = extract(Npz.open(path), [extractor], progress)
        pool, size = features.pool, features.size
    return Reference(
        name=str(path),
        sha256=fingerprint(path),
        statistics=_statistics(path, held, "mu", "sigma", n),
        spatial=_statistics(path, held, "mu_s", "sigma_s", n),
        pool=pool,
        size=size,
    )


def _pool(path: Path, held: dict[str, np.ndarray]) -> np.ndarray | None:
    """The features (n, D) float32 of single images, where the file has them."""
    if "pool" not in held:
        return None
    pool = held["pool"]
    if pool.ndim != 2 or len(pool) < 2 or ("mu" in held and pool.shape[1:] != held["mu"].shape):
        raise UsageError(f"{path}: pool is {pool.shape}; features are (images, dimensions of mu)")
    return _floats(path, "pool", pool).astype(np.float32)


def _floats(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """float64, in this machine's order of bytes."""
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise UsageError(f"{path}: {name} must hold finite floats")
    return array.astype(np.float64)


def _statistics(
    path: Path, held: dict[str, np.ndarray], mu: str, sigma: str, n: int | None
) -> Statistics | None:
    if mu not in held and sigma not in held:
        return None
    for name in (mu, sigma):
        if name not in held:
            raise UsageError(f"{path} holds {mu if name == sigma else sigma} but no {name}")
    mean, cov = _floats(path, mu, held[mu]), _floats(path, sigma, held[sigma])
    if mean.ndim != 1 or not mean.size or cov.shape != (len(mean), len(mean)):
        raise UsageError(f"{path}: {mu} {mean.shape} and {sigma} {cov.shape} are no mean and covariance")
    scale = float(np.abs(cov).max())
    if not max(scale, float(np.abs(mean).max())) < LARGEST_FEATURE:
        raise UsageError(f"{path}: {mu} or {sigma} holds numbers that no features have")
    if float(np.abs(cov - cov.T).max()) > TOLERANCE * scale:
        raise UsageError(f"{path}: {sigma} is no covariance: it is not symmetric")
    try:
        np.linalg.cholesky(cov + np.eye(len(cov)) * max(TOLERANCE * scale, SMALLEST))
    except np.linalg.LinAlgError:
        raise UsageError(f"{path}: {sigma} is no covariance: it has negative eigenvalues") from None
    return Statistics(mean, cov, n)


LARGEST_FEATURE = 1e30
SMALLEST = 1e-30


def write_reference(
    out: Path, samples: SampleSet, extractor: FeatureNetwork, source: str, progress: Progress | None = None
) -> Features:
    """Saves the statistics of real images in ADM's format, with their pool features (float32) for what needs
    neighbours, and the extractor's hash."""
    [features] = extract(samples, [extractor], progress)
    statistics = Statistics.of(features.pool)
    arrays = {"mu": statistics.mean, "sigma": statistics.cov}
    if features.spatial is not None:
        arrays |= {"mu_s": features.spatial.mean, "sigma_s": features.spatial.cov}
    origin = {
        "source": source,
        "n": features.n,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
    }
    write_arrays(out, {**arrays, "pool": features.pool, "origin": np.array(json.dumps(origin))})
    return features


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder: of its files' names and bytes, in order of names."""
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(str(inner.relative_to(path)).encode())
        digest.update(hashlib.sha256(inner.read_bytes()).digest())
    return digest.hexdigest()
