"""Arguments that several commands share, and what they do with them."""

from __future__ import annotations

import argparse
import os
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import checks, terminal
from scaledit.callbacks import Progress
from scaledit.errors import RunError, UsageError

if TYPE_CHECKING:
    from scaledit.pipeline import Pipeline

MODEL = "a run, a checkpoint, an exported folder, a .pt, hf://id"
CLASSES = "class names or numbers; number:2 or name:2 if a word is both (default: all)"
MOST_IMAGES = 10_000_000
"""Largest sample set: 80 GB of Inception's features."""
MOST_SEEDS = 1_000
MOST_PROCESSES = 1_024
MOST_DEVICES = 1_000_000
LARGEST_SEED = checks.SEEDS.stop - 1


def recipe(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    nargs = "?" if optional else None
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs=nargs, help="name of a recipe, or path of a .toml file"
    )
    overrides(parser, "changes to the recipe: train.steps=100, sample.sampler.eta=0.5")


def model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    overrides(parser, "changes to its sampling, after the options below: sample.sampler.eta=0.5")


def overrides(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help=help)


def run_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE)")
    resume = "auto: resume from the folder's latest checkpoint, or start if there is none"
    parser.add_argument("--resume", choices=["auto", "never"], default="never", help=resume)


def which_images(parser: argparse.ArgumentParser) -> None:
    """Which of the images at a path are read."""
    add = parser.add_argument
    add("--split", default="", metavar="NAME", help="train, test, ... or all, if several (default: train)")
    key = "extension of the image in a WebDataset sample, as in jpg (default: the only one)"
    add("--image-key", default="", metavar="EXT", help=key)


def reject_image_options(args: argparse.Namespace, reason: str) -> None:
    """Raises UsageError if an option of `which_images` is passed."""
    for option in ("split", "image_key"):
        if getattr(args, option):
            raise UsageError(f"{reason}: leave --{option.replace('_', '-')} out")


def device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")


def as_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def ranks(parser: argparse.ArgumentParser) -> None:
    kind = integer(1, MOST_PROCESSES)
    parser.add_argument("--nproc", type=kind, metavar="N", help="train as N processes on this machine")


def launch_ranks(args: argparse.Namespace, command: Sequence[str]) -> int | None:
    """Starts the ranks of --nproc, waits for them and returns their exit code; None without --nproc. command:
    the words before the recipe. Raises UsageError in a process that is a rank."""
    if args.nproc is None:
        return None
    if "RANK" in os.environ:
        raise UsageError("--nproc starts ranks, and this process is one already (RANK is set); leave it out")
    from scaledit import launch

    words = [*command, args.recipe, *all_overrides(args), "--resume", args.resume, "--device", args.device]
    words += ["--out", str(args.out)] if args.out else []
    return launch.run([*words, "--json"] if args.json else words, args.nproc)


def sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--sampler", metavar="NAME", help="one of those below, or MODULE:CLASS (default: the run's)")
    add("--steps", type=int, metavar="N", help="steps of the sampler (default: the run's)")
    guidance(parser)


def guidance(parser: argparse.ArgumentParser) -> None:
    """The short options of classifier-free guidance."""
    add = parser.add_argument
    add("--cfg-scale", type=float, metavar="S", help="guidance scale; 1 is no guidance (default: the run's)")
    add("--cfg-channels", metavar="N|all", help="guide the first N channels, or all (default: the run's)")


SHORT = ("sampler", "steps", "cfg_scale", "cfg_channels")


def passed(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of the options that were passed."""
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def all_overrides(args: argparse.Namespace) -> list[str]:
    """The changes to a recipe: the short options of `sampling` as keys, then the keys."""
    from scaledit import config as configs

    values = configs.short(**passed(args, SHORT))
    return [*(configs.override(key, value) for key, value in values.items()), *args.overrides]


def allow_import(parser: argparse.ArgumentParser) -> None:
    """For commands that read a model, which may come from elsewhere."""
    why = "import this module, which the model names a part of: it is run, so only for code you trust"
    parser.add_argument("--allow-import", metavar="MODULE", action="append", default=[], help=why)


def parts(*sections: str) -> str:
    """For --help: the parts that keys of these sections of a recipe can name, with inner parts and fields."""
    from scaledit.config import RunConfig
    from scaledit.config.tables import part_keys
    from scaledit.part import describe, inner_kinds

    def wrap(text: str, indent: int) -> list[str]:
        first, rest = " " * indent, " " * (indent + 2)
        return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=rest)

    lines, kinds = [], part_keys(RunConfig, sections)
    seen: dict[Any, str] = {}
    while kinds:
        key, kind = kinds.pop(0)
        if kind in seen:
            if seen[kind] != key:
                lines.append(f"\n{key}: as {seen[kind]}")
            continue
        seen[kind] = key
        lines.append(f"\n{key}: the {kind.KIND}")
        for part in describe(kind):
            lines += wrap(f"{part.name}: {part.summary}", 2)
            for field in part.fields:
                default = field.default and f"default {field.default}"
                lines += wrap(
                    f"{field.name}: {', '.join(filter(None, [default, field.bounds, field.doc]))}", 6
                )
        kinds += [(f"{key}.{name}", inner) for name, inner in inner_kinds(kind).items()]
    heading = "parts and their fields (section.key.field=value; MODULE:CLASS names one of your own):"
    return "\n".join(["", heading, *lines, ""])


def decoder(parser: argparse.ArgumentParser) -> None:
    """What turns a model's latents into images; models of pixels need none of it."""
    add = parser.add_argument
    add("--decoder", metavar="AE", help="another autoencoder of the same latents (default: the run's)")
    add("--decoder-precision", choices=["fp32", "bf16", "fp16"], help="of decoding (default: the run's)")
    add("--tiled", action="store_true", default=None, help="decode in tiles: less memory, nearly the same")


SECTIONS = ("sample", "evaluate", "autoencoder")
"""Sections of a trained model that may be changed: how it is sampled, evaluated and decoded."""


def load_model(args: argparse.Namespace, model: str | Path, section: str = "sample") -> Pipeline:
    """The model of a command with `device`, `decoder`, `sampling` and overrides, which change its config: the
    short options first. section: where guidance is changed. Raises UsageError, RunError."""
    from scaledit import config as configs
    from scaledit.pipeline import load

    for override in args.overrides:
        changed = override.partition(".")[0]
        if "." in override.partition("=")[0] and changed not in SECTIONS:
            raise UsageError(
                f"{override}: a trained model's [{changed}] stays as it is; keys of {', '.join(SECTIONS)} "
                "change how it is used"
            )
    pipeline = load(model, args.device, allow_import=args.allow_import)
    decoding = {"path": args.decoder, "precision": args.decoder_precision, "tiled": args.tiled}
    values = {f"autoencoder.{key}": value for key, value in decoding.items() if value is not None}
    values |= configs.short(pipeline.config, section, **passed(args, SHORT))
    config = configs.changed(configs.with_values(pipeline.config, values), args.overrides)
    if config.autoencoder != pipeline.config.autoencoder:
        if pipeline.decoder is None:
            raise UsageError(f"{model} makes pixels: there is nothing to decode")
        pipeline = load(model, args.device, config.autoencoder, allow_import=args.allow_import)
    return replace(pipeline, config=replace(config, autoencoder=pipeline.config.autoencoder))


def extractor(parser: argparse.ArgumentParser) -> None:
    """Which network turns images into features, and where its weights are."""
    add = parser.add_argument
    weights = "pt_inception-2015-12-05-6726825d.pth (default: see docs/evaluation.md)"
    add("--inception", metavar="WEIGHTS", help=weights)
    other = "accept weights with another hash, which the protocol records"
    add("--any-inception", action="store_true", default=None, help=other)
    add("--dinov2", metavar="FOLDER", help="features of this local DINOv2 instead")
    add("--allow-jpeg", action="store_true", help="accept lossily compressed images")


def at_least(args: argparse.Namespace, smallest: int, *names: str) -> None:
    """Raises UsageError naming the first option that is passed and too small."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}")


def integer(smallest: int, largest: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from `smallest` to `largest`, so that work too large for
    any machine is refused before it starts."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            message = f"must be a whole number from {smallest} to {largest}, got {text!r}"
            with suppress(ValueError, OverflowError):  # 1e4 or 8.0
                meant = float(text)
                if meant == int(meant) and smallest <= meant <= largest:
                    message += f"; write {int(meant)}"
            raise argparse.ArgumentTypeError(message) from None
        if value < smallest:
            raise argparse.ArgumentTypeError(f"must be at least {smallest}, got {value}")
        if value > largest:
            raise argparse.ArgumentTypeError(f"must be at most {largest}, got {value}")
        return value

    return parse


def images(count: int, kind: str = "") -> str:
    """1 image, 2 images."""
    return f"{count} {kind}image{'' if count == 1 else 's'}"


def absolute(name: str) -> str:
    """The full path of a folder, so that it is found from elsewhere; a Hub id or "pixels" unchanged."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def check_writable(out: Path, option: str) -> None:
    """Raises UsageError if the file `out` of `option` cannot be written. For use before long work."""
    from scaledit.files.atomic import atomic_write

    try:
        if out.is_dir():
            raise UsageError(f"{option} {out} is a folder; name a file in it")
        if _is_special(out):
            return
        folder = next(parent for parent in out.parents if parent.exists())
        if not folder.is_dir():
            raise UsageError(
                f"{option} {out} cannot be written: {folder} is not a folder; name another place"
            )
        if folder == out.parent:
            with suppress(_Probed), atomic_write(out) as probe:
                probe.write(b"\0")
                probe.flush()
                raise _Probed
        else:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"\0")
    except OSError as error:
        raise UsageError(
            f"{option} {out} cannot be written: {error.strerror or error}; name another place"
        ) from None


class _Probed(Exception):
    """Aborts the writing of a file that must not be created."""


def _is_special(path: Path) -> bool:
    """Whether it is a device, a pipe or the like, which is written to and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write(out: Path, data: bytes) -> None:
    """Writes the file `out` atomically. Raises RunError naming it if that fails."""
    from scaledit.files.atomic import atomic_bytes

    try:
        if _is_special(out):
            out.write_bytes(data)
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_bytes(out, data)
    except OSError as error:
        raise RunError(f"{out} could not be written: {error.strerror or error}") from error


@contextmanager
def short_warnings() -> Iterator[None]:
    """Prints each warning of the library once, as one line on stderr, as errors are."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", UserWarning)
        warnings.showwarning = lambda message, *_, **__: terminal.complain(message)
        yield


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Yields a callback that shows progress on stderr: a bar on a terminal, now and then a line in a pipe."""
    from scaledit import progress

    with progress.shown(title) as update:
        yield update
