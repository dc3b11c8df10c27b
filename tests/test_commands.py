"""Help, and what every command has: examples that run, --quiet, --json."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from select import select

import pytest
from PIL import Image

import pictures
from scaledit import terminal
from scaledit.autoencoders.config import AutoencoderConfig, AutoencoderRun
from scaledit.cli import COMMANDS, EXAMPLES, GROUPS, describe, main, parser
from scaledit.commands.common import all_overrides
from scaledit.commands.parsing import Example
from scaledit.config import is_override, load, recipe_names, trained_by
from scaledit.training.autoencoder_state import build
from tiny import TINY

REPOSITORY = Path(__file__).parent.parent
ORDER = (
    *("recipes", "train", "encode", "data", "sample", "generate", "evaluate", "reference", "convert"),
    *("sweep", "compare", "plan", "models", "paper", "completion", "autoencoder", "study", "new"),
)
"""In which examples run: later ones use what earlier ones wrote."""
MINUTES = ("scaledit new", "autoencoder train", "study", "--study docs/studies", "--to program")
"""What examples say that take long."""
SHORT = (*TINY, "train.steps=2", "evaluate.num=20", "evaluate.seeds=1")
SHORT_NEW = (
    "model.hidden_size=16",
    "model.depth=1",
    "model.num_heads=2",
    "train.steps=2",
    "evaluate.every=0",
)
SHORT_AUTOENCODER = ("model.widths=[8,8]", "train.batch_size=4", "train.steps=2", "evaluate.num=6")


def examples(*, slow: bool) -> list[Example]:
    found = [example for name in ORDER for example in COMMANDS[name].EXAMPLES if not example.needs]
    return [one for one in found if any(word in one.command for word in MINUTES) == slow]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples are typed: photographs in class folders, a small autoencoder, the documentation."""
    where = tmp_path_factory.mktemp("workplace")
    pictures.tree(where / "pictures")
    for name, size in {"wide": (60, 36), "tall": (36, 60)}.items():
        Image.new("RGB", size, "red").save(where / "pictures" / pictures.CLASSES[0] / f"{name}.png")
    build(AutoencoderConfig(widths=(8, 8, 8)), 64, seed=0).save_pretrained(where / "runs/photos-ae")
    (where / "docs").symlink_to(REPOSITORY / "docs")
    return where


def is_run(word: str) -> bool:
    """Whether an argument of `train` is the folder of a run."""
    return word.startswith("runs/")


def shortened(example: Example) -> list[str]:
    words = example.words
    trains = {"train": 1, "autoencoder": 2}.get(words[0])
    if trains and is_run(words[trains]):
        return ["4" if before == "--until" else word for before, word in itertools.pairwise(["", *words])]
    if words[0] == "train":
        return [*words, *SHORT]
    if words[0] == "new":
        return [*words, *SHORT_NEW]
    if words[0] == "sweep":
        return [*words, "--num", "20", "--seeds", "1"]
    return [*words, *SHORT_AUTOENCODER] if words[:2] == ["autoencoder", "train"] else words


def test_every_command_has_examples_in_some_group():
    assert sorted(ORDER) == sorted(COMMANDS)
    assert [name for commands in GROUPS.values() for name in commands] == list(COMMANDS)
    for name, command in COMMANDS.items():
        assert command.EXAMPLES and command.DESCRIPTION
        for example in command.EXAMPLES:
            assert example.words[0] == name and not example.comment.endswith(".")


@pytest.mark.parametrize("example", [*EXAMPLES, *(one for c in COMMANDS.values() for one in c.EXAMPLES)])
def test_every_example_parses_and_its_keys_exist(example: Example):
    name, *words = example.words
    args = parser(name).parse(words)
    if recipe := getattr(args, "recipe", None):
        if is_run(recipe):
            recipe = "photos-ae" if name == "autoencoder" else "digits"
        kind = AutoencoderRun if trained_by(recipe) == "autoencoder" else None
        assert load(recipe, all_overrides(args), *([kind] if kind else []))
    assert all(map(is_override, getattr(args, "overrides", ())))


def test_the_examples_run(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(workplace)
    for example in examples(slow=False):
        if "--compare" in example.command:
            shutil.copy("result.json", "other.json")
        assert main(shortened(example)) == 0, (example.command, capsys.readouterr().err)
        capsys.readouterr()
    for written in ("runs/digits/report.html", "samples.png", "generated.npz", "exported", "latents"):
        assert Path(written).exists()


@pytest.mark.slow
@pytest.mark.parametrize("example", examples(slow=True), ids=lambda example: example.command)
def test_the_examples_that_take_minutes_run(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("docs").symlink_to(REPOSITORY / "docs")
    pictures.tree(Path("pictures"))
    for folder in ("digits", "photos-ae"):
        recipe = ["train", "digits", *SHORT]
        if folder == "photos-ae":
            if "runs/photos-ae" not in example.command:
                continue
            recipe = ["autoencoder", "train", "photos-ae", *SHORT_AUTOENCODER]
        assert main(recipe) == 0
    assert main(shortened(example)) == 0


@pytest.mark.parametrize("name", ["", *COMMANDS])
@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_fits_80_columns(
    name: str, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("COLUMNS", columns)
    if name:
        with pytest.raises(SystemExit):
            main([name, "--help"])
    else:
        assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for example in COMMANDS[name].EXAMPLES if name else EXAMPLES:
        assert example.command in " ".join(said.replace("\\\n", " ").split())


def test_the_overview_lists_groups_commands_and_examples(capsys: pytest.CaptureFixture):
    assert main([]) == 2
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0 and capsys.readouterr().out == bare
    for group, commands in GROUPS.items():
        assert f"\n{group}:\n" in bare
        for name, command in commands.items():
            assert f"\n  {name:<14}{command.SUMMARY[:40]}" in bare
    assert "--quiet" in bare and "--json" in bare and "docs/" in bare


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_and_every_command_has_json_and_quiet(name: str):
    """Help is phrases that begin with an article or a verb, not fragments such as "of the noise"."""
    described = describe(name)
    for one in (*described.arguments, *described.options):
        first = one.help.split()[0].lower() if one.help else ""
        assert first not in ("of", "for", "as", "in", "to", "and") and len(one.help) >= 15, (one, first)
    flags = {flag for option in described.options for flag in option.flags}
    assert {"-q", "--quiet", "--json", "-h", "--help"} <= flags
    assert described.group in GROUPS and described.usage.startswith(f"usage: scaledit {name}")
    assert described.examples == COMMANDS[name].EXAMPLES


def test_a_description_says_what_documentation_needs():
    options = {option.flags[-1]: option for option in describe("generate").options}
    assert options["--num"].default == "50000" and options["--num"].metavar == "N"
    assert options["--labels"].choices == ("uniform", "equal")
    assert options["--labels"].metavar == "{uniform,equal}"
    assert options["--out"].required and not options["--quiet"].metavar
    assert options["--json"].default == ""
    assert [one.metavar for one in describe("generate").arguments] == ["MODEL", "section.key=value"]


# ---- --json and --quiet ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("commands") / "runs" / "digits"
    assert main(["train", "digits", "--out", str(out), *SHORT]) == 0
    return out


CALLS = {
    "recipes": ["recipes", "digits"],
    "train": ["train", "digits", "--out", "trained", *SHORT],
    "sample": ["sample", "RUN", "--num", "2", "--out", "x.npz"],
    "generate": ["generate", "RUN", "--num", "4", "--out", "y.npz"],
    "evaluate": ["evaluate", "RUN", "--reference", "digits", "--metrics", "class_accuracy"],
    "data": ["data", "inspect", "pictures"],
    "encode": ["encode", "pictures", "--image-size", "16", "--autoencoder", "pixels", "--out", "latents"],
    "plan": ["plan", "digits"],
    "models": ["models"],
    "paper": ["paper", "--table", "4"],
    "convert": ["convert", "RUN", "exported", "--to", "scaledit"],
    "completion": ["completion", "bash"],
    "study": ["study", "mine.toml", "--dry-run"],
}
"""A call of each command that needs no weights of others; `reference` needs Inception, and autoencoders are
trained in tests/test_autoencoders.py."""
STUDY = """
title = "tiny"
recipe = "digits"
[sizes.S]
depth = 1
hidden_size = 16
num_heads = 2
[[runs]]
size = "S"
model.patch_size = 8
[[measure]]
part = "final"
"""
RESULTS = {
    "train": r"trained 2 steps in \d+ s",
    "sample": r"2 images in x\.npz \([\d.]+ s, .* images/s\)",
    "generate": r"4 images in y\.npz",
    "encode": r"\d+ encoded images in latents",
    "convert": r"digits: [\d,]+ parameters, ema weights, in exported",
}
"""The line that is the result of commands that write files. The result of others is all that they print."""


@pytest.mark.parametrize("name", CALLS)
def test_json_is_all_of_stdout_and_quiet_prints_the_result_alone(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    pictures.tree(tmp_path / "pictures")
    Path("mine.toml").write_text(STUDY)
    words = [str(run) if word == "RUN" else word for word in CALLS[name]]
    assert main([*words, "--json"]) == 0
    said = capfd.readouterr().out
    assert said.count("\n") == 1 and json.loads(said)
    for written in ("trained", "exported", "latents"):
        shutil.rmtree(written, ignore_errors=True)
    assert main([*words, "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(f"{RESULTS[name]}\n", out) if name in RESULTS else out.count("\n") > 1
    assert not err
    assert not terminal.is_quiet()  # it ends with the command


def test_json_of_an_evaluation_goes_to_stdout_or_into_a_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", str(run), "--reference", "digits", "--metrics", "class_accuracy"]
    assert main([*words, "--json", "result.json"]) == 0
    assert "class accuracy" in capsys.readouterr().out
    kept = json.loads(Path("result.json").read_text())
    assert main([*words[:2], "--json", *words[2:]]) == 0
    assert json.loads(capsys.readouterr().out)["class_accuracy"] == kept["class_accuracy"]
    assert main(["evaluate", "--compare", "result.json", "--json"]) == 0
    [compared] = json.loads(capsys.readouterr().out)["compared"]
    assert compared["class_accuracy"] == kept["class_accuracy"]
    before = Path("result.json").read_bytes()
    assert main(["evaluate", "--reference", "digits", "--json", "result.json"]) == 2
    assert "put SAMPLES first, or --json last" in capsys.readouterr().err
    assert Path("result.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"result.json"}


def test_sampling_says_how_fast_it_was(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(run), "--num", "3", "--out", "x.png"]) == 0
    assert "3 images in x.png (" in (said := capsys.readouterr().out) and said.endswith(" images/s)\n")
    generate = ["generate", str(run), "--num", "4", "--out", "y.npz"]
    assert main([*generate, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["generated"] == made["images"] == 4
    assert made["images_per_second"] == pytest.approx(4 / made["seconds"], rel=0.1, abs=0.5)
    assert main(generate) == 0
    assert capsys.readouterr().out == "4 images in y.npz\n"  # they were there: no speed


# ---- recipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "imagenet512-xl2", "photos", "photos-ae-decoder"])
def test_every_key_of_a_recipe_is_explained(name: str, capsys: pytest.CaptureFixture):
    assert main(["recipes", name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    config = load(name, kind=AutoencoderRun) if trained_by(name) == "autoencoder" else load(name)
    values = json.loads(json.dumps(config.to_json()))
    for section in told["sections"]:
        assert section["doc"]
        for key in section["keys"]:
            assert key["doc"], key
            if section["name"] != "model":  # whose built-in parts are stored as words
                assert key["value"] == values.get(section["name"], {}).get(key["key"], key["default"])
    assert main(["recipes", name]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for section in told["sections"]:
        assert f"\n[{section['name']}] " in said
        assert all(f"\n  {key['key']} = " in said for key in section["keys"])
    assert f"{told['command']} {name} section.key=value" in " ".join(said.split())


def test_a_recipe_is_explained_with_changes_bounds_and_parts(capsys: pytest.CaptureFixture):
    assert main(["recipes", "digits", "sample.sampler=ddim", "sample.sampler.eta=0.5"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert 'sampler = {name = "ddim", steps = 12, times = {name = "even"}, eta = 0.5}' in said
    assert "ddim: Song et al. 2021" in said and "eta: default 0.0, at least 0" in said
    assert "decay of the average per step; at least 0, below 1" in said
    assert "warmup = true" in said and "for short runs; default false" in said
    assert "one of fp32, tf32, bf16" in said
    assert main(["recipes", "digts"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in recipe_names(None))


# ---- colors, python -m -------------------------------------------------------------------------------------


def on_terminal(words: list[str]) -> str:
    """What a command prints on a terminal, with its escape codes."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as screen, redirect_stdout(screen):
        assert main(words) == 0
        screen.flush()
        printed = b""
        while select([ours], [], [], 0.1)[0]:  # one line at a time
            printed += os.read(ours, 1 << 16)
    os.close(ours)
    return printed.decode()


def test_colors_can_be_turned_off_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    result = tmp_path / "a.json"
    result.write_text(json.dumps({"name": "a", "fid": 2.0, "protocol": {}, "warnings": ["careful"]}))
    words = ["evaluate", "--compare", str(result)]
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    with capsys.disabled():
        assert "\x1b[33mwarning" in on_terminal(words)
    assert main(words) == 0
    assert "\x1b[" not in capsys.readouterr().out  # not a terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(words) == 0
    assert "\x1b[33mwarning" in capsys.readouterr().out
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("NO_COLOR", "1")
    with capsys.disabled():
        plain = on_terminal(words)
    assert "warning: careful" in plain and "\x1b[3" not in plain and "\x1b[9" not in plain


def test_python_dash_m_is_the_same_program():
    for words, code in ((["--version"], 0), (["trian"], 2), (["train", "nowhere.toml"], 2)):
        ran = [
            subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
            for module in ("scaledit", "scaledit.cli")
        ]
        assert [one.returncode for one in ran] == [code, code]
        assert (ran[0].stdout, ran[0].stderr) == (ran[1].stdout, ran[1].stderr)
