"""scaledit study: a grid of runs, what is measured of them, and the report of it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from scaledit import terminal
from scaledit.commands import common
from scaledit.errors import RunError, UsageError

if TYPE_CHECKING:
    from scaledit.scaling.cost import Cost
    from scaledit.scaling.queue import Job, Queue
    from scaledit.scaling.study import Study
    from scaledit.scaling.table import Table

SUMMARY = """a grid of runs, its fits, figures and verdicts; resumable, shared by any number of processes

  scaledit study digits                       the paper's study in miniature
  scaledit study digits --fast                the same in minutes
  scaledit study mine.toml --out shared/mine  your own; call it on several machines to share the work
  scaledit study docs/studies/digits          figures, verdicts and report anew, from a study's table
  scaledit study paper                        the same of the paper's own printed numbers"""

DONE, INCOMPLETE = 0, 1


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study",
        metavar="STUDY",
        help="a study's name, the path of a .toml file, or a folder with a study's table",
    )
    parser.add_argument("--fast", action="store_true", help="the smaller study of the same name, NAME-fast")
    parser.add_argument("--out", type=Path, help="what is made goes there (default: studies/STUDY)")
    parser.add_argument(
        "--publish",
        type=Path,
        metavar="DIR",
        help="table, figures, verdicts, report there too, without the runs",
    )
    parser.add_argument(
        "--workers",
        type=common.integer(1, common.MOST_PROCESSES),
        metavar="N",
        help="processes (default: one per CPU core, or one per GPU)",
    )
    parser.add_argument(
        "--join", action="store_true", help="do jobs of a study in this process only; no report at the end"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it will cost, and do nothing")
    common.device(parser)


def run(given: argparse.Namespace) -> int:
    from scaledit.scaling import study as studies
    from scaledit.scaling import table as tables

    for option, folder in (("--out", given.out), ("--publish", given.publish)):
        if folder is not None:
            common.can_write(folder / tables.TABLE, option)
    if given.study == "paper":
        from scaledit.scaling import printed_table

        _only_reports(given)
        return _reported(printed_table.table(), given.out or Path("studies/paper"))
    place = Path(given.study)
    if given.study not in studies.names() and (place / tables.TABLE).is_file():
        _only_reports(given)
        return _reported(tables.read(place), given.out or place)

    from scaledit.scaling.queue import Queue
    from scaledit.scaling.work import jobs

    name = f"{place.with_suffix('')}-fast{place.suffix}" if given.fast else given.study
    study = studies.load(name)
    out = given.out or Path("studies") / study.name
    queue = Queue(out, jobs(study))
    if given.join:
        return _joined(study, queue, given)
    code = _worked(study, queue, given, name, out)
    if code != DONE or given.dry_run:
        return code

    from scaledit.scaling.collect import collect

    command = f"scaledit study {given.study}{' --fast' if given.fast else ''}"
    table, missing = collect(study, queue, command)
    if missing:
        raise RunError(_missing(missing, out))
    tables.to_sqlite(table, out / tables.SQLITE)
    if given.publish:
        _reported(table, given.publish)
    return _reported(table, out)


def _only_reports(given: argparse.Namespace) -> None:
    """Raises UsageError for options of a study that is to be run."""
    for name in ("fast", "join", "dry_run", "workers", "publish"):
        if getattr(given, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for a study to run; {given.study} is a table already, "
                "whose report goes to --out"
            )


def _reported(table: Table, folder: Path) -> int:
    from scaledit.report import study as report

    with common.shown_progress("drawing figures") as progress:
        page = report.write(table, folder, progress)
    terminal.say(f"the report is {page}")
    return DONE


def _missing(missing: list[Job], out: Path) -> str:
    names = ", ".join(job.key for job in missing[:5]) + (", ..." if len(missing) > 5 else "")
    return f"{len(missing)} jobs have no result ({names}; see {out}/journal.jsonl); the same command goes on"


def _worked(study: Study, queue: Queue, given: argparse.Namespace, name: str, out: Path) -> int:
    """Does what is left, in several processes, after saying what it costs."""
    import torch

    from scaledit import assemble
    from scaledit.progress import StudyProgress
    from scaledit.scaling import crew
    from scaledit.scaling.cost import estimate

    left = queue.left
    if not left and not given.dry_run:
        return DONE
    device = assemble.device(given.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    workers = given.workers or gpus or os.cpu_count() or 1
    torch.set_num_threads(1)
    with common.shown_progress("timing each model") as progress:
        cost = estimate(study, device, progress)
    terminal.say(*_price(study, queue, cost, min(workers, len(left) or 1)))
    if given.dry_run:
        return DONE
    command = ["study", name, "--out", str(out), "--join", "--device", given.device]
    with StudyProgress(cost.seconds) as shown:
        codes = crew.run(command, min(workers, len(left)), lambda: shown.look(queue), gpus)
    failed = [code for code in codes if code != DONE]
    # A worker that a signal ended has a code below 0: what it had is taken up next time.
    return max(failed[0], INCOMPLETE) if failed else DONE


def _price(study: Study, queue: Queue, cost: Cost, workers: int) -> list[str]:
    from scaledit.scaling.plan import scientific

    done = len(queue.jobs) - len(queue.left)
    longest, seconds = cost.longest
    macs, drawing = scientific(cost.train_macs), scientific(cost.sampling_macs)
    return [
        f"study {study.name}: {len(study.runs)} runs and {len(study.measurements)} measurements of them",
        f"  multiply-adds   {macs} of training, {drawing} of sampling",
        f"  time            about {cost.hours(workers):.2g} hours with {workers} workers on this machine",
        f"  longest run     {longest}, {seconds / 60:.2g} minutes",
        f"  done already    {done} of {len(queue.jobs)} jobs",
    ]


def _joined(study: Study, queue: Queue, given: argparse.Namespace) -> int:
    """One worker, in this process."""
    import torch

    from scaledit.scaling.work import Ended, Failed, work
    from scaledit.training.signals import STOPPED, StopRequest

    torch.set_num_threads(1)
    stop = StopRequest().listen()
    code = DONE
    for event in work(study, queue, given.device, stop):
        if isinstance(event, Ended):
            terminal.say(f"{event.job.key}: {event.seconds:.0f} s")
        elif isinstance(event, Failed):
            terminal.complain(f"{event.job.key}: {event.reason}")
            code = INCOMPLETE
    return STOPPED if stop.signal else code
