"""How a run that ended early says it is resumed: by its folder, whoever started the process."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from scaledit import launch
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import Config, load
from scaledit.training.folder import words
from tiny import tiny


@pytest.fixture(autouse=True)
def typed(monkeypatch: pytest.MonkeyPatch):
    for name in (launch.COMMAND, "RANK"):
        monkeypatch.delenv(name, raising=False)

    def type_(program: str, *words: str) -> None:
        monkeypatch.setattr("sys.argv", [program, *words])

    return type_


TRAIN = ("train", "digits", "train.steps=5")


WORDS = ("train", "my runs/a")


@pytest.mark.parametrize(
    ("program", "device", "expected"),
    [
        ("/usr/bin/scaledit", "auto", "scaledit train 'my runs/a'"),
        ("scaledit", "cpu", "scaledit train 'my runs/a' --device cpu"),
        ("/x/scaledit/cli.py", "auto", "python -m scaledit.cli train 'my runs/a'"),
        ("/x/scaledit/__main__.py", "auto", "python -m scaledit train 'my runs/a'"),
    ],
)
def test_the_command_that_resumes(typed, program: str, device: str, expected: str):
    typed(program, *TRAIN, "--out", "my runs/a")
    assert launch.how_to_resume(WORDS, device) == f"to resume, run: {expected}"
    assert shlex.split(expected)[-3 if device == "cpu" else -1] == "my runs/a"


def test_a_rank_names_the_program_that_started_it_and_the_number_of_ranks(
    typed, monkeypatch: pytest.MonkeyPatch
):
    typed("scaledit", *TRAIN, "--nproc", "2")
    environment = list(launch._environments(2, 1234))[1]
    typed("/x/scaledit/cli.py", *TRAIN, "--resume", "never", "--device", "auto")
    for name in ("RANK", "WORLD_SIZE", launch.COMMAND):
        monkeypatch.setenv(name, environment[name])
    expected = "scaledit train 'my runs/a' --nproc 2"
    assert launch.how_to_resume(WORDS) == f"to resume, run: {expected}"


@pytest.mark.parametrize(
    ("config", "out", "expected"),
    [
        (tiny(), "runs/a", ["train", "runs/a"]),
        (tiny(), "digits", ["train", "./digits"]),  # else the recipe of this name would be meant
        (load("photos-ae", kind=AutoencoderRun), "runs/a", ["autoencoder", "train", "runs/a"]),
        (tiny("data.name=my_sets:Bars"), "runs/a", ["train", "runs/a", "--allow-import", "my_sets"]),
    ],
)
def test_the_words_that_resume_a_run(config: Config, out: str, expected: list[str]):
    assert words(config, Path(out)) == expected


def test_a_rank_of_torchrun_is_resumed_by_its_job(typed, monkeypatch: pytest.MonkeyPatch):
    typed("/x/scaledit/cli.py", *TRAIN)
    monkeypatch.setenv("RANK", "0")
    assert launch.how_to_resume(WORDS) == "to resume, start the same job again with --resume auto"


@pytest.mark.parametrize("program", ["mine.py", "", "-c", "/x/other/cli.py"])
def test_a_python_program_is_told_the_keyword(typed, program: str):
    typed(program, "train")
    assert launch.how_to_resume(WORDS) == 'to resume, train again with resume="auto"'
