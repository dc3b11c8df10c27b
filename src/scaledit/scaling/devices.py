"""Peak rates of devices by their vendors' data sheets: dense matrix products, no sparsity; imports no torch.

    FLOP/s of one device in one precision; a multiply-add is two FLOP

A vendor's headline is often twice the dense peak ("with sparsity"), or of another precision than the run's:
an H100 does 989e12 in bf16 and half of that in tf32.
"""

from __future__ import annotations

from collections.abc import Mapping

from scaledit.errors import UsageError, did_you_mean

T = 1e12
PEAKS: Mapping[str, Mapping[str, float]] = {
    # NVIDIA H100 datasheet, SXM5 and PCIe columns; printed with sparsity, halved here (fp32 has none).
    "h100": {"fp32": 66.9 * T, "tf32": 494.7 * T, "bf16": 989.4 * T, "fp16": 989.4 * T},
    "h100-pcie": {"fp32": 51.2 * T, "tf32": 378 * T, "bf16": 756 * T, "fp16": 756 * T},
    # NVIDIA H200 datasheet: the H100 SXM's chip with more memory.
    "h200": {"fp32": 66.9 * T, "tf32": 494.7 * T, "bf16": 989.4 * T, "fp16": 989.4 * T},
    # NVIDIA HGX B200 datasheet, an eighth of the board's; halved.
    "b200": {"fp32": 75 * T, "tf32": 1125 * T, "bf16": 2250 * T, "fp16": 2250 * T},
    # NVIDIA A100 datasheet, dense column.
    "a100": {"fp32": 19.5 * T, "tf32": 156 * T, "bf16": 312 * T, "fp16": 312 * T},
    # NVIDIA L40S and L4 datasheets, dense columns or halved.
    "l40s": {"fp32": 91.6 * T, "tf32": 183 * T, "bf16": 362.05 * T, "fp16": 362.05 * T},
    "l4": {"fp32": 30.3 * T, "tf32": 60 * T, "bf16": 121 * T, "fp16": 121 * T},
    # NVIDIA Ada and Blackwell RTX architecture white papers: tensor cores that add in fp32, dense.
    "4090": {"fp32": 82.6 * T, "tf32": 82.6 * T, "bf16": 165.2 * T, "fp16": 165.2 * T},
    "5090": {"fp32": 104.8 * T, "tf32": 104.8 * T, "bf16": 209.5 * T, "fp16": 209.5 * T},
    # NVIDIA Ampere GA102 white paper: the same.
    "3090": {"fp32": 35.6 * T, "tf32": 35.6 * T, "bf16": 71 * T, "fp16": 71 * T},
    # NVIDIA V100 datasheet, SXM2: neither tf32 nor bf16.
    "v100": {"fp32": 15.7 * T, "fp16": 125 * T},
    # AMD Instinct MI300X data sheet: matrix, dense.
    "mi300x": {"fp32": 163.4 * T, "tf32": 653.7 * T, "bf16": 1307.4 * T, "fp16": 1307.4 * T},
    # Google Cloud's page of each TPU, per chip (a v3 has two cores). By default a TPU multiplies float32
    # numbers in bf16, so that rate stands for tf32.
    "tpu-v3": {"tf32": 123 * T, "bf16": 123 * T},
    "tpu-v4": {"tf32": 275 * T, "bf16": 275 * T},
    "tpu-v5e": {"tf32": 197 * T, "bf16": 197 * T},
    "tpu-v5p": {"tf32": 459 * T, "bf16": 459 * T},
    "tpu-v6e": {"tf32": 918 * T, "bf16": 918 * T},
}
"""By device and precision."""

SAME = 0.01
"""Printed values of one rate differ by less than this share: 989 and 989.4."""


def peak(name: str, precision: str) -> float:
    """Dense FLOP/s of one device. Raises UsageError for an unknown device and for a precision that it
    lacks."""
    known = PEAKS.get(name.lower())
    if known is None:
        raise UsageError(f"unknown device {name!r}{did_you_mean(name.lower(), PEAKS)} (or pass --peak)")
    if precision not in known:
        raise UsageError(
            f"{name} has no {precision} peak (it has {', '.join(known)}); choose another train.precision, or "
            "pass --peak"
        )
    return known[precision]


def peak_warning(rate: float, precision: str, name: str | None = None) -> str:
    """Why `rate` cannot be the peak of the device `name`, or of any if None, in this precision; "" if it can.
    Raises UsageError as `peak` does."""
    if name is None:
        if any(_same(rate, rates[precision]) for rates in PEAKS.values() if precision in rates):
            return ""
        known = _known_as(rate, precision, PEAKS)
        return f"{terse(rate)} FLOP/s is the {known}" if known else ""
    name, dense = name.lower(), peak(name, precision)
    if rate <= dense * (1 + SAME):
        return ""
    message = f"{terse(rate)} FLOP/s is more than the {precision} peak of {name}, {terse(dense)}"
    known = _known_as(rate, precision, {name: PEAKS[name]})
    return f"{message}; it is the {known}" if known else message


def _known_as(rate: float, precision: str, devices: Mapping[str, Mapping[str, float]]) -> str:
    """'bf16 peak of h100, whose tf32 peak is 494.7e12', or "" for a rate that no device has."""
    for words, times in (("", 1), (" with sparsity", 2)):
        for name, rates in devices.items():
            for other, value in rates.items():
                if _same(rate, times * value):
                    own = (
                        f", whose {precision} peak is {terse(rates[precision])}" if precision in rates else ""
                    )
                    return f"{other} peak{words} of {name}{own}"
    return ""


def _same(rate: float, other: float) -> bool:
    return abs(rate / other - 1) <= SAME


def terse(rate: float) -> str:
    """989.4e12"""
    return f"{rate / T:.4g}e12"
