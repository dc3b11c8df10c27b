"""The events of a run. The training loop yields them; the progress display, log.jsonl, trackers and tests
listen to the same stream."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from scaledit.errors import and_more, counted, listed
from scaledit.evaluation.result import Result

MOST_NAMES = 5
"""Classes that a sentence lists at most."""


def few(names: list[str]) -> str:
    """'cat', 'dog' and 3 more."""
    quoted = [repr(name) for name in names]
    more = and_more(len(names) - MOST_NAMES) if len(names) > MOST_NAMES else ""
    return f"{', '.join(quoted[:MOST_NAMES])}{more}" if more else listed(quoted, "and")


class Verifying(NamedTuple):
    """Encoded images are being verified, byte by byte. done, total: in bytes. Not logged."""

    done: int
    total: int


class Remarked(NamedTuple):
    """Remarks on the data, such as the split that is read or files that are not used, and on what
    power-function averages take. Reported whenever a run starts or resumes; not logged."""

    lines: tuple[str, ...]


class Initialized(NamedTuple):
    """A new run starts from the weights of another model (train.init). name, model_step, weights, sha256: of
    that model: its name and step, which weights (ema or model), and the hash of its file ("" if unknown).
    tensors: how many were taken over. classes: those whose rows of the class table were taken over by name.
    new_classes: those whose rows start as the null row. notes: what had to be assumed."""

    step: int
    init: str
    name: str
    model_step: int
    weights: str
    sha256: str
    tensors: int
    classes: list[str]
    new_classes: list[str]
    notes: list[str]

    def in_words(self) -> str:
        """One line for people: what the run starts from, and what became of the class table."""
        step = f", step {self.model_step:,}" if self.model_step else ""
        words = f"starts from {self.init} ({self.name}{step}, {self.weights} weights): "
        words += counted(self.tensors, "tensor")
        if self.classes:
            words += f", {counted(len(self.classes), 'class', 'classes')} by name"
        if self.new_classes:
            new = counted(len(self.new_classes), "new class", "new classes")
            words += f", {new} with the null row ({few(self.new_classes)})"
        return "; ".join([words, *self.notes])


class Started(NamedTuple):
    """The run starts at `step` (more than 0 if resumed) and will end at `steps`. ranks: number of processes.
    params: of the network. macs: multiply-adds of the forward pass of one image. trained: the parameters that
    the optimizer changes; fewer than params if weights are frozen."""

    run: str
    step: int
    steps: int
    device: str
    ranks: int
    params: int
    macs: int
    samples: int
    trained: int = 0


class Stepped(NamedTuple):
    """`step` optimizer steps are done.

    loss, terms: the loss and the terms that the objective names, means over the batch of this step; a line of
    log.jsonl has each term under its own name. seconds: training time over all resumes, without sampling
    and saving. Since the previous event of this kind: images_per_second; macs_per_second, multiply-adds
    of all ranks, three forward passes per image (more than is computed if weights are frozen); mfu, model
    FLOP utilization, the share of the measured peak of the same devices; data_wait, the share of time in
    which the first rank waited for data. memory: the most bytes so far that torch allocated on a GPU, or
    of the resident set on a CPU. ema_distance: |ema - weights| / |weights|.
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
    """`Stepped` for an autoencoder. terms: l1, kl and gradient, before weighting, and perceptual if it has
    a weight."""

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
_RESERVED = {"event", *Stepped._fields, *Fitted._fields}


def is_term(name: str) -> bool:
    """Whether a loss term may have this name: a short ASCII identifier that no field of a step has."""
    return name.isascii() and name.isidentifier() and len(name) <= LONGEST_TERM and name not in _RESERVED


class Skipped(NamedTuple):
    """A step was skipped on all ranks because the loss or gradient was not finite on one. in_a_row: skipped
    steps in a row. skipped: in total. samples: the batch, as indices into the data set. culprits: the samples
    whose own loss was not finite (none if only the gradient was not)."""

    step: int
    loss: float
    grad_norm: float
    in_a_row: int
    skipped: int
    samples: list[int]
    culprits: list[int]


class Spiked(NamedTuple):
    """The loss is far above the losses before it (scaledit.training.spikes). samples: the batch, as indices
    into the data set, the highest loss first."""

    step: int
    loss: float
    threshold: float
    samples: list[int]


class RolledBack(NamedTuple):
    """After a spike at step `spiked` the run is back at `step`, that of its last checkpoint, and continues
    with the batches after the spike. skipped_batches: left out so far."""

    step: int
    spiked: int
    skipped_batches: int


class Changed(NamedTuple):
    """The run resumes from `step` with another config than it had up to there. changes: of each key that
    differs, "section.key: old -> new". batch_size: of the steps since the change before, or the first one."""

    step: int
    changes: list[str]
    batch_size: int


class DataChanged(NamedTuple):
    """The run resumes from `step` with other data than before, as data.changed=accept allows. changes: in
    words."""

    step: int
    changes: list[str]


class DataRecorded(NamedTuple):
    """The run is older than the record of its data, so only the classes could be compared. samples,
    fingerprint: recorded in its next checkpoint."""

    step: int
    samples: int
    fingerprint: str | None


class CorruptCheckpoint(NamedTuple):
    """A corrupt checkpoint was skipped and renamed to `path`. step: the run resumes from it."""

    step: int
    path: Path
    why: str


class Halved(NamedTuple):
    """Memory ran out: from this step on `micro_batch` samples pass through a rank at once. The global batch
    is unchanged."""

    step: int
    micro_batch: int


class Sampled(NamedTuple):
    """A grid of samples from the EMA weights, with one row per class, was saved."""

    step: int
    path: Path


class Evaluated(NamedTuple):
    """The metrics of the EMA weights, with their protocol."""

    step: int
    result: Result


class Reconstructed(NamedTuple):
    """Mean PSNR (dB) and SSIM over held-out images, encoded (to the mean, without noise) and decoded.

    images: their number. path: a grid with each original beside its reconstruction. perceptual, fd: distances
    of the features of `extractor` (scaledit.evaluation.reconstruction). held_out: the number of images that
    are held out; 0 means that the set is too small for that, so that these are training images. Logs of
    earlier versions lack the last four.
    """

    step: int
    psnr: float
    ssim: float
    images: int
    path: Path
    perceptual: float | None = None
    fd: float | None = None
    extractor: str = ""
    held_out: int | None = None


class Exported(NamedTuple):
    """The trained autoencoder was written in diffusers' format. sha256: of its weights file."""

    step: int
    path: Path
    scale: float
    sha256: str
    encoder_sha256: str


class Saved(NamedTuple):
    step: int
    path: Path


class Stopped(NamedTuple):
    """A signal stopped the run, after saving a checkpoint."""

    step: int
    signal: str


class Finished(NamedTuple):
    step: int
    seconds: float
    skipped: int


DataEvent = Verifying | Remarked | DataChanged | DataRecorded | Initialized
StepEvent = Stepped | Fitted | Skipped | Spiked | RolledBack | Halved | Changed
OutputEvent = Sampled | Evaluated | Reconstructed | Exported | Saved | CorruptCheckpoint
Event = Started | DataEvent | StepEvent | OutputEvent | Stopped | Finished
