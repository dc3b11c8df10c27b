"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledit import checks, terminal
from scaledit.callbacks import Progress
from scaledit.errors import RunError, UsageError, printable

if TYPE_CHECKING:
    from scaledit.pipeline import Pipeline


CLASSES = "class names or numbers; where a word is both, number:2 or name:2 says which (default: all)"


def recipe(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?" if optional else None,
        help="a recipe's name, or the path of a .toml file",
    )
    parser.add_argument(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        help="changes to the recipe: train.steps=100, sample.sampler.eta=0.5",
    )


def keys(parser: argparse.ArgumentParser) -> None:
    """Of commands that take a model."""
    parser.add_argument(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        help="what is said of sampling: sample.sampler.eta=0.5; after the options below",
    )


def run_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE)")
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="never",
        help="auto: go on from the folder's latest checkpoint, or start if there is none",
    )


def which_images(parser: argparse.ArgumentParser) -> None:
    """Which of the images that lie at a path are read."""
    parser.add_argument(
        "--split", default="", metavar="NAME", help="of several: train, test, ... or all (default: train)"
    )
    parser.add_argument(
        "--image-key",
        default="",
        metavar="EXT",
        help="which file of a WebDataset sample is the image, as in jpg (default: the only one)",
    )


def no_choice_of_images(given: argparse.Namespace, why: str) -> None:
    """Raises UsageError where an option of `which_images` is given that cannot mean anything."""
    for option in ("split", "image_key"):
        if getattr(given, option):
            raise UsageError(f"{why}: leave --{option.replace('_', '-')} out")


def device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")


def as_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nproc", type=integer(1, MOST_PROCESSES), metavar="N", help="train as N processes on this machine"
    )


def launched(given: argparse.Namespace, command: Sequence[str]) -> int | None:
    """Starts the ranks that --nproc wants and waits for them: their exit code; None where it wants none.
    command: the words before the recipe. Raises UsageError."""
    if given.nproc is None:
        return None
    if "RANK" in os.environ:
        raise UsageError("--nproc starts ranks, and this process is one already (RANK is set); leave it out")
    from scaledit import launch

    words = [*command, given.recipe, *overrides(given), "--resume", given.resume, "--device", given.device]
    words += ["--out", str(given.out)] if given.out else []
    return launch.run([*words, "--json"] if given.json else words, given.nproc)


def sampling(parser: argparse.ArgumentParser) -> None:
    """How images are drawn from a model."""
    parser.add_argument(
        "--sampler", metavar="NAME", help="one of those below, or MODULE:CLASS (default: the run's)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of the sampler (default: the run's)")
    guidance(parser)


def guidance(parser: argparse.ArgumentParser) -> None:
    """The short options of classifier-free guidance."""
    parser.add_argument(
        "--cfg-scale", type=float, metavar="S", help="guidance; 1 is none (default: the run's)"
    )
    parser.add_argument(
        "--cfg-channels",
        metavar="N|all",
        help="how many channels are guided, the first ones, or all (default: the run's)",
    )


SHORT = ("sampler", "steps", "cfg_scale", "cfg_channels")


def short(given: argparse.Namespace) -> dict[str, Any]:
    """Those of `sampling` that are given."""
    return {key: getattr(given, key) for key in SHORT if getattr(given, key, None) is not None}


def overrides(given: argparse.Namespace) -> list[str]:
    """What a recipe is changed by: the short options as keys, then the keys."""
    from scaledit import config as configs

    made = configs.short(**short(given))
    return [*(configs.override(key, value) for key, value in made.items()), *given.overrides]


def allow_import(parser: argparse.ArgumentParser) -> None:
    """Of commands that read a model, which may come from elsewhere."""
    parser.add_argument(
        "--allow-import",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module that the model names a part of: it is imported, and so run; only for code you trust",
    )


def parts(*sections: str) -> str:
    """The parts that keys of these sections of a recipe name, those inside of them, and their fields: for
    --help."""
    from scaledit.config import RunConfig
    from scaledit.config.tables import part_keys
    from scaledit.part import describe, inner_kinds

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
        for one in describe(kind):
            lines += textwrap.wrap(
                f"{one.name}: {one.summary}", WIDTH, initial_indent="  ", subsequent_indent="    "
            )
            for field in one.fields:
                said = ", ".join(
                    filter(None, [field.default and f"default {field.default}", field.bounds, field.doc])
                )
                lines += textwrap.wrap(
                    f"{field.name}: {said}", WIDTH, initial_indent="      ", subsequent_indent="        "
                )
        kinds += [(f"{key}.{name}", inner) for name, inner in inner_kinds(kind).items()]
    heading = "parts and their fields (section.key.field=value; MODULE:CLASS names one of your own):"
    return "\n".join(["", heading, *lines, ""])


WIDTH = 100


def decoder(parser: argparse.ArgumentParser) -> None:
    """What turns a model's latents into pictures; nothing to say for models of pixels."""
    parser.add_argument(
        "--decoder", metavar="AE", help="another autoencoder of the same latents (default: the run's)"
    )
    parser.add_argument(
        "--decoder-precision", choices=["fp32", "bf16", "fp16"], help="of decoding (default: the run's)"
    )
    parser.add_argument(
        "--tiled", action="store_true", default=None, help="decode in tiles: less memory, nearly the same"
    )


SECTIONS = ("sample", "evaluate", "autoencoder")
"""What may be changed of a model that is there: how it is sampled, judged and decoded."""


def loaded(given: argparse.Namespace, model: str | Path, section: str = "sample") -> Pipeline:
    """The model of a command with `device`, `decoder`, `sampling` and `keys`, which change its config: the
    short options first. section: whose guidance the short options are of. Raises UsageError, RunError."""
    from dataclasses import replace

    from scaledit import config as configs
    from scaledit.pipeline import load

    for override in given.overrides:
        of = override.partition(".")[0]
        if "." in override.partition("=")[0] and of not in SECTIONS:
            raise UsageError(
                f"{override}: a trained model's [{of}] stays as it is; keys of {', '.join(SECTIONS)} change "
                f"how it is used"
            )
    pipeline = load(model, given.device, allow_import=given.allow_import)
    decoding = {"path": given.decoder, "precision": given.decoder_precision, "tiled": given.tiled}
    values = {f"autoencoder.{key}": value for key, value in decoding.items() if value is not None}
    values |= configs.short(pipeline.config, section, **short(given))
    config = configs.changed(configs.with_values(pipeline.config, values), given.overrides)
    if config.autoencoder != pipeline.config.autoencoder:
        if pipeline.decoder is None:
            raise UsageError(f"{model} makes pixels: there is nothing to decode")
        pipeline = load(model, given.device, config.autoencoder, allow_import=given.allow_import)
    return replace(pipeline, config=replace(config, autoencoder=pipeline.config.autoencoder))


def extractor(parser: argparse.ArgumentParser) -> None:
    """Which network turns images into features, and where its weights are."""
    parser.add_argument(
        "--inception",
        metavar="WEIGHTS",
        help="pt_inception-2015-12-05-6726825d.pth (default: docs/evaluation.md)",
    )
    parser.add_argument(
        "--any-inception",
        action="store_true",
        default=None,
        help="accept weights of another hash; the protocol names it",
    )
    parser.add_argument("--dinov2", metavar="FOLDER", help="features of this local DINOv2 instead")
    parser.add_argument("--allow-jpeg", action="store_true", help="accept lossily compressed images")


def at_least(given: argparse.Namespace, smallest: int, *names: str) -> None:
    """Raises UsageError naming the first option that is given and too small."""
    for name in names:
        value = getattr(given, name)
        if value is not None and value < smallest:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}")


def integer(smallest: int, largest: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from `smallest` to `largest`. No command's work is bound
    to fit where more is asked: that is refused before anything is started."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            says = f"must be a whole number from {smallest} to {largest}, got {text!r}"
            with suppress(ValueError, OverflowError):  # 1e4, 8.0: what is meant can be said
                meant = float(text)
                if meant == int(meant) and smallest <= meant <= largest:
                    says += f"; write {int(meant)}"
            raise argparse.ArgumentTypeError(says) from None
        if value < smallest:
            raise argparse.ArgumentTypeError(f"must be at least {smallest}, got {value}")
        if value > largest:
            raise argparse.ArgumentTypeError(f"must be at most {largest}, got {value}")
        return value

    return parse


MOST_IMAGES = 10_000_000
"""That a sample set may have: 80 GB of Inception's features."""
MOST_SEEDS = 1_000
MOST_PROCESSES = 1_024
MOST_DEVICES = 1_000_000
LARGEST_SEED = checks.SEEDS.stop - 1


def images(count: int, kind: str = "") -> str:
    """1 image, 2 images."""
    return f"{count} {kind}image{'' if count == 1 else 's'}"


def can_write(out: Path, option: str) -> None:
    """To be called before long work whose result goes into the file `out`. Leaves nothing behind.

    option: what `out` was given as, for the message. Raises UsageError where the file could not be written:
    a folder is in its place or a file in the place of its folder, nothing may be written there, the file
    system is read-only or full, the name is too long.
    """
    from scaledit.files.atomic import atomic_write

    try:
        if out.is_dir():
            raise UsageError(f"{option} {out} is a folder; name a file in it")
        if _is_special(out):
            return
        folder = out.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise UsageError(f"{option} {out} cannot be written: {folder} is no folder; name another place")
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
    """Ends the writing of a file that is not to be there."""


def _is_special(path: Path) -> bool:
    """Whether it is a device, a pipe or the like: written to as it is, never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write(out: Path, data: bytes) -> None:
    """The file `out`, whole or not there. Raises RunError naming it where that fails."""
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
def told() -> Iterator[None]:
    """What the library warns of is one line on stderr, once, as errors are."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        terminal.complain(message)

    with warnings.catch_warnings():
        warnings.simplefilter("once", UserWarning)
        warnings.showwarning = show
        yield


@contextmanager
def shown_progress(what: str) -> Iterator[Progress]:
    """A progress bar on stderr with rate and time left, from the first call on; yields what to call with
    (done, total)."""
    from scaledit.progress import bar

    began = time.monotonic()
    with ExitStack() as stack:
        progress = bar(terminal.console(stderr=True))
        task = progress.add_task(printable(what), total=None, note="")

        def update(done: int, total: int) -> None:
            if not progress.live.is_started:
                stack.enter_context(progress)
            rate = done / max(time.monotonic() - began, 1e-9)
            progress.update(task, completed=done, total=total, note=f"{rate:.3g}/s")

        yield update
