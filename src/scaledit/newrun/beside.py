"""Samples of a run beside real images, as one picture: a row for each class.

cat     [] [] [] []   [] [] [] []
        your images   samples of the model
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scaledit import captions, images
from scaledit.autoencoders.config import AutoencoderRun
from scaledit.config import RunConfig, load
from scaledit.data.datasets.standard import ImagesInFiles
from scaledit.errors import RunError
from scaledit.newrun.plan import Places
from scaledit.pipeline import Pipeline
from scaledit.pipeline import load as load_pipeline

PICTURE = "beside-real.png"
EACH, MOST_ROWS = 6, 12
"""Images of a class on each side, and classes."""


def draw(run: Path, real: ImagesInFiles, device: str = "auto") -> Path:
    """Writes run/beside-real.png and returns its path. real: the images that the model was trained on.
    Raises RunError if it cannot be written."""
    pipeline = load_pipeline(run, device)
    classes = min(pipeline.config.model.num_classes, MOST_ROWS)
    wanted = np.repeat(np.arange(classes), EACH)
    samples = pipeline(wanted)
    cells = np.stack([_real(real, classes), samples.reshape(classes, EACH, *samples.shape[1:])], axis=1)
    names = captions.class_labels(range(classes), pipeline.class_names, pipeline.config.model.num_classes)
    columns = ("your images", "samples of the model")
    sheet = captions.sheet([captions.Block(cells, names if any(names) else (), columns)])
    path = run / PICTURE
    try:
        images.save_png(path, sheet.image, _origin(run, pipeline))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def real(config: RunConfig, path: Path, places: Places) -> ImagesInFiles:
    """The images at `path` as the run of `config` sees them."""
    data = config.data
    if data.name != "images":
        data = load(str(places.autoencoder_recipe), kind=AutoencoderRun).data
    return ImagesInFiles(
        str(path),
        data.image_size,
        background=data.background,
        split=data.split,
        image_key=data.image_key,
        holdout=data.holdout,
    )


def _origin(run: Path, pipeline: Pipeline) -> dict[str, object]:
    return {"run": str(run), "sample": pipeline.config.to_json()["sample"], "seed": 0}


def _real(real: ImagesInFiles, classes: int) -> np.ndarray:
    """(classes, EACH, H, W, 3) uint8: images of each class, evenly spaced; white where there are fewer."""
    files, rows = real.open(), []
    for label in range(classes):
        members = np.flatnonzero(files.labels.numpy() == label)
        chosen = np.unique(np.linspace(0, len(members) - 1, EACH).round().astype(int))
        pixels = files.batch(members[chosen], range(len(chosen)), seed=0).x0
        rows.append(images.row(images.to_uint8(pixels), EACH))
    return np.stack(rows)
