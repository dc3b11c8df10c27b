"""Figures of an ablation: the effect of each switch with its interval, alone and removed side by side; and
the distance over training compute of the baseline, the full set and the references.

effect = ln(distance without / with), shown as the change of the distance in percent; to the left is better
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from scaledit.report.figures import axes, labels, style, words
from scaledit.scaling.ablation import BASELINE, FULL
from scaledit.scaling.ablation_verdicts import Compared, Judged, percent
from scaledit.scaling.table import FINAL, TRAINING, Row, grouped, over_seeds

ROW, MARGINS = 0.24, 1.0
"""Inches of a switch, and of everything above and below the switches."""
COLORS = {"helps": style.OKABE_ITO[5], "hurts": style.OKABE_ITO[4]}
"""Of outcomes; others are gray."""
STEPS, MOST_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), 6
"""Percent between ticks, the smallest that gives no more ticks than that."""
LEAST_SPAN = 0.05
"""Of an axis to either side of 0, as a logarithm."""
MOST_SHOWN = 5.0
"""Logarithm of the largest ratio that has a tick."""
HEIGHT = 3.4


def all_figures(judged: Judged) -> dict[str, style.Plot]:
    """The figures that the study has enough results for, by file name."""
    plots = [effects(judged), compute(judged)]
    return {f"{plot.name}.png": plot for plot in plots if plot is not None}


def effects(judged: Judged) -> style.Plot | None:
    """A dot and an interval for each switch."""
    verdicts = judged.verdicts
    panels = [
        (title, [getattr(verdict, role) for verdict in verdicts])
        for role, title in (("alone", "added to the baseline"), ("removed", "in the full set"))
    ]
    panels = [panel for panel in panels if any(one is not None and one.distance for one in panel[1])]
    if not panels:
        return None
    figure = style.figure(style.TWO_COLUMNS, MARGINS + ROW * len(verdicts))
    plots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for plot, (title, comparisons) in zip(plots, panels, strict=True):
        _panel(plot, comparisons)
        axes.set_title(plot, title)
        axes.set_labels(plot, f"change of {judged.table.about.distance} in % (left is better)", "")
        _percent(plot)
    plots[0].set_yticks(range(len(verdicts)), [verdict.switch.title for verdict in verdicts])
    plots[0].set_ylim(len(verdicts) - 0.5, -0.5)
    for plot in plots:
        plot.tick_params(axis="y", length=0)
        plot.spines["left"].set_visible(False)
    noise = judged.noise()
    caption = (
        "Each dot is the mean over training seeds of the change that a switch makes, at equal training "
        "compute; pale dots are single seeds. "
    )
    if noise is not None:
        caption += (
            f"Bars are 95 % intervals, and the gray band is what {noise.n} seeds cannot tell from no "
            f"difference (± {percent(noise.least)}). "
        )
    caption += "Green switches help, red ones hurt, gray ones make no difference that these seeds can show."
    return style.finish("effects", "What each switch changes", caption, figure)


def _panel(plot: Axes, comparisons: Sequence[Compared | None]) -> None:
    plot.axvline(0, color=style.QUIET, linewidth=0.8, zorder=1)
    for place, one in enumerate(comparisons):
        if one is None or one.distance is None:
            continue
        effect, color = one.distance, COLORS.get(one.outcome, style.QUIET)
        if effect.least is not None:
            plot.plot(
                [-effect.least, effect.least], [place, place], color=style.FAINT, linewidth=11, zorder=0,
                solid_capstyle="butt",
            )  # fmt: skip
        seeds = [-value for value in effect.by_seed.values()]
        plot.plot(seeds, [place] * len(seeds), "o", color=color, markersize=2.5, alpha=0.35, zorder=2)
        plot.errorbar(
            [-effect.value],
            [place],
            xerr=None if effect.least is None else [effect.least],
            color=color,
            marker="o",
            markersize=4.5,
            linestyle="",
            elinewidth=1.3,
            capsize=2,
            zorder=3,
        )


def _percent(plot: Axes) -> None:
    """Ticks of a logarithm at round percentages."""
    low, high = plot.get_xlim()
    low, high = min(low, -LEAST_SPAN), max(high, LEAST_SPAN)
    plot.set_xlim(low, high)
    least, most = math.ceil(100 * math.expm1(low)), math.floor(100 * math.expm1(min(high, MOST_SHOWN)))
    steps = [[*range(-(-least // step) * step, most + 1, step)] for step in STEPS]
    shown = next((ticks for ticks in steps if len(ticks) <= MOST_TICKS), steps[-1])
    plot.xaxis.set_major_locator(FixedLocator([math.log1p(p / 100) for p in shown if p > -100]))
    plot.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _signed(round(100 * math.expm1(x)))))


def _signed(percent: int) -> str:
    return f"{percent:+d}" if percent else "0"


def compute(judged: Judged) -> style.Plot | None:
    """The distance over training compute, during training and at its end."""
    declared = judged.table.about.ablation
    titles = {BASELINE: "baseline", FULL: "full set"}
    titles |= {one["name"]: str(one["title"]) for one in declared["references"]}
    curves = {name: _curve(judged, name) for name in titles}
    lines = {name: rows for name, rows in curves.items() if len({row.steps for row in rows}) > 1}
    if not lines:
        return None
    ends: dict[str, list[Row]] = {}  # by the set of switches
    for bar in judged.bars:
        of = " ".join(f"+{switch}" for switch in bar.switches) or "full set"
        ends.setdefault(of, []).extend(judged.rows(bar.name, FINAL))
    targets = [target for target in judged.targets if target.name not in (BASELINE, *lines)]
    every = [row for rows in (*lines.values(), *ends.values()) for row in rows]
    unit = axes.unit([row.train_macs for row in every], "flops")
    figure = style.figure(style.TWO_COLUMNS, HEIGHT)
    plot = figure.subplots()
    handles, notes = [], []
    for i, (name, rows) in enumerate(lines.items()):
        color, marker = style.OKABE_ITO[i % len(style.OKABE_ITO)], style.MARKERS[i % len(style.MARKERS)]
        look = {"color": color, "marker": marker, "markersize": 3.5, "linewidth": 1.2}
        mean = sorted(over_seeds(rows, lambda row: row.steps), key=lambda row: row.steps)
        runs = len({row.seed for row in rows})
        axes.line(plot, [row.train_macs / unit.divisor for row in mean], mean, runs, **look)
        handles.append(Line2D([], [], label=titles[name], **look))
        last = mean[-1]
        notes.append(labels.Label(last.train_macs / unit.divisor, last.distance, titles[name], end=True))
    for i, (of, rows) in enumerate((of, rows) for of, rows in ends.items() if rows):
        look = {
            "color": style.OKABE_ITO[(4 + i) % len(style.OKABE_ITO)],
            "marker": "*P"[i % 2],
            "markersize": 6,
            "linestyle": "",
        }
        plot.plot([row.train_macs / unit.divisor for row in rows], [row.distance for row in rows], **look)
        handles.append(Line2D([], [], label=f"{of},\nshort training", **look))
    for target in targets:
        plot.plot([target.macs / unit.divisor], [target.fd], "x", color=style.INK, markersize=5)
        notes.append(labels.Label(target.macs / unit.divisor, target.fd, target.title, end=True))
    axes.mark_real(plot, judged.table.about.floor)
    axes.set_labels(plot, f"training compute ({unit.name})", words.distance(judged.table, every))
    plot.set_xscale("log")
    plot.set_yscale("log")
    plot.margins(x=0.12, y=0.08)
    axes.logarithmic(plot, "x", style.TWO_COLUMNS - 1.6)
    axes.logarithmic(plot, "y", HEIGHT - 0.6)
    axes.legend(plot, handles)
    labels.place(plot, notes)
    caption = (
        "Evaluations during training; bands show one standard deviation over training seeds. Learning rates "
        "that fall end at the end of each training, so a point in the middle of a line is not what a shorter "
        "training would reach; marks without lines are such shorter training runs."
        f"{words.floor(judged.table)} {words.FLOPS} {words.protocol(judged.table, every)}"
    )
    return style.finish("compute", "Distance over training compute", caption, figure)


def _curve(judged: Judged, name: str) -> list[Row]:
    """The evaluations during training of the runs with the most of them."""
    runs = grouped(judged.rows(name, TRAINING), lambda row: row.seed).values()
    most = max(map(len, runs), default=0)
    return [row for run in runs if len(run) == most for row in run]
