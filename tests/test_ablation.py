"""An ablation: switches alone and removed at equal training compute, judged by a rule on paired seeds."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import processes
from made_tables import study as paper_like
from scaledit import cli
from scaledit.config import load, read_toml
from scaledit.config.updates import update_macs
from scaledit.diffusion.objectives import Simple
from scaledit.errors import RunError, UsageError
from scaledit.models import flops
from scaledit.optimizers import Muon
from scaledit.report import ablation as report
from scaledit.report import what_helps
from scaledit.scaling import study as studies
from scaledit.scaling import table as tables
from scaledit.scaling.ablation import Ablation, Switch, set_key
from scaledit.scaling.ablation_verdicts import Judged, first_at, percent, t_quantile
from scaledit.scaling.collect import check_budgets, collect
from scaledit.scaling.compute import step_macs, steps_within, train_macs_of
from scaledit.scaling.queue import JOURNAL, Queue
from scaledit.scaling.study import Study
from scaledit.scaling.table import FINAL, TRAINING, About, Table
from scaledit.scaling.work import jobs, with_rate, work
from scaledit.training.signals import StopRequest

TOML = """
title = "tiny"
recipe = "digits-paper"
seeds = 2
[common]
model = {hidden_size = 16, depth = 2, num_heads = 2, patch_size = 4}
train = {steps = 12, batch_size = 16, log_every = 1}
optimizer.warmup_steps = 6
checkpoint.every = 3
sample = {per_class = 1, sampler = {name = "ddim", steps = 2}}
evaluate = {num = 20, seeds = 1, guidance = []}
data.workers = 0
[budget]
evaluations = 2
[rates]
grid = [1e-3, 1e30]
seed = 100
[switches.wide]
class = "block"
gain = "none reported"
set.model.mlp_ratio = 8.0
[switches.guided]
class = "guidance"
add.evaluate.guidance = [{name = "classifier_free", scale = 2.0}]
[[references]]
name = "other"
fd = 50.0
train_macs = 1e9
"""


def loaded(folder: Path, text: str = TOML) -> Study:
    (folder / "tiny.toml").write_text(text)
    return studies.load(str(folder / "tiny.toml"))


# ---- the sets


def switches(**requires: tuple[str, ...]) -> dict[str, Switch]:
    return {
        name: Switch(name, name, "block", set={f"model.{name}": 1}, requires=others)
        for name, others in requires.items()
    }


def test_each_switch_is_alone_and_removed_once():
    three = Ablation(switches(a=(), b=(), c=()), frozenset("abc"), ("a", "b", "c"))
    names = [three.name(names) for names in three.sets]
    assert names == ["baseline", "full", "+a", "full -a", "+b", "full -b", "+c", "full -c"]
    pairs = {(pair.switch, pair.role): (pair.without, pair.having) for pair in three.pairs}
    assert pairs["a", "alone"] == (frozenset(), frozenset("a"))
    assert pairs["a", "removed"] == (frozenset("bc"), frozenset("abc"))
    assert Ablation.from_json(json.loads(json.dumps(three.to_json()))) == three


def test_what_a_switch_requires_is_on_both_sides():
    """b requires a: alone, it is added to a; a is removed from the full set without b."""
    chain = Ablation(switches(a=(), b=("a",), c=(), d=("b",)), frozenset("abcd"), ("a", "b", "c", "d"))
    pairs = {(pair.switch, pair.role): (pair.without, pair.having) for pair in chain.pairs}
    assert pairs["d", "alone"] == (frozenset("ab"), frozenset("abd"))
    assert pairs["b", "removed"] == (frozenset("ac"), frozenset("abc"))
    assert pairs["a", "removed"] == (frozenset("c"), frozenset("ac"))
    assert all(pair.having - pair.without == {pair.switch} for pair in chain.pairs)
    assert {s for pair in chain.pairs for s in (pair.without, pair.having)} <= chain.sets.keys()
    assert chain.ordered("dba") == ["a", "b", "d"]
    assert set_key(chain, frozenset("dba")) == "a+b+d"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[switches.wide]\n", '[switches.wide]\nrequires = ["guidde"]\n', "did you mean 'guided'"),
        ("[switches.wide]\n", '[switches.wide]\nexclusive = ["guided"]\n', "exclude each other"),
        ("seeds = 2", 'seeds = 2\nfull = ["wide", "huge"]', "unknown switch 'huge'"),
        ("add.evaluate", "set.model.mlp_ratio = 2.0\nadd.evaluate", "both change model.mlp_ratio"),
        ("add.evaluate", "set.train.steps = 2\nadd.evaluate", "train.steps is chosen by the study"),
        ("add.evaluate", "set.optimizer.learning_rate = 1.0\nadd.evaluate", "[rates]"),
        ("add.evaluate.guidance = [{", "add.model.qkv_bias = [{", "unknown key 'model.qkv_bias'"),
        ("add.evaluate.guidance = [{", "add.model.depth = [{", "model.depth is no list of parts"),
        ("add.evaluate.guidance = [{", "add.evaluate.guidence = [{", "unknown key 'evaluate.guidence'"),
        ("= []}", '= [{name = "classifier_free", scale = 3.0}]}', "in evaluate.guidance already"),
        ('class = "block"', 'class = "blok"', "did you mean 'block'"),
        ("set.model.mlp_ratio", "set.model.mlp_ratios", "unknown key 'model.mlp_ratios'"),
        ("set.model.mlp_ratio = 8.0", "", "changes nothing"),
        ("seed = 100", "seed = 1", "a seed that no run of the study uses"),
        ("[budget]", "[bugdet]", "unknown key 'bugdet' beside [switches]; did you mean 'budget'"),
        ("fd = 50.0", "fd = -1.0", "fd and train_macs as numbers above 0"),
        ("[[ref", '[[bars]]\nreference = "demo"\nshare = 0.5\n[[ref', "unknown reference 'demo'"),
        (
            "[[ref",
            '[[bars]]\nreference = "baseline"\nshare = 0.5\nswitches = ["huge"]\n[[ref',
            "bars: unknown switch 'huge'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_ablation_is_one_sentence(old: str, new: str, expected: str, tmp_path: Path):
    assert old in TOML
    with pytest.raises(UsageError, match=re.escape(expected)):
        loaded(tmp_path, TOML.replace(old, new, 1))


def test_lists_are_extended_and_values_replaced(tmp_path: Path):
    """A switch that requires another may override it; parts are appended in the order of requirements."""
    text = (
        TOML
        + """
[switches.more]
class = "guidance"
requires = ["guided", "wide"]
set.model.mlp_ratio = 2.0
add.evaluate.guidance = ["classifier_free"]
"""
    )
    with pytest.raises(UsageError, match=r"classifier_free is in evaluate\.guidance already"):
        loaded(tmp_path, text)
    study = loaded(tmp_path, text.replace('["classifier_free"]', '[{name = "interval", high = 0.8}]'))
    full = next(m for m in study.measurements if m.name == "full")
    guidance = [part.to_json() for part in full.config.evaluate.guidance]
    assert [(part["name"], part.get("scale"), part.get("high")) for part in guidance] == [
        ("classifier_free", 2.0, None), ("interval", None, 0.8)
    ]  # fmt: skip
    assert full.config.model.mlp_ratio == 2.0
    assert full.config.sample.guidance == full.config.evaluate.guidance


# ---- equal compute


@dataclass(frozen=True)
class WithTeacher(Simple):
    """A teacher that costs a forward pass of the network."""

    def extra_macs(self, model):
        return flops.count(model).macs


@dataclass(frozen=True)
class Dropped(WithTeacher):
    """A teacher of the first five steps."""

    def active(self, step):
        return step < 5


@dataclass(frozen=True)
class Wrong(Simple):
    def extra_macs(self, model):
        return 0.5


def test_compute_counts_teachers_and_optimizers():
    plain = load("digits", ["train.steps=10", "train.batch_size=16"])
    macs = flops.count(plain.model).macs
    assert train_macs_of(plain) == 10 * 16 * 3 * macs == flops.train_macs(macs, 160)
    teacher = replace(plain, diffusion=replace(plain.diffusion, objective=WithTeacher()))
    assert step_macs(teacher) == 16 * 4 * macs
    both = replace(teacher, optimizer=replace(plain.optimizer, algorithm=Muon()))
    assert step_macs(both) == 16 * 4 * macs + update_macs(both) > 16 * 4 * macs
    assert train_macs_of(both, 3) == 3 * step_macs(both)
    assert steps_within(teacher, train_macs_of(plain)) in (7, 8)  # 10 steps of 3 passes are 7.5 of 4
    early = replace(teacher, diffusion=replace(plain.diffusion, objective=Dropped()))  # 4 passes, then 3
    assert [train_macs_of(early, n) // (16 * macs) for n in (5, 6, 7)] == [20, 23, 26]
    assert [step_macs(early, n) // (16 * macs) for n in (4, 5)] == [4, 3]
    for budget in range(1, 60):
        steps = steps_within(early, budget * 16 * macs)
        best = min(range(1, 20), key=lambda n: abs(train_macs_of(early, n) - budget * 16 * macs))
        assert abs(train_macs_of(early, steps) - budget * 16 * macs) == abs(
            train_macs_of(early, best) - budget * 16 * macs
        )
    with pytest.raises(RunError, match=r"Wrong\.extra_macs must return a whole number"):
        step_macs(replace(plain, diffusion=replace(plain.diffusion, objective=Wrong())))


def test_plans_count_the_same(tmp_path: Path):
    from scaledit.scaling.plan import Hardware, plan

    plain = load("digits")
    teacher = replace(plain, diffusion=replace(plain.diffusion, objective=WithTeacher()))
    assert plan(teacher, Hardware()).train_macs == train_macs_of(teacher) == train_macs_of(plain) * 4 // 3


def test_sets_have_equal_compute_and_scaled_schedules(tmp_path: Path):
    text = TOML.replace("train = {steps = 12", "train = {steps = 120")
    text += '[[bars]]\nreference = "other"\nshare = 0.02\n'
    text += '[[bars]]\nreference = "baseline"\nshare = 0.5\nswitches = ["wide"]\n'
    study = loaded(tmp_path, text)
    assert study.ablation is not None
    budget = study.ablation.budget
    runs = {run.name: run.config for run in study.runs}
    assert budget == train_macs_of(runs["baseline"])
    # Guidance changes no training, so it has none of its own. `wide` has one at the rate of the baseline.
    assert {name for name in runs if "seed" not in name} == {
        "rate 0.001 baseline", "rate 1e+30 baseline", "rate 0.001 full", "rate 1e+30 full",
        "baseline", "full", "+wide", "full at 0.02 of other", "+wide at 0.5 of baseline",
    }  # fmt: skip
    measured = {m.name: m for m in study.measurements if "seed" not in m.name}
    assert measured["+guided"].run.name == "baseline"
    guided = {name: len(m.config.evaluate.guidance) for name, m in measured.items()}
    assert guided == {
        "baseline": 0, "full": 1, "+wide": 0, "+guided": 1, "full at 0.02 of other": 1,
        "+wide at 0.5 of baseline": 0,
    }  # fmt: skip
    for name, config in runs.items():
        goal = {"full at 0.02 of other": round(0.02 * 1e9), "+wide at 0.5 of baseline": budget / 2}.get(
            name.partition(" seed")[0], budget
        )
        assert abs(train_macs_of(config) - goal) <= step_macs(config) / 2, name
        assert config.optimizer.warmup_steps == round(6 * config.train.steps / 120)
        evaluations = 1 if name.startswith("rate") else 2
        assert config.evaluate.every == math.ceil(config.train.steps / evaluations)
    assert runs["full"].train.steps < 120
    assert {c.train.seed for name, c in runs.items() if name.startswith("rate")} == {100}


def test_an_optimizer_chooses_its_own_rate(tmp_path: Path):
    """The baseline, the full set, and each with the optimizer changed; all others use the rate of the set
    that they change."""
    text = (
        TOML.replace("grid = [1e-3, 1e30]", "grid = [1e-3, 2e-3]")
        + """
[switches.fast]
class = "optimizer"
rates = [1e-2, 2e-2]
set.optimizer.algorithm = {name = "adamw", betas = [0.9, 0.9]}
[switches.narrow]
class = "block"
exclusive = ["wide"]
set.model.mlp_ratio = 2.0
"""
    )
    study = loaded(tmp_path, text.replace("seeds = 2", 'seeds = 2\nfull = ["wide", "guided", "fast"]'))
    assert study.ablation is not None
    trials = {
        owner: [trial.config.optimizer.learning_rate for trial in runs]
        for owner, runs in study.ablation.trials.items()
    }
    assert trials == {
        "baseline": [1e-3, 2e-3], "full": [1e-2, 2e-2], "+fast": [1e-2, 2e-2], "full -fast": [1e-3, 2e-3]
    }  # fmt: skip
    owners = {run.name: run.trials[0].name.split(" ", 2)[2] for run in study.runs if run.trials}
    assert owners["+narrow"] == "baseline" and owners["full -wide"] == "full"
    assert owners["+fast"] == "+fast" and owners["full -fast"] == "full -fast"
    # A rate without alternatives needs no trial.
    only = loaded(tmp_path, TOML.replace("[1e-3, 1e30]", "[3e-3]"))
    assert not any(run.may_diverge for run in only.runs)
    assert {run.config.optimizer.learning_rate for run in only.runs} == {3e-3}


def test_a_result_of_another_budget_is_refused(tmp_path: Path):
    study = loaded(tmp_path)
    assert study.ablation is not None
    row = replace(paper_like().part(FINAL)[0], steps=10, settings={"role": "alone", "switch": "wide"})
    check_budgets(study, study.ablation, [replace(row, train_macs=study.ablation.budget)])
    with pytest.raises(RunError, match="multiply-adds of training, but its budget is"):
        check_budgets(study, study.ablation, [replace(row, train_macs=2 * study.ablation.budget)])


# ---- verdicts


def made(results: dict[str, list[float]], **more: Any) -> Judged:
    """The distance of each seed by set: 'baseline', 'a', 'a+b', ..., of the switches a, b and c."""
    abc = Ablation(switches(a=(), b=(), c=()), frozenset("abc"), ("a", "b", "c"))
    row = paper_like().part(FINAL)[0]
    rows, roles = [], {set_key(abc, names): role for names, (role, _) in abc.sets.items()}
    for i, (key, values) in enumerate(results.items()):
        for seed, fd in enumerate(values):
            settings = {"role": roles[key], "set": key}
            one = {"seed": seed, "fd": fd, "loss": 1.0 + i, "metrics": {"class_accuracy": 1 - fd / 100}}
            rows.append(replace(row, name=f"{key} {seed}", settings=settings, **one))
    ablation = {**abc.to_json(), "seeds": [0, 1, 2], "budget": 1, "references": [], "bars": [], "rates": {}}
    return Judged(Table(About("s", "s", "c", "FD-digits", ablation={**ablation, **more}), tuple(rows)))


def test_the_rule_on_hand_made_numbers():
    """Residuals of the additive model are +-e in a checkerboard over 4 sets and 2 seeds, so s and the
    smallest effect are known in closed form."""
    e, shift = 0.01, 0.3  # the second seed is worse for all sets, which cancels

    def fds(log: float, sign: int) -> list[float]:
        return [math.exp(log + sign * e), math.exp(log + shift - sign * e)]

    judged = made({"baseline": fds(2.0, 1), "a": fds(1.5, -1), "b": fds(2.5, 1), "c": fds(2.01, -1)})
    noise = judged.noise()
    assert noise is not None
    assert (noise.df, noise.n) == (3, 2)
    assert noise.s == pytest.approx(math.sqrt(8 * e**2 / 3))
    least = 3.182446 * math.sqrt(8 * e**2 / 3) * math.sqrt(2 / 2)
    assert noise.least == pytest.approx(least, rel=1e-5)
    alone = {verdict.switch.name: verdict.alone for verdict in judged.verdicts}
    outcomes = {name: one.outcome for name, one in alone.items() if one is not None}
    assert outcomes == {"a": "helps", "b": "hurts", "c": "no difference"}
    assert alone["a"] is not None and alone["a"].distance is not None
    assert alone["a"].distance.value == pytest.approx(0.5) and alone["a"].ratio == pytest.approx(
        math.exp(-0.5)
    )
    assert alone["a"].distance.least == pytest.approx(least, rel=1e-5)
    assert alone["a"].distance.by_seed == pytest.approx({0: 0.5 + 2 * e, 1: 0.5 - 2 * e})
    assert alone["b"] is not None and alone["b"].accuracy is not None and alone["b"].accuracy.value < 0
    # Exactly at the smallest effect, it cannot be told; just above it, it can.
    for factor, expected in ((0.999, "no difference"), (1.001, "helps")):
        a = fds(2.0 - factor * least, -1)
        again = made({"baseline": fds(2.0, 1), "a": a, "b": fds(2.5, 1), "c": fds(2.01, -1)})
        assert again.verdicts[0].alone is not None and again.verdicts[0].alone.outcome == expected


def test_both_comparisons_make_one_verdict():
    noise = [0.0, 0.01, -0.01]

    def fds(log: float, k: int = 0) -> list[float]:
        return [math.exp(log + noise[(i + k) % 3]) for i in range(3)]

    judged = made({
        "baseline": fds(2.0), "a+b+c": fds(1.0, 1),
        "a": fds(1.5, 2), "b+c": fds(1.0, 1),  # helps alone, no difference in the full set
        "b": fds(1.5), "a+c": fds(0.5, 1),  # helps alone, hurts in the full set
        "c": fds(2.0, 2), "a+b": fds(1.0),  # no difference in either
    })  # fmt: skip
    assert [verdict.outcome for verdict in judged.verdicts] == ["helps", "depends", "no difference"]
    assert judged.finalists == ["a", "b"]
    assert judged.chances == pytest.approx(0.05 * 6)


def test_one_seed_shows_no_effect_and_none_is_said():
    judged = made({"baseline": [7.0], "a": [3.0]})
    assert judged.noise() is None
    assert [verdict.outcome for verdict in judged.verdicts] == ["unknown", "not measured", "not measured"]
    assert judged.verdicts[0].alone is not None and judged.verdicts[0].alone.ratio == pytest.approx(3 / 7)


def test_switches_of_sampling_are_judged_on_equal_trainings():
    """Their differences by seed scatter less than results do; equal losses show that trainings are shared."""
    judged = made({"baseline": [7.0, 9.0, 6.0], "a": [6.3, 8.1, 5.42], "b": [7.0, 6.0, 9.0]})
    same = ("baseline", "a")
    rows = [replace(row, loss=1.0) if row.settings["set"] in same else row for row in judged.table.rows]
    shared = Judged(replace(judged.table, rows=tuple(rows)))
    values = [math.log(7 / 6.3), math.log(9 / 8.1), math.log(6 / 5.42)]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    alone = {verdict.switch.name: verdict.alone for verdict in shared.verdicts}
    assert alone["a"] is not None and alone["a"].distance is not None and alone["b"] is not None
    assert alone["a"].distance.least == pytest.approx(4.30265 * deviation / math.sqrt(3), rel=1e-4)
    assert (alone["a"].outcome, alone["b"].outcome) == ("helps", "no difference")
    apart = judged.verdicts[0].alone
    assert apart is not None and apart.outcome == "no difference"


def test_changes_in_percent():
    logs = {-0.2: "-18 %", 0.0: "0.0 %", 1e-9: "0.0 %", -0.001: "-0.1 %", 0.095: "+10 %", 1.0: "+172 %"}
    assert {log: percent(log, True) for log in logs} == logs and percent(0.05) == "5.1 %"


def test_quantiles_of_student():
    known = {1: 12.70620, 2: 4.302653, 4: 2.776445, 10: 2.228139, 42: 2.018082, 1000: 1.962339}
    for df, t in known.items():
        assert t_quantile(df) == pytest.approx(t, rel=1e-5)


def test_compute_to_reach_is_interpolated_in_logarithms():
    curve = [(1e9, 100.0), (4e9, 25.0), (16e9, 6.25)]  # fd = 1e11 / macs
    for fd in (80.0, 25.0, 10.0, 6.25):
        assert first_at(curve, fd) == pytest.approx(1e11 / fd)
    assert first_at(curve, 200.0) == 1e9 and first_at(curve, 6.0) is None


def test_bars_need_every_seed():
    reference = {"name": "demo", "title": "the demo", "fd": 8.0, "train_macs": 2e9}
    bar = {"name": "full at 0.5 of demo", "reference": "demo", "share": 0.5, "train_macs": 10**9}
    judged = made({"baseline": [9.0, 9.1], "a+b+c": [5.0, 5.1]}, references=[reference], bars=[bar])
    row = judged.table.rows[0]
    for last, expected in ((7.9, "holds"), (8.1, "does not hold")):
        settings = {"role": "bar", "switch": bar["name"], "set": "a+b+c"}
        more = [replace(row, fd=fd, seed=seed, settings=settings) for seed, fd in enumerate((7.0, last))]
        [found] = Judged(replace(judged.table, rows=(*judged.table.rows, *more))).bars
        assert (found.outcome, found.fd) == (expected, 8.0)
    curve = [
        replace(
            row, part=TRAINING, train_macs=macs, fd=fd, seed=seed, settings={"role": "full", "set": "a+b+c"}
        )
        for seed in (0, 1)
        for macs, fd in ((10**8, 80.0), (10**9, 8.0 - seed), (2 * 10**9, 5.0))
    ]
    reached = Judged(replace(judged.table, rows=(*judged.table.rows, *curve))).reached
    full = next(one for one in reached if (one.name, one.target) == ("full", "demo"))
    assert full.times == 2 and full.by_seed[0] == pytest.approx(1e9) and full.by_seed[1] < 1e9


# ---- from its TOML to its page


def page_of(study: Study, out: Path, again: Path) -> tuple[Table, str]:
    """The table and the page of a finished study, which the table alone gives, too."""
    table, missing = collect(study, Queue(out, jobs(study)), "scaledit study tiny.toml")
    assert not missing and not table.about.failed
    assert study.ablation is not None
    for row in table.part(FINAL):
        assert abs(row.train_macs - study.ablation.budget) * 2 <= row.train_macs / row.steps
    page = report.write(table, out).read_text()
    for name in ("effects.png", "compute.png"):
        assert f"figures/{name}" in page and (out / "figures" / name).is_file()
    assert cli.main(["study", str(out), "--out", str(again)]) == 0
    assert (again / report.REPORT).read_text() == page
    emoji = {name: {**config, "data": {"name": "emoji"}} for name, config in table.about.configs.items()}
    credited = replace(table, about=replace(table.about, configs=emoji))
    assert "OpenMoji" in report.write(credited, out.with_name("credited")).read_text()
    return table, page


def test_a_switch_of_sampling_from_its_lines_to_its_page(tmp_path: Path, capsys):
    """Two trainings, each measured with and without guidance, and with an average of the weights."""
    averaged = '[switches.averaged]\nclass = "average"\nset.sample.average = 0.1\n'
    text = re.sub(r"\[switches.wide\].*?(?=\[switches.guided\])", averaged, TOML, flags=re.DOTALL)
    text = text.replace("[common]\n", "[common]\nema.power = [0.05, 0.1]\n")
    study, out = loaded(tmp_path, text.replace("[1e-3, 1e30]", "[1e-3]")), tmp_path / "out"
    assert [run.name for run in study.runs] == ["baseline", "baseline seed 1"]
    list(work(study, Queue(out, jobs(study)), "cpu", StopRequest()))
    table, page = page_of(study, out, tmp_path / "again")
    header = (out / tables.TABLE).read_text().splitlines()[0].split(",")
    fixed = "name size patch_size conditioning params macs steps images train_macs seed loss fd role"
    assert {*fixed.split(), "class_accuracy", "precision", "recall", "set"} <= set(header)
    read = tables.read(out)
    assert read.about == table.about and tables.to_csv(read.rows) == tables.to_csv(table.rows)
    averaged, guided = json.loads((out / report.VERDICTS).read_text())["switches"]
    assert all(averaged["alone"]["distance"]["by_seed"].values())  # 0.0 if it were ignored
    rows = {(row.settings["set"], row.seed): row.distance for row in table.part(FINAL)}
    by_seed = {str(seed): math.log(rows["baseline", seed] / rows["guided", seed]) for seed in (0, 1)}
    assert guided["alone"]["distance"]["by_seed"] == pytest.approx(by_seed)
    assert "guided" in page and "Switches that only change the sampling" not in page


@pytest.mark.slow
def test_killed_in_a_trial_and_in_a_run_it_ends_in_a_page(tmp_path: Path, capsys):
    """One rate diverges, which is a result; the other one is used. No finished job is done again."""
    study, out = loaded(tmp_path), tmp_path / "out"
    die = processes.die
    trial, run = processes.At(processes.ADVANCE, die, nth=5), processes.At(processes.ADVANCE, die, nth=40)
    for before in (trial, run, None):
        command = ("study", str(tmp_path / "tiny.toml"), "--out", str(out), "--join")
        worker = processes.scaledit(*command, beside=out, before=before)
        assert worker.wait() == (-9 if before else 0), worker.said()
    journal = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]
    finished = [line["job"] for line in journal if line["event"] == "finished"]
    assert sorted(finished) == sorted(job.key for job in jobs(study))
    table, page = page_of(study, out, tmp_path / "again")
    assert table.about.ablation["rates"]["baseline"]["1e+30"] is None
    config = json.loads((out / "runs" / "full" / "config.json").read_text())
    assert config["optimizer"]["learning_rate"] == 1e-3
    assert {row.settings["optimizer.learning_rate"] for row in table.part(FINAL)} == {1e-3}
    assert {row.settings.get("switch") for row in table.part(FINAL)} == {None, "wide", "guided"}
    verdicts = json.loads((out / report.VERDICTS).read_text())
    assert [one["name"] for one in verdicts["switches"]] == ["wide", "guided"]
    assert all(one["alone"]["distance"]["least"] is not None for one in verdicts["switches"])
    assert "diverged" in page and "mlp_ratio" in page


def test_all_rates_diverged_is_said(tmp_path: Path):
    study = loaded(tmp_path)
    queue = Queue(tmp_path / "out", jobs(study))
    run = next(run for run in study.runs if run.name == "baseline")
    todo = {job.key: job for job in jobs(study)}
    for trial in run.trials:
        queue.finish(todo[trial.key], {"diverged": "losses are not finite", "seconds": 1.0})
    with pytest.raises(RunError, match=r"all of 0\.001, 1e\+30 diverged; declare lower ones in \[rates\]"):
        with_rate(run, queue)


# ---- the studies that scaledit has, and the page on them

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_says_what_is_published_and_nothing_else():
    page = (DOCS / "concepts" / "what-helps.md").read_text(encoding="utf-8")
    assert page == what_helps.page_of(DOCS), "run python docs/site/what_helps.py"
    table = page.partition(what_helps.BEGIN)[2].partition(what_helps.END)[0]
    assert len(table.strip().splitlines()) >= 2 + len(what_helps.switches())
    if not (DOCS / "studies" / "modern").exists():
        measured = [line for line in table.splitlines()[2:] if line.startswith("| ") and "---" not in line]
        assert not any(re.search(r"[+-]\d+ %", line) for line in measured)


def test_the_table_of_the_page():
    judged = made({"baseline": [8.0, 8.4, 7.8], "a": [4.0, 4.1, 4.0], "b+c": [5.0, 5.2, 4.9],
                   "a+b+c": [5.0, 5.2, 4.9], "b": [8.0, 8.3, 7.9]})  # fmt: skip
    found = json.loads(json.dumps(judged.to_json()))
    second = json.loads(json.dumps(made({"baseline": [9.0], "a": [3.0]}).to_json()))
    rows = [
        line.split(" | ") for line in what_helps.table(judged.ablation.switches, found, second).splitlines()
    ]
    a, b, c = rows[2:5]
    assert a[2:4] == ["-50 %", "0.0 %"] and a[5:] == ["helps", "-67 %, unknown |"]
    assert b[2:4] == ["0.0 %", "not measured yet"] and b[5] == "no difference"
    assert c[2:] == ["not measured yet"] * 4 + ["not measured yet |"]
    assert a[4] == percent(found["noise"]["apart"]["least"])
    none = what_helps.table(judged.ablation.switches, None, None).splitlines()
    assert all(line.count("not measured yet") == 5 for line in none[2:])


def test_the_numbers_to_reach_are_those_of_the_published_study():
    declared, _ = read_toml(studies.STUDIES / "modern.toml")
    published = tables.read(DOCS / "studies" / "digits")
    rows = [row for row in published.part(FINAL) if (row.model, row.conditioning) == ("XL/2", "adaln_zero")]
    assert [row.seed for row in rows] == [0, 1, 2]
    xl2 = next(one for one in declared["references"] if one["name"] == "xl2")
    assert xl2["fd"] == pytest.approx(math.exp(sum(math.log(row.distance) for row in rows) / 3))
    assert xl2["train_macs"] == rows[0].train_macs
    accuracy = [
        row.metric("class_accuracy")
        for row in published.part(TRAINING)
        if (row.name, row.steps) == ("XL/2", declared["common"]["train"]["steps"])
    ]
    assert accuracy[0] is not None and accuracy[0] >= 0.75  # past the plateau, as the header says


@pytest.mark.parametrize("name", ["modern", "modern-emoji"])
def test_built_in_studies_have_equal_compute(name: str):
    study = studies.load(name)
    assert study.ablation is not None
    for run in study.runs:
        role, goal = run.settings["role"], study.ablation.budget
        if role in ("reference", "bar"):
            declared = (*study.ablation.references, *study.ablation.bars)
            goal = next(one["train_macs"] for one in declared if one["name"] == run.settings["switch"])
        assert abs(train_macs_of(run.config) - goal) <= step_macs(run.config) / 2, run.name
    assert len(study.ablation.switches.judged) <= 10
