"""What captions say: of how many images, how they were drawn, of how many runs."""

from __future__ import annotations

from collections.abc import Sequence

from scaledit.scaling.table import Row, Table

BLOCKS = {
    "in_context": "in-context",
    "cross_attention": "cross-attention",
    "adaln": "adaLN",
    "adaln_zero": "adaLN-Zero",
}
"""Block designs as the paper spells them."""
SAMPLERS = {"ddpm": "DDPM", "ddim": "DDIM", "dpm": "DPM-Solver++", "heun": "Heun", "euler": "Euler"}
FLOPS = "Flops are multiply-adds, as the paper counts them."


def distance(table: Table) -> str:
    """The label of an axis of `Row.fd`."""
    return f"{table.about.distance} (lower is better)"


def protocol(table: Table, rows: Sequence[Row]) -> str:
    """FD-digits of 2,000 images for each of 3 sample seeds; DDPM, 250 steps; unguided."""
    sets = [row.sample_sets for row in rows]
    images = f"{_between([row.num for row in rows])} images"
    each = f" for each of {_between(sets)} sample seeds" if max(sets) > 1 else ""
    samplers = " or ".join(dict.fromkeys(SAMPLERS.get(row.sampler, row.sampler) for row in rows))
    scales = [row.cfg_scale for row in rows]
    guided = "unguided" if max(scales) == 1 == min(scales) else f"guidance {_between(scales)}"
    steps = _between([row.sampling_steps for row in rows])
    return f"{table.about.distance} of {images}{each}; {samplers}, {steps} steps; {guided}."


def trained(rows: Sequence[Row]) -> str:
    """3,000 steps of batch 64"""
    return (
        f"{_between([row.steps for row in rows])} steps of batch {_between([row.batch_size for row in rows])}"
    )


def averaged(runs: Sequence[int]) -> str:
    """How many runs a line is the mean of; nothing where all are single runs."""
    several = [n for n in runs if n > 1]
    if not several:
        return "One run a line."
    some = "Lines" if len(several) == len(runs) else f"{len(several)} of {len(runs)} lines"
    return f"{some} are means of {_between(several)} training seeds, with a band of one standard deviation."


def floor(table: Table) -> str:
    value = table.about.floor
    return "" if value is None else f" Dashed: real held-out images, {value:.3g}."


def _between(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return _plain(low) if low == high else f"{_plain(low)} to {_plain(high)}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
