"""What scaledit 0.1.0 wrote is read by the code as it is now; tests/made_by_0_1/make.py says how it was made.

Images differ by one gray level at most and weights by 1e-5 on any processor. Both are the same to the bit on
the processor and the libraries that made them.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from made_by_0_1.same import digests, machine
from saved import weights
from scaledit import cli, config, load
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.captions import images_in
from scaledit.config import RunConfig
from scaledit.data.latents import Latents
from scaledit.scaling import study as studies
from scaledit.scaling import table as tables
from scaledit.scaling.collect import collect
from scaledit.scaling.queue import Queue
from scaledit.scaling.work import jobs
from scaledit.training import log

HERE = Path(__file__).parent / "made_by_0_1"
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
TO_THE_BIT = EXPECTED["machine"] == machine()
GRAY_LEVELS = 0 if TO_THE_BIT else 1
RUNS = ("run-flow", "run-hybrid")


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of all files, which is the working directory: the paths in them are relative. One thread, as
    they were made with: sums of several are rounded otherwise."""
    folder = shutil.copytree(HERE, tmp_path / "made")
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(HERE / "expected.npz") as file:
        return dict(file)


def call(*words: str) -> None:
    assert cli.main(list(words)) == 0, words


def assert_same_images(found: np.ndarray, expected: np.ndarray) -> None:
    """expected: a gray one may have one channel of three that are equal."""
    assert found.dtype == np.uint8
    assert found.shape[:-1] == expected.shape[:-1]
    assert np.abs(found.astype(int) - expected).max() <= GRAY_LEVELS


def without_key_bias(name: str, value: Tensor) -> Tensor:
    """Attention does not depend on the bias of its keys, whose gradient is rounding alone, and Adam makes
    steps of ordinary size of that: it is compared only to the bit."""
    if name.endswith("qkv.bias"):
        query, _, rest = value.chunk(3)
        return torch.cat([query, rest])
    return value.chunk(2)[1] if name.endswith("kv.bias") else value


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert not TO_THE_BIT or torch.equal(found[name], value), name
        torch.testing.assert_close(
            without_key_bias(name, found[name]),
            without_key_bias(name, value),
            atol=1e-5,
            rtol=1e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def assert_same_state(run: str) -> None:
    """All that the newest checkpoint holds, optimizer and averages too."""
    if TO_THE_BIT:
        found, expected = digests(weights(Path(run))), EXPECTED["finished"][run]
        assert {part: found.get(part) for part in expected} == expected


@pytest.mark.parametrize("model", EXPECTED["images"])
def test_models_make_the_same_images(model: str, arrays: dict[str, np.ndarray]):
    """Of run folders and exported ones, by every sampler, with and without guidance, decoded where the model
    makes latents."""
    pipeline = load(model, "cpu")
    for how, expected in zip(EXPECTED["images"][model], arrays[model], strict=True):
        assert_same_images(pipeline(**how), expected)


@pytest.mark.parametrize(
    ("run", "overrides"), [("run-flow", ()), ("run-hybrid", ("sample.steps=8", "sample.cfg_channels=all"))]
)
def test_training_goes_on_the_same(run: str, overrides: tuple[str, ...], made: Path):
    """From the middle to the end, by a recipe and keys of 0.1.0."""
    before = log.read(made / run)
    recipe = ("train", f"{run}.toml", *overrides)
    call(*recipe, "--out", run, "--resume", "auto", "--device", "cpu")
    steps = json.loads((made / run / "status.json").read_text())["step"]
    assert steps == config.load(f"{run}.toml").train.steps > before[-1]["step"]
    call("convert", run, "model", "--to", "scaledit", "--weights", "model")
    found = load("model", "cpu").net.state_dict()
    assert_same_weights(found, load_file(HERE / f"expected-{run}.safetensors"))
    assert_same_state(run)
    kept = [event for event in before if event["event"] != "stopped"]
    assert log.read(made / run)[: len(kept)] == kept
    assert (made / run / "report.html").is_file()


def test_training_of_an_autoencoder_goes_on_the_same(made: Path):
    words = ("--out", "run-autoencoder", "--resume", "auto", "--device", "cpu")
    call("autoencoder", "train", "run-autoencoder.toml", *words)
    weights = "autoencoder/diffusion_pytorch_model.safetensors"
    assert_same_weights(load_file(made / "run-autoencoder" / weights), load_file(HERE / weights))
    assert_same_state("run-autoencoder")


def test_another_command_does_not_take_an_old_run_for_its_own(capsys: pytest.CaptureFixture[str]):
    """An old config is compared, not just accepted."""
    words = ("--out", "run-flow", "--resume", "auto", "--device", "cpu")
    assert cli.main(["train", "run-flow.toml", *words, "optimizer.learning_rate=0.5"]) == 2
    assert "optimizer.learning_rate: 0.01 -> 0.5" in capsys.readouterr().err


def meant(found: config.Config) -> dict[str, Any]:
    """A config but for guidance that changes nothing: 0.1 always said how many channels are guided."""
    said = found.to_json()
    for section in ("sample", "evaluate"):
        if "guidance" in said.get(section, {}):
            said[section]["guidance"] = [one for one in said[section]["guidance"] if one["scale"] != 1]
    return said


def test_configs_say_the_same_as_their_recipes(made: Path):
    for run, kind in (*((run, RunConfig) for run in RUNS), ("run-autoencoder", AutoencoderRun)):
        written = json.loads((made / run / "config.json").read_text())
        old, new = kind.from_json(written), config.load(f"{run}.toml", kind=kind)
        assert meant(old) == meant(new)
        assert config.load(f"{run}.toml", ["train.steps=5"], kind).train.steps == 5


@pytest.mark.parametrize("run", [*RUNS, "run-autoencoder"])
def test_logs_are_read_to_the_last_line(run: str, made: Path, caplog: pytest.LogCaptureFixture):
    written = [json.loads(line) for line in (made / run / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in log.read(made / run)] == [event["step"] for event in written]
    assert not caplog.records


def test_latents_are_read_and_trained_on(arrays: dict[str, np.ndarray]):
    latents = Latents.open("latents", flip=True)
    list(latents.verify())
    x0, y = latents.batch(np.arange(12) % len(latents), range(100, 112), seed=3)
    assert np.array_equal(y.numpy(), arrays["y"])
    torch.testing.assert_close(x0, torch.from_numpy(arrays["x0"]), atol=1e-5, rtol=1e-5)
    assert not TO_THE_BIT or np.array_equal(x0.numpy(), arrays["x0"])
    call("data", "inspect", "latents")
    data = ("data.name=latents", "data.path=latents", "data.flip=true")
    model = ("model.in_channels=4", "model.input_size=4", "model.num_classes=3")
    few = ("train.steps=2", "evaluate.reference=", "evaluate.every=0", "sample.every=2")
    call("train", "run-flow.toml", "--out", "new", "--device", "cpu", *data, *model, *few)


def test_generating_goes_on(made: Path, arrays: dict[str, np.ndarray]):
    """One part of two is there already, and stays what it was."""
    with np.load(made / "generated.npz.parts/part-00001.npz") as part:
        before = part["arr_0"]
    words = ("--num", "260", "--seed", "3", "--device", "cpu")
    call("generate", "run-flow", *words, "--out", "generated.npz")
    with np.load(made / "generated.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert_same_images(images, arrays["generated"])
    assert np.array_equal(images[250:], before)
    assert np.array_equal(labels, arrays["labels"])
    assert not (made / "generated.npz.parts").exists()


def test_other_samples_are_not_mixed_into_old_parts(capsys: pytest.CaptureFixture[str]):
    words = ("--num", "260", "--seed", "4", "--device", "cpu")
    assert cli.main(["generate", "run-flow", *words, "--out", "generated.npz"]) == 2
    assert "generated.npz.parts" in capsys.readouterr().err


def test_samples_are_made_again_and_judged_the_same(made: Path):
    call("sample", "run-flow", "--num", "20", "--seed", "1", "--out", "again.npz", "--device", "cpu")
    with np.load("samples.npz") as old, np.load("again.npz") as new:
        assert_same_images(new["arr_0"], old["arr_0"])
        assert np.array_equal(new["arr_1"], old["arr_1"])
    call("sample", "run-flow", "--per-class", "2", "--seed", "2", "--out", "again.png", "--device", "cpu")
    old, new = (Path(name).read_bytes() for name in ("grid.png", "again.png"))  # new: with names in a margin
    assert_same_images(images_in(new), images_in(old))
    words = ("--reference", "digits", "--device", "cpu", "--json", "judged.json")
    call("evaluate", "samples.npz", *words)
    found = json.loads((made / "judged.json").read_text())
    for name, value in EXPECTED["judged"].items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-3), name
    assert found["protocol"]["seed"] == EXPECTED["judged"]["protocol"]["seed"]  # read from the samples


def test_a_result_is_shown_beside_others(capsys: pytest.CaptureFixture[str]):
    call("evaluate", "--compare", "result.json")
    printed = capsys.readouterr().out
    assert EXPECTED["printed"]
    for metric in EXPECTED["printed"]:
        assert metric in printed


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def cells(path: Path) -> list[dict[str, Any]]:
    """The rows, with the columns of 0.1 under today's names, but for guidance that changes nothing."""
    found = [config.old.row(row) for row in rows(path)]
    for row in found:
        for column in ("sampler", "guidance") if "sampler" in row else ():
            row[column] = json.loads(row[column])
        row["guidance"] = [one for one in row.get("guidance", ()) if one["scale"] != 1]
    return found


def test_a_study_is_collected_again(made: Path):
    """All jobs are known to be done, and their table has the same numbers in every column."""
    study = studies.load("study.toml")
    table, missing = collect(study, Queue(Path("study"), jobs(study)), "scaledit study study.toml")
    assert not missing
    tables.write(table, made / "again")
    for name in ("table.csv", "losses.csv"):
        assert cells(made / "again" / name) == cells(HERE / "study" / name)
    assert len(table.rows) == 3 * 2 + 3 + 2  # on the way, final, guidance
    assert table.pictures.keys() == {"S/4", "B/4", "B/4 adaln"}


@pytest.mark.parametrize("study", ["study", "digits-table"])
def test_a_published_table_is_read(study: str, made: Path):
    found, written = tables.read(made / study), rows(made / study / "table.csv")
    assert len(found.rows) == len(written) > 0
    for row, cells in zip(found.rows, written, strict=True):
        assert (row.name, row.steps, row.train_macs) == (
            cells["name"],
            int(cells["steps"]),
            int(cells["train_macs"]),
        )
        assert (row.loss, row.fd) == (float(cells["loss"]), float(cells["fd"]))
        assert row.metric("class_accuracy") == float(cells["class_accuracy"])
    assert len(found.losses) == len(rows(made / study / "losses.csv"))
