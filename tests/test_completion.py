"""Completion: what shells offer on TAB, asked of real shells where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scaledit.cli import COMMANDS, main
from scaledit.commands.completion import SCRIPTS, after_break, candidates
from scaledit.config import recipe_names


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("scaledit tr", ["train"]),
        ("scaledit ", [*COMMANDS, "--help", "--version"]),
        ("scaledit train dig", ["digits", "digits-modern", "digits-paper"]),
        ("scaledit train --out runs/x ", recipe_names("model")),
        ("scaledit autoencoder ", ["train"]),
        ("scaledit autoencoder train photos-ae-", ["photos-ae-decoder"]),
        ("scaledit train digits --resume ", ["auto", "never"]),
        ("scaledit train digits --resume=a", ["--resume=auto"]),
        ("scaledit train digits --res", ["--resume"]),
        ("scaledit sample runs/digits --sampler d", ["ddim", "ddpm", "dpm"]),
        ("scaledit train digits ema.s", ["ema.snapshot_precision=", "ema.snapshots="]),
        ("scaledit train digits ema.warmup=", ["ema.warmup=false", "ema.warmup=true"]),
        ("scaledit train digits train.steps=9 diffusion.times=u", ["diffusion.times=uniform"]),
        ("scaledit train digits sample.sampler.et", ["sample.sampler.eta="]),
        ("scaledit train digits train.precision=b", ["train.precision=bf16"]),
        ("scaledit sample runs/digits sample.gui", None),
        ("scaledit sample runs/digits model.", []),  # a trained model's stays as it is
        ("scaledit autoencoder train photos-ae loss.k", ["loss.kl_weight="]),
        ("scaledit convert x y --to o", ["official", "onnx"]),
        ("scaledit plan --gpu h1", ["h100", "h100-pcie"]),
        ("scaledit study dig", ["digits", "digits-fast"]),
        ("scaledit sample runs/d", []),  # a path, which the shell completes
        ("scaledit train digits --out ", []),
        ("scaledit nothing ", []),
        ("scaledit train 'dig", []),
        ("scaledit", []),
    ],
)
def test_candidates(line: str, found: list[str] | None):
    if found is None:
        assert "sample.guidance.classifier_free.scale=" in candidates(line)
    elif line == "scaledit ":
        assert candidates(line) == found
    else:
        assert candidates(line) == sorted(found)


def test_bash_gets_what_follows_the_last_break():
    line = "scaledit train digits diffusion.times=u"
    assert after_break(line, candidates(line)) == ["uniform"]


def test_a_script_is_printed_for_each_shell(capsys: pytest.CaptureFixture):
    for shell, script in SCRIPTS.items():
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == f"{script}\n"
    assert main(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with a program `scaledit`."""
    program = tmp_path / "bin" / "scaledit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m scaledit "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def shell(name: str, code: str, path: str) -> list[str]:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    source = Path(path.partition(os.pathsep)[0]).parent / "completion"
    source.write_text(SCRIPTS[name] + "\n")
    flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
    done = subprocess.run(
        [name, *flags, "-c", code, "shell", str(source)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


BASH = """source "$1"
complete -p scaledit >/dev/null || exit 1
for COMP_LINE in 'scaledit tr' 'scaledit train digits-' 'scaledit train digits diffusion.times=u'; do
    COMP_POINT=${#COMP_LINE}; COMPREPLY=(); _scaledit scaledit 2>/dev/null; echo "${COMPREPLY[@]}"
done"""


def test_bash_completes(path: str):
    assert shell("bash", BASH, path) == ["train", "digits-modern", "digits-paper", "uniform"]


FISH = (
    "source $argv[2]; complete --do-complete 'scaledit tr'; complete --do-complete 'scaledit train digits-'"
)


def test_fish_completes(path: str):
    assert shell("fish", FISH, path) == ["train", "digits-modern", "digits-paper"]


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_scripts_are_valid(name: str, path: str):
    shell(name, {"bash": 'bash -n "$1"', "zsh": 'zsh -n "$1"'}[name], path)
