"""Sweeps of one's own: their four lines, what their report says and when it says that nothing is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from made_tables import study as paper_like
from scaledit.cli import main
from scaledit.errors import UsageError
from scaledit.report import sweep as report
from scaledit.report.figures.sweep import all_figures
from scaledit.scaling import study as studies
from scaledit.scaling import table as tables
from scaledit.scaling.collect import collect
from scaledit.scaling.queue import Queue
from scaledit.scaling.sweep import Spread, sweep, welch
from scaledit.scaling.table import FINAL, About, Loss, Table
from scaledit.scaling.work import Failed, jobs, work
from scaledit.training.signals import StopRequest

LINES = """
recipe = "digits"
vary.optimizer.learning_rate = [1e-3, 3e-3, 1e-2]
seeds = 3
common.train.steps = 300
"""
SMALL = """
model = {hidden_size = 16, depth = 1, num_heads = 2, patch_size = 4}
train = {steps = 6, batch_size = 8, log_every = 1, max_skips = 2}
optimizer.warmup_steps = 0
data.workers = 0
sample = {every = 6, per_class = 1, sampler.steps = 2}
evaluate = {every = 0, num = 20, seeds = 1}
"""


def load(folder: Path, text: str) -> studies.Study:
    (folder / "mine.toml").write_text(text)
    return studies.load(str(folder / "mine.toml"))


def test_four_lines_are_a_sweep(tmp_path: Path):
    study = load(tmp_path, LINES)
    assert study.title == "optimizer.learning_rate of digits"
    assert len(study.runs) == len(study.measurements) == 9
    rates = [values["optimizer.learning_rate"] for values in study.varied.values()]
    assert rates == [1e-3] * 3 + [3e-3] * 3 + [1e-2] * 3
    assert [run.config.train.seed for run in study.runs] == [0, 1, 2] * 3
    assert {run.config.train.steps for run in study.runs} == {300}
    quoted = LINES.replace("vary.optimizer.learning_rate =", 'vary = {"optimizer.learning_rate" =').replace(
        "1e-2]", "1e-2]}"
    )
    assert load(tmp_path, quoted) == replace(study, declared=quoted)
    # The same as [[runs]] is reported as a sweep, too; the paper's studies are not.
    runs = 'recipe = "digits"\n[[runs]]\noptimizer.learning_rate = [1e-3, 1e-2]\ntrain.seed = [4, 5]'
    assert [*load(tmp_path, runs).varied.values()][-1] == {"optimizer.learning_rate": 1e-2}
    assert all(not studies.load(name).varied for name in studies.names())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("vary.optimizer", "vary.optimiser", "optimiser"),
        ("learning_rate =", "learning_rat =", "did you mean"),
        ("[1e-3, 3e-3, 1e-2]", "1e-3", "must be a list of values"),
        ("[1e-3, 3e-3, 1e-2]", '["fast"]', "must be a number"),
        ("seeds = 3", "seeds = 0", "seeds must be from 1"),
        ("seeds = 3", 'seeds = "3"', "a whole number or a list of seeds"),
        ("vary.optimizer.learning_rate", "vary.train.seed", "write seeds = 3"),
        ("vary.optimizer.learning_rate", "vary.sample.sampler.steps", "changes nothing in training"),
        ("vary.optimizer.learning_rate = [1e-3, 3e-3, 1e-2]", "", "seeds goes with vary"),
        ("common.train.steps = 300", "[[runs]]\ntrain.steps = 1", "use one of them"),
        ("common.train.steps = 300", '[[measure]]\npart = "sampling"', "measures each run once"),
    ],
)
def test_a_wrong_sweep_is_one_sentence(old: str, new: str, expected: str, tmp_path: Path):
    with pytest.raises(UsageError, match=expected):
        load(tmp_path, LINES.replace(old, new))


def made(values: dict[str, list[Any]], results: list[list[float]], **about: Any) -> Table:
    """A table of runs with these values, and the distance of each seed."""
    row = paper_like().part(FINAL)[0]
    names, varied, rows, losses = [], {}, [], []
    combinations = [dict(zip(values, combination, strict=True)) for combination in _product(*values.values())]
    for i, (combination, seeds) in enumerate(zip(combinations, results, strict=True)):
        for seed, fd in enumerate(seeds):
            names.append(f"run {i} seed {seed}")
            varied[names[-1]] = combination
            rows.append(replace(row, name=names[-1], seed=seed, fd=fd, metrics={"fd_digits": fd}))
            losses += [Loss(names[-1], step, 1 + i / step) for step in (1, 10, 100)]
    described = About("s", "s", "scaledit study s.toml", "FD-digits", varied=varied, **about)
    return Table(described, tuple(rows), tuple(losses))


def _product(*lists: list[Any]) -> list[tuple[Any, ...]]:
    return [(a, *rest) for a in lists[0] for rest in _product(*lists[1:])] if lists else [()]


def test_the_best_is_said_with_what_it_is_worth():
    rates: dict[str, list[Any]] = {"optimizer.learning_rate": [1e-4, 1e-3, 1e-2]}
    clear = sweep(made(rates, [[9.0, 9.2, 9.1], [5.0, 5.1, 5.2], [7.0, 7.3, 6.9]]))
    assert [point.values["optimizer.learning_rate"] for point in clear.ranked()] == [1e-3, 1e-2, 1e-4]
    assert clear.verdict() == (
        "learning_rate=0.001: FD-digits 5.1 ± 0.1; the next is learning_rate=0.01 with 7.067 ± 0.21. With a "
        "margin of 2, it is distinguishable from all others."
    )
    noisy = sweep(made(rates, [[9.0, 9.2, 9.1], [5.0, 9.0, 4.0], [7.0, 7.3, 6.9]]))
    assert noisy.verdict().endswith("Not distinguishable from it: learning_rate=0.01; learning_rate=0.0001.")
    assert (
        "cannot be compared with chance; set seeds = 3" in sweep(made(rates, [[9.0], [5.0], [7.0]])).verdict()
    )
    assert sweep(made(rates, [[], [], []])).verdict() == "No run has a result."


def test_welch_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n, m, shift in ((2, 2, 0.3), (3, 3, 1.0), (2, 6, 2.0), (10, 4, 5.0)):
        a, b = rng.normal(size=n), 3 * rng.normal(size=m) + shift
        p = welch(Spread.of(a.tolist()), Spread.of(b.tolist()))
        assert p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, abs=1e-4)


def test_figures_show_what_was_varied():
    def axes(values: dict[str, list[Any]], results: list[list[float]], name: str):
        table = made(values, results)
        return all_figures(table, sweep(table))[name].figure.axes

    three = [[9.0, 9.2], [5.0, 5.1], [7.0, 7.3]]
    decades = axes({"optimizer.learning_rate": [1e-4, 1e-3, 1e-2]}, three, "by-value.png")[0]
    assert (decades.get_xscale(), decades.get_ylabel()) == ("log", "FD-digits")
    dots = np.concatenate([line.get_ydata() for line in decades.lines if line.get_marker() == "o"])
    assert sorted(dots) == sorted(fd for seeds in three for fd in seeds)
    assert axes({"train.batch_size": [32, 48, 64]}, three, "by-value.png")[0].get_xscale() == "linear"
    named = axes({"diffusion.times": ["uniform", "logit_normal", "x"]}, three, "by-value.png")[0]
    assert [text.get_text() for text in named.get_xticklabels()] == ["uniform", "logit_normal", "x"]
    pair = axes({"a.b": [1, 2], "c.d": [True, False]}, [[1.0], [2.0], [3.0], [4.0]], "by-pair.png")[0]
    assert pair.images[0].get_array().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert len(axes({"a.b": [1, 2, 3]}, three, "losses.png")[0].lines) == 3


@pytest.mark.slow
def test_a_sweep_from_its_lines_to_its_page(tmp_path: Path, capsys):
    """A learning rate that is too high is a result, too."""
    text = 'recipe = "digits"\nvary.optimizer.learning_rate = [1e-3, 1e9]\nseeds = 2\n[common]\n' + SMALL
    study = load(tmp_path, text)
    queue = Queue(tmp_path / "out", jobs(study))
    events = list(work(study, queue, "cpu", StopRequest()))
    assert sum(isinstance(event, Failed) for event in events) == 2
    table, missing = collect(study, queue, "scaledit study mine.toml")
    assert len(missing) == 4 and len(table.about.failed) == 2
    page = report.write(table, queue.out).read_text()
    assert "Not distinguishable" not in page and "It is the only value with a result" in page
    assert "are not finite" in page and "2 runs failed" in page
    assert "paper" not in page.partition("<main")[2] and "scaledit study mine.toml" in page
    assert page.count("data:image/png") == 1 and "learning_rate=1e+09 (no samples)" in page
    found = json.loads((queue.out / report.FOUND).read_text())
    assert found["ranked"] == ["learning_rate=0.001"]
    assert found["results"][0]["metrics"]["fd_digits"]["std"] is not None
    # From its table alone, the page is the same.
    assert tables.read(queue.out).about == table.about
    assert main(["study", str(queue.out), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / report.REPORT).read_text() == page
    # Pictures of a set whose makers must be named name them.
    emoji = {name: {**config, "data": {"name": "emoji"}} for name, config in table.about.configs.items()}
    about = replace(table.about, configs=emoji)
    assert "OpenMoji" not in page
    assert "OpenMoji" in report.write(replace(table, about=about), tmp_path / "emoji").read_text()


def test_a_sweep_without_a_reference_compares_losses(tmp_path: Path):
    text = 'recipe = "digits"\nvary.train.accumulate = [1, 2]\n[common]\n' + SMALL
    study = load(tmp_path, text.replace("evaluate = {", 'evaluate = {reference = "", '))
    assert not study.measurements
    queue = Queue(tmp_path / "out", jobs(study))
    list(work(study, queue, "cpu", StopRequest()))
    table, missing = collect(study, queue, "")
    assert not missing
    page = report.write(table, queue.out).read_text()
    assert "Nothing was evaluated" in page
    one, two = (point.metrics["loss"].mean for point in sweep(table).points)
    assert one == pytest.approx(two, rel=1e-4)  # accumulation changes nothing
