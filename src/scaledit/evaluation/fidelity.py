"""How close reconstructions are to their originals: PSNR and SSIM of each pair of 8-bit images.

    PSNR = 10 log10(255^2 / mean squared error)                                            (dB)
    SSIM = mean of (2 m_x m_y + c1)(2 v_xy + c2) / ((m_x^2 + m_y^2 + c1)(v_x + v_y + c2))

SSIM is Wang et al. 2004: means and variances under an 11x11 Gaussian window of deviation 1.5, with
c1 = (0.01 255)^2 and c2 = (0.03 255)^2, averaged over channels and the positions whose window lies inside the
image. Equal to skimage.metrics with gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scaledit.errors import UsageError

PEAK = 255.0
WINDOW, DEVIATION = 11, 1.5
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Two arrays (N, H, W, 3) uint8 -> (N,) in dB; infinite for equal images."""
    a, b = _pair(originals, reconstructions)
    error = (a - b).square().flatten(1).mean(1)
    return (10 * torch.log10(PEAK**2 / error)).numpy()


def ssim(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Two arrays (N, H, W, 3) uint8 -> (N,); 1 for equal images. Raises UsageError if H or W is below 11."""
    a, b = _pair(originals, reconstructions)
    if min(a.shape[-2:]) < WINDOW:
        raise UsageError(f"SSIM needs images of at least {WINDOW}x{WINDOW}, got {tuple(a.shape[-2:])}")
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a = _blurred(a * a) - mean_a.square()
    variance_b = _blurred(b * b) - mean_b.square()
    covariance = _blurred(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    below = (mean_a.square() + mean_b.square() + C1) * (variance_a + variance_b + C2)
    return (above / below).flatten(1).mean(1).numpy()


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 4 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise UsageError(
            f"two arrays (N, H, W, 3) of uint8 are needed, got {a.shape} {a.dtype} and {b.shape} {b.dtype}"
        )
    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2).double() for images in (a, b))
    return x, y


def _blurred(x: Tensor) -> Tensor:
    """The Gaussian mean around each position whose window lies inside the image."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / DEVIATION).square())
    kernel = kernel / kernel.sum()
    windows = x.unfold(-1, WINDOW, 1) @ kernel
    return windows.unfold(-2, WINDOW, 1) @ kernel
