"""Weights & Biases, online or offline: one run there, however often it was resumed here.

what it has  =  online: its server's last step     offline: the last step of the parts that were finished

W&B writes in a process of its own, when it likes, and says that all of it is written only when a part is
finished. So each finished part of a run gets a file that says how far it goes. A part without one was killed:
it may hold any number of its steps. Offline it is set aside, and all that it may hold is told again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaledit.config import Config
from scaledit.errors import RunError, UsageError
from scaledit.files.atomic import atomic_bytes, atomic_write
from scaledit.files.reading import read_json
from scaledit.training.trackers.base import Tracker, first_line, imported, pictures, scalars

FOLDER = "wandb"  # W&B's own choice
FINISHED = "finished.json"
"""In the folder of a part: {"step": the last one that was sent}; written when W&B has finished the part."""
_OFFLINE = "log.wandb_mode=offline"


class WeightsAndBiases(Tracker):
    """A run of a W&B project, whose id lies in out/wandb, so that a resumed run is the same one there.

    Values of one step go into one row, which is sent when the next step comes: W&B takes no more for a step
    that it has, and nothing back. After a roll-back it keeps the steps that were undone, and goes on after
    them.
    """

    name = "W&B"

    def __init__(self, config: Config, out: Path):
        super().__init__(config, out)
        self._package = imported("wandb", "wandb")
        self.step, self.row, self.sent = -1, {}, -1
        self.mode = config.log.wandb_mode
        if self.mode == "auto":
            self.mode = self._package.setup().settings.mode
        if self.mode == "online":
            self._log_in()

    def _log_in(self) -> None:
        try:
            done = self._package.login()  # asks for the key where there is a terminal
        except self._package.errors.Error as error:
            raise UsageError(f"W&B: {first_line(error)}; or choose {_OFFLINE}") from None
        if not done:
            raise UsageError(f"nobody is logged in to W&B: wandb login, or choose {_OFFLINE}")

    def _open(self, step: int) -> int:
        entity, _, project = self.config.log.wandb.rpartition("/")
        online = self.mode == "online"
        number = self._id()
        self.sent = self._finished(number)
        try:
            self.run = self._package.init(
                project=project,
                entity=entity or None,
                dir=str(self.out),
                id=number,
                name=self.config.name,
                config=self.config.to_json(),
                mode=self.mode,
                resume="allow" if online else None,
                # The console is ours; of W&B's own words only the run's address is worth a line.
                settings=self._package.Settings(console="off", quiet=True, silent=not online),
            )
        except (self._package.errors.Error, OSError) as error:
            raise RunError(f"could not start W&B: {first_line(error)}; or choose {_OFFLINE}") from error
        if online:
            return self.run.step - 1
        return self.sent

    def _finished(self, number: str) -> int:
        """The last step in the finished parts of the run, -1 for none. Renames offline parts that are not
        finished, so that `wandb sync` does not send them too."""
        last = -1
        parts = (self.out / FOLDER).glob(
            f"*run-*-{number}*"
        )  # ...-1, ...-2 for parts begun in the same second
        for folder in sorted(parts):
            path = folder / FINISHED
            if path.exists():
                what, fix = "how far W&B's files go", "delete it, and W&B is told again"
                step = read_json(path, what, fix).get("step")
                if type(step) is not int:
                    raise RunError(f"{path} cannot be read as {what}; {fix}")
                last = max(last, step)
            elif folder.name.startswith("offline-"):
                folder.rename(folder.with_name(f"unfinished-{folder.name}"))
        return last

    def _id(self) -> str:
        """This run's id in its project: the one that was chosen when it was first tracked."""
        path = self.out / FOLDER / "ids.json"
        what, fix = "the ids of W&B's runs", "delete it, and W&B gets a new run"
        ids = read_json(path, what, fix) if path.exists() else {}
        if not all(isinstance(number, str) and number.isalnum() for number in ids.values()):
            raise RunError(f"{path} cannot be read as {what}; {fix}")
        if self.config.log.wandb not in ids:
            ids[self.config.log.wandb] = uuid.uuid4().hex[:8]
            path.parent.mkdir(exist_ok=True)
            atomic_bytes(path, (json.dumps(ids) + "\n").encode())
        return ids[self.config.log.wandb]

    def _take(self, record: Mapping[str, Any]) -> None:
        values: dict[str, Any] = {**scalars(record)}
        for name, path in pictures(record, self.out).items():
            values[name] = self._package.Image(str(path))
        if not values or record["step"] < self.step:  # what is saved in the background is told of late
            return
        if record["step"] > self.step:
            self._send()
            self.step = record["step"]
        self.row |= values

    def _send(self) -> None:
        if self.row:
            self.run.log(self.row, step=self.step, commit=True)
            self.row, self.sent = {}, self.step

    def _go_back(self, step: int) -> int:
        if self.step > step:
            self.row, self.step = {}, step
        return self.sent if self.known is None else max(self.known, self.sent)

    def _close(self, failed: bool) -> None:
        self._send()
        folder = self.out / FOLDER / Path(self.run.dir).parent.name
        self.run.finish(exit_code=int(failed))
        if folder.is_dir():  # not where W&B is disabled
            with atomic_write(folder / FINISHED) as file:
                file.write(json.dumps({"step": self.sent}).encode())
