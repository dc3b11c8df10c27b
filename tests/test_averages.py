"""Power-function averages (Karras et al. 2024): their equations, snapshots, and any length afterwards."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saved import identical
from scaledit import averages, checkpoint, load
from scaledit.averages import Kept
from scaledit.config import EMAConfig, RunConfig
from scaledit.data.sets import digits
from scaledit.errors import UsageError
from scaledit.training.dit import train
from scaledit.training.power import Snapshots, Tracks
from scaledit.training.ranks import Ranks
from scaledit.training.state import TrainState
from tiny import tiny

ALONE = Ranks(torch.device("cpu"))
TWO = "ema.power=[0.05,0.1]"
DIRECT = (0.05, 0.07, 0.13, 0.25)


def test_exponents_of_the_paper():
    assert averages.exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert averages.exponent(0.10) == pytest.approx(6.94, abs=0.005)


@given(st.floats(averages.SHORTEST, 0.28))
def test_exponent_inverts_the_length(length: float):
    assert averages.length_of(averages.exponent(length)) == pytest.approx(length, rel=1e-9)


@given(st.floats(0.02, 0.27), st.integers(1, 60), st.integers(0, 2**32))
def test_a_track_is_the_closed_form_sum(length: float, n: int, seed: int):
    weights = torch.from_numpy(np.random.default_rng(seed).normal(size=n))
    weight = torch.zeros(1, dtype=torch.float64)
    tracks = Tracks(EMAConfig(power=(length,)), {"w": weight})
    for k, value in enumerate(weights, 1):
        weight.fill_(value)
        tracks.update(k)
    expected = averages.profile(averages.exponent(length), n) @ weights.numpy()
    assert float(tracks.tensors[length]["w"]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.25])
def test_the_deviation_of_a_profile_is_its_length(length: float):
    n = 20_000
    weights, times = averages.profile(averages.exponent(length), n), (np.arange(n) + 0.5) / n
    mean = weights @ times
    assert weights.sum() == pytest.approx(1)
    assert math.sqrt(weights @ (times - mean) ** 2) == pytest.approx(length, rel=1e-4)


@settings(max_examples=25)
@given(st.integers(1, 50), st.integers(1, 50), st.floats(0.03, 0.25), st.floats(0.03, 0.25))
def test_inner_products_are_those_of_the_integral(a: int, b: int, first: float, second: float):
    gammas = [averages.exponent(length) for length in (first, second)]
    nodes, weights = np.polynomial.legendre.leggauss(200)
    end = min(a, b)
    tau, dtau = (nodes + 1) / 2 * end, weights / 2 * end
    densities = [(g + 1) * tau**g / t ** (g + 1) for g, t in zip(gammas, (a, b), strict=True)]
    found = averages.product(np.array(a), np.array(gammas[0]), np.array(b), np.array(gammas[1]))
    assert found == pytest.approx((densities[0] * densities[1]) @ dtau, rel=1e-6)


def test_a_kept_average_is_found_again_and_more_snapshots_fit_better():
    def kept(snapshots: int) -> list[Kept]:
        return [Kept(length, 10 * k) for k in range(1, snapshots + 1) for length in (0.05, 0.1)]

    exact = averages.fit(kept(8), 0.1, 80)
    assert exact.error < 1e-6
    assert exact.coefficients[-1] == pytest.approx(1)
    errors = [averages.fit(kept(n), 0.18, 10 * n).error for n in (4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    # An average of equal weights is these weights, however bad the fit.
    assert sum(averages.fit(kept(4), 0.25, 40).coefficients) == pytest.approx(1, abs=1e-12)


def norm(weights: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(weight.double().square().sum()) for weight in weights.values()))


def trained(config: RunConfig, out: Path) -> Tracks:
    """Trains with snapshots of ema.power, and with tracks of DIRECT beside them, which are returned."""
    state = TrainState.create(config, digits(), ALONE)
    direct = Tracks(EMAConfig(power=DIRECT), dict(state.net.named_parameters()))
    snapshots = Snapshots(state.power, config, out, ALONE)
    for n in range(1, config.train.steps + 1):
        state.train_step()
        direct.update(n)
        snapshots.keep(n, n == config.train.steps)
    names = {"class_names": list(map(str, range(10))), "autoencoder_info": None}
    (out / "checkpoints").mkdir()
    checkpoint.save(out / "checkpoints", n, state.state_dict(), config.to_json(), **names)
    return direct


@pytest.mark.parametrize("steps", [64, pytest.param(320, marks=pytest.mark.slow)])
def test_computed_averages_are_those_kept(tmp_path: Path, steps: int):
    config = tiny(f"train.steps={steps}", TWO, "optimizer.learning_rate=2e-3")
    direct = trained(config, tmp_path)
    for length in DIRECT:
        pipeline = load(tmp_path, "cpu", average=length)
        found, expected = dict(pipeline.net.named_parameters()), direct.tensors[length]
        apart = norm({name: found[name].detach() - weight for name, weight in expected.items()})
        bound = 5e-4 if length == 0.05 else 0.01  # rounding to fp16 alone
        assert apart < bound * norm(expected), length


def run(config: RunConfig, out: Path, **options) -> None:
    for _ in train(config, out, device="cpu", **options):
        pass


def snapshots(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    folders = checkpoint.find(out / "averages")
    return {folder.name: checkpoint.open_checkpoint(folder).tensors("power") for folder in folders}


def test_a_resumed_run_keeps_the_same_averages(tmp_path: Path):
    config = tiny("train.steps=14", "checkpoint.every=4", TWO, "ema.snapshots=5")
    run(config, tmp_path / "whole")
    later = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, background=False))
    killed = train(later, tmp_path / "parts", device="cpu")
    for event in killed:
        if getattr(event, "step", 0) == 10:
            killed.close()  # after the snapshot of step 9, which the run makes again from step 8 on
            break
    assert "step-00000009" in snapshots(tmp_path / "parts")
    stale = tmp_path / "parts" / "averages" / "step-00000013"
    stale.mkdir()  # of a later step than any that was reached
    run(config, tmp_path / "parts", resume="auto")
    whole, parts = snapshots(tmp_path / "whole"), snapshots(tmp_path / "parts")
    assert list(whole) == [f"step-{step:08d}" for step in (3, 6, 9, 12, 14)] == list(parts)
    assert all(identical(whole[name], parts[name]) for name in whole)
    last = [
        checkpoint.open_checkpoint(tmp_path / name / "checkpoints" / "step-00000014").tensors("power")
        for name in ("whole", "parts")
    ]
    assert identical(*last)
    # The averages change nothing of what the paper has.
    run(tiny("train.steps=14", "checkpoint.every=4"), tmp_path / "without")
    for part in ("model", "ema", "optimizer"):
        assert identical(
            *(
                checkpoint.open_checkpoint(tmp_path / name / "checkpoints" / "step-00000014").tensors(part)
                for name in ("whole", "without")
            )
        )


def test_old_configs_have_no_new_keys():
    written = tiny().to_json()
    assert set(written["ema"]) == {"decay", "warmup"}
    assert "average" not in written["sample"]
    assert RunConfig.from_json(json.loads(json.dumps(tiny(TWO).to_json()))) == tiny(TWO)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ema.power=[0.3]"], "must be from 0.005 to below 0.2887"),
        (["ema.power=[0.1,0.1]"], "twice"),
        (["ema.snapshots=8"], "ema.power is empty"),
        (["sample.average=0.1"], "needs the snapshots"),
    ],
)
def test_wrong_averages_in_a_config_are_refused(overrides: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        tiny(*overrides)


def test_averages_that_were_not_kept_are_refused(tmp_path: Path):
    few = tiny("train.steps=12", TWO, "ema.snapshots=3")
    run(few, tmp_path / "few")
    load(tmp_path / "few", "cpu", average="0.1@8")
    with pytest.raises(
        UsageError, match=r"3 snapshots of the averages 0.05 and 0.1 give lengths from 0.\d+ to 0.1\d*;"
    ):
        load(tmp_path / "few", "cpu", average=0.25)
    with pytest.raises(UsageError, match="no snapshot of its averages at step 5; the nearest are 4 and 8"):
        load(tmp_path / "few", "cpu", average="0.1@5")
    for wrong in ("long", "0.1@", "0.1@-3", "nan", 0.4):
        with pytest.raises(UsageError):
            load(tmp_path / "few", "cpu", average=wrong)
    ema = load(tmp_path / "few", "cpu", average=0)
    assert ema.origin["weights"] == "ema"
    ema.save_pretrained(tmp_path / "exported")
    with pytest.raises(UsageError, match="has no snapshots of power-function averages"):
        load(tmp_path / "exported", "cpu", average=0.1)
    # What is lost or corrupt is left out, and said.
    (tmp_path / "few" / "averages" / "step-00000004" / "power.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="left out"):
        load(tmp_path / "few", "cpu", average=0.1)
    (tmp_path / "few" / "averages" / "step-00000012" / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"give lengths|no other length"):
        load(tmp_path / "few", "cpu", average=0.1)


def test_a_run_is_sampled_with_its_own_average(tmp_path: Path):
    config = tiny("train.steps=8", TWO, "ema.snapshots=8", "sample.average=0.1")
    run(config, tmp_path)
    own, asked = load(tmp_path, "cpu"), load(tmp_path, "cpu", average=0.1)
    assert own.origin == asked.origin
    assert own.origin["weights"] == "average 0.1"
    assert load(tmp_path / "checkpoints" / "step-00000008", "cpu").origin["sha256"] == own.origin["sha256"]
    saved = own.save_pretrained(tmp_path / "exported")
    assert identical(dict(load(saved, "cpu").net.state_dict()), dict(own.net.state_dict()))
