"""The paper's figure 2: all models after training, and the best results side by side.

left   distance by size, one bubble per model; its area is proportional to the Gflops of a forward pass
right  the best results as bars; dashed: held-out real images
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from scaledit.report.figures import axes, bars, labels, style, words
from scaledit.scaling.table import FINAL, GUIDANCE, Row, Table, evaluated, over_seeds

LARGEST = 34.0
"""Diameter of the largest bubble in points."""
EDGE = {"edgecolor": style.INK, "linewidth": 0.5}
KEYS = 0.5
"""Inches above the bubbles for the legend of areas."""
LETTER = 0.075  # width of a letter in spaces between two sizes, for the names right of the last one
PLACES = (0.06, 0.3, 0.62)
SHOWN = 8
OURS = "DiT"
HEIGHT = 3.2


def best(table: Table, rivals: Mapping[str, float] | None = None) -> style.Plot | None:
    """rivals: results by name to show instead of the table's own best, such as the paper's table 2."""
    models = evaluated(table.models())
    if len(models) < 2:
        return None
    results = best_results(table)
    figure = style.figure(style.TWO_COLUMNS, HEIGHT)
    above = HEIGHT * KEYS / (HEIGHT - KEYS)
    plots = figure.subplot_mosaic(
        [["key", "bars"], ["bubbles", "bars"]], width_ratios=(1.25, 1), height_ratios=(above, HEIGHT)
    )
    right = plots["bars"]
    entries = [_bar(row, models[0].steps) for row in results]
    if rivals:
        entries = [bars.Bar(name, value, highlighted=name.startswith(OURS)) for name, value in rivals.items()]
        entries.sort(key=lambda bar: -bar.value)
    bars.plot_bars(right, entries, words.distance(table, results))
    if not rivals and table.about.floor is not None:
        right.axvline(table.about.floor, color=style.INK, linestyle=(0, (3, 2)), linewidth=0.8)
    _bubbles(plots["bubbles"], plots["key"], table, models)
    guided = "; those with guidance are blue" if any(row.guidance_scale != 1 for row in results) else ""
    right_caption = (
        "Right: the results that the paper prints; those of its own models are blue."
        if rivals
        else f"Right: the best results{guided}.{words.floor(table)} {words.protocol(table, results)}"
    )
    caption = (
        f"Left: {len(models)} models after {words.trained(models)}. The area of a bubble is proportional to "
        f"the flops of a forward pass. {words.FLOPS} {words.protocol(table, models)} {right_caption}"
    )
    return style.finish("02-best", "Models by size, and the best results", caption, figure)


def best_results(table: Table) -> list[Row]:
    """The best results without and with guidance of each model and block design, seeds averaged: the best
    SHOWN of these, worst first."""
    best: dict[tuple[str, int, str, bool], Row] = {}
    areas = {row.area for row in table.models()}
    rows = over_seeds(
        (row for part in (FINAL, GUIDANCE) for row in evaluated(table.part(part)) if row.area in areas),
        lambda row: (row.part, row.model, row.conditioning, row.steps, row.guidance),
    )
    for row in rows:
        key = (row.size, row.patch_size, row.conditioning, row.guidance_scale != 1)
        if key not in best or row.distance < best[key].distance:
            best[key] = row
    return sorted(best.values(), key=lambda row: row.distance)[:SHOWN][::-1]


def _bar(row: Row, usual: int) -> bars.Bar:
    """usual: training steps that the name omits."""
    design = "" if row.conditioning == "adaln_zero" else f" {words.design(row.conditioning)}"
    guided = "" if row.guidance_scale == 1 else f", guidance {row.guidance_scale:g}"
    longer = "" if row.steps == usual else f", {row.steps:,} steps"
    name = f"{row.model}{design}{longer}{guided}"
    return bars.Bar(name, row.distance, row.fd_std, highlighted=row.guidance_scale != 1)


def _bubbles(plot: Axes, key: Axes, table: Table, models: Sequence[Row]) -> None:
    """key: the axes of the legend of areas."""
    look = style.Look.of(table)
    sizes = [size for size in look.sizes if any(row.size == size for row in models)]
    unit = axes.unit([row.macs for row in models], "flops")
    most = max(row.macs for row in models)

    def diameter(macs: float) -> float:
        return LARGEST * math.sqrt(macs / most)

    notes = []
    for row in reversed(models):  # small ones on top
        place, size = sizes.index(row.size), diameter(row.macs)
        color = look.color(row.size)
        plot.scatter([place], [row.distance], s=size**2, color=color, alpha=0.75, **EDGE)
        notes.append(labels.Label(place, row.distance, row.model, size / 2))
    axes.mark_real(plot, table.about.floor)
    axes.set_labels(plot, "model size", words.distance(table, models))
    plot.set_xticks(range(len(sizes)), sizes)
    longest = max(len(row.model) for row in models)
    plot.set_xlim(-0.5, len(sizes) - 0.55 + LETTER * longest)
    low, high = min(row.distance for row in models), max(row.distance for row in models)
    plot.set_yscale("log")
    plot.set_ylim(low / (high / low) ** 0.2, high * (high / low) ** 0.1)
    axes.logarithmic(plot, "y", HEIGHT - 1.2)
    key.set_axis_off()
    key.set(xlim=(0, 1), ylim=(0, 1))
    least = min(row.macs for row in models)
    powers = (10.0**k for k in range(-3, 5))
    values = [value for value in powers if 0.3 * least <= value * unit.divisor <= most]
    for place, value in zip(PLACES, values[-len(PLACES) :], strict=False):
        size = diameter(value * unit.divisor)
        key.scatter([place], [0.5], s=size**2, color=style.FAINT, clip_on=False, **EDGE)
        key.annotate(
            f"{axes.number(value)} {unit.name}",
            (place, 0.5),
            xytext=(size / 2 + 3, 0),
            textcoords="offset points",
            va="center",
            fontsize=style.SMALL,
            color=style.INK,
        )
    labels.place(plot, notes)
