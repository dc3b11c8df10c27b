"""What happens in a run. The training loop yields these; the progress display, log.jsonl and the tests
listen to the same stream."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from scaledit.evaluation.result import Result


class Verifying(NamedTuple):
    """Encoded images are checked byte by byte before anything else; done, total in bytes. Not logged."""

    done: int
    total: int


class Started(NamedTuple):
    """The run begins at `step` (more than 0 when resumed) and ends at `steps`."""

    run: str
    step: int
    steps: int
    device: str
    params: int
    macs: int
    samples: int


class Stepped(NamedTuple):
    """`step` optimizer steps are done. `loss` and its parts are means over this step's batch; `seconds` is
    training time so far, over all resumes, without sampling and saving."""

    step: int
    loss: float
    mse: float
    vlb: float | None
    grad_norm: float
    learning_rate: float
    seconds: float
    images_per_second: float


class Fitted(NamedTuple):
    """`Stepped` of an autoencoder: the terms of its loss before their weights."""

    step: int
    loss: float
    l1: float
    kl: float
    gradient: float
    grad_norm: float
    learning_rate: float
    seconds: float
    images_per_second: float


class Skipped(NamedTuple):
    """A step whose loss or gradient was not finite: no weight was changed. `in_a_row` counts them."""

    step: int
    loss: float
    grad_norm: float
    in_a_row: int
    skipped: int


class Sampled(NamedTuple):
    """A grid of samples of the EMA weights, one row a class."""

    step: int
    path: Path


class Evaluated(NamedTuple):
    """The figures of the EMA weights, with their protocol."""

    step: int
    result: Result


class Reconstructed(NamedTuple):
    """Held-out images after encoding (means, no noise) and decoding: means over them of PSNR (dB) and SSIM.
    path: each original beside its reconstruction."""

    step: int
    psnr: float
    ssim: float
    images: int
    path: Path


class Exported(NamedTuple):
    """The trained autoencoder in diffusers' format."""

    step: int
    path: Path
    scale: float
    sha256: str
    encoder_sha256: str


class Saved(NamedTuple):
    step: int
    path: Path


class Finished(NamedTuple):
    step: int
    seconds: float
    skipped: int


Event = (
    Verifying
    | Started
    | Stepped
    | Fitted
    | Skipped
    | Sampled
    | Evaluated
    | Reconstructed
    | Exported
    | Saved
    | Finished
)
