"""The model card: its code runs unchanged for every kind of model, and it names no local folder."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from layouts import HEADS, config, convert, official_state, random_dit
from scaledit.autoencoders.config import AutoencoderConfig
from scaledit.cli import main
from scaledit.interop import card
from scaledit.training.autoencoder_state import build


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("somewhere") / "my-vae"
    net: Any = build(AutoencoderConfig(widths=(8, 8, 8, 8)), 64, seed=0)
    net.register_to_config(scaling_factor=0.18215)
    net.save_pretrained(path)
    return path


KINDS: dict[str, dict[str, Any]] = {
    "latents": {"num_classes": 1000},
    "latents of few classes": {},
    "latents without a null label": {"rows": 5},
    "one class": {"rows": 1},
    "a flow": {"depth": 12, "hidden_size": 384, "num_heads": 6, "patch_size": 8, "sit": True},
    "pixels": {"in_channels": 3},
}


def source(kind: str, folder: Path) -> list[str]:
    """An official file of this kind, and the options that convert needs for it."""
    changes = dict(KINDS[kind])
    rows, is_sit = changes.pop("rows", None), changes.pop("sit", False)
    state = official_state(random_dit(config(**changes)))
    if rows is not None:
        state["y_embedder.embedding_table.weight"] = state["y_embedder.embedding_table.weight"][:rows].clone()
    torch.save(state, folder / "in.pt")
    classes = changes.get("num_classes", rows or 5)
    words = ["--model", "SiT-S/8"] if is_sit else ["--heads", str(HEADS)]
    return [str(folder / "in.pt"), *words, "--num-classes", str(classes)]


def code(folder: Path, autoencoder: Path) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return block.replace(card.WHERE, str(folder)).replace(f'"{card.AUTOENCODER}"', f'"{autoencoder}"')


@pytest.mark.parametrize(
    ("kind", "is_recorded"),
    [
        ("latents", True),
        ("latents", False),
        ("latents of few classes", False),
        ("latents without a null label", True),
        ("one class", False),
        ("a flow", True),
        ("pixels", False),
    ],
)
def test_the_code_of_a_card_runs(kind: str, is_recorded: bool, autoencoder: Path, tmp_path: Path):
    """is_recorded: whether --autoencoder is passed to convert."""
    words = source(kind, tmp_path)
    if is_recorded:
        words += ["--autoencoder", str(autoencoder)]
    for name, options in (
        ("native", ["--to", "scaledit"]),
        ("exact", ["--to", "diffusers"]),
        ("plain", ["--to", "diffusers", "--plain"]),
    ):
        convert(*words[:1], tmp_path / name, *options, *words[1:])
        text = (tmp_path / name / "README.md").read_text()
        assert str(tmp_path) not in text and str(autoencoder.parent) not in text
        names: dict[str, Any] = {}
        with torch.random.fork_rng():
            exec(code(tmp_path / name, autoencoder), names)
        if "images" in names:
            assert len(names["images"]) == (1 if kind == "one class" else 2)
        else:
            assert kind in ("a flow", "pixels") and name != "native"
            assert names["transformer"].config.num_layers == KINDS[kind].get("depth", 2)


def test_a_card_names_no_local_folder(tmp_path: Path):
    """In overrides, the data's path, the protocol, warnings, and the arguments of another trainer."""
    from tiny import TINY

    secret = tmp_path / "secret place"
    secret.mkdir()
    out = secret / "run"
    assert main(["train", "digits", "--out", str(out), *TINY, "train.steps=1", "checkpoint.every=1"]) == 0
    protocol = {"reference": str(secret / "reference.npz"), "n": 5, "nested": {"of": [str(secret / "a.txt")]}}
    warnings = [f"taken from {tmp_path}/other/x.npz, at 1/8 of TFLOP/s; see https://example.org/a/b"]
    result = {"name": "x", "fd_digits": 6.5, "protocol": protocol, "warnings": warnings}
    (tmp_path / "result.json").write_text(json.dumps(result))
    convert(out, tmp_path / "card", "--to", "scaledit", "--metrics", tmp_path / "result.json")
    text = (tmp_path / "card/README.md").read_text()
    assert str(tmp_path) not in text and "secret place" not in text
    assert '"reference": "reference.npz"' in text and '["a.txt"]' in text
    assert "taken from x.npz, at 1/8 of TFLOP/s; see https://example.org/a/b" in text
    state = official_state(random_dit(config()))
    args = argparse.Namespace(vae=str(secret / "vae"), model="mine", num_classes=5)
    torch.save({"ema": state, "args": args}, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "other", "--to", "scaledit", "--heads", HEADS)
    text = (tmp_path / "other/README.md").read_text()
    assert "vae vae" in text and str(tmp_path) not in text


def test_a_command_shows_names_only():
    hide = card._without_folders
    assert hide("data.path=/home/me/my photos") == "data.path=my photos"
    assert hide("autoencoder.path=stabilityai/sd-vae-ft-mse") == "autoencoder.path=stabilityai/sd-vae-ft-mse"
    assert hide("C:\\Users\\me\\set") == "set"
    assert hide("../sets/a") == "a"
    assert hide("hf://org/name") == "hf://org/name"
