"""Trains as one of several real processes, to compare ranks with a single process.

    across(2, {"ddp": Job(("engine.parallel=ddp",))}, folder)["ddp"]        two processes over gloo
    alone(Job())                                                            this process

As a script it is one rank: RANK and its like in the environment, argv: jobs (JSON), where to put the results.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from own_objective import chosen
from scaledit.config import RunConfig
from scaledit.data.order import samples_at
from scaledit.data.sets import Images, digits
from scaledit.errors import RunError, UsageError
from scaledit.training.dit import train
from scaledit.training.events import Event
from scaledit.training.folder import Changes
from scaledit.training.log import JsonLog
from scaledit.training.loop import RunContext
from scaledit.training.parallel import full
from scaledit.training.ranks import Ranks, leave
from scaledit.training.state import TrainState
from tiny import tiny

ALONE = Ranks(torch.device("cpu"))
PATIENCE = 600.0
"""Seconds until ranks are taken to be stuck: other tests run beside them."""


@dataclass(frozen=True)
class Job:
    """The tiny digits with `overrides`: a run in the folder `out`, or without one `steps` steps of the bare
    state. Images that the stream shows at the positions `poisoned` are multiplied by `factor`. objective: of
    a user's own, as MODULE:CLASS. changes: as of `train`."""

    overrides: tuple[str, ...] = ()
    steps: int = 50
    out: str = ""
    poisoned: tuple[int, ...] = ()
    factor: float = float("nan")
    objective: str = ""
    changes: Changes = "refuse"

    def dataset(self) -> Images:
        images = digits()
        wrong = samples_at(self.poisoned, len(images), tiny(*self.overrides).train.seed)  # type: ignore[arg-type]
        x = images.images.clone()
        x[torch.from_numpy(wrong).long()] *= self.factor
        return dataclasses.replace(images, images=x)


@dataclass
class Trained:
    """losses, norms, skipped: a value a step. tables: (steps, batch, columns), a row a sample. weights:
    whole tensors, of the objective too. events: of a run in a folder. elsewhere: what the other ranks
    skipped."""

    losses: list[float]
    norms: list[float]
    skipped: list[bool]
    tables: Tensor
    weights: dict[str, Tensor]
    elsewhere: list[list[bool]]
    events: list[Event]
    error: str = ""


def config_of(job: Job) -> RunConfig:
    own = [chosen(job.objective)] if job.objective else []
    return tiny(*job.overrides, *own)


def do(job: Job, ranks: Ranks) -> Trained:
    return in_folder(job, ranks) if job.out else bare(job, ranks)


def bare(job: Job, ranks: Ranks) -> Trained:
    state = TrainState.create(config_of(job), job.dataset(), ranks)
    results = [state.train_step() for _ in range(job.steps)]
    skipped = [result.skipped for result in results]
    elsewhere = [skipped]
    if ranks.grouped:
        elsewhere = [[] for _ in range(ranks.world)]
        torch.distributed.all_gather_object(elsewhere, skipped)
    weights = {name: full(value.detach()).clone() for name, value in state.net.state_dict().items()}
    weights |= {f"ema.{name}": full(value).clone() for name, value in state.ema.state_dict().items()}
    own = {} if state.replicated is None else state.replicated.state_dict()
    weights |= {f"objective.{name}": value.clone() for name, value in own.items()}
    return Trained(
        [result.loss for result in results],
        [result.grad_norm for result in results],
        skipped,
        torch.stack([result.table for result in results]),
        weights,
        elsewhere,
        [],
    )


def in_folder(job: Job, ranks: Ranks) -> Trained:
    out, events, error = Path(job.out), [], ""
    log = JsonLog(out) if ranks.first else lambda event: None
    try:
        config = config_of(job)
        how: Any = {"resume": "auto", "changes": job.changes, "dataset": job.dataset()}
        for event in train(config, out, context=RunContext(ranks), **how):
            log(event)
            events.append(event)
    except (RunError, UsageError) as failure:
        error = str(failure)
    return Trained([], [], [], torch.empty(0), {}, [], events, error)


def alone(job: Job) -> Trained:
    return do(job, ALONE)


def environment(rank: int, count: int, port: int, per_machine: int = 0) -> dict[str, str]:
    """What torchrun sets for `rank` of `count`, on machines of `per_machine` ranks (0: one machine)."""
    per_machine = per_machine or count
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % per_machine),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(per_machine),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def across(count: int, jobs: dict[str, Job], folder: Path, per_machine: int = 0) -> dict[str, Trained]:
    """The jobs one after another on `count` ranks: what the first of them saw."""
    words = json.dumps({name: dataclasses.asdict(job) for name, job in jobs.items()})
    results = folder / f"results-{count}.pt"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, words, str(results)]
    ranks = [
        subprocess.Popen(command, env=environment(rank, count, port, per_machine), stderr=subprocess.PIPE)
        for rank in range(count)
    ]
    try:
        said = [rank.communicate(timeout=PATIENCE)[1].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * count, "\n".join(said)
    return torch.load(results, weights_only=False)  # made above


def main(words: str, results: str) -> None:
    ranks = Ranks.join("cpu")
    jobs: dict[str, Any] = json.loads(words)
    found = {}
    for name, job in jobs.items():
        job = Job(**{key: tuple(value) if isinstance(value, list) else value for key, value in job.items()})
        found[name] = do(job, ranks)
    if ranks.first:
        torch.save(found, results)
    ranks.barrier()
    leave(0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from among import main  # so that what is pickled is known under this name

    main(*sys.argv[1:])
