"""Looking at images: names beside grids, grids over settings, pages of runs under way, runs side by side."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pictures
from scaledit import captions, images, load
from scaledit.captions import Block, class_labels, images_in, rows, sheet
from scaledit.cli import main
from scaledit.config import RunConfig, differing
from scaledit.models.dit import DiT
from scaledit.report import compare
from scaledit.report.live import LivePage
from scaledit.training.dit import train
from scaledit.training.events import Sampled
from scaledit.training.log import JsonLog, read
from tiny import TINY, tiny

STEPS, EVERY = 9, 8
QUICK = (
    f"train.steps={STEPS}",
    f"sample.every={EVERY}",
    "sample.classes=3",
    "checkpoint.every=4",
    "sample.sampler.times=karras",
)


def trained(out: Path, *overrides: str) -> Path:
    record = JsonLog(out)
    for event in train(tiny(*QUICK, *overrides), out, device="cpu"):
        record(event)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("looking") / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = ("model.hidden_size=32", "evaluate.every=9", "evaluate.num=20", "evaluate.seeds=1")
    return trained(tmp_path_factory.mktemp("looking") / "other", *more)


def noise(n: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


# Names in a margin


def cut(path: Path, box: list[int]) -> np.ndarray:
    left, top, right, bottom = box
    return np.asarray(Image.open(path))[top:bottom, left:right]


@pytest.mark.parametrize("names", [(), ("cat", "dog"), ("x" * 300, "é"), ("", "dog")])
def test_names_leave_the_pixels_as_they_are(names: tuple[str, ...], tmp_path: Path):
    made = noise(6)
    drawn = rows(made, 3, names)
    assert drawn.image.shape >= images.grid(made, 3).shape
    images.save_png(tmp_path / "x.png", drawn.image, {captions.BOX: drawn.box})
    assert np.array_equal(images_in((tmp_path / "x.png").read_bytes()), images.grid(made, 3))
    if not any(names):
        assert np.array_equal(drawn.image, images.grid(made, 3))
    else:
        assert drawn.image[:, : drawn.box.left].min() < 128  # something is written there


def test_a_png_without_a_box_or_with_a_forged_one_is_shown_whole(tmp_path: Path):
    made = noise(1, 16)[0]
    for box in (None, [0, 0, 99, 4], [-1, 0, 4, 4], [0, 0, "4", 4], [1, 2, 3], {"a": 1}, [3, 3, 3, 4], True):
        images.save_png(tmp_path / "x.png", made, {captions.BOX: box})
        assert np.array_equal(images_in((tmp_path / "x.png").read_bytes()), made)
    data = (tmp_path / "x.png").read_bytes()
    for bad in (b"", data[:60], b"GIF89a"):
        with pytest.raises(ValueError, match="cannot be read as an image"):
            images_in(bad)


NAMES = [
    "cat",
    "ube\u0301r\u0308\u0308",
    "Ωmega и ё",
    "猫",
    "שלום",
    "नमस्ते",
    "a\x1b[31m\nb",
    "🦊 fox",
    "",
    "  ",
    "\u202eevil",
]


def test_a_name_that_the_font_cannot_draw_becomes_a_number():
    labels = class_labels(range(len(NAMES) + 1), NAMES, 12)
    assert labels[:3] == ["cat", "class 1", "Ωmega и ё"] and labels[3:6] == ["class 3", "class 4", "class 5"]
    assert labels[6] == "a\\x1b[31m\\nb" and labels[7:10] == ["class 7", "class 8", "class 9"]
    assert labels[10] == "\\u202eevil" and labels[11] == "class 11"
    assert class_labels([0], ["cat"], 1) == [""]
    assert class_labels([0], ["cafe\u0301"], 2) == ["café"]  # as a Mac writes it
    sheet([Block(noise(12)[:, None, None], labels)])


def test_long_names_end_in_an_ellipsis():
    short = captions.shortened("golden retriever, " * 9, 100)
    assert short.startswith("golden") and short.endswith("…") and len(short) < 20
    assert captions.shortened("cat", 100) == "cat"
    names = ["n" * 500] * 2
    assert sheet([Block(noise(2)[:, None, None], names)]).image.shape[1] < 400


def test_sample_names_rows_or_images(run: Path, tmp_path: Path):
    for name, words in (("rows", ["--per-class", "2"]), ("each", ["--num", "5"]), ("one", ["--num", "5"])):
        classes = "3" if name == "one" else "3,8"
        out = tmp_path / f"{name}.png"
        assert main(["sample", str(run), "--classes", classes, *words, "--out", str(out)]) == 0
    box = json.loads(Image.open(tmp_path / "rows.png").text["scaledit"])["images"]
    expected = images.grid(load(run)([3, 3, 8, 8]), 2)
    assert np.array_equal(cut(tmp_path / "rows.png", box), expected) and box[0] > 0
    assert Image.open(tmp_path / "each.png").height > Image.open(tmp_path / "one.png").height
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), images.grid(load(run)([3] * 5), 2))


# Grids over settings


def test_cells_are_the_images_of_separate_calls(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bit for bit, from the same noise, and with no more evaluations of the network than those calls need."""
    evaluated, forward = [], DiT.forward

    def counting(self, x, *rest, **more):
        evaluated.append(len(x))
        return forward(self, x, *rest, **more)

    pipeline = load(run)
    expected = {
        (steps, scale): pipeline([3, 3, 8, 8], seed=5, steps=steps, cfg_scale=scale)
        for steps in (2, 3)
        for scale in (1.0, 1.5, 4.0)
    }
    monkeypatch.setattr(DiT, "forward", counting)
    words = ["sample", str(run), "--classes", "3,8", "--per-class", "2", "--seed", "5"]
    lists = ["--steps", "2,3", "--cfg-scale", "1,1.5,4"]
    assert main([*words, *lists, "--out", str(tmp_path / "two.png")]) == 0
    assert sum(evaluated) == 4 * (2 + 3) * (1 + 2 + 2)
    origin = json.loads(Image.open(tmp_path / "two.png").text["scaledit"])
    assert len(origin["cells"]) == 12 and "sampler" not in origin and origin["per_class"] == 2
    for cell in origin["cells"]:
        chosen = origin["settings"][cell["settings"]]
        made = expected[chosen["steps"], chosen["cfg_scale"]]
        made = made[:2] if cell["class"] == 3 else made[2:]
        assert np.array_equal(cut(tmp_path / "two.png", cell["box"]), images.grid(made, 2))
        assert chosen["sampler"]["steps"] == chosen["steps"]
    assert main([*words, "--sampler", "euler,dpm", "--out", str(tmp_path / "samplers.png")]) == 0
    cells = json.loads(Image.open(tmp_path / "samplers.png").text["scaledit"])["cells"]
    for k, sampler in enumerate(("euler", "dpm")):  # dpm with the run's times, which euler does not have
        made = pipeline([3, 3, 8, 8], seed=5, sampler=sampler)
        drawn = [cut(tmp_path / "samplers.png", cell["box"]) for cell in cells if cell["settings"] == k]
        assert all(
            np.array_equal(a, images.grid(b, 2)) for a, b in zip(drawn, (made[:2], made[2:]), strict=True)
        )
    first = {}
    for name, scales in (("a", "1.5,9"), ("b", "1.5,0.5,2")):
        out = tmp_path / f"{name}.png"
        assert main([*words, "--steps", "3", "--cfg-scale", scales, "--out", str(out)]) == 0
        cells = json.loads(Image.open(out).text["scaledit"])["cells"]
        first[name] = [cut(out, cell["box"]) for cell in cells if cell["settings"] == 0]
    made = expected[3, 1.5]
    for column in first.values():
        assert all(
            np.array_equal(a, images.grid(b, 2)) for a, b in zip(column, (made[:2], made[2:]), strict=True)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--cfg-scale", "1,2", "--out", "x.npz"],
            "--cfg-scale is a list, which makes a grid, so --out must be",
        ),
        (["--cfg-scale", "1,2", "--num", "3"], "use --per-class, not --num"),
        (["--cfg-scale", "1,2,1"], "--cfg-scale has 1.0 twice"),
        (["--cfg-scale", "1,x"], "--cfg-scale must be a number, got '1,x'"),
        (["--steps", "1,"], "--steps must be a whole number"),
        (["--steps", "0,2"], "steps must be"),
        (["--sampler", "ddim,plms"], "unknown sampler 'plms'"),
        (["--sampler", "ddim,dpm", "--steps", "2,3", "--cfg-scale", "1,2"], "a grid has two axes"),
        (["--steps", ",".join(map(str, range(1, 99)))], "98 combinations; a grid shows at most 64"),
        (["--steps", "2,3", "sample.sampler.steps=4"], "2 and 3 are the same settings here"),
    ],
)
def test_a_wrong_list_is_refused(run: Path, arguments: list[str], message: str, tmp_path: Path, capsys):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "x.png")]
    assert main(["sample", str(run), "--classes", "3", *out, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_other_commands_take_one_value(run: Path, command: str, tmp_path: Path, capsys):
    words = ["--reference", "digits"] if command == "evaluate" else ["--out", str(tmp_path / "x.npz")]
    for option, value in (("--cfg-scale", "1,2"), ("--steps", "2,3"), ("--sampler", "ddim,dpm")):
        assert main([command, str(run), *words, option, value]) == 2
        error = capsys.readouterr().err
        assert f"{option} must be one value here, got {value}; only `scaledit sample` draws several" in error


# Under way


def test_the_first_grids_come_early(run: Path):
    sampled = [event for event in read(run) if event["event"] == "sampled"]
    assert [event["step"] for event in sampled] == [1, 2, 4, 8, 9]
    newest = (run / sampled[-1]["path"]).read_bytes()
    assert np.array_equal(images_in(newest), images.grid(load(run)([0, 0, 1, 1, 2, 2]), 2))
    assert Image.open(io.BytesIO(newest)).width > images_in(newest).shape[1]


def test_the_key_changes_no_config_of_an_earlier_version(run: Path):
    value = json.loads((run / "config.json").read_text())
    assert "early" not in value["sample"]
    assert RunConfig.from_json(value).to_json() == value and RunConfig.from_json(value).sample.early
    without = tiny(*QUICK, "sample.early=false")
    assert without.to_json()["sample"]["early"] is False
    assert RunConfig.from_json(without.to_json()) == without
    assert [s for s in range(1, 10) if without.sample.due(s, s == 9)] == [8, 9]
    assert not any(tiny().sample.due(step, step == 9) for step in range(1, 10))  # every=0


def test_the_page_of_a_run_under_way(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config, out, pages = tiny(*QUICK, "train.log_every=1"), tmp_path / "run", {}
    record, live = JsonLog(out), LivePage(config, out)
    with live:
        for event in train(config, out, device="cpu"):
            record(event)
            live(event)
            if isinstance(event, Sampled):
                pages[event.step] = (out / "report.html").read_text()
    assert "Training is under way: step 4 of 9." in pages[4] and 'http-equiv="refresh"' in pages[4]
    assert "training loss" in pages[4] and "data:image/png" in pages[4] and "All 9 steps are done" in pages[9]
    with pytest.raises(RuntimeError), live:
        raise RuntimeError("bang")
    failed = (out / "report.html").read_text()
    assert "ended after step 9 of 9 with an error" in failed and "refresh" not in failed
    (out / "report.html").unlink()
    (out / "report.html").mkdir()
    (out / "samples" / "step-00000009.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            live(Sampled(9, out / "samples" / "step-00000009.png"))
    assert len(caplog.records) == 1 and "the run continues" in caplog.text


def test_train_leaves_the_full_report(tmp_path: Path, capsys):
    out = tmp_path / "run"
    quick = [*TINY, "train.steps=2", "sample.every=8", "evaluate.num=20", "evaluate.seeds=1"]
    assert main(["train", "digits", "--out", str(out), *quick]) == 0
    page = (out / "report.html").read_text()
    assert "refresh" not in page and "Real images" in page


# Side by side


def compared(capsys: pytest.CaptureFixture, *words: object) -> dict:
    assert main(["compare", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_comparison_says_what_the_logs_say(run: Path, other: Path, tmp_path: Path, capsys):
    result = compared(capsys, run, other)
    assert result["differences"]["model.hidden_size"] == {"run": 16, "other": 32}
    assert set(result["differences"]) == {
        *("model.hidden_size", "evaluate.every", "evaluate.num", "evaluate.seeds"),
    }
    for folder in (run, other):
        one, log = result["runs"][folder.name], read(folder)
        stepped = [event for event in log if event["event"] == "stepped"]
        started = next(event for event in log if event["event"] == "started")
        assert one["step"] == one["steps"] == STEPS and one["images"] == 16 * STEPS
        assert (one["parameters"], one["macs_per_image"]) == (started["params"], started["macs"])
        assert one["training_macs"] == 3 * started["macs"] * 16 * STEPS
        assert one["seconds"] == stepped[-1]["seconds"] and one["loss"] == stepped[-1]["loss"]
    evaluated = next(event for event in read(other) if event["event"] == "evaluated")
    assert result["runs"]["other"]["evaluated"]["fd_digits"] == evaluated["fd_digits"]
    assert result["runs"]["run"]["evaluated"] is None
    assert "not evaluated during training: run" in result["warnings"]
    assert main(["compare", str(run), str(other)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"model.hidden_size +16 +32", said) and "FD-digits" in said


def test_the_page_shows_the_same_noise(run: Path, other: Path, tmp_path: Path, capsys):
    runs, classes = compare.open_runs([run, other]), [0, 0, 1, 1, 2, 2]
    made = compare.sample(runs, runs[0].config.sample)
    assert made.names == ["0", "1", "2"] and not made.notes and made.per_class == 2
    settings = load(run).settings(0)
    for folder in (run, other):
        pipeline = load(folder)
        parts = [pipeline.sample(classes[i : i + 2], settings, i) for i in (0, 2, 4)]
        assert np.array_equal(made.sheets[folder.name], images.grid(np.concatenate(parts), 2))
    out = tmp_path / "in" / "compare.html"
    result = compared(capsys, run, other, "--classes", "8", "--cfg-scale", "1", "--out", out)
    assert result["samples"]["classes"] == ["8"] and result["samples"]["guidance"] == []
    page = out.read_text()
    assert "Reproduce" in page and "--classes 8" in page and page.count("data:image/png") == 2
    assert "<script" not in page


def renamed(run: Path, out: Path, names: list[str]) -> Path:
    """A copy of a run whose classes have other names, as one that was trained on them would have."""
    from scaledit.files.manifest import sealed

    shutil.copytree(run, out)
    for path in out.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        manifest.pop("sha256", None)
        manifest["state"]["class_names"] = names
        path.write_bytes(sealed(manifest))
    return out


def test_classes_are_found_by_name(run: Path, tmp_path: Path):
    turned = renamed(run, tmp_path / "turned", ["2", "1", "0", *"3456789"])
    foreign = renamed(run, tmp_path / "foreign", ["1", *(f"n{i}" for i in range(1, 10))])
    runs = compare.open_runs([run, turned, foreign])
    made = compare.sample(runs, runs[0].config.sample, per_class=1)
    pipeline, settings = load(run), load(run).settings(0)
    expected = [pipeline.sample([c], settings, i) for i, c in enumerate((2, 1, 0))]
    assert np.array_equal(made.sheets["turned"], images.grid(np.concatenate(expected), 1))
    third = [np.full((1, 8, 8, 3), 255, np.uint8)] * 3
    third[1] = pipeline.sample([0], settings, 1)  # image 1 has the noise of index 1 whatever is missing
    assert np.array_equal(made.sheets["foreign"], images.grid(np.concatenate(third), 1))
    assert made.notes == ["foreign has no class 0 and 2, so these rows are empty"]


HOSTILE = "<img src=x>\x1b[31m$\\frac"


def test_half_written_hostile_and_foreign_runs(run: Path, other: Path, tmp_path: Path, capsys):
    """A run without a checkpoint, with a log cut short and no status; names that are markup."""
    half = tmp_path / HOSTILE
    shutil.copytree(other, half)
    shutil.rmtree(half / "checkpoints")
    (half / "status.json").write_bytes(b"{")
    log = (half / "log.jsonl").read_bytes()
    (half / "log.jsonl").write_bytes(log[: log.index(b'"step": 3')])
    odd = trained(tmp_path / "_odd", "model.patch_size=2", "train.steps=1", "sample.every=0")
    copy = tmp_path / "empty"
    copy.mkdir()
    shutil.copy(run / "config.json", copy)
    out = tmp_path / "x.html"
    assert main(["compare", *map(str, (run, half, odd, copy)), "--out", str(out)]) == 0
    said, page = capsys.readouterr().out, out.read_text()
    assert "\x1b" not in said + page and "<img src=x" not in page and "&lt;img src=x&gt;" in page
    assert f"{copy.name} could not be sampled" in said and "unknown" in said
    result = compared(capsys, run, half, copy)
    assert (result["runs"][HOSTILE]["step"], result["runs"]["empty"]["step"]) == (2, 0)
    assert result["runs"]["empty"]["loss"] is None


def test_other_shapes_have_other_noise_and_other_protocols_a_warning(run: Path, other: Path, tmp_path: Path):
    few = tmp_path / "few"
    shutil.copytree(other, few)
    lines = [json.loads(line) for line in (few / "log.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] == "evaluated":
            line["protocol"] |= {"n": 5, "sampler": {"name": "ddim", "steps": 9, "eta": 0.0}}
    (few / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = compare.compare(compare.open_runs([other, few]))
    warnings = comparison.metrics.warnings
    assert any("another number of images: 20 for other; 5 for few" in warning for warning in warnings)
    assert any("another sampler" in warning and "ddim (steps 9" in warning for warning in warnings)
    folder = pictures.tree(tmp_path / "pictures")
    big = ("data.name=images", f"data.path={folder}", "data.image_size=16", "model.input_size=16")
    colored = trained(
        tmp_path / "colored", *big, "model.in_channels=3", "model.num_classes=3", "train.steps=1"
    )
    numbers = renamed(colored, tmp_path / "numbers", ["2", "0", "x"])
    runs = compare.open_runs([other, colored, numbers])
    made = compare.sample(runs, runs[0].config.sample, per_class=1)
    assert made.notes == [
        "samples of different shapes cannot start from the same noise: 1x8x8 for other; 3x16x16 for numbers",
        "colored could not be sampled: it has none of the classes",
        "numbers has no class 1, so these rows are empty",
    ]
    assert "the losses are not comparable" in compare.compare(runs).costs.warnings[0]


def test_what_differs_is_told_by_part_and_field():
    a, b = tiny(), tiny("sample.sampler=ddim", "optimizer.algorithm.weight_decay=0.5")
    found = differing([a, b])
    assert found["optimizer.algorithm.weight_decay"] == [0.0, 0.5]
    assert found["sample.sampler"][1]["name"] == "ddim" and "sample.sampler.steps" not in found
    assert differing([a, a]) == {}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["RUN"], "a comparison shows 2 to 6 runs, got 1"),
        ([f"RUN{i}" for i in range(7)], "a comparison shows 2 to 6 runs, got 7"),
        (["RUN", "RUN"], "is named twice"),
        (["RUN", "nowhere"], "nowhere does not exist; name the folders of runs"),
        (["RUN", "."], ". contains no config.json"),
        (["RUN", "ae"], "ae is the run of an autoencoder"),
        (["RUN", "RUN/../other", "--steps", "3"], "--steps says how the runs are sampled for the page"),
        (["RUN", "RUN/../other", "--out", "x.png"], "--out x.png must be a .html file"),
        (["RUN", "RUN/../other", "train.steps=3", "--out", "x.html"], "[train] of a trained model"),
    ],
)
def test_a_wrong_comparison_is_refused(
    run: Path, folders: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    from scaledit.autoencoders.config import AutoencoderRun

    Path("ae").mkdir()
    Path("ae/config.json").write_text(json.dumps(AutoencoderRun("ae").to_json()))
    assert main(["compare", *(word.replace("RUN", str(run)) for word in folders)]) == 2
    assert message in capsys.readouterr().err
    assert not Path("x.html").exists()


def test_a_module_that_a_config_names_is_not_imported(run: Path, tmp_path: Path, capsys):
    foreign = tmp_path / "foreign"
    shutil.copytree(run, foreign)
    value = json.loads((foreign / "config.json").read_text())
    value["sample"]["sampler"] = {"name": "evil_module:Sampler"}
    (foreign / "config.json").write_text(json.dumps(value))
    assert main(["compare", str(run), str(foreign)]) == 2
    assert "allow it with --allow-import evil_module" in capsys.readouterr().err
