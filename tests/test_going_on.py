"""Going on with a run: longer, or with other settings from a step on; and by its folder alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from among import Job, alone
from saved import identical, weights
from scaledit import checkpoint, cli
from scaledit import load as load_model
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.commands import resuming
from scaledit.config import Config, RunConfig, load
from scaledit.data.loader import Loader
from scaledit.errors import UsageError
from scaledit.files.manifest import sealed
from scaledit.report import page
from scaledit.report.breaks import Break, batches, breaks_of, images_seen
from scaledit.report.reproduce import reproduce
from scaledit.report.run import loss_curve
from scaledit.training import folder, log
from scaledit.training.dit import train
from scaledit.training.events import Changed, Event, Finished, RolledBack, Started, Stepped
from scaledit.training.learner import learning_rate
from scaledit.training.log import JsonLog
from tiny import TINY, tiny

QUIET = ("evaluate.num=10", "evaluate.seeds=1", "checkpoint.background=false", "sample.classes=1")
SHORT = ("train.steps=4", "checkpoint.every=4", *QUIET)


def events_of(config: RunConfig, out: Path) -> Iterator[Event]:
    """The events of a run that is resumed by its folder, in its log too."""
    listen = JsonLog(out)
    for event in train(config, out, device="cpu", resume="auto", changes="accept"):
        listen(event)
        yield event


def run(out: Path, *overrides: str) -> list[Event]:
    return list(events_of(tiny(*overrides), out))


def resume(out: Path, *overrides: str) -> list[Event]:
    """`scaledit train OUT section.key=value ...`, without its report."""
    return list(events_of(asked(out, *overrides).config, out))


def asked(out: Path, *words: str, kind: type = RunConfig) -> resuming.Chosen:
    """What `scaledit train OUT WORDS` would train."""
    command = "train" if kind is RunConfig else "autoencoder"
    arguments = [*([] if kind is RunConfig else ["train"]), str(out), *words]
    return resuming.chosen(cli.parser(command).parse(arguments), kind)


def kill_after(out: Path, kind: type[Event], *overrides: str) -> None:
    """Resumes a run and abandons it at the first event of a kind, as a kill would."""
    for event in events_of(asked(out, *overrides).config, out):
        if isinstance(event, kind):
            return
    pytest.fail(f"the run ended without {kind}")


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in log.read(out) if line["event"] == "stepped"]


def breaks(out: Path) -> list[tuple[int, list[str]]]:
    return [(one.step, one.changes) for one in breaks_of(log.read(out))]


def settings(out: Path) -> tuple[dict, dict]:
    """What config.json and the newest checkpoint say."""
    newest = checkpoint.open_checkpoint(checkpoint.find(out / "checkpoints")[-1])
    return json.loads((out / "config.json").read_text()), dict(newest.config)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps, for copies."""
    out = tmp_path_factory.mktemp("begun") / "run"
    run(out, *SHORT)
    return out


def copy_of(begun: Path, where: Path) -> Path:
    return Path(shutil.copytree(begun, where))


def test_a_run_extended_from_30_to_60_steps_is_one_of_60(tmp_path: Path):
    """At a constant rate: weights, average, optimizer and every logged loss, bit for bit."""
    every = ("checkpoint.every=20", *QUIET)
    run(tmp_path / "whole", "train.steps=60", *every)
    run(tmp_path / "longer", "train.steps=30", *every)
    events = list(events_of(asked(tmp_path / "longer", "--until", "60").config, tmp_path / "longer"))
    assert events[0]._replace(step=0) == Started("digits", 0, 60, "cpu", 1, 15344, 35584, 1438, trained=15344)
    assert events[1] == Changed(30, ["train.steps: 30 -> 60"], 16)
    assert identical(weights(tmp_path / "longer"), weights(tmp_path / "whole"))
    assert losses(tmp_path / "longer") == losses(tmp_path / "whole")
    assert breaks(tmp_path / "longer") == [(30, ["train.steps: 30 -> 60"])]
    again = reproduce(tiny("train.steps=60", *every), tmp_path / "longer", log.read(tmp_path / "longer"), {})
    assert again.note == ""  # its command makes the same model
    assert [config["train"]["steps"] for config in settings(tmp_path / "longer")] == [60, 60]


ALLOWED = {
    "optimizer.learning_rate=0.001": "optimizer.learning_rate: 0.005 -> 0.001",
    "optimizer.warmup_steps=7": "optimizer.warmup_steps: 50 -> 7",
    "optimizer.decay=linear": "optimizer.decay: constant -> linear",
    "optimizer.clip=0.5": "optimizer.clip: 0.0 -> 0.5",
    "train.batch_size=24": "train.batch_size: 16 -> 24",
    "evaluate.num=12": "evaluate.num: 10 -> 12",
    "sample.sampler=ddim": "sample.sampler.name: dpm -> ddim",
}


@pytest.mark.parametrize("change", ALLOWED)
def test_an_allowed_change_is_recorded_and_takes_effect(change: str, begun: Path, tmp_path: Path):
    out = copy_of(begun, tmp_path / "run")
    events = resume(out, "train.steps=8", change)
    steps, changes = breaks(out)[0]
    assert steps == 4
    assert ALLOWED[change] in changes
    assert "train.steps: 4 -> 8" in changes
    new, saved = settings(out)
    assert new == saved == json.loads(json.dumps(asked(out).config.to_json()))
    rates = {event.step: event.learning_rate for event in events if isinstance(event, Stepped)}
    settled = asked(out).config
    expected = {step: learning_rate(settled.optimizer, step - 1, 8) for step in (5, 6, 7, 8)}
    assert rates == expected
    assert resume(out)[1:] == events[-1:]  # a second time there is nothing to do
    assert len(breaks(out)) == 1


@pytest.mark.parametrize(
    "change",
    [
        "model.depth=3",
        "diffusion.times=uniform",
        "data.flip=true",
        "train.seed=1",
        "train.precision=bf16",
        "optimizer.algorithm.weight_decay=0.1",
        "ema.decay=0.99",
    ],
)
def test_what_would_be_another_training_is_refused(change: str, begun: Path, tmp_path: Path):
    out = copy_of(begun, tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    key = change.partition("=")[0]
    with pytest.raises(
        UsageError, match=rf"{key}.*another training; leave (it|them) out to resume {out}, or"
    ):
        resume(out, change, "train.steps=8")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_change_of_the_batch_size_repeats_and_leaves_out_no_sample(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """16 to 24 to 8 samples a step, killed before and after checkpoints: as without a kill."""
    seen: list[int] = []
    take = Loader.take

    def watched(self: Loader, positions: range):
        seen.extend(positions)
        return take(self, positions)

    larger = ("train.batch_size=24", "train.steps=12")
    smaller = ("train.batch_size=8", "train.steps=20", "optimizer.learning_rate=0.002")
    whole, parts = copy_of(begun, tmp_path / "whole"), copy_of(begun, tmp_path / "parts")
    with monkeypatch.context() as watching:
        watching.setattr(Loader, "take", watched)
        resume(whole, *larger)
        resume(whole, *smaller)
    assert seen == list(range(4 * 16, 4 * 16 + 8 * 24 + 8 * 8))
    kill_after(parts, Changed, *larger)  # accepted, and nothing trained
    kill_after(parts, Stepped)  # some steps, and no checkpoint
    resume(parts)
    kill_after(parts, Stepped, *smaller)
    resume(parts)
    assert identical(weights(parts), weights(whole))
    assert losses(parts) == losses(whole)
    assert breaks(parts) == breaks(whole)
    assert [step for step, _ in breaks(parts)] == [4, 12]
    saved = checkpoint.open_checkpoint(checkpoint.find(parts / "checkpoints")[-1])
    assert saved.manifest["state"]["position"] == 4 * 16 + 8 * 24 + 8 * 8


def test_killed_between_acceptance_and_the_first_event(begun: Path, tmp_path: Path):
    """config.json is the change: the log does not have it yet, and the checkpoint was made before it."""
    out, whole = copy_of(begun, tmp_path / "run"), copy_of(begun, tmp_path / "whole")
    change = ("train.steps=8", "optimizer.learning_rate=0.001")
    config = asked(out, *change).config
    lock, latest = folder.lock(config, out, "auto", changes="accept")
    lock.release()
    assert latest.checkpoint is not None and latest.checkpoint.step == 4
    assert breaks(out) == []
    resume(out)
    resume(whole, *change)
    assert (
        breaks(out)
        == breaks(whole)
        == [(4, ["optimizer.learning_rate: 0.005 -> 0.001", "train.steps: 4 -> 8"])]
    )
    assert identical(weights(out), weights(whole))


def test_a_change_that_is_taken_back_in_time_is_none(begun: Path, tmp_path: Path):
    out = copy_of(begun, tmp_path / "run")
    kill_after(out, Stepped, "train.steps=8", "optimizer.learning_rate=0.001")
    resume(out, "optimizer.learning_rate=0.005")
    assert breaks(out) == [(4, ["train.steps: 4 -> 8"])]


def test_a_manifest_without_a_position_is_of_one_batch_size(begun: Path, tmp_path: Path):
    """As earlier versions wrote it, after a rollback that left two batches out."""
    out, newer = copy_of(begun, tmp_path / "run"), copy_of(begun, tmp_path / "newer")
    for run_folder, position in ((out, None), (newer, 6 * 16)):
        path = checkpoint.find(run_folder / "checkpoints")[-1] / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["sha256"]
        manifest["state"] |= {"skipped_batches": 2, "position": position}
        if position is None:
            del manifest["state"]["position"]
        path.write_bytes(sealed(manifest))
        resume(run_folder, "train.steps=8", "train.batch_size=24")
    assert identical(weights(out), weights(newer))


SPIKE, EVERY = 60, 10
"""A step with a checkpoint before it, and enough losses before that for the detector."""


def test_a_run_goes_back_to_its_break(tmp_path: Path):
    """A spike right after the batch size has changed: the batch that spiked is left out, and no other."""
    spiked = SPIKE * 16 + 5
    job = Job(
        ("train.rollback=true", f"checkpoint.every={EVERY}", f"train.steps={SPIKE}", *QUIET),
        out=str(tmp_path / "run"),
        poisoned=(spiked,),
        factor=1e4,
    )
    assert alone(job).error == ""
    change = ("train.batch_size=24", f"train.steps={SPIKE + EVERY}")
    changed = dataclasses.replace(job, overrides=(*job.overrides, *change), changes="accept")
    trained = alone(changed)
    assert trained.error == ""
    assert [event for event in trained.events if isinstance(event, RolledBack)] == [
        RolledBack(SPIKE, SPIKE + 1, 1)
    ]
    told = [event.step for event in trained.events if isinstance(event, Changed)]
    assert told == [SPIKE, SPIKE]  # with each start from there
    assert [step for step, _ in breaks(tmp_path / "run")] == [SPIKE]  # and once in the log
    newest = checkpoint.open_checkpoint(checkpoint.find(tmp_path / "run" / "checkpoints")[-1])
    assert newest.manifest["state"]["position"] == SPIKE * 16 + (EVERY + 1) * 24


def test_a_run_cannot_end_before_where_it_is(begun: Path, tmp_path: Path):
    out = copy_of(begun, tmp_path / "run")
    with pytest.raises(UsageError, match=r"has reached step 4, so it cannot end at step 2 .*above 4"):
        list(events_of(asked(out, "--until", "2").config, out))
    with pytest.raises(UsageError, match=r"--until 6 and train.steps=7 both"):
        asked(out, "--until", "6", "train.steps=7")
    kill_after(out, Finished, "--until", "4")  # where it is
    stopped = tmp_path / "stopped"
    for event in events_of(tiny("train.steps=12", "checkpoint.every=4", *QUIET), stopped):
        if isinstance(event, Stepped) and event.step == 5:
            break
    assert isinstance(list(events_of(asked(stopped, "--until", "4").config, stopped))[-1], Finished)


# A run folder in place of a recipe


def write_config(where: Path, config: Config, *inside: str) -> Path:
    where.mkdir(parents=True)
    (where / "config.json").write_text(json.dumps(config.to_json()))
    for name in inside:
        (where / name).mkdir(parents=True)
    return where


def test_the_folder_is_enough(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = copy_of(begun, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    config = tiny(*SHORT)
    for words in ([], ["--resume", "auto"], ["--out", "runs/mine"], ["--out", str(out)]):
        assert asked(Path("runs/mine"), *words) == (config, Path("runs/mine"), "auto", "accept")
    assert asked(Path("runs/mine"), "--sampler", "ddim").config.sample.sampler.part_name() == "ddim"
    copy_of(begun, tmp_path / "digits")
    assert asked(Path("digits")).changes == "refuse"  # the recipe
    assert cli.parser("train").parse(["./digits"]).recipe == "./digits"
    words = cli.parser("train").parse(["./digits"])
    assert resuming.chosen(words, RunConfig).changes == "accept"
    killed_early = write_config(tmp_path / "early", config, ".run")
    assert asked(killed_early).config == config


def wrong_ways(tmp_path: Path, begun: Path) -> Iterable[tuple[list[str], type, str]]:
    """Arguments, the kind of run that is wanted, and what is said."""
    out = copy_of(begun, tmp_path / "run")
    ae = write_config(tmp_path / "ae", load("photos-ae", kind=AutoencoderRun), "checkpoints", "autoencoder")
    (ae / "autoencoder" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    exported = write_config(tmp_path / "exported", tiny())
    (exported / "model.safetensors").touch()
    (tmp_path / "empty").mkdir()
    whole = f"pass the run folder: scaledit train {out}$"
    yield (
        [str(tmp_path / "empty")],
        RunConfig,
        r"is no run folder, since it has no config.json; pass a folder",
    )
    yield [str(tmp_path / "gone")], RunConfig, r"there is no run folder .*gone; a recipe has a name"
    yield [str(ae)], RunConfig, f"use scaledit autoencoder train {ae}$"
    yield [str(out)], AutoencoderRun, f"use scaledit train {out}$"
    yield [str(exported)], RunConfig, r"written for use, without the optimizer's state.*pass the run folder"
    yield [str(out / "checkpoints")], RunConfig, whole
    yield [str(out / "checkpoints" / "step-00000004")], RunConfig, whole
    yield [str(ae / "autoencoder")], AutoencoderRun, f"scaledit autoencoder train {ae}$"
    yield [str(out), "--out", "elsewhere"], RunConfig, r"resumed where it is, not in elsewhere; leave --out"
    yield [str(out), "--resume", "never"], RunConfig, r"can only be resumed; leave --resume never out"
    yield [str(out), "model.deph=3"], RunConfig, r"unknown key 'model.deph'.*model.depth"
    yield [str(out), "8"], RunConfig, r"an override is section.key=value"


def test_wrong_ways_to_name_a_run(begun: Path, tmp_path: Path):
    for words, kind, says in wrong_ways(tmp_path, begun):
        with pytest.raises(UsageError, match=says):
            asked(Path(words[0]), *words[1:], kind=kind)
    broken = write_config(tmp_path / "broken", tiny(), "checkpoints")
    (broken / "config.json").write_text('{"model": {}')
    with pytest.raises(UsageError, match=r"broken/config.json cannot be read as a run's config"):
        asked(broken)


def test_modules_that_a_run_names_are_imported_only_if_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "strange_parts.py").write_text(
        "from dataclasses import dataclass\n"
        "from scaledit.diffusion.samplers import DDIM\n"
        "@dataclass(frozen=True)\n"
        "class Mine(DDIM):\n"
        "    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tiny("sample.sampler=strange_parts:Mine")
    out = write_config(tmp_path / "run", config, "checkpoints")
    data = write_config(tmp_path / "data", tiny("data.name=other_strange:Set"), "checkpoints")
    del sys.modules["strange_parts"]
    for where, module in ((out, "strange_parts"), (data, "other_strange")):
        with pytest.raises(UsageError, match=rf"config.json names .*allow it with --allow-import {module}"):
            asked(where)
        assert module not in sys.modules
    assert asked(out, "--allow-import", "strange_parts").config.modules() == {"strange_parts"}
    # Allowed, and then replaced: the run needs it no longer, nor does the comparison with its past.
    replaced = asked(out, "--allow-import", "strange_parts", "sample.sampler=ddim").config
    lock, _ = folder.lock(replaced, out, "auto", changes="accept")
    lock.release()
    del sys.modules["strange_parts"]
    assert asked(out).config == replaced
    saved = checkpoint.Checkpoint(out, {"config": json.loads(json.dumps(config.to_json()))})
    [change] = folder.changes_since(saved, replaced, out)
    assert str(change) == "sample.sampler.name: strange_parts:Mine -> ddim"
    assert "strange_parts" not in sys.modules


# The command line


def call(*words: str) -> int:
    return cli.main(["train", *words, "--device", "cpu"])


def test_the_command_extends_a_run_and_leaves_a_finished_one_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert call("digits", "--out", "run", *TINY, *SHORT, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    run_folder, report = Path("run"), Path("run/report.html")

    def state() -> dict[Path, tuple[bytes, int]]:
        files = (path for path in run_folder.rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    for again in (
        ["run"],
        ["digits", "--out", "run", "--resume", "auto", *TINY, *SHORT],
        ["run", "--until", "4"],
    ):
        assert call(*again) == 0
        assert capsys.readouterr().out == "run is finished at step 4; train longer with --until STEPS\n"
    assert call("run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert state() == before
    report.unlink()
    assert call("run") == 0
    assert "trained 4 steps" in capsys.readouterr().out
    assert "Changes during training" not in report.read_text()
    stale = report.read_text()

    assert call("run", "--until", "8", "train.batch_size=24", "optimizer.learning_rate=0.001") == 0
    text = report.read_text()
    assert "Changes during training" in text
    assert "From step 4 on: optimizer.learning_rate: 0.005 -&gt; 0.001; train.batch_size: 16 -&gt; 24" in text
    assert "of batch 16, then 24" in text
    assert "learning rate over training steps" in text
    assert "the commands train with its last settings from the start" in text
    load_model(run_folder, "cpu").save_pretrained(tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "changed during training: from step 4 on optimizer.learning_rate: 0.005 -&gt; 0.001;" in card
    capsys.readouterr()
    report.write_text(stale)  # killed before it had written the new one
    assert call("run") == 0
    assert "trained 8 steps" in capsys.readouterr().out
    assert "of batch 16, then 24" in report.read_text()
    assert call("run") == 0
    assert "finished at step 8" in capsys.readouterr().out
    assert call("run", "--until", "6") == 2
    assert "has reached step 8, so it cannot end at step 6" in capsys.readouterr().err


def test_images_and_batches_of_a_run_with_breaks():
    found = [Break(10, ["train.batch_size: 4 -> 8"], 4), Break(25, ["evaluate.num: 2 -> 3"], 8)]
    assert images_seen(found, 30, 8) == sum(4 if step < 10 else 8 for step in range(30))
    assert images_seen([], 30, 8) == 240
    assert batches(found, 8) == "4, then 8"
    assert batches([], 8) == "8"
    assert [one.is_of_training for one in found] == [True, False]
    forged = [{"event": "changed", "step": 1, "changes": "x", "batch_size": 2}]
    forged += [{"event": "changed", "step": 1, "changes": [["x"]], "batch_size": 2}]
    assert breaks_of([*forged, {"event": "changed", "step": 1, "changes": [], "batch_size": "2"}]) == []


def test_a_thin_line_marks_each_break():
    events = [{"event": "stepped", "step": step, "loss": 1 / step} for step in range(1, 40)]
    lines = []
    for marks in ([], [10], [10, 20]):
        chart = loss_curve(events, marks=marks)
        assert chart is not None
        lines.append(chart.svg.count(b"var(--c4)"))
    assert [b - a for a, b in itertools.pairwise(lines)] == [1, 1]
    assert list(page.IN_THE_DARK)[4] == page.REAL
