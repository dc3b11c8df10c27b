"""TensorBoard: event files in out/tensorboard.

resumed or rolled back to step n  ->  a new file with purge step n + 1, which voids later points of older
files
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scaledit.config import Config, flatten
from scaledit.errors import RunError
from scaledit.training.trackers.base import Tracker, image_paths, imported, scalars

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Curves, images, and the config as text and as hyperparameters."""

    name = "TensorBoard"

    def __init__(self, config: Config, out: Path):
        super().__init__(config, out)
        self._package = imported("torch.utils.tensorboard", FOLDER)

    def _open(self, step: int) -> int:
        folder = self.out / FOLDER
        resumes = folder.is_dir() and any(folder.iterdir())
        try:
            self._write_from(step + 1)
            self._add_config()
        except OSError as error:
            raise RunError(f"could not write {folder}: {error.strerror}; or log.tensorboard=false") from error
        return step if resumes else -1

    def _write_from(self, step: int) -> None:
        """Starts a new file, which voids the points of older files from `step` on."""
        self.writer = self._package.SummaryWriter(str(self.out / FOLDER), purge_step=step)

    def _go_back(self, step: int) -> int:
        self.writer.close()
        self._write_from(step + 1)
        return step - 1  # of `step` itself only the rollback is sent

    def _add_config(self) -> None:
        from torch.utils.tensorboard.summary import hparams

        config = self.config.to_json()
        self.writer.add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```")
        plain = {
            key: v if isinstance(v, int | float | str) else json.dumps(v)
            for key, v in flatten(config).items()
        }
        writer = self.writer._get_file_writer()  # add_hparams would create another run
        for summary in hparams(plain, {"train/loss": 0.0})[:2]:
            writer.add_summary(summary)

    def _take(self, record: Mapping[str, Any]) -> None:
        step = record["step"]
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, step)
        for name, path in image_paths(record, self.out).items():
            with Image.open(path) as image:
                self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()  # takes 0.3 ms; otherwise a kill loses two minutes

    def _close(self, failed: bool) -> None:
        self.writer.close()
