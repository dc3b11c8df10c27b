"""Arguments that several commands share, and what they do with them."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import averages, checks, terminal, values
from scaledit.callbacks import Progress
from scaledit.errors import RunError, UsageError, listed

if TYPE_CHECKING:
    from scaledit.config import RunConfig
    from scaledit.pipeline import Pipeline

Arguments = argparse.ArgumentParser | argparse._ArgumentGroup
"""What options are added to."""
MODEL = (
    "a run folder, a checkpoint, an exported folder, an official .pt or .safetensors file, a folder of "
    "diffusers, or hf://ORG/NAME"
)
CLASSES = (
    "names or numbers of the classes to sample, separated by commas; write number:2 or name:2 if 2 is both a "
    "number and a name (default: all classes)"
)
BACKGROUND_HELP = (
    'the color behind transparent images: white, black, "#rrggbb", or drop to ignore the transparency'
)
NOTHING_WRITTEN = "nothing was written"
RESUMES = "run the same command again to resume"
MOST_IMAGES = 10_000_000
"""Largest sample set: 80 GB of Inception's features."""
MOST_SEEDS = 1_000
MOST_PROCESSES = 1_024
MOST_DEVICES = 1_000_000
LARGEST_STEP = 1 << 53
LARGEST_SEED = checks.SEEDS.stop - 1


def recipe(parser: argparse.ArgumentParser, *, optional: bool = False, resumes: bool = False) -> None:
    """resumes: whether the folder of a run may be passed in place of a recipe."""
    nargs = "?" if optional else None
    which = "the name of a recipe (`scaledit recipes` lists them) or the path of a .toml file"
    if resumes:
        which += "; or the folder of a run, which is resumed"
    parser.add_argument("recipe", metavar="RECIPE", nargs=nargs, help=which)
    changes = "new values of keys of the recipe, such as train.steps=100 or sample.sampler.eta=0.5"
    overrides(parser, changes)


def model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    changes = "new values of keys that say how the model is sampled, such as sample.sampler.eta=0.5"
    overrides(parser, f"{changes}; they are applied after the options")


def overrides(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help=help)


def run_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the run folder (default: runs/RECIPE)")
    resume = (
        "auto: resume from the latest checkpoint of the run folder, or start if there is none; never: refuse "
        "a folder that already holds the run (default: never)"
    )
    parser.add_argument("--resume", choices=["auto", "never"], help=resume)
    until = "train until step STEPS, now and when the run is resumed later; sets train.steps"
    parser.add_argument("--until", type=integer(1, LARGEST_STEP), metavar="STEPS", help=until)
    why = (
        "allow a run folder to import this Python module, whose code is then run; a recipe may import what "
        "it names (may be repeated)"
    )
    parser.add_argument("--allow-import", metavar="MODULE", action="append", default=[], help=why)


def which_images(parser: argparse.ArgumentParser) -> None:
    """Which of the images at a path are read."""
    add = parser.add_argument
    split = "the split to read: train, test, another name, or all (default: train, if there are several)"
    add("--split", default="", metavar="NAME", help=split)
    key = "the extension of the image in a WebDataset sample, such as jpg (default: the only image)"
    add("--image-key", default="", metavar="EXT", help=key)


def reject_image_options(args: argparse.Namespace, reason: str) -> None:
    """Raises UsageError if an option of `which_images` is passed."""
    for option in ("split", "image_key"):
        if getattr(args, option):
            raise UsageError(f"{reason}; leave --{option.replace('_', '-')} out")


def seed(parser: argparse.ArgumentParser) -> None:
    which = "the seed of the random numbers (default: 0)"
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help=which)


def device(parser: argparse.ArgumentParser) -> None:
    which = "the device to compute on: auto, cpu, cuda or mps (default: auto, the fastest one)"
    parser.add_argument("--device", default="auto", metavar="DEVICE", help=which)


def output(parser: argparse.ArgumentParser) -> None:
    """The options that say what is printed; every command has them."""
    quiet(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON and nothing else on standard output"
    )


def quiet(parser: argparse.ArgumentParser) -> None:
    silent = "print no progress and no remarks, only results, warnings and errors"
    parser.add_argument("-q", "--quiet", action="store_true", help=silent)


def ranks(parser: argparse.ArgumentParser) -> None:
    kind = integer(1, MOST_PROCESSES)
    count = "the number of processes (ranks) to train with on this machine (default: one)"
    parser.add_argument("--nproc", type=kind, metavar="N", help=count)


def launch_ranks(args: argparse.Namespace, command: Sequence[str]) -> int | None:
    """Starts the ranks of --nproc, waits for them and returns their exit code; None without --nproc. command:
    the words before the recipe. Raises UsageError in a process that is a rank."""
    if args.nproc is None:
        return None
    if "RANK" in os.environ:
        raise UsageError("--nproc starts ranks, and this process is one already (RANK is set); leave it out")
    from scaledit import launch

    words = [*command, args.recipe, *all_overrides(args), "--device", args.device]
    words += ["--resume", args.resume] if args.resume else []
    words += ["--until", str(args.until)] if args.until else []
    words += ["--out", str(args.out)] if args.out else []
    words += [word for module in args.allow_import for word in ("--allow-import", module)]
    words += ["--quiet"] if args.quiet else []
    return launch.run([*words, "--json"] if args.json else words, args.nproc)


def sampling(parser: Arguments, *, lists: bool = False) -> None:
    """lists: whether --sampler, --steps and --cfg-scale may be lists, whose values are then tuples."""
    sampler(parser, "the run's", lists=lists)
    steps = "the number of sampling steps (default: the run's)"
    parser.add_argument("--steps", type=_values(whole, lists), metavar="N", help=steps)
    tolerance = "instead of steps: the error that the sampler adaptive allows for each step, such as 0.01"
    parser.add_argument("--tolerance", type=float, metavar="E", help=tolerance)
    guidance(parser, "the run's", lists=lists)


def sampler(parser: Arguments, default: str, *, lists: bool = False) -> None:
    name = f"the sampler: one of those listed below, or MODULE:CLASS of your own (default: {default})"
    parser.add_argument("--sampler", type=_values(str, lists), metavar="SAMPLER", help=name)


def guidance(parser: Arguments, default: str, *, lists: bool = False) -> None:
    """The short options of classifier-free guidance."""
    add = parser.add_argument
    scale = f"the guidance scale of classifier-free guidance; 1 means no guidance (default: {default})"
    add("--cfg-scale", type=_values(float, lists), metavar="S", help=scale)
    channels = f"guide the first N channels only, or all of them (default: {default})"
    add("--cfg-channels", metavar="N|all", help=channels)
    interval = (
        "guide between these times only, fractions of the schedule from 0, the image, to 1, noise, such as "
        f"0-0.9 (default: {default})"
    )
    add("--cfg-interval", metavar="LOW-HIGH", help=interval)


def size(parser: Arguments) -> None:
    which = (
        "the size of the images in pixels, height x width, such as 48x72, or one side of a square; without "
        "further training, as far as the position encoding allows (default: that of the training)"
    )
    parser.add_argument("--size", type=_size, metavar="HxW", help=which)


def _size(text: str) -> tuple[int, int]:
    """(height, width) from "48x72", or from "48" for a square."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(
            f"must be height x width in pixels, such as 48x72, or one side, got {text!r}"
        )
    if max(map(len, sides)) > checks.MOST_DIGITS or not all(map(int, sides)):
        raise argparse.ArgumentTypeError(
            f"must have sides from 1 to {10**checks.MOST_DIGITS - 1}, got {text!r}"
        )
    return int(sides[0]), int(sides[-1])


def _values(kind: Callable[[str], Any], lists: bool) -> Callable[[str], Any]:
    """The type of an option that is one value or, where `lists` are allowed, several separated by commas."""

    def parse(text: str) -> Any:
        if "," not in text:
            return kind(text)
        if not lists:
            raise argparse.ArgumentTypeError(
                f"must be one value here, got {text}; only `scaledit sample` draws several beside each other"
            )
        return tuple(kind(word.strip()) for word in text.split(","))

    parse.__name__ = kind.__name__  # argparse names it: "invalid int value"
    return parse


SHORT = ("sampler", "steps", "cfg_scale", "cfg_channels", "cfg_interval", "tolerance")


def passed(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of the options that were passed."""
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def all_overrides(args: argparse.Namespace) -> list[str]:
    """The changes to a recipe: the short options of `sampling` as keys, then the keys."""
    from scaledit import config as configs

    values = configs.short(**passed(args, SHORT))
    return [*(configs.override(key, value) for key, value in values.items()), *args.overrides]


def allow_import(parser: Arguments) -> None:
    """For commands that read a model, which may come from elsewhere."""
    why = (
        "allow the model to import this Python module, whose code is then run: name only modules that you "
        "trust (may be repeated)"
    )
    parser.add_argument("--allow-import", metavar="MODULE", action="append", default=[], help=why)


def decoder(parser: Arguments) -> None:
    """What turns a model's latents into images; models of pixels need none of it."""
    add = parser.add_argument
    which = "the autoencoder that decodes the latents: a folder or a hub id (default: the run's)"
    add("--decoder", metavar="AE", help=which)
    precision = "the number format in which images are decoded (default: the run's)"
    add("--decoder-precision", choices=["fp32", "bf16", "fp16"], help=precision)
    tiled = "decode large images in tiles, which saves memory and changes the images slightly"
    add("--tiled", action="store_true", default=None, help=tiled)


def average(parser: Arguments) -> None:
    """The option that names a power-function average of a run; `load_model` reads it."""
    which = (
        "use the weights averaged over this share of the training, such as 0.1, or 0.1@STEP up to an earlier "
        "step, of a run trained with ema.power; 0 is the EMA (default: the run's)"
    )
    parser.add_argument("--average", type=average_text, metavar="LENGTH", help=which)


def average_text(text: str) -> str:
    """The type of an option that names an average."""
    try:
        averages.asked(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


SECTIONS = ("sample", "evaluate", "autoencoder")
"""Sections of a trained model that may be changed: how it is sampled, evaluated and decoded."""


def load_model(args: argparse.Namespace, model: str | Path, section: str = "sample") -> Pipeline:
    """The model of a command with `device`, `decoder`, `sampling`, `size` and overrides, which change its
    config: the short options first. section: where guidance is changed. Raises UsageError, RunError."""
    from scaledit.interop.averaged import Averaged
    from scaledit.pipeline import load

    check_overrides(args.overrides, SECTIONS)
    average = getattr(args, "average", None)
    pipeline = load(model, args.device, allow_import=args.allow_import, average=average)
    config = as_asked(pipeline.config, args, section)
    if average is None and config.sample.average != pipeline.config.sample.average:
        average = config.sample.average
        pipeline = load(model, args.device, allow_import=args.allow_import, average=average)
    if config.autoencoder != pipeline.config.autoencoder:
        if pipeline.decoder is None:
            raise UsageError(
                f"{model} generates pixels, so there is nothing to decode; leave the "
                "options of the decoder out"
            )
        decoding = config.autoencoder
        pipeline = load(model, args.device, decoding, allow_import=args.allow_import, average=average)
    if "average" in pipeline.origin and not getattr(args, "json", None):
        terminal.inform(Averaged(**pipeline.origin["average"]).in_words())
    pipeline = replace(pipeline, config=replace(config, autoencoder=pipeline.config.autoencoder))
    return pipeline.at(getattr(args, "size", None))


def check_overrides(overrides: Sequence[str], sections: Sequence[str]) -> None:
    """Raises UsageError for an override of a trained model outside of `sections`."""
    for override in overrides:
        changed = override.partition(".")[0]
        if "." in override.partition("=")[0] and changed not in sections:
            raise UsageError(
                f"{override}: [{changed}] of a trained model cannot be changed; only keys of "
                f"{listed(sections, 'and')} can"
            )


def as_asked(config: RunConfig, args: argparse.Namespace, section: str = "sample") -> RunConfig:
    """A model's config with the options of `sampling` and `decoder`, then the overrides. Raises
    UsageError."""
    from scaledit import config as configs

    decoding = {"path": "decoder", "precision": "decoder_precision", "tiled": "tiled"}
    given = {key: getattr(args, option, None) for key, option in decoding.items()}
    values = {f"autoencoder.{key}": value for key, value in given.items() if value is not None}
    values |= configs.short(config, section, **passed(args, SHORT))
    return configs.changed(configs.with_values(config, values), args.overrides)


def extractor(parser: argparse.ArgumentParser) -> None:
    """Which network turns images into features, and where its weights are."""
    add = parser.add_argument
    network = (
        "the network whose features are compared: inception, dinov2, efficientnet-lite0, "
        "efficientnet-lite0-random, or MODULE:CLASS of your own (default: that of the reference file, else "
        "the first of inception and efficientnet-lite0 whose weights are found)"
    )
    add("--extractor", metavar="NAME", help=network)
    weights = "the file pt_inception-2015-12-05-6726825d.pth (default: see docs/evaluation.md)"
    add("--inception", metavar="WEIGHTS", help=weights)
    other = "accept Inception weights whose hash is unknown; the protocol records the hash"
    add("--any-inception", action="store_true", default=None, help=other)
    add(
        "--dinov2",
        metavar="FOLDER",
        help="use the features of the DINOv2 in this folder instead of Inception",
    )
    jpeg = "accept images that were stored with lossy compression, which changes the metrics"
    add("--allow-jpeg", action="store_true", help=jpeg)


def at_least(args: argparse.Namespace, smallest: int, *names: str) -> None:
    """Raises UsageError naming the first option that is passed and too small."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}")


def whole(text: str) -> int:
    """The type of an option that is any whole number: 1000, 2_000, 1e3."""
    try:
        return values.whole(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def integer(smallest: int, largest: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from `smallest` to `largest`, so that work too large for
    any machine is refused before it starts."""

    def parse(text: str) -> int:
        try:
            value = values.whole(text)
        except ValueError:
            message = f"must be a whole number from {smallest} to {largest}, got {text!r}"
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


def say_reported(result: str, page: Path) -> None:
    """Prints the result of a command that has written a report, and where the report is."""
    terminal.say(result if terminal.is_quiet() else f"{result}; the report is {page}")


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
def interruptible(kept: str | Callable[[], str] = NOTHING_WRITTEN) -> Iterator[None]:
    """Ctrl-C within it ends the command and says what was kept. kept: the sentence, or what
    makes it when it is needed."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(kept if isinstance(kept, str) else kept()) from error


def kept_parts(done: int, total: int, what: str, folder: Path) -> str:
    """What an interrupted command says whose work is kept in parts. what: their name, in the plural."""
    if not done:
        return f"none of {total} {what} was finished; {RESUMES}"
    are = "is" if done == 1 else "are"
    return f"{done} of {total} {what} {are} kept in {folder}; {RESUMES}"


class Speed:
    """A progress callback that counts what a command itself did, and how long it took. Work that was done
    before, by an earlier or another process, does not count. progress: is called with the same numbers."""

    def __init__(self, progress: Progress = lambda done, total: None):
        self.progress, self.began = progress, time.monotonic()
        self.first: int | None = None
        self.last = 0

    def __call__(self, done: int, total: int) -> None:
        self.first = done if self.first is None else self.first
        self.last = done
        self.progress(done, total)

    @property
    def done(self) -> int:
        return 0 if self.first is None else self.last - self.first


def speed(images: int, seconds: float) -> dict[str, float | None]:
    """For JSON: the seconds that `images` images took, and images per second; None if there were none."""
    rate = float(f"{images / max(seconds, 1e-9):.4g}") if images else None
    return {"seconds": round(seconds, 3), "images_per_second": rate}


def speed_in_words(images: int, seconds: float) -> str:
    """' (3.1 s, 26 images/s)', or '' if no image was made."""
    if not images:
        return ""
    rate = images / max(seconds, 1e-9)
    return (
        f" ({seconds:.1f} s, {rate:,.0f} images/s)"
        if rate >= 100
        else f" ({seconds:.1f} s, {rate:.3g} images/s)"
    )


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Yields a callback that shows progress on stderr: a bar on a terminal, now and then a line in a pipe."""
    from scaledit import progress

    with progress.shown(title) as update:
        yield update
