"""Phrases of captions: how many images, how they were sampled, how many runs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from scaledit.models.blocks import Block
from scaledit.part import members
from scaledit.scaling.table import Row, Table

COUNT = r"-\d+K$"  # the number of images at the end of a distance's name
FLOPS = "Flops are multiply-adds, as in the paper."


def design(conditioning: str) -> str:
    """The title of a block design, as the paper spells it; its name if it has no title."""
    block = members(Block).get(conditioning)
    return block.TITLE if block is not None and block.TITLE else conditioning


def measured(table: Table, rows: Sequence[Row]) -> str:
    """The distance's name, with the number of images of these rows if it has one: FID-10K."""
    numbers = {row.num for row in rows}
    if len(numbers) == 1:
        return re.sub(COUNT, f"-{max(numbers) // 1000}K", table.about.distance)
    return table.about.distance


def distance(table: Table, rows: Sequence[Row]) -> str:
    """The label of an axis of `Row.fd`."""
    return f"{measured(table, rows)} (lower is better)"


def named(row: Row, among: Sequence[Row]) -> str:
    """The model, and whatever else differs among those rows: "XL/2, all channels"."""
    names = [row.model]
    if len({other.conditioning for other in among}) > 1:
        names.append(design(row.conditioning))
    if len({other.area for other in among}) > 1:
        names.append(f"{row.tokens:,} tokens")
    if len({other.method for other in among}) > 1:
        names.append(row.sampler_title)
    if len({other.guided_channels for other in among}) > 1:
        names.append(f"{row.guided_channels} channels")
    if len({other.other_guidance for other in among}) > 1 and row.other_guidance:
        names.append(row.other_guidance)
    return ", ".join(names)


def protocol(table: Table, rows: Sequence[Row]) -> str:
    """FD-digits of 2,000 images for each of 3 sample seeds; sampler DDPM, 250 steps; no guidance."""
    sets = [row.sample_sets for row in rows]
    images = f"{_between([row.num for row in rows])} images"
    each = f" for each of {_between(sets)} sample seeds" if max(sets) > 1 else ""
    samplers = " or ".join(dict.fromkeys(row.sampler_title for row in rows))
    scales = [row.guidance_scale for row in rows]
    guided = "no guidance" if max(scales) == 1 == min(scales) else f"guidance scale {_between(scales)}"
    if others := [words for words in dict.fromkeys(row.other_guidance for row in rows) if words]:
        guided = f"{guided} and {' or '.join(others)}" if max(scales) != 1 else " or ".join(others)
    steps = _between([row.sampling_steps for row in rows])
    measure = re.sub(COUNT, "", table.about.distance)
    return f"{measure} of {images}{each}; sampler {samplers}, {steps} steps; {guided}."


def trained(rows: Sequence[Row]) -> str:
    """3,000 steps of batch 64"""
    return (
        f"{_between([row.steps for row in rows])} steps of batch {_between([row.batch_size for row in rows])}"
    )


def averaged(runs: Sequence[int]) -> str:
    """The number of runs that each line is the mean of."""
    several = [n for n in runs if n > 1]
    if not several:
        return "Each line is one training run."
    some = "All lines" if len(several) == len(runs) else f"{len(several)} of {len(runs)} lines"
    return f"{some} are means of {_between(several)} training seeds; their bands show one standard deviation."


def floor(table: Table) -> str:
    value = table.about.floor
    return "" if value is None else f" The dashed line marks held-out real images ({value:.3g})."


def _between(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return _plain(low) if low == high else f"{_plain(low)} to {_plain(high)}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
