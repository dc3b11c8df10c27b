"""The stages from images to a trained model. Each is a command of scaledit, run in a process of its own; what
is finished is not done again.

    NAME.toml, NAME-autoencoder.toml --stages--> [autoencoder train, encode,] train
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scaledit import children
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import load
from scaledit.errors import reading
from scaledit.files.reading import read_json
from scaledit.newrun.plan import Places
from scaledit.training.folder import CONFIG, STATUS

AUTOENCODER, ENCODING, TRAINING = "autoencoder", "encoding", "training"


class Stage(NamedTuple):
    """name: in words. arguments: of scaledit. done: whether it was finished before."""

    name: str
    arguments: tuple[str, ...]
    done: bool

    @property
    def command(self) -> str:
        return f"scaledit {shlex.join(self.arguments)}"


def stages(places: Places, device: str = "auto") -> list[Stage]:
    """The stages of the recipes on disk, in order. device: of all of them. Raises UsageError for a recipe
    that cannot be read."""
    own = places.autoencoder_recipe
    autoencoder = load(str(own), kind=AutoencoderRun) if own.exists() else None
    finished = {
        AUTOENCODER: is_finished(places.autoencoder),
        ENCODING: (places.run / CONFIG).exists(),
        TRAINING: is_finished(places.run),
    }
    return [Stage(name, words, finished[name]) for name, words in arguments(places, autoencoder, device)]


def arguments(
    places: Places, autoencoder: AutoencoderRun | None, device: str = "auto"
) -> list[tuple[str, tuple[str, ...]]]:
    """The name of each stage, and its arguments of scaledit. autoencoder: its recipe, None for pixels."""
    where = () if device == "auto" else ("--device", device)
    train = ("train", str(places.recipe), "--out", str(places.run), "--resume", "auto", *where)
    if autoencoder is None:
        return [(TRAINING, train)]
    data = autoencoder.data
    learn = ("autoencoder", "train", str(places.autoencoder_recipe), "--out", str(places.autoencoder))
    encode = (
        *(
            "encode",
            data.path,
            "--image-size",
            str(data.image_size),
            "--autoencoder",
            str(places.autoencoder),
        ),
        *("--out", str(places.latents), *(() if data.flip else ("--no-flip",))),
        *(("--holdout", f"{data.holdout:g}") if data.holdout else ()),
        *(("--split", data.split) if data.split else ()),
        *(("--image-key", data.image_key) if data.image_key else ()),
    )
    return [
        (AUTOENCODER, (*learn, "--resume", "auto", *where)),
        (ENCODING, (*encode, *where)),
        (TRAINING, train),
    ]


def commands(places: Places, autoencoder: AutoencoderRun | None, device: str = "auto") -> tuple[str, ...]:
    """The same as lines of a shell."""
    return tuple(f"scaledit {shlex.join(words)}" for _, words in arguments(places, autoencoder, device))


def is_finished(run: Path) -> bool:
    """Whether the training in a run folder has ended as planned."""
    path = run / STATUS
    if not path.exists():
        return False
    with reading(path, "the status of a run"):
        return read_json(path, "the status of a run").get("state") == "finished"


class Ended(NamedTuple):
    """code: exit code. seconds: that the stage took."""

    code: int
    seconds: float


def run(stage: Stage, options: Sequence[str] = (), *, silent: bool = False) -> Ended:
    """Runs a stage as a child process. Signals reach it; it saves its work and says so. options: further
    ones. silent: what it prints as its result goes nowhere."""
    began = time.monotonic()
    with children.started([*stage.arguments, *options], [os.environ], silent=silent) as [child]:
        code = child.wait()
    return Ended(128 - code if code < 0 else code, time.monotonic() - began)
