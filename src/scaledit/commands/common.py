"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scaledit.errors import UsageError

if TYPE_CHECKING:
    from scaledit.pipeline import Pipeline


def recipe(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?" if optional else None,
        help="a recipe's name, or the path of a .toml file",
    )
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="changes to the recipe: train.steps=100"
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
    parser.add_argument("--nproc", type=int, metavar="N", help="train as N processes on this machine")


def launched(given: argparse.Namespace, command: Sequence[str]) -> int | None:
    """Starts the ranks that --nproc wants and waits for them: their exit code; None where it wants none.
    command: the words before the recipe. Raises UsageError."""
    at_least(given, 1, "nproc")
    if given.nproc is None:
        return None
    if "RANK" in os.environ:
        raise UsageError("--nproc starts ranks, and this process is one already (RANK is set); leave it out")
    from scaledit import launch

    words = [*command, given.recipe, *given.overrides, "--resume", given.resume, "--device", given.device]
    words += ["--out", str(given.out)] if given.out else []
    return launch.run([*words, "--json"] if given.json else words, given.nproc)


def sampling(parser: argparse.ArgumentParser) -> None:
    """How images are drawn from a model."""
    parser.add_argument(
        "--sampler", choices=["ddpm", "ddim", "dpm", "heun", "euler"], help="(default: the run's)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: the run's)")
    parser.add_argument(
        "--cfg-scale", type=float, metavar="S", help="guidance; 1 is none (default: the run's)"
    )
    parser.add_argument(
        "--cfg-channels", choices=["3", "all"], help="which channels are guided (default: the run's)"
    )


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


def loaded(given: argparse.Namespace, model: str | Path) -> Pipeline:
    """The model of a command with `device` and `decoder`. Raises UsageError, RunError."""
    from dataclasses import replace

    from scaledit.pipeline import load

    options = {"path": given.decoder, "precision": given.decoder_precision, "tiled": given.tiled}
    changes = {key: value for key, value in options.items() if value is not None}
    pipeline = load(model, given.device)
    if not changes:
        return pipeline
    if pipeline.decoder is None:
        raise UsageError(f"{model} makes pixels: there is nothing to decode")
    return load(model, given.device, replace(pipeline.config.autoencoder, **changes))


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


@contextmanager
def shown_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr with rate and time left, from the first call on; yields what to call with
    (done, total)."""
    from rich.console import Console

    from scaledit.progress import bar

    began = time.monotonic()
    with ExitStack() as stack:
        progress = bar(Console(stderr=True))
        task = progress.add_task(what, total=None, note="")

        def update(done: int, total: int) -> None:
            if not progress.live.is_started:
                stack.enter_context(progress)
            rate = done / max(time.monotonic() - began, 1e-9)
            progress.update(task, completed=done, total=total, note=f"{rate:.3g}/s")

        yield update
