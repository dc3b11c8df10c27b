"""scaledit evaluate: metrics of samples against real images, with their protocol."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scaledit import terminal
from scaledit.commands import common, parts
from scaledit.commands.parsing import Example
from scaledit.errors import RunError, UsageError, no_such, reading
from scaledit.part import in_words

if TYPE_CHECKING:
    from scaledit.evaluation.result import Result

SUMMARY = "measure FID, precision, recall and more of sampled images"
DESCRIPTION = """SAMPLES are files or folders of images, or a run, which is then sampled as its [evaluate]
section says. The result holds the protocol: everything on which the metrics depend. --compare shows earlier
results beside it."""
EXAMPLES = (
    Example("scaledit evaluate runs/digits --reference digits --cfg-scale 1.5", "Evaluate a run"),
    Example(
        "scaledit evaluate samples.npz --reference digits --json result.json",
        "Evaluate samples, and keep the result in a file",
    ),
    Example("scaledit evaluate --compare result.json other.json", "Show earlier results side by side"),
    Example(
        "scaledit evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --json result.json",
        "Evaluate samples of ImageNet with ADM's reference",
        needs="ADM's reference file and the Inception weights (docs/evaluation.md)",
    ),
)
STDOUT = Path("-")
"""What --json without a file means."""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    samples = (
        "a .npz, a folder or a tar of PNGs, what `scaledit generate` wrote, or a run; several are seeds of "
        "one experiment. After a run also section.key=value, such as sample.sampler.eta=0.5"
    )
    add("samples", metavar="SAMPLES", nargs="*", help=samples)
    reference = (
        "the real images: ADM's .npz, a folder of images, one of the built-in sets digits, photos and emoji, "
        "or held-out for the images of a run's own data that training does not see (default: the run's)"
    )
    add("--reference", metavar="REF", help=reference)
    common.extractor(parser)
    metrics = "compute only these: fid,sfid,inception_score,precision,recall,..., or MODULE:CLASS of your own"
    add("--metrics", metavar="A,B,...", help=metrics)
    precision = "the number format of the distances in precision and recall (default: fp32)"
    add("--precision", choices=["fp32", "adm_fp16"], help=precision)
    _of_a_run(parser)
    common.device(parser)
    common.quiet(parser)
    result = "write the result to this file, or print it as JSON and nothing else if no file is given"
    add("--json", type=Path, nargs="?", const=STDOUT, metavar="FILE", help=result)
    compare = "earlier results, files of --json, to show beside this one"
    add("--compare", type=Path, nargs="+", default=[], metavar="RESULT", help=compare)


def _of_a_run(parser: argparse.ArgumentParser) -> None:
    title = "how a run is sampled (default: as its [evaluate] section says)"
    group = parser.add_argument_group(title)
    number = "the number of images per seed"
    group.add_argument("--num", type=common.integer(2, common.MOST_IMAGES), metavar="N", help=number)
    seeds = "the number of seeds, over which the metrics' spread is reported"
    group.add_argument("--seeds", type=common.integer(1, common.MOST_SEEDS), metavar="N", help=seeds)
    first = "the first seed of the random numbers"
    group.add_argument("--seed", type=common.integer(0, common.LARGEST_SEED), metavar="S", help=first)
    labels = "the classes: drawn at random (uniform), in turn (equal), or those of the real images (real)"
    group.add_argument("--labels", choices=["uniform", "equal", "real"], help=labels)
    common.sampling(group)
    common.size(group)
    common.average(group)
    common.decoder(group)
    common.allow_import(group)


more = partial(parts.in_sections, "sample", "evaluate")


@common.short_warnings()
def run(args: argparse.Namespace) -> None:
    from scaledit.config import is_override

    args.overrides = [word for word in args.samples if is_override(word) and not Path(word).exists()]
    args.samples = [Path(word) for word in args.samples if word not in args.overrides]
    _check(args)
    earlier = [_earlier(path) for path in args.compare]
    if not args.samples:
        if args.json == STDOUT:
            terminal.say_json({"compared": [result.to_json() for result in earlier]})
        else:
            _show(earlier, compared=True)
        return
    with common.interruptible("nothing was measured and nothing was written"):
        result = _evaluate(args)
    if args.json == STDOUT:
        terminal.say_json(result.to_json())
        return
    try:
        _show([result, *earlier], compared=bool(earlier))
    finally:  # also if stdout is closed
        if args.json:
            _save(result, args.json)


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError for a call that cannot be answered."""
    file: Path | None = None if args.json == STDOUT else args.json
    if not args.samples and not args.compare:
        if file is not None and file.exists():
            raise UsageError(
                f"--json takes {file} as the file to write, which leaves nothing to evaluate; put "
                "SAMPLES first, or --json last"
            )
        raise UsageError("nothing to evaluate; pass SAMPLES --reference REF, or --compare with results")
    if args.samples and not args.reference and not any(map(_is_run, args.samples)):
        raise UsageError("--reference is missing: ADM's .npz, a folder of real images, or digits")
    if file is not None and not args.samples:
        raise UsageError(
            "--json FILE keeps what is measured, but --compare alone measures nothing; leave FILE out"
        )
    for path in args.samples:
        if not path.exists():
            raise UsageError(no_such(path))
    if file is not None:
        common.check_writable(file, "--json")


def _earlier(path: Path) -> Result:
    """A result to compare with. Raises UsageError if it is not one or cannot be printed."""
    from scaledit.evaluation.result import Result, side_by_side

    with reading(path, "a result of scaledit evaluate --json", "name such a file", UsageError):
        result = replace(Result.read(path), name=path.stem)
        side_by_side([result])
        _image_size(result)
        return replace(result, warnings=[str(warning) for warning in result.warnings])


def _image_size(result: Result) -> tuple[int, ...]:
    return tuple(int(side) for side in result.protocol.get("image_size") or ())


def _save(result: Result, path: Path) -> None:
    """Writes the file, or prints its content if that fails."""
    try:
        common.write(path, (json.dumps(result.to_json(), indent=1) + "\n").encode())
    except RunError as error:
        terminal.say_json(result.to_json())
        raise RunError(f"{error}; its content was printed instead, so keep the output") from error


def _is_run(path: Path) -> bool:
    from scaledit.checkpoint import MANIFEST

    return (path / "checkpoints").is_dir() or (path / MANIFEST).is_file()


def _evaluate(args: argparse.Namespace) -> Result:
    from scaledit import assemble
    from scaledit.config import EvaluateConfig
    from scaledit.evaluation.judge import open_judge, open_run_judge, sample_sets
    from scaledit.evaluation.samples import open_samples
    from scaledit.part import Allowed

    device = assemble.device(args.device)
    judging = common.passed(args, JUDGING)

    runs = [path for path in args.samples if _is_run(path)]
    if runs and len(args.samples) > 1:
        raise UsageError(
            f"{runs[0]} is a run: pass it alone; --seeds says how many sample sets to sample from it"
        )
    if runs:
        pipeline = common.load_model(args, runs[0], "evaluate")
        config = replace(pipeline.config.evaluate, **judging, **common.passed(args, DRAWING))
        settings = pipeline.settings(config.seed, guidance=config.guidance)
        # Modules named on the command line may be imported, those in the run's config only if allowed.
        words = (args.reference, args.extractor, *(args.metrics or "").split(","))
        named = [word.partition(":")[0] for word in words if word]
        allowed = Allowed.only([*named, *(args.allow_import or ())], f"the config of {runs[0]}")
        with common.progress_bar("reading the reference") as progress:
            judge = open_run_judge(
                replace(pipeline.config, evaluate=config),
                pipeline.class_names,
                device,
                pipeline.decoder,
                progress=progress,
                allowed=allowed,
                allow_jpeg=args.allow_jpeg,
                size=pipeline.size,
            )
        sets = sample_sets(judge, pipeline, config, settings)
    else:
        options = [f"--{name.replace('_', '-')}" for name in common.passed(args, (*DRAWING, *SAMPLING))]
        if rejected := [*options, *args.overrides]:
            raise UsageError(f"{rejected[0]} is for a run; {args.samples[0]} contains samples already")
        sets = [open_samples(path, args.allow_jpeg) for path in args.samples]
        with common.progress_bar("reading the reference") as progress:
            judge = open_judge(EvaluateConfig(**judging), device, args.allow_jpeg, progress)
    with common.progress_bar("evaluating") as progress:
        return judge.evaluate(sets, progress)


JUDGING = ("reference", "extractor", "inception", "any_inception", "dinov2", "metrics", "precision")
DRAWING = ("num", "seeds", "seed", "labels")
SAMPLING = (*common.SHORT, "size", "average", "decoder", "decoder_precision", "tiled")


def _show(results: list[Result], compared: bool) -> None:
    from scaledit.evaluation.protocol import incomparable, readable, real_name
    from scaledit.evaluation.result import side_by_side
    from scaledit.scaling import paper

    if compared:
        sizes = {_image_size(result) for result in results}
        printed = [row for size in sorted(sizes) for row in paper.quality(size)]
        header, rows = side_by_side([*results, *printed])
    else:
        [result] = results
        header = ["", result.name]
        rows = list(map(list, result.shown()))
        if any(figure.real is not None for figure in result.metrics.values()):
            header.append(real_name(result.protocol))
            for row, column in zip(rows, result.columns.values(), strict=True):
                real = result.metrics[column.key].real
                row.append("" if real is None else f"{real:.{column.digits}g}")
    terminal.table(header, rows)
    if not compared:
        _show_classes(results[0])
    terminal.say("")
    protocol = {} if compared else readable(results[0].protocol)
    facts = {
        key: in_words(value) if key in ("sampler", "guidance") else value for key, value in protocol.items()
    }
    terminal.facts(facts.items(), width=20)
    named = {result.name: result.protocol for result in results}
    sentences = [*incomparable(named), *(warning for result in results for warning in result.warnings)]
    for warning in dict.fromkeys(sentences):
        terminal.warn(warning)


def _show_classes(result: Result) -> None:
    """Prints a table of the classes, the least accurate ones if there are many."""
    from scaledit.evaluation.result import class_table

    header, rows, left_out = class_table(result.by_class, MOST_CLASSES)
    if rows:
        terminal.say("")
        terminal.table(header, rows)
        terminal.inform(*left_out)


MOST_CLASSES = 24
"""Classes that are shown on the terminal; --json has all."""
