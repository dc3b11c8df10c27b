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


class Remarked(NamedTuple):
    """What of the data is not as one may expect: the split that is read, files that are not used. Told when a
    run starts or resumes; not logged."""

    lines: tuple[str, ...]


class Started(NamedTuple):
    """The run begins at `step` (more than 0 when resumed) and ends at `steps`. ranks: processes."""

    run: str
    step: int
    steps: int
    device: str
    ranks: int
    params: int
    macs: int
    samples: int


class Stepped(NamedTuple):
    """`step` optimizer steps are done. `loss`, and `terms`, which the objective names, are means over this
    step's batch; a line of log.jsonl has each term under its own name. `seconds` is training time so far,
    over all resumes, without sampling and saving.

    Since the last such event: images_per_second; macs_per_second, multiply-adds of all ranks, three forward
    passes an image; mfu, model FLOP utilization, as a share of what matrix products reach on the same
    devices; data_wait, the share of time in which the first rank waited for data. memory: bytes, the most so
    far: of a GPU what torch has allocated, of a CPU the process's resident set. ema_distance: |ema - weights|
    / |weights|.
    """

    step: int
    loss: float
    terms: dict[str, float]
    grad_norm: float
    learning_rate: float
    seconds: float
    images_per_second: float
    macs_per_second: float
    mfu: float
    data_wait: float
    memory: int
    ema_distance: float


class Fitted(NamedTuple):
    """`Stepped` of an autoencoder: the terms of its loss, l1, kl and gradient, before their weights."""

    step: int
    loss: float
    terms: dict[str, float]
    grad_norm: float
    learning_rate: float
    seconds: float
    images_per_second: float
    macs_per_second: float
    mfu: float
    data_wait: float
    memory: int


LONGEST_TERM = 64
_TAKEN = {"event", *Stepped._fields, *Fitted._fields}


def is_term(name: str) -> bool:
    """Whether a term of a loss can be called so: a short ASCII identifier that is no key of a step's line."""
    return name.isascii() and name.isidentifier() and len(name) <= LONGEST_TERM and name not in _TAKEN


class Skipped(NamedTuple):
    """A step whose loss or gradient was not finite on some rank: nothing was changed on any. `in_a_row`
    counts them. samples: of the batch, as indices into the set; culprits: those whose own loss was not finite
    (none where only the gradient was not)."""

    step: int
    loss: float
    grad_norm: float
    in_a_row: int
    skipped: int
    samples: list[int]
    culprits: list[int]


class Spiked(NamedTuple):
    """A loss far above those before (scaledit.training.spikes). samples: of the batch, as indices into the
    set, the highest loss first."""

    step: int
    loss: float
    threshold: float
    samples: list[int]


class RolledBack(NamedTuple):
    """After a spike: the run is at `step` again, the step of its last checkpoint, and goes on with the
    batches after the spike. skipped_batches: left out so far."""

    step: int
    spiked: int
    skipped_batches: int


class DataChanged(NamedTuple):
    """The run goes on from `step` with other data than before, as data.changed=accept allows. changes: in
    words."""

    step: int
    changes: list[str]


class DataRecorded(NamedTuple):
    """The run was made before runs recorded their data, so of its data only the classes could be compared.
    samples, fingerprint: what its next checkpoint records."""

    step: int
    samples: int
    fingerprint: str | None


class CorruptCheckpoint(NamedTuple):
    """A corrupt checkpoint was not gone on from, and renamed to `path`."""

    step: int
    path: Path
    why: str


class Halved(NamedTuple):
    """Memory ran out: from this step on so many samples go through a rank at once, more often. The global
    batch is what it was."""

    step: int
    micro_batch: int


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


class Stopped(NamedTuple):
    """A signal asked the run to stop; all is saved."""

    step: int
    signal: str


class Finished(NamedTuple):
    step: int
    seconds: float
    skipped: int


Event = (
    Verifying
    | Remarked
    | Started
    | Stepped
    | Fitted
    | Skipped
    | Spiked
    | RolledBack
    | DataChanged
    | DataRecorded
    | CorruptCheckpoint
    | Halved
    | Sampled
    | Evaluated
    | Reconstructed
    | Exported
    | Saved
    | Stopped
    | Finished
)
