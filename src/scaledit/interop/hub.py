"""Models on the Hugging Face Hub: fetched when an id is given, sent when it is asked for.

A local path never needs the network; HF_HUB_OFFLINE=1 and huggingface_hub's other switches are respected.
"""

from __future__ import annotations

import re
from pathlib import Path

from scaledit.errors import RunError, UsageError

PREFIX = "hf://"
ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FETCHED = ("*.json", "*.safetensors", "transformer/*", "scheduler/*", "vae/*")
"""Never a pickle, unless it is the transformer's own .bin, which is read like any other. Code is fetched with
the transformer's folder and not run."""
_INSTALL = 'the Hugging Face Hub needs huggingface_hub: pip install "scaledit[hub]"'


def is_id(where: str) -> bool:
    """Whether `where` is a model on the Hub: "hf://org/name", or "org/name" with nothing local near it."""
    if where.startswith(PREFIX):
        return True
    if Path(where).exists() or not ID.fullmatch(where):
        return False
    return not Path(where).parent.exists()  # runs/demo-2 beside runs/demo is a slip of the pen, not an id


def check(where: str) -> None:
    """Raises UsageError where there is neither a path nor what looks like an id; asks no network."""
    if not is_id(where) and not Path(where).exists():
        raise UsageError(f"there is no {where}")


def local(where: str | Path) -> Path:
    """The folder or file: `where` itself, or what the Hub has under that id (fetched, or from its cache).

    Raises UsageError where there is neither.
    """
    if not is_id(str(where)):
        return Path(where)
    name = str(where).removeprefix(PREFIX)
    if not ID.fullmatch(name):
        raise UsageError(f"{where} is no id of the Hub; they look like {PREFIX}org/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(f"there is no {where}; {_INSTALL}") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except Exception as error:  # the hub's client raises its own, httpx's and OSError
        raise UsageError(
            f"there is no {where}: no such path, and the Hub did not give it ({_why(error)})"
        ) from None


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Sends a folder to the Hub, making the repository if need be; gives its address. Raises UsageError for a
    name that is no id, RunError where the Hub refuses or is out of reach."""
    name = repo_id.removeprefix(PREFIX)
    if not ID.fullmatch(name):
        raise UsageError(f"{repo_id} is no id of the Hub; they look like org/name")
    try:
        from huggingface_hub import HfApi, constants
    except ImportError:
        raise UsageError(_INSTALL) from None
    if constants.HF_HUB_OFFLINE:
        raise RunError(f"{name} was not sent: HF_HUB_OFFLINE is set")
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:
        raise RunError(f"{name} was not sent ({_why(error)})") from None


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
