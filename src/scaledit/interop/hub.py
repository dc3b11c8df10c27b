"""Models on the Hugging Face Hub: downloads one that is named by its id, uploads on request.

A local path never needs the network; HF_HUB_OFFLINE=1 and huggingface_hub's other settings are respected.
"""

from __future__ import annotations

import re
from pathlib import Path

from scaledit.errors import RunError, UsageError, no_such

PREFIX = "hf://"
ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FETCHED = ("*.json", "*.safetensors", "transformer/*", "scheduler/*", "vae/*")
"""Pickles are not downloaded, except the transformer's own .bin, which is read like any other. Code in the
transformer's folder is downloaded and not run."""
_INSTALL = 'the Hugging Face Hub needs huggingface_hub: pip install "scaledit[hub]"'


def is_id(name: str) -> bool:
    """Whether `name` is "hf://org/name", or "org/name" with neither it nor org in the current folder."""
    if name.startswith(PREFIX):
        return True
    if Path(name).exists() or not ID.fullmatch(name):
        return False
    return not Path(name).parent.exists()  # runs/demo-2 beside runs/demo is a typo, not an id


def check(name: str) -> None:
    """Raises UsageError if `name` is neither a path nor looks like an id; does not use the network."""
    if not is_id(name) and not Path(name).exists():
        raise UsageError(no_such(name))


def local(name: str | Path) -> Path:
    """The local path: `name` itself, or what the Hub has under this id (downloaded, or from its cache).

    Raises UsageError if there is neither.
    """
    if not is_id(str(name)):
        return Path(name)
    repo_id = _repo_id(str(name), f"they look like {PREFIX}org/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(f"{no_such(name)}; {_INSTALL}") from None
    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(FETCHED)))
    except Exception as error:  # the Hub's client raises its own, httpx's and OSError
        raise UsageError(
            f"{name} does not exist on this machine, and the Hub did not provide it ({_reason(error)})"
        ) from None


def push(folder: Path, name: str, private: bool) -> str:
    """Uploads a folder to the Hub, creating the repository if needed; returns its address. Raises UsageError
    if `name` is not an id, RunError if the Hub refuses or cannot be reached."""
    repo_id = _repo_id(name, "they look like org/name")
    try:
        from huggingface_hub import HfApi, constants
    except ImportError:
        raise UsageError(_INSTALL) from None
    if constants.HF_HUB_OFFLINE:
        raise RunError(f"{repo_id} was not uploaded, because HF_HUB_OFFLINE is set")
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
    except Exception as error:
        raise RunError(f"{repo_id} was not uploaded ({_reason(error)})") from None


def _repo_id(name: str, example: str) -> str:
    repo_id = name.removeprefix(PREFIX)
    if not ID.fullmatch(repo_id):
        raise UsageError(f"{name} is not an id on the Hub; {example}")
    return repo_id


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
