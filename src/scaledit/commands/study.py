"""scaledit study: a grid of runs, their evaluation, and the report."""

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
    from scaledit.scaling.queue import Queue
    from scaledit.scaling.study import Study
    from scaledit.scaling.table import Table

SUMMARY = """train and evaluate a grid of runs, with fits, figures and verdicts; resumable, in many processes

  scaledit study digits                       the paper's study in miniature
  scaledit study digits --fast                the same in minutes
  scaledit study mine.toml --out shared/mine  your own; call it on several machines to share the work
  scaledit study docs/studies/digits          figures, verdicts and report again, from a study's table
  scaledit study paper                        the same for the numbers printed in the paper"""

DONE, INCOMPLETE = 0, 1


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    study = "name of a study, path of a .toml file, or folder with a study's table"
    add("study", metavar="STUDY", help=study)
    add("--fast", action="store_true", help="the smaller study of the same name, NAME-fast")
    add("--out", type=Path, help="folder for runs and results (default: studies/STUDY)")
    publish = "write table, figures, verdicts and report to this folder too, without the runs"
    add("--publish", type=Path, metavar="DIR", help=publish)
    workers = common.integer(1, common.MOST_PROCESSES)
    add("--workers", type=workers, metavar="N", help="processes (default: one per CPU core, or per GPU)")
    add("--join", action="store_true", help="do jobs of a study in this process only, without a report")
    add("--dry-run", action="store_true", help="report what it will cost, and do nothing")
    common.device(parser)


def run(args: argparse.Namespace) -> int:
    from scaledit.scaling import study as studies
    from scaledit.scaling import table as tables

    for option, folder in (("--out", args.out), ("--publish", args.publish)):
        if folder is not None:
            common.check_writable(folder / tables.TABLE, option)
    if args.study == "paper":
        from scaledit.scaling import printed_table

        _check_report_only(args)
        return _report(printed_table.table(), args.out or Path("studies/paper"))
    path = Path(args.study)
    if args.study not in studies.names() and (path / tables.TABLE).is_file():
        _check_report_only(args)
        return _report(tables.read(path), args.out or path)

    from scaledit.scaling.queue import Queue
    from scaledit.scaling.work import jobs

    name = f"{path.with_suffix('')}-fast{path.suffix}" if args.fast else args.study
    study = studies.load(name)
    out = args.out or Path("studies") / study.name
    queue = Queue(out, jobs(study))
    if args.join:
        return _join(study, queue, args)
    code = _work(study, queue, args, name, out)
    if code != DONE or args.dry_run:
        return code

    from scaledit.scaling.collect import collect

    command = f"scaledit study {args.study}{' --fast' if args.fast else ''}"
    table, missing = collect(study, queue, command)
    if missing:
        names = ", ".join(job.key for job in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise RunError(
            f"{len(missing)} jobs have no result ({names}; see {out}/journal.jsonl); the same command resumes"
        )
    tables.to_sqlite(table, out / tables.SQLITE)
    if args.publish:
        _report(table, args.publish)
    return _report(table, out)


def _check_report_only(args: argparse.Namespace) -> None:
    """Raises UsageError for options that apply to running a study."""
    for name in ("fast", "join", "dry_run", "workers", "publish"):
        if getattr(args, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for a study to run; {args.study} is a table already, "
                "whose report goes to --out"
            )


def _report(table: Table, folder: Path) -> int:
    from scaledit.report import study as report

    with common.progress_bar("plotting figures") as progress:
        page = report.write(table, folder, progress)
    terminal.say(f"the report is {page}")
    return DONE


def _work(study: Study, queue: Queue, args: argparse.Namespace, name: str, out: Path) -> int:
    """Reports the cost, then does the remaining jobs in several processes."""
    import torch

    from scaledit import assemble
    from scaledit.progress import StudyProgress
    from scaledit.scaling import crew
    from scaledit.scaling.cost import estimate

    remaining = queue.left
    if not remaining and not args.dry_run:
        return DONE
    device = assemble.device(args.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    workers = args.workers or gpus or os.cpu_count() or 1
    torch.set_num_threads(1)
    with common.progress_bar("timing each model") as progress:
        cost = estimate(study, device, progress)
    terminal.say(*_cost_lines(study, queue, cost, min(workers, len(remaining) or 1)))
    if args.dry_run:
        return DONE
    command = ["study", name, "--out", str(out), "--join", "--device", args.device]
    with StudyProgress(cost.seconds) as display:
        codes = crew.run(command, min(workers, len(remaining)), lambda: display.look(queue), gpus)
    failed = [code for code in codes if code != DONE]
    # A worker that a signal ended has a code below 0; its job is resumed next time.
    return max(failed[0], INCOMPLETE) if failed else DONE


def _cost_lines(study: Study, queue: Queue, cost: Cost, workers: int) -> list[str]:
    from scaledit.scaling.plan import scientific

    done = len(queue.jobs) - len(queue.left)
    longest, seconds = cost.longest
    macs, sampling = scientific(cost.train_macs), scientific(cost.sampling_macs)
    return [
        f"study {study.name}: {len(study.runs)} runs and {len(study.measurements)} measurements of them",
        f"  multiply-adds   {macs} of training, {sampling} of sampling",
        f"  time            about {cost.hours(workers):.2g} hours with {workers} workers on this machine",
        f"  longest run     {longest}, {seconds / 60:.2g} minutes",
        f"  done already    {done} of {len(queue.jobs)} jobs",
    ]


def _join(study: Study, queue: Queue, args: argparse.Namespace) -> int:
    """One worker, in this process."""
    import torch

    from scaledit.scaling.work import Ended, Failed, work
    from scaledit.training.signals import STOPPED, StopRequest

    torch.set_num_threads(1)
    stop = StopRequest().listen()
    code = DONE
    for event in work(study, queue, args.device, stop):
        if isinstance(event, Ended):
            terminal.say(f"{event.job.key}: {event.seconds:.0f} s")
        elif isinstance(event, Failed):
            terminal.complain(f"{event.job.key}: {event.reason}")
            code = INCOMPLETE
    return STOPPED if stop.signal else code
