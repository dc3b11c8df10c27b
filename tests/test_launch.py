"""How a run that ended early says it is resumed: by the user's own command, whoever started the process."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pytest

from scaledit import launch


@pytest.fixture(autouse=True)
def typed(monkeypatch: pytest.MonkeyPatch):
    for name in (launch.COMMAND, "RANK"):
        monkeypatch.delenv(name, raising=False)

    def type_(program: str, *words: str) -> None:
        monkeypatch.setattr("sys.argv", [program, *words])

    return type_


TRAIN = ("train", "digits", "train.steps=5")


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("/usr/bin/scaledit", TRAIN, "scaledit train digits train.steps=5 --resume auto"),
        (
            "scaledit",
            ("train", "digits", "--resume", "never", "--out", "my runs/a", 'sample.sampler={name="ddim"}'),
            "scaledit train digits --out 'my runs/a' 'sample.sampler={name=\"ddim\"}' --resume auto",
        ),
        ("scaledit", ("train", "--resume=auto", "digits"), "scaledit train digits --resume auto"),
        ("/x/scaledit/cli.py", TRAIN, "python -m scaledit.cli train digits train.steps=5 --resume auto"),
        ("/x/scaledit/__main__.py", TRAIN, "python -m scaledit train digits train.steps=5 --resume auto"),
        (
            "scaledit",
            ("autoencoder", "train", "photos-ae", "--nproc", "2"),
            "scaledit autoencoder train photos-ae --nproc 2 --resume auto",
        ),
    ],
)
def test_the_command_that_resumes(typed, program: str, words: Sequence[str], expected: str):
    typed(program, *words)
    assert launch.how_to_resume() == f"to resume, run: {expected}"
    assert shlex.split(expected)[-2:] == ["--resume", "auto"]


def test_a_rank_names_the_command_that_started_it(typed, monkeypatch: pytest.MonkeyPatch):
    typed("scaledit", *TRAIN, "--nproc", "2")
    environment = list(launch._environments(2, 1234))[1]
    typed("/x/scaledit/cli.py", *TRAIN, "--resume", "never", "--device", "auto")
    monkeypatch.setenv("RANK", environment["RANK"])
    monkeypatch.setenv(launch.COMMAND, environment[launch.COMMAND])
    expected = "scaledit train digits train.steps=5 --nproc 2 --resume auto"
    assert launch.how_to_resume() == f"to resume, run: {expected}"


def test_a_rank_of_torchrun_is_resumed_by_its_job(typed, monkeypatch: pytest.MonkeyPatch):
    typed("/x/scaledit/cli.py", *TRAIN)
    monkeypatch.setenv("RANK", "0")
    assert launch.how_to_resume() == "to resume, start the same job again with --resume auto"


@pytest.mark.parametrize("program", ["mine.py", "", "-c", "/x/other/cli.py"])
def test_a_python_program_is_told_the_keyword(typed, program: str):
    typed(program, "train")
    assert launch.how_to_resume() == 'to resume, train again with resume="auto"'
