"""One style for all figures: sizes in inches, type, colors, markers.

sizes     a color each, viridis from light (small) to dark (large): ordered by lightness, also in gray
patches   a marker and a line style each, solid for the smallest patch
others    Okabe & Ito's colors (jfly.uni-koeln.de/color, 2008), which color-blind people can distinguish
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaledit.scaling.table import Row, Table

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0
"""Widths of a figure in print, in inches."""
TEXT, SMALL = 8.0, 7.0
"""Font sizes at those widths, in points: labels of axes; everything else."""
DPI = 160
CSS_DPI = 120
"""CSS pixels per inch on a page, where the smallest text then is 11.7 pixels high."""
MAX_PASSES = 5  # of the layout
INK, QUIET, FAINT = "#222222", "#6e6e6e", "#d4d4d4"
OKABE_ITO = ("#0072b2", "#e69f00", "#000000", "#56b4e9", "#d55e00", "#009e73", "#cc79a7")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (4.5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5)), (0, (2.5, 1)))
LIGHTEST = 0.75  # of viridis; lighter colors are invisible on white


class Plot(NamedTuple):
    """A figure to print. name: of its file, without suffix. title, caption: plain text."""

    name: str
    title: str
    caption: str
    figure: Figure

    @property
    def width(self) -> int:
        """CSS pixels at which a page shows the figure."""
        return round(self.figure.get_figwidth() * CSS_DPI)

    @property
    def height(self) -> int:
        return round(self.figure.get_figheight() * CSS_DPI)


def finish(name: str, title: str, caption: str, figure: Figure) -> Plot:
    """Makes a `Plot` of a figure and fixes its layout, which takes several passes to converge and would
    otherwise change whenever the figure is saved."""
    before: list[float] = []
    for _ in range(MAX_PASSES):
        figure.draw_without_rendering()
        after = [round(float(edge), 4) for axes in figure.axes for edge in axes.get_position().extents]
        if after == before:
            break
        before = after
    figure.set_layout_engine("none")
    return Plot(name, title, caption, figure)


def palette(count: int) -> list[str]:
    """Colors of `count` sizes, smallest first."""
    last = max(1, count - 1)
    return [to_hex(colormaps["viridis"](LIGHTEST * (1 - i / last))) for i in range(count)]


@dataclass(frozen=True)
class Look:
    """The look of a table's models, the same in all figures."""

    sizes: tuple[str, ...]
    patches: tuple[int, ...]

    @classmethod
    def of(cls, table: Table) -> Look:
        """Sizes in the order of `About.sizes`, followed by others by their parameters. Sizes without results
        keep their color, so that no color changes while a study runs."""
        by_params = (row.size for row in sorted(table.rows, key=lambda row: row.params))
        sizes = tuple(dict.fromkeys((*table.about.sizes, *by_params)))
        return cls(sizes, tuple(sorted({row.patch_size for row in table.rows})))

    def color(self, size: str) -> str:
        return palette(len(self.sizes))[self.sizes.index(size)]

    def marker(self, patch: int) -> str:
        return MARKERS[self.patches.index(patch) % len(MARKERS)]

    def dash(self, patch: int) -> Any:
        return DASHES[self.patches.index(patch) % len(DASHES)]

    def line(self, row: Row) -> dict[str, Any]:
        """Keyword arguments of a line with markers."""
        return {**self.dots(row), "linestyle": self.dash(row.patch_size), "linewidth": 1.2}

    def dots(self, row: Row) -> dict[str, Any]:
        """Keyword arguments of markers without a line."""
        return {
            "color": self.color(row.size),
            "marker": self.marker(row.patch_size),
            "markersize": 3.5,
            "markeredgewidth": 0.8,
            "linestyle": "",
        }

    def size_handles(self, sizes: Iterable[str]) -> list[Artist]:
        present = set(sizes)
        shown = [size for size in self.sizes if size in present]
        return [Line2D([], [], color=self.color(size), linewidth=2.4, label=size) for size in shown]

    def patch_handles(self, patches: Iterable[int], lines: bool = True) -> list[Artist]:
        present = set(patches)
        look: dict[str, Any] = {"color": QUIET, "markersize": 3.5, "linewidth": 1.2}
        return [
            Line2D(
                [],
                [],
                linestyle=self.dash(patch) if lines else "",
                marker=self.marker(patch),
                label=f"patch {patch}",
                **look,
            )
            for patch in self.patches
            if patch in present
        ]

    def handles(self, rows: Sequence[Row], lines: bool = True) -> list[Artist]:
        """Legend handles of sizes, then of patches, if there are several. lines: whether the figure has
        lines."""
        sizes = self.size_handles(row.size for row in rows)
        patches = self.patch_handles((row.patch_size for row in rows), lines)
        return [*(sizes if len(sizes) > 1 else []), *(patches if len(patches) > 1 else [])]


def figure(width: float, height: float) -> Figure:
    """An empty figure with constrained layout; width and height in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # measures text, for the places of labels
    return figure
