"""The figures of a study show what the table holds, and are legible."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from made_tables import BLOCKS, FLOOR, PATCHES, SAMPLING_STEPS, SCALES, SIZES, STEPS, guidance, study
from scaledit.evaluation.metric import built_in_columns
from scaledit.report import figures, page
from scaledit.report.figures import axes as plots
from scaledit.report.figures import labels, style
from scaledit.report.figures.curves import over_training
from scaledit.report.figures.losses import smoothed
from scaledit.report.figures.metrics import sense
from scaledit.report.figures.samples import _read
from scaledit.scaling import comparable, paper, printed_table
from scaledit.scaling.frontier import staircase
from scaledit.scaling.table import FINAL, GUIDANCE, SAMPLING, TRAINING, About, Loss, Table, read

STUDY = ["02-best", "05-blocks", "06-training", "07-samples", "08-compute", "09-efficiency", "10-sampling"]
STUDY += ["12-metrics", "13-losses", "14-guidance"]
PAPER = ["02-best", "05-blocks", "08-compute", "09-efficiency", "10-sampling", "14-guidance"]
NAMES = [f"study {name}" for name in STUDY] + [f"paper {name}" for name in PAPER]
WIDE = (
    figures.best,
    figures.samples,
    figures.compute,
    figures.efficiency,
    figures.losses,
)  # with texts of models
NAMES += ["wide 02-best", "wide 07-samples", "wide 08-compute", "wide 09-efficiency", "wide 13-losses"]


def law(x: np.ndarray) -> np.ndarray:
    return 100 * x**-0.4


NOTE = "r = -0.94 (95 %: -0.99 to -0.83); exponent 0.365 (95 %: 0.264 to 0.457)"
FIT = figures.Fit(law, lambda x: (law(x) / 2, law(x) * 2), NOTE)


def renamed(table: Table) -> Table:
    """With sizes as depth x width, the widest possible names, and no floor."""
    wide = {size: f"{depth}x{width}" for size, (depth, width) in SIZES.items()}

    def new(name: str) -> str:
        size, rest = name.split("/", 1)
        return f"{wide[size]}/{rest}"

    return Table(
        replace(table.about, sizes=(), floor=None),
        tuple(replace(row, name=new(row.name), size=wide[row.size]) for row in table.rows),
        tuple(loss._replace(name=new(loss.name)) for loss in table.losses),
        {new(name): png for name, png in table.pictures.items()},
    )


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    return {"study": study(), "paper": printed_table.table()}


@pytest.fixture(scope="module")
def rendered(tables: dict[str, Table]) -> dict[str, figures.Plot]:
    """By 'table name', laid out."""
    results = paper.quality((256, 256))
    rivals = {"paper": {row.name.removeprefix("paper: "): row.metrics["fid"].value for row in results}}
    plots_by_name = {}
    for name, table in tables.items():
        for file, plot in figures.all_figures(table, rivals.get(name), FIT, FIT).items():
            assert file == f"{plot.name}.png"
            plots_by_name[f"{name} {plot.name}"] = plot
    wide = renamed(tables["study"])
    plots_by_name |= {f"wide {plot.name}": plot for plot in (figure(wide) for figure in WIDE)}
    return plots_by_name


def texts(figure) -> list[Text]:
    """The texts of a figure, without ticks beyond the axes' ends or of hidden axes."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                inside = low * (1 - 1e-9) <= tick.get_loc() <= high * (1 + 1e-9)
                hidden |= set() if inside and axes.axison else {tick.label1, tick.label2}
            hidden |= set() if axes.axison else {axis.label, axis.offsetText}
    visible = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text for text in visible if text not in hidden and not _in_hidden_tick(text)]


def _in_hidden_tick(text: Text) -> bool:
    return Text.get_window_extent(text).width == 0


def test_each_table_gives_the_figures_that_it_holds(rendered: dict[str, figures.Plot]):
    assert list(rendered) == NAMES
    for plot in rendered.values():
        assert plot.caption.endswith(".") and "None" not in plot.caption and "  " not in plot.caption
    assert "12 models" in rendered["study 08-compute"].caption
    assert (
        "2,000 images for each of 3 sample seeds; sampler DDPM, 100 steps"
        in rendered["study 08-compute"].caption
    )
    assert "6 of 12 lines are means of 3 training seeds" in rendered["study 06-training"].caption
    assert "50,000 images; sampler DDPM, 250 steps; no guidance" in rendered["paper 08-compute"].caption
    assert "guidance scale 1 to 4" in rendered["study 14-guidance"].caption


FINAL_ONES = (figures.best, figures.blocks, figures.compute, figures.metrics)
JUDGED = (*FINAL_ONES[:3], figures.training, figures.efficiency, figures.sampling, figures.guidance)


@pytest.mark.parametrize(
    ("without", "lost"),
    [
        (TRAINING, (figures.training, figures.efficiency)),  # all trained equally long
        (SAMPLING, (figures.sampling,)),
        (GUIDANCE, (figures.guidance,)),
        (FINAL, FINAL_ONES),
        ("losses", (figures.losses,)),
        ("pictures", (figures.samples,)),
        ("metrics", (figures.metrics,)),
        ("distances", JUDGED),
    ],
)
def test_what_a_table_lacks_is_not_drawn(tables: dict[str, Table], without: str, lost):
    table = tables["study"]
    table = replace(table, rows=tuple(row for row in table.rows if row.part != without))
    if without == "losses":
        table = replace(table, losses=())
    if without == "pictures":
        table = replace(table, pictures={})
    if without == "metrics":
        table = replace(table, rows=tuple(replace(row, metrics={}) for row in table.rows))
    if without == "distances":
        table = replace(table, rows=tuple(replace(row, fd=None, fd_std=None) for row in table.rows))
    for figure in lost:
        assert figure(table) is None


def test_an_empty_table_and_one_run_draw_nothing(tables: dict[str, Table]):
    assert figures.all_figures(Table(About("", "", "", "FD"), ())) == {}
    one = tuple(row for row in tables["study"].rows if row.name == "S/4" and row.part in (FINAL, TRAINING))
    assert figures.all_figures(Table(tables["study"].about, one)) == {}


@pytest.mark.parametrize("name", NAMES)
def test_texts_do_not_overlap_and_lie_inside(rendered: dict[str, figures.Plot], name: str):
    figure = rendered[name].figure
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts(figure)]
    assert len(boxes) > 5
    page_box = figure.bbox
    for text, box in boxes:
        assert box.x0 >= -0.5 and box.y0 >= -0.5, text
        assert box.x1 <= page_box.x1 + 0.5 and box.y1 <= page_box.y1 + 0.5, text
    for (a, one), (b, other) in itertools.combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 1 or height <= 1, (a, b)


@pytest.mark.parametrize("name", NAMES)
def test_type_is_large_enough_at_print_size(rendered: dict[str, figures.Plot], name: str):
    figure = rendered[name].figure
    assert figure.get_figwidth() <= style.TWO_COLUMNS + 1e-9
    assert min(text.get_fontsize() for text in texts(figure)) >= 7


@pytest.mark.parametrize("name", NAMES)
def test_axes_say_their_units(rendered: dict[str, figures.Plot], name: str):
    figure = rendered[name].figure
    shown = [axes for axes in figure.axes if axes.axison]
    axis_labels = [label for axes in shown for label in (axes.get_xlabel(), axes.get_ylabel()) if label]
    bands = (figure, *figure.subfigs)
    axis_labels += [label for f in bands for label in (f.get_supxlabel(), f.get_supylabel()) if label]
    assert axis_labels or "samples" in name
    for label in axis_labels:
        assert label.endswith(")") or label == "model size", label
    if "samples" in name:
        assert sum("flops" in text.get_text() for text in texts(figure)) == 12
    if "metrics" in name:
        assert all(axes.get_title("left").endswith(")") for axes in figure.axes if axes.axison)


@pytest.mark.parametrize("name", ["study 02-best", "paper 02-best", "wide 02-best", "study 08-compute"])
def test_labels_of_points_cover_no_point(rendered: dict[str, figures.Plot], name: str):
    for axes in rendered[name].figure.axes:
        points, _ = labels._plotted_points(axes)
        for text in axes.texts:
            box = Text.get_window_extent(text)
            dx = np.maximum(0, np.maximum(box.x0 - points[:, 0], points[:, 0] - box.x1))
            dy = np.maximum(0, np.maximum(box.y0 - points[:, 1], points[:, 1] - box.y1))
            assert (np.hypot(dx, dy) >= points[:, 2] - 0.5).all(), text.get_text()


DIGITS = Path(__file__).parent.parent / "docs/studies/digits"


@pytest.mark.parametrize("figure", [figures.sampling, figures.efficiency])
def test_names_of_lines_are_at_their_ends_and_apart(figure):
    """In the committed study, whose lines are close together. A page shows 2 pixels as 1.2 points."""
    plot = figure(read(DIGITS))
    least = 1.2 / labels.POINTS * plot.figure.dpi
    for axes in plot.figure.axes:
        boxes = {
            note: Text.get_window_extent(note) for note in axes.texts if note.get_text() != "real images"
        }
        for one, other in itertools.combinations(boxes.values(), 2):
            x = max(one.x0, other.x0) - min(one.x1, other.x1)
            y = max(one.y0, other.y0) - min(one.y1, other.y1)
            assert max(x, y) >= least - 0.1
        ends = {note: axes.transData.transform(note.xy) for note in boxes}
        for note, box in boxes.items():
            away = {other: distance(box, end) for other, end in ends.items()}
            assert away[note] <= min(away.values()) + 2 * least  # of ends that nearly coincide, either
            assert away[note] < 25 / labels.POINTS * plot.figure.dpi
            assert box.x1 > ends[note][0]


def distance(box, point: np.ndarray) -> float:
    x, y = point
    return float(np.hypot(max(0, box.x0 - x, x - box.x1), max(0, box.y0 - y, y - box.y1)))


def test_pngs_are_small_and_of_two_dots_per_pixel_of_a_page(tables: dict[str, Table]):
    plot = figures.blocks(tables["study"])
    png = page.rendered(plot.figure)
    assert len(png) < 300_000
    assert _read(png).shape[:2] == (2 * plot.height, 2 * plot.width)


def marked(axes) -> list:
    """The lines with markers, without those of `plots.END`."""
    lines = [line for line in axes.get_lines() if line.get_label() != plots.END]
    return [line for line in lines if line.get_marker() not in ("", "None")]


def test_best(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    _, right, left = rendered["study 02-best"].figure.axes[:3]
    if left.get_xlabel() != "model size":
        left, right = right, left
    bubbles = {}
    for dots in left.collections:
        (place, fd), *_ = dots.get_offsets().tolist()
        bubbles[list(SIZES)[round(place)], fd] = dots.get_sizes()[0]
    models = tables["study"].models()
    assert set(bubbles) == {(row.size, row.fd) for row in models}
    areas = [bubbles[row.size, row.fd] / row.macs for row in models]
    np.testing.assert_allclose(areas, areas[0])
    widths = [bar.get_width() for bar in right.patches]
    assert widths == sorted(widths, reverse=True) and len(widths) == 8
    guided = min(row.fd for row in tables["study"].part(GUIDANCE))
    assert widths[-1] == guided and right.get_yticklabels()[-1].get_text() == "XL/1, guidance 1.5"
    assert FLOOR in [line.get_xdata()[0] for line in right.get_lines()]


def test_best_of_the_paper_is_its_table_2(rendered: dict[str, figures.Plot]):
    [bars] = [axes for axes in rendered["paper 02-best"].figure.axes if axes.patches]
    named = dict(zip((t.get_text() for t in bars.get_yticklabels()), bars.patches, strict=True))
    assert len(named) == 15
    assert named["DiT-XL/2-G (cfg=1.50)"].get_width() == 2.27 and named["ADM"].get_width() == 10.94
    assert named["DiT-XL/2"].get_facecolor() != named["ADM"].get_facecolor()


def test_blocks(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    [axes] = rendered["study 05-blocks"].figure.axes
    lines = marked(axes)
    assert [line.get_marker() for line in lines] == list(style.MARKERS[:4])
    for line, block in zip(lines, BLOCKS, strict=True):
        rows = tables["study"].part(
            TRAINING,
            lambda row, block=block: (row.size, row.patch_size, row.conditioning) == ("XL", 1, block),
        )
        np.testing.assert_array_equal(line.get_xdata(), STEPS)
        np.testing.assert_array_equal(line.get_ydata(), [row.fd for row in rows])
    written = [text.get_text() for text in axes.texts]
    assert written == ["real images", "adaLN-Zero", "adaLN", "cross-attention", "in-context"]
    [axes] = rendered["paper 05-blocks"].figure.axes
    assert [bar.get_width() for bar in axes.patches] == [35.24, 26.14, 25.21, 19.47]


def test_training_has_both_cuts_of_the_same_lines(
    tables: dict[str, Table], rendered: dict[str, figures.Plot]
):
    figure = rendered["study 06-training"].figure
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["patch 4", "patch 2", "patch 1", "size S", "size B", "size L", "size XL"]
    lines = {axes.get_title("left"): marked(axes) for axes in figure.axes}
    assert [len(some) for some in lines.values()] == [4, 4, 4, 3, 3, 3, 3]
    three = [
        [row.fd for row in tables["study"].part(TRAINING) if row.name == name]
        for name in ("S/4", "S/4 seed 1", "S/4 seed 2")
    ]
    [first] = [line for line in lines["patch 4"] if line.get_color() == style.palette(4)[0]]
    np.testing.assert_allclose(first.get_ydata(), np.mean(three, axis=0))
    [again] = [line for line in lines["size S"] if line.get_marker() == style.MARKERS[2]]
    np.testing.assert_array_equal(first.get_ydata(), again.get_ydata())
    bands = figure.axes[0].collections
    assert len(bands) == 2  # S and B have seeds
    assert {axes.get_ylim() for axes in figure.axes} == {figure.axes[0].get_ylim()}


def test_a_longer_training_shows_where_compute_is_compared_only(tables: dict[str, Table]):
    """S/4 trained to 40,000 steps: figure 9 follows it there, figure 6 ends at the grid's steps, and the grid
    itself is unchanged."""
    study = tables["study"]
    first = next(row for row in study.part(TRAINING) if row.name == "S/4")
    scale = 40_000
    longer = [
        replace(first, name="S/4 40000 steps", part=part, steps=steps, images=64 * steps, fd=9.0,
                train_macs=3 * first.macs * 64 * steps)
        for part, steps in ((FINAL, scale), *((TRAINING, scale * i // 8) for i in range(1, 9)))
    ]  # fmt: skip
    table = Table(study.about, (*study.rows, *longer))
    assert table.models() == study.models()
    ends = {c.first.model: c.rows[-1].steps for c in over_training(table)}
    assert ends.pop("S/4") == scale and set(ends.values()) == {6000}
    limited = {c.first.model: c.rows[-1].steps for c in over_training(table, 6000)}
    assert set(limited.values()) == {6000} and len(limited) == 12


def test_a_run_that_is_not_at_its_end_does_not_bend_the_mean(tables: dict[str, Table]):
    rows = [
        row
        for row in tables["study"].rows
        if not (row.name == "S/4 seed 1" and row.part == TRAINING and row.steps > 2000)
    ]
    [curve] = [c for c in over_training(Table(tables["study"].about, tuple(rows))) if c.first.model == "S/4"]
    two = [
        [row.fd for row in tables["study"].part(TRAINING) if row.name == name]
        for name in ("S/4", "S/4 seed 2")
    ]
    assert curve.runs == 2
    np.testing.assert_allclose([row.fd for row in curve.rows], np.mean(two, axis=0))


def test_samples_are_arranged_by_size_and_patch(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    axes = {
        plot.texts[0].get_text().split(":")[0]: plot.get_position()
        for plot in rendered["study 07-samples"].figure.axes
    }
    assert len(axes) == 12
    for patch in PATCHES:
        assert len({round(axes[f"{size}/{patch}"].y0, 6) for size in SIZES}) == 1
        assert [axes[f"{size}/{patch}"].x0 for size in SIZES] == sorted(
            axes[f"{s}/{patch}"].x0 for s in SIZES
        )
    assert axes["S/4"].y0 > axes["S/2"].y0 > axes["S/1"].y0  # from the bottom of the page
    panel = next(
        p for p in rendered["study 07-samples"].figure.axes if p.texts[0].get_text().startswith("XL/1:")
    )
    enlarged = panel.images[0].get_array()
    original = _read(tables["study"].pictures["XL/1"])
    zoom = enlarged.shape[0] // original.shape[0]
    np.testing.assert_array_equal(enlarged[zoom // 2 :: zoom, zoom // 2 :: zoom], original)


def test_sheets_of_many_rows_still_fit_a_page(tables: dict[str, Table]):
    tall = {name: _tall(png) for name, png in tables["study"].pictures.items()}
    figure = figures.samples(replace(tables["study"], pictures=tall)).figure
    assert figure.get_figheight() <= 8.6 and figure.get_figwidth() < style.TWO_COLUMNS
    boxes = [Text.get_window_extent(text) for text in texts(figure)]
    pictures = [axes.get_window_extent() for axes in figure.axes]
    for text, picture in itertools.product(boxes, pictures):
        assert not (
            text.x0 < picture.x1 and picture.x0 < text.x1 and text.y0 < picture.y1 and picture.y0 < text.y1
        )


def _tall(png: bytes) -> bytes:
    return page.png(np.concatenate([_read(png)] * 3))


def test_a_size_keeps_its_color_while_a_study_goes_on(tables: dict[str, Table]):
    some = replace(tables["study"], rows=tuple(row for row in tables["study"].rows if row.size == "XL"))
    assert style.Look.of(some).color("XL") == style.Look.of(tables["study"]).color("XL")


def test_compute(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    left, right = rendered["paper 08-compute"].figure.axes
    models = tables["paper"].models()
    assert len(models) == 12
    assert left.get_title("left").splitlines()[0].endswith(";")  # no line ends after "95 %:"
    for axes, x in ((left, [r.gflops for r in models]), (right, [r.params / 1e6 for r in models])):
        points = sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in marked(axes))
        np.testing.assert_allclose(points, sorted(zip(x, (row.fd for row in models), strict=True)))
        assert axes.get_title("left").replace("\n", " ") == NOTE
        assert {text.get_text() for text in axes.texts} == {row.model for row in models}
    assert (left.get_xlabel(), right.get_xlabel()) == (
        "model compute (Gflops of a forward pass)",
        "parameters (millions)",
    )
    for axes, unit in ((left, 1.0), (right, 1e6)):
        [line] = [line for line in axes.get_lines() if len(line.get_xdata()) == 100]
        np.testing.assert_allclose(line.get_ydata(), law(line.get_xdata() * unit))


def test_compute_without_a_fit_and_in_the_unit_of_small_models(tables: dict[str, Table]):
    plot = figures.compute(tables["study"])
    assert plot is not None and "power law" not in plot.caption
    left = plot.figure.axes[0]
    assert left.get_xlabel() == "model compute (Mflops of a forward pass)"
    least = min(row.macs for row in tables["study"].models())
    assert min(float(line.get_xdata()[0]) for line in marked(left)) == least / 1e6


def test_efficiency(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    [axes] = rendered["study 09-efficiency"].figure.axes
    lines = marked(axes)
    assert len(lines) == 12
    [xl] = [n for n in lines if (n.get_color(), n.get_marker()) == (style.palette(4)[3], style.MARKERS[0])]
    rows = [row for row in tables["study"].part(TRAINING) if row.name == "XL/1"]
    np.testing.assert_allclose(xl.get_xdata(), [row.train_macs / 1e9 for row in rows])
    np.testing.assert_allclose(xl.get_ydata(), [row.fd for row in rows])
    [front] = [line for line in axes.get_lines() if line.get_label() == "frontier"]
    assert (np.diff(front.get_ydata()) < 0).all() and (np.diff(front.get_xdata()) > 0).all()
    for line in lines:
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            assert y >= front.get_ydata()[front.get_xdata() <= x * (1 + 1e-12)].min()


def test_efficiency_of_the_paper_is_its_three_lengths_of_xl_2(rendered: dict[str, figures.Plot]):
    [axes] = rendered["paper 09-efficiency"].figure.axes
    lines = marked(axes)
    assert sorted(len(line.get_xdata()) for line in lines) == [1] * 11 + [3]
    longest = max(lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_allclose(longest.get_ydata(), [19.47, 10.67, 9.62])
    np.testing.assert_allclose(longest.get_xdata()[0], 3 * 118.64 * 256 * 400_000 / 1e9, rtol=2e-3)


def test_frontier_by_hand(tables: dict[str, Table]):
    row = tables["study"].rows[0]
    points = [(1, 9.0), (2, 10.0), (3, 9.0), (4, 5.0), (4, 6.0), (5, 5.5), (6, None), (7, 1.0)]
    results = comparable.points(replace(row, train_macs=macs, fd=fd) for macs, fd in points)
    assert [point[1:] for point in staircase(results)] == [(1, 9.0), (4, 5.0), (7, 1.0)]


def test_sampling(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    panels = {axes.get_title("left"): axes for axes in rendered["study 10-sampling"].figure.axes}
    shown = {name: [len(line.get_xdata()) for line in marked(axes)] for name, axes in panels.items()}
    assert list(shown) == sorted(shown, reverse=True)  # from coarse to fine patches
    assert [*itertools.chain(*shown.values())] == [len(SAMPLING_STEPS)] * 6
    small = marked(panels["patch 1"])[0]
    row = tables["study"].part(SAMPLING, lambda row: row.model == "S/1")[0]
    np.testing.assert_allclose(small.get_xdata(), [row.macs * n / 1e6 for n in SAMPLING_STEPS])
    [axes] = rendered["paper 10-sampling"].figure.axes
    assert {text.get_text() for text in axes.texts} == {"L/2, 1000 steps", "XL/2, 128 steps"}
    assert [float(line.get_ydata()[0]) for line in marked(axes)] == [25.9, 23.7]
    assert axes.get_legend() is None
    assert (
        rendered["paper 10-sampling"].figure.get_supylabel() == "FID-10K (lower is better)"
    )  # as the paper measured these two
    assert "FID of 10,000 images" in rendered["paper 10-sampling"].caption
    low, high = axes.get_ylim()
    assert high / low >= 2 * (1 - 1e-9)  # 9 % do not fill the panel


def test_metrics(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    panels = {
        axes.get_title("left").split("\n")[0]: axes
        for axes in rendered["study 12-metrics"].figure.axes
        if axes.axison
    }
    assert list(panels)[:4] == ["FD-digits", "FD-digits-random", "class accuracy", "class score"]
    assert len(panels) == 10 and "KID, sd of subsets" not in panels
    axes = panels["class accuracy"]
    points = sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in marked(axes))
    models = tables["study"].models()
    np.testing.assert_allclose(points, [(row.macs / 1e6, row.metrics["class_accuracy"]) for row in models])
    [real] = [line for line in axes.get_lines() if line not in marked(axes)]
    assert set(real.get_ydata()) == {0.985} and axes.get_yscale() == "linear"
    assert panels["FD-digits"].get_yscale() == "log"
    columns = built_in_columns()
    assert sense(columns["recall"]) == "fraction, higher is better"
    assert sense(columns["kid"]) == "lower is better" and sense(columns["nearest"]) == "ratio, 1 is best"


def test_a_distance_below_zero_has_a_linear_axis(tables: dict[str, Table]):
    """KID's estimate is unbiased, so its value for real images can be negative."""
    rows = [replace(row, metrics={**row.metrics, "kid_real": -1e-4}) for row in tables["study"].part(FINAL)]
    plot = figures.metrics(replace(tables["study"], rows=tuple(rows)))
    [axes] = [axes for axes in plot.figure.axes if axes.get_title("left").startswith("KID")]
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] < -1e-4


def test_losses(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    left, right = rendered["study 13-losses"].figure.axes
    assert len(left.get_lines()) == len(right.get_lines()) == 12
    assert right.get_xlim()[0] == STEPS[-1] / 4
    assert left.get_xscale() == right.get_xscale() == "log"
    for line in right.get_lines():
        inside = line.get_xdata() >= STEPS[-1] / 4
        assert (line.get_ydata()[inside] <= right.get_ylim()[1]).all()
        assert (line.get_ydata()[inside] >= right.get_ylim()[0]).all()


def test_smoothing_by_hand():
    """At 10 the window is (8, 10], at 100 it is (80, 100]: 90 is the mean of 80 steps, 100 of 10."""
    steps, values = smoothed(
        [Loss("a", 5, 4.0), Loss("a", 10, 2.0), Loss("a", 90, 1.0), Loss("a", 100, 10.0)]
    )
    assert steps == [5, 10, 90, 100]
    np.testing.assert_allclose(values, [4, 2, 1, (80 * 1 + 10 * 10) / 90])
    assert smoothed([Loss("a", s, 0.25) for s in range(1, 50)])[1] == pytest.approx([0.25] * 49)


def test_guidance(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    left, right = rendered["study 14-guidance"].figure.axes
    line, ring = marked(left)
    np.testing.assert_array_equal(line.get_xdata(), SCALES)
    best = min(tables["study"].part(GUIDANCE), key=lambda row: row.fd)
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (best.guidance_scale, best.fd)
    precision, recall = marked(right)
    assert (np.diff(precision.get_ydata()) > 0).all() and (np.diff(recall.get_ydata()) < 0).all()
    assert [text.get_text() for text in right.texts] == ["recall", "precision"]
    alone = replace(tables["study"], rows=tuple(replace(row, metrics={}) for row in tables["study"].rows))
    assert len(figures.guidance(alone).figure.axes) == 1
    on_all = [
        replace(row, guidance=guidance(row.guidance_scale, None)) for row in tables["study"].part(GUIDANCE)
    ]
    plot = figures.guidance(replace(tables["study"], rows=(*tables["study"].rows, *on_all)))
    legend = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert legend == ["XL/1, 3 channels", "XL/1, all channels"]
    filled = [
        line.get_markerfacecolor() for line in marked(plot.figure.axes[0]) if line.get_linestyle() != "None"
    ]
    assert filled[0] != filled[1] == "white"


def test_guidance_of_the_paper_is_its_tables_2_and_3(rendered: dict[str, figures.Plot]):
    figure = rendered["paper 14-guidance"].figure
    lines = [list(line.get_ydata()) for line in marked(figure.axes[0]) if line.get_linestyle() != "None"]
    assert lines == [[9.62, 3.22, 2.27], [2.2], [12.03, 4.64, 3.04]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "XL/2, 256 tokens, 3 channels",
        "XL/2, 256 tokens, all channels",
        "XL/2, 1,024 tokens, 3 channels",
    ]


@pytest.mark.slow
def test_the_same_table_gives_the_same_bytes(tables: dict[str, Table], rendered: dict[str, figures.Plot]):
    again = (figures.best(study()), figures.compute(study(), FIT, FIT), figures.samples(study()))
    for plot in again:
        assert page.rendered(plot.figure) == page.rendered(rendered[f"study {plot.name}"].figure)


def test_spread_by_hand():
    assert labels.spread([1, 5, 9], 2, 0, 10) == [1, 5, 9]
    assert labels.spread([4, 4, 4], 2, 0, 10) == [2, 4, 6]
    assert labels.spread([0, 0], 2, 0, 10) == [0, 2]
    assert labels.spread([10, 10], 2, 0, 10) == [8, 10]
    np.testing.assert_allclose(labels.spread([3, 3.5, 5.5], 2, 0, 10), [2, 4, 6])
    many = labels.spread(sorted(np.random.default_rng(0).uniform(0, 100, 12)), 8, 0, 100)
    assert min(np.diff(many)) >= 8 - 1e-9 and many[0] >= 0 and many[-1] <= 100


def test_ticks_are_few_and_round():
    assert plots.round_values(0.8, 1500, 8) == [1, 3, 10, 30, 100, 300, 1000]
    assert plots.round_values(0.8, 1500, 5) == [1, 10, 100, 1000]
    assert plots.round_values(18, 35, 4) == [20, 30]
    assert [plots.number(x) for x in (0.05, 2.5, 40.0, 1500.0, 30000.0)] == [
        "0.05",
        "2.5",
        "40",
        "1,500",
        "30,000",
    ]
    assert plots.unit([0.36e9, 118e9], "flops") == (1e9, "Gflops")
    assert plots.unit([2e5, 1e9], "flops") == (1e6, "Mflops")
    assert plots.unit([33e6], "") == (1e6, "M")


# Machado, Oliveira & Fernandes 2009, A physiologically-based model for simulation of color vision deficiency,
# IEEE TVCG 15(6), table 1 at severity 1; on linear RGB.
SEEN = {
    "everyone": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def cielab(color: str, seen: np.ndarray) -> np.ndarray:
    """sRGB (IEC 61966-2-1) -> CIELAB at D65, as an eye with the matrix `seen` perceives it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = np.array(to_xyz) @ np.clip(seen @ linear, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("colors", ["two", "four", "five", "blocks"])
def test_colors_differ_also_for_the_color_blind(colors: str, seen: str):
    """By at least 15 in CIELAB, several times the just noticeable difference (2.3)."""
    from scaledit.report.figures.blocks import COLORS

    some = COLORS if colors == "blocks" else style.palette({"two": 2, "four": 4, "five": 5}[colors])
    lab = [cielab(color, SEEN[seen]) for color in some]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 15
    assert all(color[0] < 80 for color in lab)  # shows on white


def test_sizes_are_in_order_of_lightness_so_that_gray_tells_them_too():
    for count in (2, 4, 6):
        lightness = [cielab(color, np.eye(3))[0] for color in style.palette(count)]
        assert max(np.diff(lightness)) < -8
