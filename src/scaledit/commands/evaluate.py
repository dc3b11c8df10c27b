"""scaledit evaluate: the figures of samples against real images, with their protocol."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scaledit import terminal
from scaledit.commands import common
from scaledit.errors import RunError, UsageError, reading
from scaledit.part import in_words

if TYPE_CHECKING:
    from scaledit.evaluation.result import Result

SUMMARY = """measure samples against real images: FID, sFID, Inception Score, precision, recall, and more

  scaledit evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --json result.json
  scaledit evaluate runs/demo --reference digits --cfg-scale 1.5
  scaledit evaluate --compare a.json b.json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "samples",
        metavar="SAMPLES",
        nargs="*",
        help="a .npz, a folder or tar of PNGs, what generate made, or a run; several: seeds of one sampling; "
        "of a run also section.key=value, as in sample.sampler.eta=0.5",
    )
    parser.add_argument("--reference", metavar="REF", help='ADM\'s .npz, real images, "digits" or "photos"')
    common.extractor(parser)
    parser.add_argument(
        "--metrics",
        metavar="A,B",
        help="only these: fid,sfid,inception_score,precision,recall,..., MODULE:CLASS of your own",
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "adm_fp16"],
        help="of precision's and recall's distances (default: fp32)",
    )
    drawing = parser.add_argument_group(
        "where SAMPLES is a run: what to draw (default: its [evaluate] section)"
    )
    drawing.add_argument(
        "--num", type=common.integer(2, common.MOST_IMAGES), metavar="N", help="images per seed"
    )
    drawing.add_argument(
        "--seeds", type=common.integer(1, common.MOST_SEEDS), metavar="N", help="how many seeds"
    )
    drawing.add_argument(
        "--seed", type=common.integer(0, common.LARGEST_SEED), metavar="S", help="the first of them"
    )
    drawing.add_argument(
        "--labels", choices=["uniform", "equal", "real"], help="at random, in turn, or as the real images'"
    )
    common.sampling(parser)
    common.decoder(parser)
    common.allow_import(parser)
    common.device(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument(
        "--compare", type=Path, nargs="+", default=[], metavar="JSON", help="results to show beside this one"
    )


def more() -> str:
    """Below the options of --help."""
    return common.parts("sample", "evaluate")


@common.told()
def run(given: argparse.Namespace) -> None:
    from scaledit.config import is_override

    given.overrides = [word for word in given.samples if is_override(word) and not Path(word).exists()]
    given.samples = [Path(word) for word in given.samples if word not in given.overrides]
    if not given.samples and not given.compare:
        raise UsageError("say what to measure: SAMPLES --reference REF, or --compare with results")
    if given.samples and not given.reference:
        raise UsageError("--reference is missing: ADM's .npz, a folder of real images, or digits")
    if given.json and not given.samples:
        raise UsageError("--json keeps what is measured; with --compare alone nothing is")
    for path in given.samples:
        if not path.exists():
            raise UsageError(f"there is no {path}")
    if given.json:
        common.can_write(given.json, "--json")

    earlier = [_earlier(path) for path in given.compare]
    if not given.samples:
        _show(earlier, compared=True)
        return
    result = _measure(given)
    try:
        _show([result, *earlier], compared=bool(earlier))
    finally:  # also where nobody reads stdout any more
        if given.json:
            _keep(result, given.json)


def _earlier(path: Path) -> Result:
    """A result to compare with. Raises UsageError for a file that is none, or whose figures cannot be
    printed."""
    from scaledit.evaluation.result import Result, side_by_side

    with reading(path, "a result of scaledit evaluate --json", "name such a file", UsageError):
        result = replace(Result.read(path), name=path.stem)
        side_by_side([result])
        _image_size(result)
        return replace(result, warnings=[str(warning) for warning in result.warnings])


def _image_size(result: Result) -> tuple[int, ...]:
    return tuple(int(side) for side in result.protocol.get("image_size") or ())


def _keep(result: Result, path: Path) -> None:
    """Into a file; where that cannot be written, on stdout."""
    try:
        common.write(path, (json.dumps(result.to_json(), indent=1) + "\n").encode())
    except RunError as error:
        terminal.say_json(result.to_json())
        raise RunError(f"{error}; what it would hold was printed instead: keep that") from error


def _measure(given: argparse.Namespace) -> Result:
    from scaledit import assemble
    from scaledit.checkpoint import MANIFEST
    from scaledit.config import EvaluateConfig
    from scaledit.evaluation.judge import Judge, open_judge, sample_sets
    from scaledit.evaluation.samples import open_samples
    from scaledit.part import YOURS, Allowed

    device = assemble.device(given.device)
    options = {name: getattr(given, name) for name in JUDGING if getattr(given, name) is not None}

    def opened(config: EvaluateConfig, allowed: Allowed = YOURS) -> Judge:
        with common.shown_progress("reading the reference") as progress:
            return open_judge(config, device, given.allow_jpeg, progress, allowed)

    runs = [path for path in given.samples if (path / "checkpoints").is_dir() or (path / MANIFEST).is_file()]
    if runs and len(given.samples) > 1:
        raise UsageError(
            f"{runs[0]} is a run: give it alone; --seeds says how many sample sets to draw of it"
        )
    if runs:
        pipeline = common.loaded(given, runs[0], "evaluate")
        drawing = {name: getattr(given, name) for name in DRAWING if getattr(given, name) is not None}
        config = replace(pipeline.config.evaluate, **options, **drawing)
        settings = pipeline.settings(config.seed, guidance=config.guidance)
        # What is named here may be imported, what the run's config names only where that is allowed.
        named = [word.partition(":")[0] for word in (given.reference, *(given.metrics or "").split(","))]
        allowed = [*named, *(given.allow_import or ())]
        judge = opened(config, Allowed.only(allowed, f"the config of {runs[0]}"))
        sets = sample_sets(judge, pipeline, config, settings)
    else:
        wrong = [name for name in (*DRAWING, *SAMPLING) if getattr(given, name) is not None]
        if wrong:
            option = wrong[0].replace("_", "-")
            raise UsageError(f"--{option} is for a run; {given.samples[0]} holds samples already")
        if given.overrides:
            raise UsageError(f"{given.overrides[0]} is for a run; {given.samples[0]} holds samples already")
        sets = [open_samples(path, given.allow_jpeg) for path in given.samples]
        judge = opened(EvaluateConfig(**options))
    with common.shown_progress("evaluating") as progress:
        return judge.evaluate(sets, progress)


JUDGING = ("reference", "inception", "any_inception", "dinov2", "metrics", "precision")
DRAWING = ("num", "seeds", "seed", "labels")
SAMPLING = (*common.SHORT, "decoder", "decoder_precision", "tiled")


def _in_words(key: str, value: object) -> object:
    return in_words(value) if key in ("sampler", "guidance") else value


def _show(results: list[Result], compared: bool) -> None:
    from scaledit.evaluation.protocol import readable
    from scaledit.evaluation.result import side_by_side
    from scaledit.scaling import paper

    if compared:
        sizes = {_image_size(result) for result in results}
        printed = [row for size in sorted(sizes) for row in paper.quality(size)]
        header, rows = side_by_side([*results, *printed])
    else:
        [result] = results
        header = ["", result.name]
        rows = [list(shown) for shown in result.shown()]
        if any(figure.real is not None for figure in result.metrics.values()):
            header.append("real, held out")
            for row, column in zip(rows, result.columns.values(), strict=True):
                real = result.metrics[column.key].real
                row.append("" if real is None else f"{real:.{column.digits}g}")
    terminal.table(header, rows)
    terminal.say("")
    protocol = {} if compared else readable(results[0].protocol)
    terminal.facts(((key, _in_words(key, value)) for key, value in protocol.items()), width=20)
    for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
        terminal.warn(warning)
