"""TensorBoard: event files in out/tensorboard.

resumed or rolled back to step n  ->  a new file, purge step n + 1: what older files say from there on is void
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
from scaledit.training.trackers.base import Tracker, imported, pictures, scalars

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Curves, pictures, and the config as text and as hyperparameters."""

    name = "TensorBoard"

    def __init__(self, config: Config, out: Path):
        super().__init__(config, out)
        self._package = imported("torch.utils.tensorboard", FOLDER)

    def _open(self, step: int) -> int:
        folder = self.out / FOLDER
        before = folder.is_dir() and any(folder.iterdir())
        try:
            self._write_from(step + 1)
            self._describe()
        except OSError as error:
            raise RunError(f"could not write {folder}: {error.strerror}; or log.tensorboard=false") from error
        return step if before else -1

    def _write_from(self, step: int) -> None:
        """Into a new file; what older ones say of `step` and later is void."""
        self.writer = self._package.SummaryWriter(str(self.out / FOLDER), purge_step=step)

    def _go_back(self, step: int) -> int:
        self.writer.close()
        self._write_from(step + 1)
        return step - 1  # of `step` itself nothing comes again but that the run is back there

    def _describe(self) -> None:
        """The config: as text, and as hyperparameters to compare runs by."""
        from torch.utils.tensorboard.summary import hparams

        config = self.config.to_json()
        self.writer.add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```")
        plain = {
            key: v if isinstance(v, int | float | str) else json.dumps(v)
            for key, v in flatten(config).items()
        }
        writer = self.writer._get_file_writer()  # add_hparams would make another run of it
        for summary in hparams(plain, {"train/loss": 0.0})[:2]:
            writer.add_summary(summary)

    def _take(self, record: Mapping[str, Any]) -> None:
        step = record["step"]
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, step)
        for name, path in pictures(record, self.out).items():
            with Image.open(path) as image:
                self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()  # 0.3 ms; a kill would lose two minutes

    def _close(self, failed: bool) -> None:
        self.writer.close()
