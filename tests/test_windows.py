"""What works without the parts of Python that Windows lacks, which are taken away here. Nothing has been run
on Windows itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "made_by_0_1" / "run-flow"

WINDOWS = """
import json, os, pkgutil, signal, sys
from importlib import import_module
import matplotlib.pyplot, sklearn, torch._dynamo, torch.distributed.checkpoint, torch.utils.data

for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None  # importing it raises ImportError
for name in (
    "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 alarm pause "
    "pthread_sigmask setitimer sigwait"
).split():
    delattr(signal, name)
for name in (
    "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK chown fchmod fork getegid geteuid getgid getloadavg getpgid "
    "getuid killpg mkfifo pread pwrite setsid sysconf uname wait"
).split():
    delattr(os, name)

def kill(*_):
    raise AssertionError("os.kill(process, 0) is a Ctrl-C on Windows")

os.kill = kill

import scaledit
for module in pkgutil.walk_packages(scaledit.__path__, "scaledit."):
    if module.name != "scaledit.interop.exact_diffusers":  # needs diffusers
        import_module(module.name)

run, codes = sys.argv[1], {}
for line in open("commands.txt"):
    words = [run if word == "RUN" else word for word in line.split()]
    codes[line.strip()] = scaledit.cli.main(words)
codes["shape"] = scaledit.load(run)([0, 1]).shape
json.dump(codes, open("codes.json", "w"))
"""

WORKS = [
    "--version",
    "--help",
    "sample RUN --classes 0,1 --per-class 1 --out images.png",
    "generate RUN --num 4 --out images.npz",
    "generate RUN --num 4 --out images.npz",
    "convert RUN model --to scaledit",
    "convert model pipeline --to diffusers",
]
REFUSED = {
    "train digits --out run": "training",
    "train digits --out run --nproc 2": "running several processes",
    "study digits --out study --join": "training",
    "generate RUN --num 4 --shard 0/2 --out shared.npz": "sampling in shards",
}


@pytest.mark.slow
def test_the_library_works_and_training_is_refused_in_a_sentence(tmp_path: Path):
    (tmp_path / "commands.txt").write_text("\n".join([*WORKS, *REFUSED]))
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, str(RUN)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads((tmp_path / "codes.json").read_text())
    assert codes == {**dict.fromkeys(WORKS, 0), **dict.fromkeys(REFUSED, 2), "shape": [2, 8, 8, 3]}
    said = [line for line in done.stderr.splitlines() if line.startswith("scaledit: ")]
    assert said == [f"scaledit: {what} is not supported on Windows; use WSL" for what in REFUSED.values()]
    left = {path.name for path in tmp_path.iterdir()} - {"commands.txt", "codes.json", "model", "pipeline"}
    assert left == {"images.png", "images.npz"}
