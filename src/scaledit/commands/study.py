"""scaledit study: a grid of runs, their evaluation, and the report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import terminal
from scaledit.commands import common
from scaledit.commands.parsing import Example
from scaledit.errors import RunError, UsageError, counted

if TYPE_CHECKING:
    from scaledit.scaling.cost import Cost
    from scaledit.scaling.queue import Queue
    from scaledit.scaling.study import Study
    from scaledit.scaling.table import Table

SUMMARY = "train, evaluate and compare a grid of runs"
DESCRIPTION = """The report shows fits, figures and verdicts on the claims of the paper; for a sweep, the
results by the values that were varied and the best of them; for a study of switches, what each of them
changes at equal training compute. If a study is interrupted, run the same command again: it resumes. Several
machines that share the folder of --out can run the same command to share the work."""
EXAMPLES = (
    Example("scaledit study digits --fast --dry-run", "Estimate the cost of the small study of digits"),
    Example(
        "scaledit study digits --fast",
        "Train and evaluate it",
        needs="6 minutes on 2 CPU cores",
    ),
    Example(
        "scaledit study mine.toml --out shared/mine",
        "Run a study of your own, on every machine that sees the folder shared/mine",
        needs="mine.toml (docs/scaling.md)",
    ),
    Example(
        "scaledit study docs/studies/digits --out again",
        "Write figures, verdicts and report from the table of a study",
    ),
    Example("scaledit study paper", "Write the same for the numbers that the paper prints"),
)

DONE, INCOMPLETE = 0, 1


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    study = "the name of a study, the path of a .toml file, or a folder that holds the table of a study"
    add("study", metavar="STUDY", help=study)
    fast = "run the smaller study of the same name, STUDY-fast"
    add("--fast", action="store_true", help=fast)
    out = "the folder for runs and results (default: studies/STUDY)"
    add("--out", type=Path, metavar="FOLDER", help=out)
    publish = "write table, figures, verdicts and report to this folder, too, without the runs"
    add("--publish", type=Path, metavar="FOLDER", help=publish)
    workers = common.integer(1, common.MOST_PROCESSES)
    count = "the number of processes that share the work (default: one per CPU core, or one per GPU)"
    add("--workers", type=workers, metavar="N", help=count)
    join = "do jobs of a study in this process only, without a report"
    add("--join", action="store_true", help=join)
    add("--in-crew", action="store_true", help=argparse.SUPPRESS)  # a process that `_work` started
    add("--dry-run", action="store_true", help="estimate the cost, and do nothing")
    common.device(parser)
    common.output(parser)


def run(args: argparse.Namespace) -> int:
    from scaledit.scaling import study as studies
    from scaledit.scaling import table as tables

    for option, folder in (("--out", args.out), ("--publish", args.publish)):
        if folder is not None:
            common.check_writable(folder / tables.TABLE, option)
    if args.study == "paper":
        from scaledit.scaling import printed_table

        _check_report_only(args)
        return _report(args, printed_table.table(), args.out or Path("studies/paper"))
    path = Path(args.study)
    if args.study not in studies.names() and (path / tables.TABLE).is_file():
        _check_report_only(args)
        return _report(args, tables.read(path), args.out or path)

    from scaledit.scaling.queue import Queue
    from scaledit.scaling.work import jobs

    name = f"{path.with_suffix('')}-fast{path.suffix}" if args.fast else args.study
    study = studies.load(name)
    out = args.out or Path("studies") / study.name
    queue = Queue(out, jobs(study))
    if args.join:
        return _join(study, queue, args)
    with common.interruptible(lambda: _kept(queue)):
        code = _work(study, queue, args, name)
        may_fail = bool(study.varied or study.ablation)
        if args.dry_run or (code != DONE and not (code == INCOMPLETE and may_fail)):
            return code
        return _finish(study, queue, args)


def _finish(study: Study, queue: Queue, args: argparse.Namespace) -> int:
    """Writes the report of a study whose jobs are done. Values of a sweep and switches may have failed, which
    is a result: a learning rate that is too high."""
    from scaledit.scaling import table as tables
    from scaledit.scaling.collect import collect

    command = f"scaledit study {args.study}{' --fast' if args.fast else ''}"
    table, missing = collect(study, queue, command)
    failed = set(table.about.failed)
    if failed and failed < {run.name for run in study.runs}:
        known = {run.key for run in study.runs if run.name in failed}
        known |= {m.key for m in study.measurements if m.run.name in failed}
        missing = [job for job in missing if job.key not in known]
    if missing:
        names = ", ".join(job.key for job in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise RunError(
            f"{counted(len(missing), 'job')} {'has' if len(missing) == 1 else 'have'} no result "
            f"({names}; see "
            f"{queue.out}/journal.jsonl); run the same command again to resume"
        )
    tables.to_sqlite(table, queue.out / tables.SQLITE)
    if args.publish:
        _write(table, args.publish)
    return max(_report(args, table, queue.out), INCOMPLETE if failed else DONE)


def _kept(queue: Queue) -> str:
    return common.kept_parts(len(queue.jobs) - len(queue.left), len(queue.jobs), "jobs", queue.out)


def _check_report_only(args: argparse.Namespace) -> None:
    """Raises UsageError for options that apply to running a study."""
    for name in ("fast", "join", "dry_run", "workers", "publish"):
        if getattr(args, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for running a study, but {args.study} is the table of a "
                "finished one; only its report is written, to --out"
            )


def _write(table: Table, folder: Path) -> Path:
    if table.about.ablation:
        from scaledit.report import ablation as report
    elif table.about.varied:
        from scaledit.report import sweep as report
    else:
        from scaledit.report import study as report

    with common.progress_bar("plotting figures") as progress:
        return report.write(table, folder, progress)


def _report(args: argparse.Namespace, table: Table, folder: Path) -> int:
    page = _write(table, folder)
    if args.json:
        published = None if args.publish is None else str(args.publish)
        files = {"out": str(folder), "report": str(page), "published": published}
        terminal.say_json({"study": table.about.name, **files, "rows": len(table.rows)})
    else:
        results = counted(len(table.rows), "result")
        common.say_reported(f"study {table.about.name}: {results} in {folder}", page)
    return DONE


def _work(study: Study, queue: Queue, args: argparse.Namespace, name: str) -> int:
    """Reports the cost, then does the remaining jobs in several processes."""
    import torch

    from scaledit import assemble
    from scaledit.progress import StudyProgress
    from scaledit.scaling import crew
    from scaledit.scaling.cost import estimate
    from scaledit.training.signals import STOPPED

    remaining = queue.left
    if not remaining and not args.dry_run:
        return DONE
    device = assemble.device(args.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    workers = args.workers or gpus or os.cpu_count() or 1
    torch.set_num_threads(1)
    with common.progress_bar("timing each model") as progress:
        cost = estimate(study, device, progress)
    _say_cost(study, queue, cost, min(workers, len(remaining) or 1), args)
    if args.dry_run:
        return DONE
    command = ["study", name, "--out", str(queue.out), "--join", "--in-crew", "--device", args.device]
    command += ["--quiet"] if args.quiet or args.json else []  # the only line on stdout is this process's
    with StudyProgress(cost.seconds) as display:
        codes = crew.run(command, min(workers, len(remaining)), lambda: display.look(queue), gpus)
    failed = [code for code in codes if code != DONE]
    if STOPPED in failed:
        terminal.complain(f"stopped; {_kept(queue)}")
    # A worker that a signal ended has a code below 0; its job is resumed next time.
    return max(failed[0], INCOMPLETE) if failed else DONE


def _say_cost(study: Study, queue: Queue, cost: Cost, workers: int, args: argparse.Namespace) -> None:
    """Prints the cost of a study: the result of --dry-run, and information before the work."""
    if not args.dry_run:
        terminal.inform(*(() if args.json else _cost_lines(study, queue, cost, workers)))
    elif args.json:
        terminal.say_json(_cost_values(study, queue, cost, workers))
    else:
        terminal.say(*_cost_lines(study, queue, cost, workers))


def _cost_values(study: Study, queue: Queue, cost: Cost, workers: int) -> dict[str, Any]:
    longest, seconds = cost.longest
    return {
        "study": study.name,
        "runs": len(study.runs),
        "measurements": len(study.measurements),
        "train_macs": cost.train_macs,
        "sampling_macs": cost.sampling_macs,
        "hours": cost.hours(workers),
        "workers": workers,
        "longest_run": longest,
        "longest_seconds": seconds,
        "jobs": len(queue.jobs),
        "done": len(queue.jobs) - len(queue.left),
    }


def _cost_lines(study: Study, queue: Queue, cost: Cost, workers: int) -> list[str]:
    from scaledit.scaling.plan import scientific

    done = len(queue.jobs) - len(queue.left)
    longest, seconds = cost.longest
    macs, sampling = scientific(cost.train_macs), scientific(cost.sampling_macs)
    return [
        f"study {study.name}: {counted(len(study.runs), 'run')} and "
        f"{counted(len(study.measurements), 'measurement')}",
        f"  multiply-adds   {macs} of training, {sampling} of sampling",
        f"  time            about {cost.hours(workers):.2g} hours with {counted(workers, 'worker')} "
        "on this machine",
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
    ended: list[str] = []
    failed: list[str] = []
    for event in work(study, queue, args.device, stop):
        if isinstance(event, Ended):
            ended.append(event.job.key)
            terminal.inform(*(() if args.json else [f"{event.job.key}: {event.seconds:.0f} s"]))
        elif isinstance(event, Failed):
            failed.append(event.job.key)
            terminal.complain(f"{event.job.key}: {event.reason}")
    if args.json:
        terminal.say_json({"study": study.name, "out": str(queue.out), "ended": ended, "failed": failed})
    if stop.signal is None:
        return INCOMPLETE if failed else DONE
    if not args.in_crew:
        terminal.complain(f"stopped; {_kept(queue)}")
    return STOPPED
