"""A user's own metrics and data sets: one file of at most 40 lines each, named on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaledit import assemble, checkpoint, config, part
from scaledit.autoencoders.kinds import AutoencoderKind, named
from scaledit.cli import main
from scaledit.config import RunConfig
from scaledit.data.datasets import DataSet
from scaledit.data.sets import digits
from scaledit.errors import UsageError
from scaledit.evaluation.extractors import Extractor
from scaledit.evaluation.judge import open_judge
from scaledit.evaluation.metric import Metric, built_in_columns
from scaledit.evaluation.result import Result, side_by_side
from scaledit.evaluation.samples import InMemory
from scaledit.images import to_uint8
from scaledit.optimizers import AdamW, Optimizer
from scaledit.part import Allowed
from scaledit.report import run as report
from scaledit.scaling import table as tables
from scaledit.training import log
from scaledit.training.trackers.kinds import TrackerKind, tracker_kinds
from tiny import TINY

EXAMPLES = Path(__file__).parents[1] / "examples"
WRONG = '''
from dataclasses import dataclass

from my_metrics import MeanDistance
from scaledit.evaluation.metrics import Metric


@dataclass(frozen=True)
class Wrong(MeanDistance):
    """Returns no number."""

    def compute(self, reference, samples, context):
        return "far"


@dataclass(frozen=True)
class Spatial(MeanDistance):
    """Reads features that the digits' extractor does not give."""

    reads = ("spatial",)


@dataclass(frozen=True)
class FID(MeanDistance, name="fid"):
    """Has the key of a built-in metric."""


class Thawed(Metric):
    """Lacks the decorator."""

    def compute(self, reference, samples, context):
        return 0.0


@dataclass(frozen=True)
class Nothing(Metric):
    """Lacks the method."""
'''


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("own")
    for name in ("my_metrics.py", "my_sets.py"):
        shutil.copy(EXAMPLES / name, folder)
    (folder / "wrong_metrics.py").write_text(WRONG.lstrip())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


MEAN = "my_metrics:MeanDistance"
BARS = "my_sets:Bars"


@pytest.fixture(scope="module")
def samples(here: Path) -> Path:
    """Digits as samples, with their classes."""
    data = digits(held_out=True)
    np.savez(here / "samples.npz", arr_0=to_uint8(data.images), arr_1=data.labels.numpy())
    return here / "samples.npz"


@pytest.fixture(scope="module")
def run(here: Path) -> Path:
    """A run on a user's own set, evaluated with a user's own metric."""
    out = here / "run"
    shape = [*TINY, "model.num_classes=2", "train.steps=2", "checkpoint.every=2", "sample.classes=2"]
    judged = ["evaluate.every=2", f"evaluate.reference={BARS}", f"evaluate.metrics=fd_digits,{MEAN}"]
    drawn = ["evaluate.num=8", "evaluate.seeds=2", "sample.steps=2"]
    words = ["train", "digits", "--out", str(out), *shape, f"data.name={BARS}", "data.n=48", *judged, *drawn]
    assert main(words) == 0
    return out


def test_a_reference_with_more_classes_than_the_model_is_refused_before_the_first_step(here: Path, capsys):
    words = ["train", "digits", "--out", str(here / "few"), *TINY, "model.num_classes=2", f"data.name={BARS}"]
    assert main([*words, "sample.classes=2", "train.steps=2"]) == 2
    refused = capsys.readouterr().err
    assert "evaluate.reference=digits has 10 classes, but this model has 2," in refused
    assert not (here / "few").exists()


def test_both_files_are_short():
    for name in ("my_metrics.py", "my_sets.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) <= 40


# A metric


def test_an_own_metric_is_computed_beside_the_others(here: Path, samples: Path, capsys):
    out = here / "result.json"
    words = ["evaluate", str(samples), "--reference", "digits", "--metrics", f"fd_digits,{MEAN}"]
    assert main([*words, "--json", str(out)]) == 0
    assert "distance of means" in capsys.readouterr().out
    value = json.loads(out.read_text())
    judge = open_judge(config.EvaluateConfig(reference="digits", metrics="fd_digits"))
    train, held_out = judge.views[0].reference.pool, judge.views[0].real.pool
    assert train is not None
    expected = np.linalg.norm(train.mean(axis=0) - held_out.mean(axis=0))
    assert value["mean_distance"] == pytest.approx(expected, rel=1e-6)
    assert value["mean_distance_real"] == pytest.approx(expected, rel=1e-6)
    entry = value["protocol"]["metrics"]["mean_distance"]
    assert entry["part"] == {"name": MEAN, "power": 2.0}
    assert entry["title"] == "distance of means" and entry["better"] == "lower"

    assert main(["evaluate", "--compare", str(out), str(out)]) == 0
    assert "distance of means" in capsys.readouterr().out


def test_a_result_is_read_without_the_module_of_its_metric(here: Path, samples: Path, monkeypatch):
    judge = open_judge(config.EvaluateConfig(reference="digits", metrics=MEAN))
    result = judge.evaluate([InMemory("x", to_uint8(digits().images[:50]), None, {})])
    monkeypatch.chdir("/")
    again = Result.from_json(json.loads(json.dumps(result.to_json())))
    assert again.metrics == result.metrics
    assert side_by_side([again])[0] == ["", "distance of means"]


def test_a_metric_has_fields(samples: Path):
    named = ("fd_digits", {"name": "precision", "k": 5}, {"name": MEAN, "power": 1.0})
    evaluate = replace(config.EvaluateConfig(reference="digits"), metrics=named)
    judge = open_judge(evaluate)
    plain = open_judge(config.EvaluateConfig(reference="digits", metrics=f"precision,{MEAN}"))
    assert judge.held_out is not None and plain.held_out is not None
    assert judge.held_out["precision"] > plain.held_out["precision"]
    assert judge.held_out["mean_distance"] > plain.held_out["mean_distance"]
    result = judge.evaluate([InMemory("x", to_uint8(digits().images[:50]), None, {})])
    assert list(result.metrics) == ["fd_digits", "precision", "mean_distance"]
    assert set(result.protocol["metrics"]) == {"precision", "mean_distance"}


def test_a_metric_of_the_classes_is_left_out_if_one_set_states_none():
    x, y = to_uint8(digits().images[:50]), digits().labels[:50].numpy()
    judge = open_judge(config.EvaluateConfig(reference="digits", metrics="fd_digits,class_accuracy"))
    result = judge.evaluate([InMemory("a", x, y, {}), InMemory("b", x, None, {})])
    assert list(result.metrics) == ["fd_digits"]
    assert "class accuracy was left out" in " ".join(result.warnings)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("wrong_metrics:Wrong", "the metric wrong_metrics:Wrong returned 'far' instead of a number"),
        (
            "wrong_metrics:Spatial",
            "needs spatial, but with this reference there is only pool, logits, nearest",
        ),
        ("wrong_metrics:FID", "a result already has the name 'fid'"),
        ("wrong_metrics:Thawed", "wrong_metrics:Thawed is not a frozen dataclass"),
        ("wrong_metrics:Nothing", "lacks the method compute"),
        ("my_metrics:MeanDistanc", "did you mean 'MeanDistance'"),
        ("metrics_of_nobody:Mean", "the module metrics_of_nobody cannot be found"),
        ("my_sets:Bars", "my_sets:Bars is not a metric"),
        ("fd_digit", "did you mean 'fd_digits'"),
    ],
)
def test_a_wrong_metric_is_refused_with_the_reason(samples: Path, named: str, message: str, capsys):
    assert main(["evaluate", str(samples), "--reference", "digits", "--metrics", named]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_foreign_config_imports_no_metric_and_no_set():
    allowed = Allowed.only([], "config.json of hf://someone/model")
    for reference, metrics in (("digits", MEAN), (BARS, "fd_digits")):
        evaluate = config.EvaluateConfig(reference=reference, metrics=metrics)
        with pytest.raises(UsageError, match="--allow-import"):
            open_judge(evaluate, allowed=allowed)
    with pytest.raises(UsageError, match="--allow-import my_sets"):
        assemble.data_part(config.DataConfig(name=BARS), allowed)
    assert open_judge(
        config.EvaluateConfig(reference="digits", metrics=MEAN),
        allowed=Allowed.only(["my_metrics"], "x"),
    )


# A data set


def test_a_run_is_trained_on_and_evaluated_against_an_own_set(run: Path, here: Path):
    assert json.loads((run / "config.json").read_text())["data"] == {"name": BARS, "workers": 0, "n": 48}
    [event] = [event for event in log.read(run) if event["event"] == "evaluated"]
    assert {"fd_digits", "fd_digits_real", "mean_distance", "mean_distance_std"} <= set(event)
    assert "distance of means" in (run / "report.html").read_text()
    manifest = json.loads((run / "checkpoints" / "step-00000002" / "manifest.json").read_text())
    assert manifest["state"]["class_names"] == ["lying", "standing"]
    assert manifest["state"]["data"]["samples"] == 48
    assert (
        main(["sample", str(run), "--classes", "standing", "--steps", "1", "--out", str(here / "x.png")]) == 0
    )


def test_such_a_run_resumes_with_the_same_set_only(run: Path, capsys):
    shape = [*TINY, "model.num_classes=2", "train.steps=2", f"data.name={BARS}", f"evaluate.reference={BARS}"]
    words = ["train", "digits", "--out", str(run), "--resume", "auto", *shape, "checkpoint.every=2"]
    assert main([*words, "data.n=64"]) == 2
    assert "data.n: 48 -> 64" in " ".join(capsys.readouterr().err.split())


def test_foreign_runs_import_nothing(run: Path, here: Path, capsys):
    assert main(["evaluate", str(run), "--reference", "digits", "--num", "4"]) == 2
    assert "--allow-import my_metrics" in " ".join(capsys.readouterr().err.split())
    words = ["evaluate", str(run), "--reference", BARS, "--num", "8", "--metrics", f"fd_digits,{MEAN}"]
    assert main([*words, "--labels", "real", "--steps", "1"]) == 0
    plain = here / "plain"
    shape = [*TINY, "model.num_classes=2", "train.steps=1", "checkpoint.every=1", f"data.name={BARS}"]
    shape += ["sample.classes=2", f"evaluate.reference={BARS}"]
    assert main(["train", "digits", "--out", str(plain), *shape]) == 0
    for modules in (
        (),
        ("my_metrics",),
    ):  # the report of a folder from elsewhere; it names a set and a metric
        with pytest.raises(UsageError, match=r"--allow-import my_(sets|metrics)"):
            report.write(run, "cpu", allow_import=modules)
    assert RunConfig.from_json(
        json.loads((run / "config.json").read_text()), Allowed.only(["my_sets"], "x")
    ).modules() == {"my_sets", "my_metrics"}
    assert main(["evaluate", str(plain), "--reference", BARS, "--num", "8", "--steps", "1"]) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=digit"], "data.name is 'digit'; did you mean 'digits'?"),
        ([f"data.name={BARS}", "data.m=3"], "unknown key data.m: my_sets:Bars has the fields n, flip"),
        ([f"data.name={BARS}", "data.n=1"], "data.n must be at least 2, got 1"),
        ([f"data.name={BARS}", "data.n=two"], "data.n must be a whole number"),
        (["data.name=my_sets:Bar"], "my_sets has no class Bar; did you mean 'Bars'?"),
        ([f"data.name={MEAN}"], "is not a data set"),
        (["data.own=3"], "unknown key data.own"),
        (["data.name=digits", "data.n=3"], "unknown key 'data.n'"),
        (["data.split=test"], 'data.split is a key for images in files, but data.name is "digits"'),
    ],
)
def test_wrong_sets_and_fields_are_refused(overrides: list[str], message: str, tmp_path: Path, capsys):
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *TINY, *overrides]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_switch_to_a_set_keeps_the_fields_that_both_have():
    made = config.load("photos", [f"data.name={BARS}"])
    assert assemble.data_part(made.data).to_json() == {"name": BARS, "n": 32, "flip": True}
    assert config.RunConfig.from_json(made.to_json()) == made
    unflipped = config.load("photos", ["data.flip=false", f"data.name={BARS}", "data.n=4"])
    assert assemble.data_part(unflipped.data).to_json() == {"name": BARS, "n": 4, "flip": False}


# Properties of parts


def test_properties_of_the_built_in_sets():
    sets = part.members(DataSet)
    assert list(sets) == ["digits", "images", "latents", "photos", "emoji"]
    assert [name for name, one in sets.items() if one.in_memory] == ["digits", "photos", "emoji"]
    assert [name for name, one in sets.items() if one.in_memory and one.channels == 3] == ["photos", "emoji"]
    assert [name for name, one in sets.items() if one.extractors] == ["digits", "photos", "emoji"]
    assert [name for name, one in sets.items() if one.encoded] == ["latents"]
    extractors = part.names(Extractor)
    for one in sets.values():
        assert set(one.extractors) | set(one().judged_by()) <= set(extractors)


@pytest.mark.parametrize("kind", [Metric, Extractor, DataSet, Optimizer, AutoencoderKind, TrackerKind])
def test_every_part_is_documented(kind: type):
    for one in part.describe(kind):
        assert one.summary, one.name
        assert all(field.doc for field in one.fields), one.name


TITLES = {
    "fid": "FID",
    "fid_infinity": "FID-infinity",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "fd_digits": "FD-digits",
    "fd_digits_random": "FD-digits-random",
    "fd_photos": "FD-photos",
    "fd_photos_random": "FD-photos-random",
    "fd_dinov2": "FD-DINOv2",
    "fd_dinov2_infinity": "FD-DINOv2-infinity",
    "class_accuracy": "class accuracy",
    "class_score": "class score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "kid": "KID",
    "kid_spread": "KID, sd of subsets",
    "kd_dinov2": "KD-DINOv2",
    "kd_dinov2_spread": "KD-DINOv2, sd of subsets",
    "nearest": "nearest distance",
}


def test_results_of_0_1_are_read_with_every_key_and_title_they_had():
    figures = {key: 1.5 + i for i, key in enumerate(TITLES)}
    old = {"name": "old", **figures, "fid_std": 0.5, "nearest_real": 1.0, "protocol": {}, "warnings": []}
    result = Result.from_json(old)
    assert {key: figure.value for key, figure in result.metrics.items()} == figures
    assert {key: column.title for key, column in result.columns.items()} == TITLES
    assert result.metrics["fid"].std == 0.5 and result.metrics["nearest"].real == 1.0
    assert result.to_json() == old


def test_directions_and_fractions_of_metrics():
    columns = built_in_columns()
    fractions = {"class_accuracy", "nearest_mean_accuracy", "precision", "recall", "coverage"}
    assert {key for key, column in columns.items() if column.fraction} == fractions
    higher = {key for key, column in columns.items() if column.better == "higher"}
    assert higher == {*fractions, "density", "inception_score", "class_score"}


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"fd x": {"title": "x"}},
        {"mine_std": {"title": "x"}},
        {"name": {"title": "x"}},
        {"mine": {"title": 3}},
        {"mine": {"title": "x", "better": "best"}},
        {"mine": "x"},
    ],
)
def test_a_result_with_wrong_descriptions_of_metrics_is_refused(entry: object):
    with pytest.raises(UsageError, match="its metrics"):
        Result.from_json({"name": "x", "mine": 1.0, "protocol": {"metrics": entry}, "warnings": []})


def test_a_study_keeps_an_own_metric(tmp_path: Path):
    from made_tables import study

    made = study()
    described = {"mine": {"title": "My metric", "better": "higher", "fraction": True, "brief": True}}
    key = made.rows[0].protocol
    about = replace(made.about, protocols={**made.about.protocols, key: {"metrics": described}})
    rows = tuple(
        replace(row, metrics={**row.metrics, "mine": 0.25, "mine_std": 0.5}) if i == 0 else row
        for i, row in enumerate(made.rows)
    )
    tables.write(replace(made, about=about, rows=rows), tmp_path)
    again = tables.read(tmp_path)
    assert again.rows[0].metric("mine") == 0.25
    assert "mine" not in again.rows[0].settings


# Optimizers, autoencoders, trackers


def test_the_optimizer_is_adamw_with_the_recipes_numbers():
    import torch

    weight = torch.nn.Parameter(torch.ones(3))
    made = AdamW((0.8, 0.95), 0.1).make([weight], 1e-3)
    assert isinstance(made, torch.optim.AdamW)
    [group] = made.param_groups
    expected = {"lr": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.1, "fused": True}
    assert {key: group[key] for key in expected} == expected
    weight.sum().backward()
    made.step()
    adamw = part.find(Optimizer, "adamw")
    assert set(made.state[weight]) == set(adamw.state)
    moments = [value for key, value in made.state[weight].items() if key != "step"]
    assert sum(value.nbytes for value in moments) == adamw.bytes_of_state * weight.numel()
    with pytest.raises(UsageError, match=r"optimizer.betas must be in \[0, 1\), got \[0.9, 1.0\]"):
        part.build(Optimizer, {"name": "adamw", "betas": [0.9, 1.0]}, "optimizer")


def test_an_optimizer_of_ones_own_trains_and_resumes_bit_for_bit(tmp_path: Path, monkeypatch, capsys):
    """Its fields are keys, old keys name AdamW's only, and its state, which is not AdamW's, is restored."""
    shutil.copy(EXAMPLES / "my_optimizers.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["train", "digits", "optimizer.algorithm=my_optimizers:SignMomentum", "data.workers=0"]
    words += [*TINY, "optimizer.algorithm.beta=0.5", "evaluate.reference=", "checkpoint.every=3"]
    assert main([*words, "train.steps=6", "--out", "whole", "optimizer.decay=constant"]) == 0
    for steps in (3, 6):
        again = [*words, f"train.steps={steps}", "--out", "resumed", "optimizer.decay=constant"]
        assert main([*again, "--resume", "auto"]) == 0
    saved = [checkpoint.find(Path(name) / "checkpoints")[-1] for name in ("whole", "resumed")]
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert saved[0].joinpath(file).read_bytes() == saved[1].joinpath(file).read_bytes()
    config_written = json.loads(Path("whole/config.json").read_text())
    assert config_written["optimizer"]["algorithm"] == {"name": "my_optimizers:SignMomentum", "beta": 0.5}
    capsys.readouterr()
    assert main([*words, "optimizer.betas=[0.9, 0.99]", "--out", "x"]) == 2
    assert "my_optimizers:SignMomentum has the field beta" in capsys.readouterr().err


def test_the_path_of_an_autoencoder_gives_its_kind_and_imports_nothing():
    assert part.names(AutoencoderKind) == ["pixels", "kl"]
    assert named("pixels").to_json() == {"name": "pixels"}
    assert named("kl").to_json() == {"name": "kl", "path": "kl"}  # a folder of that name
    assert named("my_sets:Bars").to_json() == {"name": "kl", "path": "my_sets:Bars"}


def test_the_trackers_of_a_log_config():
    both = config.LogConfig(tensorboard=True, wandb="me/tests", wandb_mode="offline")
    assert [one.to_json() for one in tracker_kinds(both)] == [
        {"name": "tensorboard"},
        {"name": "wandb", "project": "me/tests", "mode": "offline"},
    ]
    assert tracker_kinds(config.LogConfig()) == []


def test_describing_parts_does_not_load_torch():
    """So that --help can list them quickly."""
    import subprocess
    import sys

    kinds = (
        "evaluation.metric:Metric",
        "evaluation.extractors:Extractor",
        "data.datasets:DataSet",
        "optimizers:Optimizer",
        "autoencoders.kinds:AutoencoderKind",
        "training.trackers.kinds:TrackerKind",
    )
    lines = ["import sys, importlib", "from scaledit import part"]
    lines += [
        f"part.describe(importlib.import_module('scaledit.{k.replace(':', chr(39) + ').')})" for k in kinds
    ]
    lines += ["assert not {'torch', 'numpy'} & sys.modules.keys(), 'loaded'"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
