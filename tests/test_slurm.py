"""The scripts of examples/slurm, run with stand-ins for the cluster's commands: `srun` starts its tasks on
this machine with Slurm's variables, `scontrol` names one host and notes what is queued again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from processes import until
from scaledit.cli import main
from scaledit.training import log
from tiny import TINY

SCRIPTS = Path(__file__).parents[1] / "examples" / "slurm"
RUN = Path(__file__).parent / "made_by_0_1" / "run-flow"

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
  echo $! >> "$FAKE/tasks"
done
code=0
for task in $(jobs -p); do
  wait $task
  one=$?
  [ $one -gt $code ] && code=$one
done
exit $code
"""
SCONTROL = """#!/bin/bash
case $1 in
  show) echo 127.0.0.1; echo another-machine ;;
  requeue) echo "$2" >> "$FAKE/requeued" ;;
esac
"""
SCALEDIT = f"""#!/bin/bash
exec {sys.executable} -m scaledit.cli "$@"
"""
RECORDER = """#!/bin/bash
printf '%s\\n' "$@" > "$FAKE/arguments"
"""


def environment(folder: Path, variables: Mapping[str, str], scaledit: str = SCALEDIT) -> dict[str, str]:
    """Makes the stand-ins in `folder` and returns an environment that finds them."""
    folder.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "scaledit": scaledit}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "FAKE": str(folder), **variables}


JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "a[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
}


def train(folder: Path, out: Path, *overrides: str) -> subprocess.Popen[str]:
    words = [str(SCRIPTS / "train.sh"), "digits", str(out), *TINY, *overrides]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=environment(folder, JOB), stdout=pipe, stderr=pipe, text=True)


def tasks(folder: Path) -> list[int]:
    path = folder / "tasks"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def status(out: Path) -> dict[str, object]:
    path = out / "status.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def stepped(out: Path) -> bool:
    path = out / "log.jsonl"
    return path.exists() and '"event": "stepped"' in path.read_text()


def stopped(folder: Path, out: Path) -> int:
    """Trains until Slurm's signal for the end of the time limit. Returns the step at which it stopped."""
    job = train(folder, out, "train.steps=1000000")
    try:
        # A step needs all ranks, and before it each of them has installed its signal handlers.
        until(lambda: stepped(out) or job.poll() is not None)
        assert job.poll() is None, job.communicate()
        assert status(out)["ranks"] == 2
        for task in tasks(folder):
            os.kill(task, signal.SIGUSR1)
        _, said = job.communicate(timeout=600)
    finally:
        for task in tasks(folder):  # if the test has failed
            if job.poll() is None:
                os.kill(task, signal.SIGKILL)
    assert job.returncode == 75, said
    found = status(out)
    assert (found["state"], found["reason"], found["exit_code"]) == ("stopped", "SIGUSR1", 75)
    assert (folder / "requeued").read_text() == "4711\n"
    assert isinstance(found["step"], int)
    return found["step"]


def test_a_job_at_its_time_limit_saves_and_is_queued_again(tmp_path: Path):
    stopped(tmp_path / "fake", tmp_path / "run")


@pytest.mark.slow
def test_the_next_job_resumes_and_ends(tmp_path: Path):
    fake, out = tmp_path / "fake", tmp_path / "run"
    step = stopped(fake, out)
    (fake / "requeued").unlink()
    job = train(fake, out, f"train.steps={step + 2}")
    _, said = job.communicate(timeout=600)
    assert job.returncode == 0, said
    assert not (fake / "requeued").exists()
    steps = [line["step"] for line in log.read(out) if line["event"] == "stepped"]
    assert steps == list(range(1, step + 3))


def test_each_job_of_an_array_generates_its_share(tmp_path: Path):
    """The script's command lines, run here one after another."""
    out = tmp_path / "images.npz"
    words = [str(SCRIPTS / "generate.sh"), str(RUN), str(out), "--num", "501", "--seed", "3"]
    for share in range(2):
        array = {"SLURM_NTASKS": "1", "SLURM_ARRAY_TASK_ID": str(share), "SLURM_ARRAY_TASK_COUNT": "2"}
        subprocess.run(words, env=environment(tmp_path / "fake", array, RECORDER), check=True)
        arguments = (tmp_path / "fake" / "arguments").read_text().splitlines()
        assert f"{share}/2" in arguments
        assert not out.exists()
        assert main(arguments) == 0
    with np.load(out) as file:
        assert file["arr_0"].shape == (501, 8, 8, 3)


@pytest.mark.parametrize("script", ["train.sh", "generate.sh"])
def test_a_call_without_arguments_says_what_is_missing(script: str, tmp_path: Path):
    done = subprocess.run(
        [str(SCRIPTS / script)], env=environment(tmp_path, JOB), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch ")
