"""Training: exact resume, non-finite numbers, and checkpoints that are complete or absent."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from saved import identical, weights
from scaledit import checkpoint, load
from scaledit.config import EMAConfig, OptimizerConfig, RunConfig
from scaledit.data.sets import digits
from scaledit.errors import RunError, UsageError
from scaledit.optimizers import Optimizer
from scaledit.training import ema, log
from scaledit.training.dit import train
from scaledit.training.events import CorruptCheckpoint, Event, Finished, Saved, Skipped, Started, Stepped
from scaledit.training.learner import learning_rate
from scaledit.training.log import JsonLog
from scaledit.training.ranks import Ranks
from scaledit.training.state import TrainState
from tiny import tiny

ALONE = Ranks(torch.device("cpu"))


def run(config: RunConfig, out: Path, **options) -> list[Event]:
    events, listen = [], JsonLog(out)
    for event in train(config, out, device="cpu", **options):
        listen(event)
        events.append(event)
    return events


def stop_after(config: RunConfig, out: Path, saves: int, **options) -> None:
    """Runs until `saves` checkpoints are on disk, then abandons the loop, as a kill between steps would.
    Waits for each save: how far training gets meanwhile is not the same every time."""
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, background=False))
    listen = JsonLog(out)
    for event in train(config, out, device="cpu", **options):
        listen(event)
        saves -= isinstance(event, Saved)
        if saves == 0 and isinstance(event, Stepped):
            return


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("digits", ()),
        ("digits-paper", ("optimizer.decay=cosine", "optimizer.clip=0.5", "train.accumulate=2")),
        ("digits", ("diffusion.times=loss_second_moment", "data.flip=true")),
        ("digits", ("optimizer.algorithm=muon", "optimizer.clip=0.5", "optimizer.base_width=8")),
    ],
)
def test_resumed_run_ends_bit_identical(tmp_path: Path, recipe: str, overrides: tuple[str, ...]):
    config = tiny("train.steps=24", "checkpoint.every=5", *overrides, recipe=recipe)
    whole = run(config, tmp_path / "whole")
    stop_after(config, tmp_path / "parts", saves=1)
    stop_after(config, tmp_path / "parts", saves=2, resume="auto")
    resumed = run(config, tmp_path / "parts", resume="auto")
    assert isinstance(resumed[0], Started)
    assert resumed[0].step == 15
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    losses = [event.loss for event in whole if isinstance(event, Stepped)]
    logged = [record["loss"] for record in log.read(tmp_path / "parts") if record["event"] == "stepped"]
    assert logged == losses  # every step once, also those that were done twice


@dataclasses.dataclass(frozen=True)
class Momentum(Optimizer):
    """SGD with momentum, whose state has no step."""

    state = ("momentum_buffer",)

    def make(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.SGD:
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9)


@dataclasses.dataclass(frozen=True)
class NAdam(Optimizer):
    """Adam with Nesterov momentum, whose state has two scalars."""

    state = ("step", "mu_product", "exp_avg", "exp_avg_sq")
    scalars = ("step", "mu_product")

    def make(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.NAdam:
        return torch.optim.NAdam(groups, lr=learning_rate)


@pytest.mark.parametrize("optimizer", [Momentum(), NAdam()], ids=lambda optimizer: type(optimizer).__name__)
def test_an_optimizer_with_other_state_resumes_bit_identically(tmp_path: Path, optimizer: Optimizer):
    config = tiny("train.steps=12", "checkpoint.every=5", "optimizer.learning_rate=0.01")
    settings = dataclasses.replace(config.optimizer, algorithm=optimizer)
    config = dataclasses.replace(config, optimizer=settings)
    run(config, tmp_path / "whole")
    stop_after(config, tmp_path / "parts", saves=1)
    resumed = run(config, tmp_path / "parts", resume="auto")
    assert resumed[0].step == 5
    saved = weights(tmp_path / "parts")
    assert {name.split("/")[1] for name in saved if name.startswith("optimizer/")} == {*optimizer.state}
    assert all(bool(value.any()) for name, value in saved.items() if "/momentum_buffer/" in name)
    assert identical(weights(tmp_path / "whole"), saved)
    other = tiny("train.steps=12", "checkpoint.every=5", "optimizer.learning_rate=0.01")
    with pytest.raises(
        UsageError, match=r"algorithm\.name: test_training:\w+ -> adamw.*choose another --out, or resume"
    ):
        run(other, tmp_path / "parts", resume="auto")


def test_training_learns_and_finished_run_is_left_alone(tmp_path: Path):
    config = tiny("train.steps=60", "checkpoint.every=30")
    events = run(config, tmp_path / "run")
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])  # over 6 seeds 0.706 times, standard deviation 0.028
    before = weights(tmp_path / "run")
    again = run(config, tmp_path / "run", resume="auto")
    assert [type(event) for event in again] == [Started, Finished]
    assert identical(before, weights(tmp_path / "run"))
    longer = tiny("train.steps=70", "checkpoint.every=30")  # without decay a run may be extended
    assert isinstance(run(longer, tmp_path / "run", resume="auto")[-1], Finished)


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path):
    weights = []
    for accumulate in (1, 4):
        state = TrainState.create(tiny(f"train.accumulate={accumulate}"), digits(), ALONE)
        results = [state.train_step() for _ in range(3)]
        weights.append((results[-1].loss, results[-1].grad_norm))
    assert weights[0] == pytest.approx(weights[1], rel=1e-4)


def test_a_sample_is_trained_the_same_whatever_the_batch_size():
    """Batch 16 twice sees the same samples, times and noise as batch 32: equal losses at equal weights."""
    losses = []
    for batch in (16, 32):
        config = tiny(f"train.batch_size={batch}", "optimizer.learning_rate=0")
        state = TrainState.create(config, digits(), ALONE)
        per_step = [state.train_step().loss for _ in range(64 // batch)]
        losses.append(sum(per_step) / len(per_step))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def poisoned(*, share: float) -> object:
    """The digits with this share of the images not a number."""
    images = digits()
    x = images.images.clone()
    x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: int(share * len(x))]] = float(
        "nan"
    )
    return dataclasses.replace(images, images=x)


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path: Path):
    config = tiny("train.steps=30", "train.batch_size=4", "train.max_skips=30")
    events = run(config, tmp_path / "run", dataset=poisoned(share=0.1))
    skipped = [event for event in events if isinstance(event, Skipped)]
    assert 0 < len(skipped) < 30
    assert events[-1] == Finished(30, events[-1].seconds, len(skipped))
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path / "run").values())
    state = TrainState.create(config, digits(), ALONE)
    state.train_step()
    before = {key: value.clone() for part in state.state_dict().values() for key, value in part.items()}
    state.loader.read = dataclasses.replace(state.loader.read, dataset=poisoned(share=1.0))
    assert state.train_step().skipped
    after = {key: value for part in state.state_dict().values() for key, value in part.items()}
    assert identical(before, after)


def test_several_skips_in_a_row_stop_the_run_with_its_last_good_checkpoint(tmp_path: Path):
    config = tiny("train.steps=40", "checkpoint.every=5", "train.max_skips=3")
    stop_after(config, tmp_path / "run", saves=1)
    config = tiny("train.steps=40", "checkpoint.every=5", "train.max_skips=3", "data.changed=accept")
    with pytest.raises(RunError, match=r"3 steps in a row .*step-00000005.*learning_rate"):
        run(config, tmp_path / "run", resume="auto", dataset=poisoned(share=1.0))
    assert load(tmp_path / "run").origin["step"] == 5


def test_weights_that_overflowed_are_never_saved(tmp_path: Path):
    """A finite loss and gradient, and a step so large that the weights are infinite after it."""
    config = tiny(
        "train.steps=40", "checkpoint.every=1", "optimizer.warmup_steps=4", "optimizer.learning_rate=4e38"
    )
    with pytest.raises(RunError, match=r"not finite.*learning_rate"):
        run(config, tmp_path / "run")
    for folder in checkpoint.find(tmp_path / "run" / "checkpoints"):
        model = checkpoint.open_checkpoint(folder).tensors("model")
        assert all(bool(value.isfinite().all()) for value in model.values())


@pytest.mark.parametrize(
    "part", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("fault", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_gone_on_from(tmp_path: Path, part: str, fault: str):
    config = tiny("train.steps=12", "checkpoint.every=4", "checkpoint.keep=3")
    run(config, tmp_path / "whole")
    stop_after(config, tmp_path / "run", saves=2)
    file = tmp_path / "run" / "checkpoints" / "step-00000008" / part
    data = bytearray(file.read_bytes())
    if fault == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif fault == "flip":
        data[random.Random(part).randrange(len(data))] ^= 16
        file.write_bytes(data)
    else:
        file.unlink()
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    if part in ("ema.safetensors", "manifest.json"):
        with pytest.raises(RunError, match=r"step-00000008 is corrupt.*the previous one is .*step-00000004"):
            load(tmp_path / "run")
    passed_over, started, *_ = run(config, tmp_path / "run", resume="auto")
    assert isinstance(passed_over, CorruptCheckpoint)
    assert "step-00000008 is corrupt" in passed_over.why
    aside = tmp_path / "run" / "checkpoints" / "corrupt-step-00000008"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert started.step == 4
    assert identical(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_random_flipped_bit_is_always_found(tmp_path: Path):
    run(tiny("train.steps=1"), tmp_path / "run")
    folder = checkpoint.find(tmp_path / "run" / "checkpoints")[0]
    rng = random.Random(0)
    for _ in range(200):
        file = rng.choice([path for path in folder.iterdir() if path.stat().st_size])
        data = file.read_bytes()
        bit = rng.randrange(8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(changed)
        with pytest.raises(RunError, match="corrupt"):
            checkpoint.open_checkpoint(folder).verify()
        file.write_bytes(data)
    checkpoint.open_checkpoint(folder).verify()


def test_a_full_disk_leaves_the_checkpoints_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The operating system's own limit on the size of a file (RLIMIT_FSIZE), hit in the middle of a save."""
    import resource
    import signal

    config = tiny("train.steps=10", "checkpoint.every=4")
    stop_after(config, tmp_path / "run", saves=1)
    before = snapshot(tmp_path / "run" / "checkpoints")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(
            RunError, match=r"could not save .*step-00000008: .*; earlier checkpoints are intact"
        ):
            run(config, tmp_path / "run", resume="auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert snapshot(tmp_path / "run" / "checkpoints") == before
    assert isinstance(run(config, tmp_path / "run", resume="auto")[-1], Finished)


def test_a_run_folder_of_another_config_is_refused(tmp_path: Path):
    config = tiny("train.steps=2")
    run(config, tmp_path / "run")
    before = snapshot(tmp_path / "run")
    fix = f"scaledit train {tmp_path}/run optimizer.learning_rate=0.1"
    asked = rf"learning_rate: 0.005 -> 0.1\).*from step 2 on, run: {fix};"
    with pytest.raises(UsageError, match=asked):
        run(tiny("train.steps=2", "optimizer.learning_rate=0.1"), tmp_path / "run", resume="auto")
    with pytest.raises(UsageError, match=rf"to resume it, run: scaledit train {tmp_path}/run;"):
        run(config, tmp_path / "run")
    short = tiny("train.steps=2", "optimizer.decay=linear")
    run(short, tmp_path / "decays")
    extended = (
        rf"train.steps: 2 -> 4\).*run: scaledit train {tmp_path}/decays train.steps=4; or choose another"
    )
    with pytest.raises(UsageError, match=extended):
        run(tiny("train.steps=4", "optimizer.decay=linear"), tmp_path / "decays", resume="auto")
    both = rf"run: scaledit train {tmp_path}/decays optimizer.decay=constant train.steps=4;"
    with pytest.raises(UsageError, match=rf"optimizer.decay: linear -> constant\).*{both}"):
        run(tiny("train.steps=4", "optimizer.decay=constant"), tmp_path / "decays", resume="auto")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not empty"):
        run(config, tmp_path / "other")
    with pytest.raises(UsageError, match=r"1x8x8.*3x8x8.*model.in_channels"):
        run(tiny("model.in_channels=3"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert snapshot(tmp_path / "run") == before


def test_a_checkpoint_that_does_not_fit_its_config_is_refused(tmp_path: Path):
    """Whole files, honest hashes, but weights of another width."""
    run(tiny("train.steps=1"), tmp_path / "a")
    run(tiny("train.steps=1", "model.hidden_size=32"), tmp_path / "b")
    parts = {
        part: checkpoint.open_checkpoint(checkpoint.find(tmp_path / "b" / "checkpoints")[0]).tensors(part)
        for part in ("model", "ema", "optimizer", "times")
    }
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    checkpoint.save(tmp_path / "c" / "checkpoints", 1, parts, config, class_names=[], skipped=0, seconds=0.0)
    with pytest.raises(
        UsageError, match=r"does not fit its config: blocks.0.attn.proj.bias has the shape \(32,\)"
    ):
        load(tmp_path / "c")


def test_prune_keeps_the_latest(tmp_path: Path):
    run(tiny("train.steps=20", "checkpoint.every=3", "checkpoint.keep=3"), tmp_path / "run")
    names = [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(names) == ["step-00000015", "step-00000018", "step-00000020"]


def test_ema_against_its_formula():
    net, average = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(average.weight)
    torch.nn.init.ones_(net.weight)
    for step in range(2000):
        ema.update([average.weight], [net.weight], ema.decay_at(EMAConfig(decay=0.9999), step))
    assert average.weight.item() == pytest.approx(
        1 - 0.9999**2000, rel=1e-4
    )  # 18 %: mostly the initialization
    warm = EMAConfig(decay=0.9999, warmup=True)
    assert [ema.decay_at(warm, n) for n in (0, 90, 10**9)] == [0.1, 0.91, 0.9999]


def test_learning_rate_schedules():
    base = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    assert [learning_rate(base, step, 100) for step in (0, 9, 50, 99)] == pytest.approx([0.1, 1, 1, 1])
    cosine = dataclasses.replace(base, decay="cosine")
    assert learning_rate(cosine, 50, 100) == pytest.approx(0.5)
    assert learning_rate(dataclasses.replace(base, decay="linear"), 75, 100) == pytest.approx(0.25)


def test_bf16_autocast_is_close_to_fp32():
    losses = {}
    for precision in ("fp32", "bf16"):
        state = TrainState.create(tiny(f"train.precision={precision}"), digits(), ALONE)
        losses[precision] = [state.train_step().loss for _ in range(8)]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_the_latest_checkpoint_of_a_run_that_goes_on(tmp_path: Path, monkeypatch):
    """Between a reader's look at the folder and its reading, the run saves twice and removes all of it."""
    folder, listed = tmp_path / "checkpoints", checkpoint.find

    def save(step: int) -> None:
        checkpoint.save(folder, step, {"model": {"w": torch.full((8,), float(step))}}, {})
        checkpoint.prune(folder, keep=2)

    def find(checkpoints: Path) -> list[Path]:
        found = listed(checkpoints)
        monkeypatch.setattr(checkpoint, "find", listed)
        save(3)
        save(4)
        return found

    save(1)
    save(2)
    monkeypatch.setattr(checkpoint, "find", find)
    found = checkpoint.latest(folder)
    assert found.checkpoint is not None and found.checkpoint.step == 4 and not found.corrupt
