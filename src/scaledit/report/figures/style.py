"""One style for all figures: sizes in inches, type, colours, markers.

sizes     a colour each, viridis from light (small) to dark (large): in order of lightness, so in grey too
patches   a marker and a line style each, drawn through for the smallest patch
others    Okabe & Ito's colours (jfly.uni-koeln.de/color, 2008), told apart by colour-blind people
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from scaledit.scaling.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0
"""Widths of a figure in print, inches."""
TEXT, SMALL = 8.0, 7.0
"""Sizes of type at those widths, points: labels of axes; all else."""
DPI = 160
PASSES = 5  # of the layout, at most
INK, QUIET, FAINT = "#222222", "#6e6e6e", "#d4d4d4"
OKABE_ITO = ("#0072b2", "#e69f00", "#000000", "#56b4e9", "#d55e00", "#009e73", "#cc79a7")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (4.5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5)), (0, (2.5, 1)))
LIGHTEST = 0.75  # of viridis: what is lighter does not show on white


class Plot(NamedTuple):
    """A figure to print. name: its file's, without a suffix. title, caption: plain text."""

    name: str
    title: str
    caption: str
    figure: Figure


def finished(name: str, title: str, caption: str, figure: Figure) -> Plot:
    """With the axes where they stay: their layout takes more than one pass, and so would move with every time
    that a figure is saved."""
    before: list[float] = []
    for _ in range(PASSES):
        figure.draw_without_rendering()
        after = [round(float(edge), 4) for axes in figure.axes for edge in axes.get_position().extents]
        if after == before:
            break
        before = after
    figure.set_layout_engine("none")
    return Plot(name, title, caption, figure)


def palette(count: int) -> list[str]:
    """Colours of that many sizes, from the smallest on."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    last = max(1, count - 1)
    return [to_hex(colormaps["viridis"](LIGHTEST * (1 - i / last))) for i in range(count)]


@dataclass(frozen=True)
class Look:
    """What models of a table look like, in every figure alike."""

    sizes: tuple[str, ...]
    patches: tuple[int, ...]

    @classmethod
    def of(cls, table: Table) -> Look:
        """Sizes as `About.sizes` orders them, those it does not name by their parameters."""
        params = {row.size: row.params for row in sorted(table.rows, key=lambda row: row.params)}
        named = table.about.sizes  # all of them, so that none changes its colour while a study goes on
        sizes = [*named, *(size for size in params if size not in named)]
        return cls(tuple(sizes), tuple(sorted({row.patch_size for row in table.rows})))

    def colour(self, size: str) -> str:
        return palette(len(self.sizes))[self.sizes.index(size)]

    def marker(self, patch: int) -> str:
        return MARKERS[self.patches.index(patch) % len(MARKERS)]

    def dash(self, patch: int) -> Any:
        return DASHES[self.patches.index(patch) % len(DASHES)]

    def line(self, row: Row) -> dict[str, Any]:
        """Arguments of a line with markers."""
        return {**self.dots(row), "linestyle": self.dash(row.patch_size), "linewidth": 1.2}

    def dots(self, row: Row) -> dict[str, Any]:
        """Arguments of markers without a line."""
        return {
            "color": self.colour(row.size),
            "marker": self.marker(row.patch_size),
            "markersize": 3.5,
            "markeredgewidth": 0.8,
            "linestyle": "",
        }

    def size_keys(self, sizes: Iterable[str]) -> list[Artist]:
        from matplotlib.lines import Line2D

        shown = set(sizes)
        return [
            Line2D([], [], color=self.colour(size), linewidth=2.4, label=size)
            for size in self.sizes
            if size in shown
        ]

    def patch_keys(self, patches: Iterable[int], lines: bool = True) -> list[Artist]:
        from matplotlib.lines import Line2D

        shown = set(patches)
        return [
            Line2D(
                [],
                [],
                color=QUIET,
                linestyle=self.dash(patch) if lines else "",
                marker=self.marker(patch),
                markersize=3.5,
                linewidth=1.2,
                label=f"patch {patch}",
            )
            for patch in self.patches
            if patch in shown
        ]

    def keys(self, rows: Sequence[Row], lines: bool = True) -> list[Artist]:
        """Sizes, then patches, of whatever has several. lines: whether the figure has any."""
        sizes = self.size_keys(row.size for row in rows)
        patches = self.patch_keys((row.patch_size for row in rows), lines)
        return [*(sizes if len(sizes) > 1 else []), *(patches if len(patches) > 1 else [])]


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches, that lays its axes out itself."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # 0.5 s to import

    made = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(made)  # measures text, which labels need
    return made
