"""scaledit compare: runs side by side."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example
from scaledit.errors import UsageError

SUMMARY = "compare runs: configs, metrics, curves, cost and samples"
DESCRIPTION = """Prints what differs in the configs of 2 to 6 runs, their last metrics, and what they cost.
With --out, it also samples every run from the same noise, with the sampler, guidance and classes of the
first one, and writes a page with these samples and the loss curves. Runs that are still training are compared
as far as they are."""
EXAMPLES = (
    Example("scaledit compare runs/digits runs/wide", "Print what differs between two runs"),
    Example(
        "scaledit compare runs/digits runs/wide --cfg-scale 1 --out compare.html",
        "Write a page, with samples without guidance from the same noise",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    runs = (
        "run folders, the first of which says how all are sampled; after them also section.key=value, such "
        "as sample.sampler.eta=0.5"
    )
    add("runs", metavar="RUN", nargs="+", help=runs)
    out = "the page to write (FILE.html); without it, nothing is sampled and no file is written"
    add("--out", type=Path, metavar="FILE", help=out)
    group = parser.add_argument_group("how the runs are sampled for --out (default: as the first run)")
    classes = (
        "names or numbers of classes of the first run, separated by commas (default: those of its grids)"
    )
    group.add_argument("--classes", metavar="A,B,...", help=classes)
    each = "the number of images of each class (default: the first run's; at most 4)"
    group.add_argument("--per-class", type=int, metavar="N", help=each)
    seed = "the seed of the noise (default: the first run's)"
    group.add_argument("--seed", type=common.integer(0, common.LARGEST_SEED), metavar="S", help=seed)
    common.sampling(group)
    batch = "the number of images sampled at once (default: 64)"
    group.add_argument("--batch-size", type=int, default=64, metavar="N", help=batch)
    common.allow_import(parser)
    common.device(parser)
    common.output(parser)


more = partial(parts.in_sections, "sample")
ONLY_FOR_OUT = ("classes", "per_class", "seed", *common.SHORT)


@common.short_warnings()
def run(args: argparse.Namespace) -> None:
    from scaledit.config import is_override

    args.overrides = [word for word in args.runs if is_override(word) and not Path(word).exists()]
    folders = [Path(word) for word in args.runs if word not in args.overrides]
    common.at_least(args, 1, "per_class", "batch_size")
    common.check_overrides(args.overrides, ("sample",))
    if args.out is None:
        given = [f"--{name.replace('_', '-')}" for name in common.passed(args, ONLY_FOR_OUT)] + args.overrides
        if given:
            raise UsageError(f"{given[0]} says how the runs are sampled for the page; add --out FILE.html")
    elif args.out.suffix not in (".html", ".htm"):
        raise UsageError(f"--out {args.out} must be a .html file")
    else:
        common.check_writable(args.out, "--out")

    from scaledit.report import compare

    runs = compare.open_runs(folders, args.allow_import)
    comparison = compare.compare(runs)
    result = comparison.to_json()
    if args.out is not None:
        result |= {"out": str(args.out), **_page(args, comparison)}
    if args.json:
        terminal.say_json(result)
        return
    for table in comparison.tables:
        if table.rows:
            terminal.table(table.header, table.rows, table.title)
        else:
            terminal.say(table.empty)
        for warning in table.warnings:
            terminal.warn(warning)
        terminal.say("")
    for note in result.get("samples", {}).get("notes", ()):
        terminal.warn(note)
    if args.out is not None:
        terminal.say(f"the page is {args.out}")
    else:
        terminal.inform("add --out compare.html for loss curves and samples from the same noise")


def _page(args: argparse.Namespace, comparison: Any) -> dict[str, Any]:
    """Samples the runs, writes the page, and returns what was sampled."""
    from scaledit.diffusion.guidance import active
    from scaledit.errors import RunError
    from scaledit.report import compare

    settings = common.as_asked(comparison.runs[0].config, args).sample
    if args.seed is not None:
        settings = replace(settings, seed=args.seed)
    with (
        common.interruptible("the page was not written"),
        common.progress_bar("sampling") as progress,
    ):
        samples = compare.sample(
            comparison.runs,
            settings,
            args.classes,
            args.per_class,
            args.batch_size,
            args.device,
            args.allow_import,
            progress,
        )
    try:
        compare.write(comparison, samples, args.out, _command(args))
    except OSError as error:
        raise RunError(f"{args.out} could not be written: {error.strerror or error}") from error
    return {
        "samples": {
            "runs": list(samples.sheets),
            "classes": list(samples.names),
            "per_class": samples.per_class,
            "seed": settings.seed,
            "sampler": settings.sampler.to_json(),
            "guidance": [part.to_json() for part in active(settings.guidance)],
            "notes": list(samples.notes),
        }
    }


def _command(args: argparse.Namespace) -> str:
    """The command that makes the page again."""
    from scaledit.report.reproduce import shell

    options = {name: getattr(args, name) for name in ONLY_FOR_OUT}
    given = [
        [f"--{name.replace('_', '-')}", str(value)] for name, value in options.items() if value is not None
    ]
    allowed = [["--allow-import", module] for module in args.allow_import]
    return shell("scaledit", "compare", *args.runs, *given, *allowed, ["--out", str(args.out)])
