"""Weights & Biases, online or offline: one W&B run per run, however often it is resumed.

what it has  =  online: the last step on the server     offline: the last step of the finished parts

W&B writes in a separate process, and confirms that all is written only when a part is finished. So each
finished part gets a file with its last step. A part without one was killed and may hold any of its steps;
offline it is renamed, and its steps are sent again.
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
from scaledit.training.trackers.base import Tracker, first_line, image_paths, imported, scalars

FOLDER = "wandb"  # as W&B names it
FINISHED = "finished.json"
"""In the folder of a part: {"step": the last one that was sent}, written when W&B has finished the part."""
_OFFLINE = "log.wandb_mode=offline"


class WeightsAndBiases(Tracker):
    """A run of a W&B project. Its id is stored in out/wandb, so that a resumed run is the same W&B run.

    The values of one step form one row, which is sent when the next step comes, because W&B neither adds to a
    row nor deletes one. After a rollback it keeps the undone steps and continues after them.
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
            logged_in = self._package.login()  # asks for the key in a terminal
        except self._package.errors.Error as error:
            raise UsageError(f"W&B: {first_line(error)}; or choose {_OFFLINE}") from None
        if not logged_in:
            raise UsageError(f"you are not logged in to W&B; run wandb login, or choose {_OFFLINE}")

    def _open(self, step: int) -> int:
        entity, _, project = self.config.log.wandb.rpartition("/")
        online, run_id = self.mode == "online", self._id()
        self.sent = self._finished(run_id)
        try:
            self.run = self._package.init(
                project=project,
                entity=entity or None,
                dir=str(self.out),
                id=run_id,
                name=self.config.name,
                config=self.config.to_json(),
                mode=self.mode,
                resume="allow" if online else None,
                # Of W&B's own output only the address of the run is worth a line.
                settings=self._package.Settings(console="off", quiet=True, silent=not online),
            )
        except (self._package.errors.Error, OSError) as error:
            raise RunError(
                f"could not start W&B: {first_line(error)}; solve this, or choose {_OFFLINE}"
            ) from error
        return self.run.step - 1 if online else self.sent

    def _finished(self, run_id: str) -> int:
        """The last step in the finished parts of the run, -1 for none. Renames unfinished offline parts, so
        that `wandb sync` does not send them too."""
        last = -1
        # W&B appends -1, -2, ... to parts that began in the same second.
        for folder in sorted((self.out / FOLDER).glob(f"*run-*-{run_id}*")):
            path = folder / FINISHED
            if path.exists():
                content, fix = "how far W&B's files go", "delete it, and W&B gets all steps again"
                step = read_json(path, content, fix).get("step")
                if type(step) is not int:
                    raise RunError(f"{path} cannot be read as {content}; {fix}")
                last = max(last, step)
            elif folder.name.startswith("offline-"):
                folder.rename(folder.with_name(f"unfinished-{folder.name}"))
        return last

    def _id(self) -> str:
        """The id of this run in its project, chosen when it was first tracked."""
        path = self.out / FOLDER / "ids.json"
        content, fix = "the ids of W&B's runs", "delete it, and W&B gets a new run"
        ids = read_json(path, content, fix) if path.exists() else {}
        if not all(isinstance(run_id, str) and run_id.isalnum() for run_id in ids.values()):
            raise RunError(f"{path} cannot be read as {content}; {fix}")
        if self.config.log.wandb not in ids:
            ids[self.config.log.wandb] = uuid.uuid4().hex[:8]
            path.parent.mkdir(exist_ok=True)
            atomic_bytes(path, (json.dumps(ids) + "\n").encode())
        return ids[self.config.log.wandb]

    def _take(self, record: Mapping[str, Any]) -> None:
        values: dict[str, Any] = {**scalars(record)}
        for name, path in image_paths(record, self.out).items():
            values[name] = self._package.Image(str(path))
        if not values or record["step"] < self.step:  # background saves are reported late
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
        if folder.is_dir():  # there is none if W&B is disabled
            with atomic_write(folder / FINISHED) as file:
                file.write(json.dumps({"step": self.sent}).encode())
