"""Files of trainers: where the network is, what its label table holds, whether its values are finite."""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from layouts import HEADS, OPTIONS, config, convert, equal, official_state, random_dit
from scaledit import load
from scaledit.cli import main
from scaledit.diffusion import ClassifierFree
from scaledit.errors import RunError, UsageError
from scaledit.interop.convert import open_model
from scaledit.interop.infer import Hints
from scaledit.interop.model import Model

State = dict[str, Tensor]
HINTS = Hints(heads=HEADS, num_classes=5)


@pytest.fixture(scope="module")
def states() -> tuple[State, State]:
    """Those of the network and of its average, under the official names."""
    return official_state(random_dit(config(), 0)), official_state(random_dit(config(), 1))


def weights(model: Model) -> State:
    return {key: lazy.read() for key, lazy in model.weights.items()}


def own(state: State) -> State:
    """Under scaledit's names."""
    from scaledit.interop import official

    return dict(official.load(config(), state).state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def beside() -> dict[str, Any]:
    """What trainers keep beside weights."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return {
        "opt": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).state_dict(),
        "scaler": {"scale": torch.tensor(65536.0), "growth_interval": 2000, "_growth_tracker": 0},
        "rng": torch.get_rng_state(),
        "rng_states": {"numpy": np.random.get_state(), "python": random.getstate(), "cuda": []},  # noqa: NPY002
        "step": torch.tensor(7),
        "epoch": 2,
        "best": np.float64(3.5),
        "when": datetime.datetime(2024, 1, 2),
        "where": pathlib.PurePosixPath("/data"),
        "counts": defaultdict(int, {"a": 1}),
        "losses": [0.5, np.float32(0.25)],
        "ema_decay": 0.9999,
        "names": {"a", "b"},
    }


SHAPES: dict[str, Callable[[State, State], dict[Any, Any]]] = {
    "official": lambda net, ema: {"model": net, "ema": ema, "opt": {}, "args": argparse.Namespace()},
    "everything beside it": lambda net, ema: {"model": net, "ema": ema, **beside()},
    "a tensor first": lambda net, ema: {"rng": torch.get_rng_state(), "model": net, "ema": ema},
    "wrapped twice": lambda net, ema: {
        "model": prefixed("module._orig_mod.", net),
        "ema": prefixed("module.", ema),
    },
    "other names": lambda net, ema: {"state_dict": net, "state_dict_ema": ema, "step": torch.tensor(1)},
    "nested": lambda net, ema: {"model": {"net": net, "step": 3}, "ema_model": {"shadow": ema, "decay": 0.9}},
    "lightning": lambda net, ema: {
        "state_dict": {
            **prefixed("model.", net),
            **prefixed("model_ema.", ema),
            "model_ema.decay": torch.tensor(0.9),
            "vae.encoder.conv_in.weight": torch.ones(2, 2),
            "loss.steps": torch.tensor(4),
        },
        "hyper_parameters": {"lr": 1e-4},
    },
    "one dict for both": lambda net, ema: {
        "initted": torch.tensor(True),
        "step": torch.tensor(9),
        **prefixed("online_model.", net),
        **prefixed("ema_model.", ema),
    },
    "an optimizer that has the weights' names": lambda net, ema: {
        "net": net,
        "ema": ema,
        "optimizer": {"momentum": {key: torch.zeros_like(value) for key, value in net.items()}},
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_network_and_average_are_found_in_a_trainers_file(
    shape: str, states: tuple[State, State], tmp_path: Path
):
    net, ema = states
    torch.save(SHAPES[shape](net, ema), tmp_path / "x.pt")
    for kind, state in (("ema", ema), ("model", net)):
        model = open_model(tmp_path / "x.pt", HINTS, kind)
        assert model.kind == kind
        assert equal(weights(model), own(state))


@pytest.mark.parametrize(
    "build",
    [
        lambda net: net,
        lambda net: prefixed("module.", net),
        lambda net: OrderedDict(**net, step=torch.tensor(5), epoch=3),
        lambda net: {"state_dict": net, **beside()},
        lambda net: {"model": net, "ema": {"decay": 0.9, "shadow_params": [torch.ones(3)]}},
        lambda net: {"state_dict": prefixed("net.model.", net)},
    ],
)
def test_the_only_network_is_taken(
    build: Callable[[State], dict[Any, Any]], states: tuple[State, State], tmp_path: Path
):
    torch.save(build(states[0]), tmp_path / "x.pt")
    model = open_model(tmp_path / "x.pt", HINTS)
    assert model.kind == "model"
    assert equal(weights(model), own(states[0]))
    is_bare = "x_embedder.proj.weight" in "".join(build(states[0]))
    assert any("no EMA weights" in note for note in model.notes) != is_bare


def test_pickle_protocols_and_safetensors_with_prefixes(states: tuple[State, State], tmp_path: Path):
    net, ema = states
    for protocol in (2, 3, 4, 5):
        torch.save({"model": net, "ema": ema, **beside()}, tmp_path / "x.pt", pickle_protocol=protocol)
        assert equal(weights(open_model(tmp_path / "x.pt", HINTS)), own(ema))
    save_file({**prefixed("model.", net), **prefixed("ema.", ema)}, tmp_path / "x.safetensors")
    assert equal(weights(open_model(tmp_path / "x.safetensors", HINTS)), own(ema))
    assert equal(weights(open_model(tmp_path / "x.safetensors", HINTS, "model")), own(net))


def test_several_candidates_are_listed(states: tuple[State, State], tmp_path: Path):
    net, ema = states
    torch.save({"model": net, "ema_0.999": ema, "ema_0.9999": net}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=r"contains ema_0.999, ema_0.9999, model; choose one with --weights"):
        open_model(tmp_path / "x.pt", HINTS)
    assert equal(weights(open_model(tmp_path / "x.pt", HINTS, "ema_0.999")), own(ema))
    assert equal(weights(open_model(tmp_path / "x.pt", HINTS, "model")), own(net))


# The label table: 5 classes of `config`, with a null label (6 rows) or without (5).


def without_null_row(state: State, rows: int = 5) -> State:
    key = "y_embedder.embedding_table.weight"
    return {**state, key: state[key][:rows].clone()}


@pytest.mark.parametrize(
    ("rows", "hints", "args", "num_classes", "has_null"),
    [
        (6, {"num_classes": 5}, {}, 5, True),
        (5, {"num_classes": 5}, {}, 5, False),
        (6, {}, {"num_classes": 5}, 5, True),
        (5, {}, {"num_classes": 5}, 5, False),
        (5, {"num_classes": 4}, {"num_classes": 5}, 4, True),  # the user knows better
        (5, {}, {"class_dropout_prob": 0.0}, 5, False),
        (5, {}, {"class_dropout_prob": 0.1}, 4, True),
        (5, {}, {}, 5, False),  # not stated: no image is guided away from a class
        (6, {}, {}, 6, False),
        (1, {}, {}, 1, False),
        (11, {}, {}, 10, True),
        (10, {}, {}, 10, False),
        (1001, {}, {}, 1000, True),
        (1000, {}, {}, 1000, False),
    ],
)
def test_what_the_label_table_holds(
    rows: int, hints: dict[str, int], args: dict[str, Any], num_classes: int, has_null: bool, tmp_path: Path
):
    state = without_null_row(official_state(random_dit(config(num_classes=max(rows, 2)))), rows)
    torch.save({"ema": state, "args": argparse.Namespace(**args)}, tmp_path / "x.pt")
    model = open_model(tmp_path / "x.pt", Hints(heads=HEADS, **hints))
    shape = model.config.model
    assert (shape.num_classes, shape.has_null_label) == (num_classes, has_null)
    assert model.config.sample.guidance == (ClassifierFree(scale=4.0 if has_null else 1.0, channels=3),)
    notes = " ".join(model.notes)
    assert ("without guidance only" in notes) == (not has_null)
    assert (f"pass --num-classes {rows - 1}" in notes) == (not hints and not args and rows in (5, 6))
    table = model.weights["label_embed.weight"].read()
    assert torch.equal(table[:rows], state["y_embedder.embedding_table.weight"])
    assert not table[rows:].any() and len(table) == num_classes + 1


@torch.no_grad()
def test_a_model_without_a_null_label_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture):
    """official -> scaledit -> official bit for bit, with the outputs of the network."""
    dit = random_dit(config())
    state = without_null_row(official_state(dit))
    torch.save(state, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "native", "--to", "scaledit", *OPTIONS)
    assert "5 classes and no null label: it can be sampled without guidance only" in capsys.readouterr().out
    convert(tmp_path / "native", tmp_path / "out.pt", "--to", "official")
    convert(tmp_path / "native", tmp_path / "diffusers", "--to", "diffusers")
    convert(tmp_path / "diffusers", tmp_path / "again.pt", "--to", "official")
    for name in ("out.pt", "again.pt"):
        assert equal(torch.load(tmp_path / name), state)
    x, t, y = torch.randn(5, 4, 8, 8), torch.full((5,), 500), torch.arange(5)
    assert torch.equal(load(tmp_path / "native", device="cpu").net(x, t, y), dit(x, t, y))
    with pytest.raises(UsageError, match="5 rows: 5 classes, or 4 classes and the null label, not 7"):
        open_model(tmp_path / "in.pt", Hints(heads=HEADS, num_classes=7))


def test_a_model_without_a_null_label_is_sampled_without_guidance_only(tmp_path: Path):
    torch.save(without_null_row(official_state(random_dit(config()))), tmp_path / "in.pt")
    with pytest.warns(UserWarning, match=r"in\.pt: the label table has 5 rows, and nothing says"):
        pipeline = load(tmp_path / "in.pt", device="cpu", hints=Hints(heads=HEADS))
    # What is sampled by default can be sampled.
    assert all(part.idle for part in pipeline.config.sample.guidance)
    assert pipeline.latents([4], pipeline.settings(steps=2)).shape == (1, *config().shape)
    with pytest.raises(UsageError, match="null label"):
        pipeline.latents([4], pipeline.settings(steps=2, cfg_scale=2.0))


# Values that are not finite.


def corrupt(state: State, key: str, value: float, count: int) -> State:
    tensor = state[key].clone()
    tensor.view(-1)[:count] = value
    return {**state, key: tensor}


def test_weights_that_are_not_finite_are_refused_by_name_or_kept(
    states: tuple[State, State], tmp_path: Path, capsys: pytest.CaptureFixture
):
    state = corrupt(states[0], "final_layer.linear.bias", torch.nan, 1)
    state = corrupt(state, "blocks.0.mlp.fc1.weight", torch.inf, 2)
    torch.save(state, tmp_path / "x.pt")
    message = r"2 of the 1024 values of blocks\.0\.mlp\.fc1\.weight are NaN or infinite, and so are"
    for to, out in (("scaledit", "a"), ("official", "a.pt"), ("diffusers", "a"), ("program", "a.pt2")):
        arguments = ["convert", str(tmp_path / "x.pt"), str(tmp_path / out), "--to", to, *OPTIONS]
        assert main(arguments) == 1
        assert "and so are values of 1 more tensor" in " ".join(capsys.readouterr().err.split())
        assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    with pytest.raises(RunError, match=message):
        load(tmp_path / "x.pt", hints=HINTS)
    convert(tmp_path / "x.pt", tmp_path / "kept", "--to", "scaledit", *OPTIONS, "--allow-nonfinite")
    assert "kept as they are: 2 of the 1024 values of blocks.0.mlp" in capsys.readouterr().out
    exported = load_file(tmp_path / "kept/model.safetensors")
    assert torch.equal(exported["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])
    with pytest.raises(RunError, match=message):
        load(tmp_path / "kept")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_kind_of_infinite_in_every_dtype(
    dtype: torch.dtype, states: tuple[State, State], tmp_path: Path
):
    state = {key: value.to(dtype) if key != "pos_embed" else value for key, value in states[0].items()}
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        torch.save(corrupt(state, "blocks.1.attn.proj.weight", value, 3), tmp_path / f"{i}.pt")
        with pytest.raises(RunError, match=r"3 of the 256 values of blocks\.1\.attn\.proj\.weight"):
            weights(open_model(tmp_path / f"{i}.pt", HINTS))
    torch.save(state, tmp_path / "fine.pt")
    assert len(weights(open_model(tmp_path / "fine.pt", HINTS))) == len(state) - 1


def test_weights_of_diffusers_folders_are_checked_too(states: tuple[State, State], tmp_path: Path):
    torch.save(states[0], tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "diffusers", "--to", "diffusers", *OPTIONS)
    file = tmp_path / "diffusers/transformer/diffusion_pytorch_model.safetensors"
    save_file(corrupt(load_file(file), "proj_out_2.bias", torch.nan, 1), file)
    with pytest.raises(RunError, match=r"1 of the 32 values of proj_out_2\.bias"):
        load(tmp_path / "diffusers")
    assert json.loads((tmp_path / "diffusers/scaledit.json").read_text())["step"] == 0
