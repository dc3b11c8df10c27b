"""Checkpoints of other programs: bit for bit in and out, with the same outputs and the same images."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from layouts import (
    HEADS,
    OPTIONS,
    TOLERANCE,
    config,
    convert,
    distance,
    equal,
    inputs,
    official_state,
    outputs,
    random_dit,
)
from scaledit import DiT, DiTConfig, assemble, load
from scaledit.cli import main
from scaledit.diffusion import (
    DDPM,
    ClassifierFree,
    Epsilon,
    LearnedRange,
    LinearBeta,
    NetDenoiser,
    Noise,
    OfficialNoise,
    Simple,
    sample,
)
from scaledit.errors import RunError, UsageError
from scaledit.interop import official, program
from scaledit.interop.convert import open_model
from scaledit.interop.infer import Hints
from scaledit.interop.lazy_tensors import Lazy
from scaledit.interop.pickled import open_pickled
from scaledit.models.config import SIZES
from scaledit.models.shapes import shapes

SHAPES = {
    **{size: config(depth=depth) for size, (depth, _, _) in SIZES.items()},
    "S/8": DiTConfig.named("DiT-S/8", image_size=256),
}


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_official_and_diffusers_there_and_back(name: str, tmp_path: Path):
    """official -> scaledit -> official and scaledit -> diffusers -> scaledit, with the outputs of each."""
    shape = SHAPES[name]
    dit = random_dit(shape)
    state, expected = official_state(dit), dit(*inputs(shape))
    torch.save(state, tmp_path / "in.pt")
    heads = [] if name == "S/8" else OPTIONS  # a size of the paper's is recognized
    convert(tmp_path / "in.pt", tmp_path / "native", "--to", "scaledit", *heads)
    convert(tmp_path / "native", tmp_path / "out.pt", "--to", "official")
    assert equal(torch.load(tmp_path / "out.pt"), state)
    convert(tmp_path / "native", tmp_path / "diffusers", "--to", "diffusers")
    convert(tmp_path / "diffusers", tmp_path / "back", "--to", "scaledit")
    assert equal(
        load_file(tmp_path / "back/model.safetensors"), load_file(tmp_path / "native/model.safetensors")
    )
    for folder in ("native", "diffusers", "back"):
        assert distance(outputs(tmp_path / folder, shape), expected) <= TOLERANCE
    assert load(tmp_path / "back").source["name"] == "in.pt"


@torch.no_grad()
def test_a_trainers_checkpoint_and_wrapped_keys(tmp_path: Path):
    """model, ema, opt and args as the official trainer and fast-DiT write them; DDP's prefix; fp16."""
    first, second = random_dit(config(), 0), random_dit(config(), 1)
    optimizer = torch.optim.AdamW(second.parameters(), lr=0)
    with torch.enable_grad():
        second(*inputs(config())).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": {f"module.{key}": value.half() for key, value in official_state(first).items()},
        "ema": official_state(second),
        "opt": optimizer.state_dict(),
        "args": argparse.Namespace(model="mine", image_size=64, num_classes=5, global_batch_size=256),
    }
    torch.save(checkpoint, tmp_path / "train.pt")
    for kind, dit in (("ema", second), ("model", first.half().float())):
        convert(tmp_path / "train.pt", tmp_path / kind, "--to", "scaledit", "--weights", kind, *OPTIONS)
        pipeline = load(tmp_path / kind)
        assert equal(dict(pipeline.net.state_dict()), dict(dit.state_dict()))
        assert pipeline.origin["weights"] == kind
        assert pipeline.source["image_size"] == 64
    weights = load_file(tmp_path / "model/model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_a_flipped_bit_of_a_pt_is_noticed(tmp_path: Path):
    """By the archive's CRC-32, which torch.load ignores; a file saved without CRCs opens unchecked."""
    path, state = tmp_path / "dit.pt", official_state(random_dit(config(), 0))
    torch.save(state, path)
    name, value = max(state.items(), key=lambda item: item[1].numel())
    data = path.read_bytes()
    at = data.index(value.numpy().tobytes()) + 4 * (value.numel() // 2)
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    lazy = open_pickled(path).parts[""][name]
    with pytest.raises(RunError, match=rf"dit\.pt is corrupt: {re.escape(name)} does not match its CRC-32"):
        lazy.read()
    at = data.index(b"x_embedder")
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(RunError, match=r"data\.pkl does not match its CRC-32"):
        open_pickled(path)
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(open_pickled(path).parts[""][name].read(), value)


def test_what_is_inferred_and_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture):
    dit = random_dit(config(depth=3, input_size=(6, 4), learn_sigma=False, mlp_ratio=2.0))
    torch.save(official_state(dit), tmp_path / "odd.pt")
    assert main(["convert", str(tmp_path / "odd.pt"), str(tmp_path / "x"), "--to", "scaledit"]) == 2
    assert "convert them with --heads N" in capsys.readouterr().err
    inferred = open_model(tmp_path / "odd.pt", Hints(heads=HEADS, num_classes=5)).config
    assert inferred.model == dit.config
    assert inferred.diffusion.objective == Simple()
    with pytest.raises(UsageError, match=r"not DiT-XL/2: 3 blocks of width 16"):
        open_model(tmp_path / "odd.pt", Hints("DiT-XL/2"))
    with pytest.raises(UsageError, match="did you mean 'DiT-XL/2'"):
        Hints("DiT-XL2")
    other = random_dit(config(conditioning="adaln"))
    save_file(dict(other.state_dict()), tmp_path / "own.safetensors")
    hints = Hints(heads=HEADS, patch_size=2, input_size=8)
    assert open_model(tmp_path / "own.safetensors", hints).config.model == other.config
    for conditioning in ("in_context", "cross_attention"):
        dit = random_dit(config(conditioning=conditioning))
        save_file(dict(dit.state_dict()), tmp_path / f"{conditioning}.safetensors")
        assert open_model(tmp_path / f"{conditioning}.safetensors", hints).config.model == dit.config


@pytest.fixture(scope="module")
def pixel_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import TINY

    out = tmp_path_factory.mktemp("interop") / "run"
    assert main(["train", "digits", "--out", str(out), *TINY, "train.steps=4", "checkpoint.every=4"]) == 0
    return out


def test_a_run_is_exported_and_draws_the_same(pixel_run: Path, tmp_path: Path):
    """The card states recipe, data, metrics with protocol, and hash; every changed byte is noticed."""
    result = {"name": "x", "fd_digits": 6.5, "fd_digits_std": 1.0, "protocol": {"n": 500}, "warnings": []}
    (tmp_path / "result.json").write_text(json.dumps(result))
    convert(pixel_run, tmp_path / "out", "--to", "scaledit", "--metrics", tmp_path / "result.json")
    run, exported = load(pixel_run), load(tmp_path / "out")
    assert exported.config == run.config
    assert np.array_equal(run([3, 1], seed=5), exported([3, 1], seed=5))
    exported.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "out/model.safetensors"
    ).read_bytes()
    card = (tmp_path / "out/README.md").read_text()
    sha256 = exported.origin["sha256"]
    for part in ("scaledit train digits", "model.hidden_size=16", "data: digits", "| fd_digits | 6.5 | 1 |"):
        assert part in card
    assert '{"n": 500}' in card and sha256 in card and exported.origin["step"] == 4
    config_file, weights = tmp_path / "out/config.json", tmp_path / "out/model.safetensors"
    config_file.write_text(config_file.read_text().replace('"seed": 0', '"seed": 2'))
    with pytest.raises(RunError, match=r"config.json was changed"):
        load(tmp_path / "out")
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    (tmp_path / "again/model.safetensors").write_bytes(data)
    with pytest.raises(RunError, match="does not match its SHA-256"):
        load(tmp_path / "again")
    weights.write_bytes(weights.read_bytes()[:-1])
    config_file.write_text(config_file.read_text().replace('"seed": 2', '"seed": 0'))
    with pytest.raises(RunError, match="bytes instead of"):
        load(tmp_path / "out")


@torch.no_grad()
def test_an_exported_program_samples_the_same(tmp_path: Path):
    """torch.export, saved and loaded: every batch size, including 1; a guided loop through it."""
    dit = random_dit(config())
    torch.save(official_state(dit), tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "out.pt2", "--to", "program", *OPTIONS)
    with pytest.raises(UsageError, match="loading it runs its author's code; pass trusted=True"):
        program.load(tmp_path / "out.pt2")
    net = program.load(tmp_path / "out.pt2", trusted=True)
    x, t, y = inputs(config())
    for n in (1, 2, 4):
        assert distance(net(x[:n], t[:n].float(), y[:n]), dit(x[:n], t[:n], y[:n])) <= TOLERANCE
    for call in (lambda: net(x, t, None), lambda: net(x, t, y, t), lambda: net(x, t, y, hidden=[1])):
        with pytest.raises(UsageError, match="accepts x, t and a tensor of labels y, but no other"):
            call()
    with pytest.raises(UsageError, match=r"accepts inputs of shape \(N, 4, 8, 8\), got"):
        net(x[..., 1:], t, y)
    with pytest.raises(UsageError, match="this model has a second time"):
        program.save(DiT(config(second_time=True)), tmp_path / "second.pt2")
    images = []
    for network in (net, dit):
        denoiser = NetDenoiser(network, LinearBeta(), LearnedRange(Epsilon()))
        noise = Noise(0, range(3), config().shape)
        images.append(sample(ClassifierFree(denoiser, 2.0, channels=3), DDPM(steps=5), noise, y[:3]))
    assert distance(*images) <= 1e-5
    with pytest.raises(UsageError, match="is not a program"):
        program.load(tmp_path / "in.pt", trusted=True)


def test_sit_is_read_as_a_flow(tmp_path: Path):
    """An Euler step from noise equals one of SiT's, by the paper's formulas; and back to its layout."""
    dit = random_dit(config(depth=12, hidden_size=384, num_heads=6, patch_size=8, input_size=16))
    state = official_state(dit)
    torch.save(state, tmp_path / "sit.pt")
    convert(tmp_path / "sit.pt", tmp_path / "native", "--to", "scaledit", "--model", "SiT-S/8")
    pipeline = load(tmp_path / "native")
    x, y = torch.randn(2, 4, 16, 16), [1, 3]
    denoiser = assemble.denoiser(pipeline.config.diffusion, pipeline.net)
    with torch.no_grad():
        for t in (1.0, 0.7, 0.01):
            velocity = dit(x, torch.full((2,), 1 - t), torch.tensor(y))[:, :4]  # x_0 - eps, at s = 1 - t
            prediction = denoiser(x, torch.tensor(t), torch.tensor(y))
            assert distance(prediction.x0 - prediction.eps, velocity) <= 1e-6
            assert distance((1 - t) * prediction.x0 + t * prediction.eps, x) <= 1e-6
    convert(tmp_path / "native", tmp_path / "back.pt", "--to", "official")
    back = torch.load(tmp_path / "back.pt")
    used = torch.arange(64 * 8).reshape(64, 8)[:, :4].flatten()  # p, p, 2C: the channels that SiT uses
    for key, value in state.items():
        if key.startswith("final_layer.linear"):
            assert torch.equal(back[key][used], value[used])
        else:
            assert torch.equal(back[key], value)


def official_pictures(net: DiT, classes: list[int], seed: int, steps: int, scale: float) -> np.ndarray:
    """The official sample.py by its description: one doubled batch, with numbers of the global generator."""
    torch.manual_seed(seed)
    n, shape = len(classes), net.config.shape
    z = torch.randn(n, *shape)
    x = torch.cat([z, z])
    y = torch.tensor(classes + [net.null_label] * n)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = [round(i * 999 / (steps - 1)) for i in range(steps)]
    abar_of = np.append(1.0, abar[times])  # entry i + 1 is that of step i
    beta = 1 - abar_of[1:] / abar_of[:-1]
    posterior = beta * (1 - abar_of[:-1]) / (1 - abar_of[1:])
    low = np.log(np.append(posterior[1], posterior[1:]))
    for i in reversed(range(steps)):
        half = x[:n]
        with torch.no_grad():
            out = net(torch.cat([half, half]), torch.full((2 * n,), times[i]), y)
        eps, rest = out[:, :3], out[:, 3:]
        guided = eps[n:] + scale * (eps[:n] - eps[n:])
        eps = torch.cat([torch.cat([guided, guided]), rest[:, :1]], dim=1)
        fraction = (rest[:, 1:] + 1) / 2
        log_variance = fraction * np.log(beta[i]) + (1 - fraction) * low[i]
        x0 = (x - np.sqrt(1 - abar_of[i + 1]) * eps) / np.sqrt(abar_of[i + 1])
        mean = beta[i] * np.sqrt(abar_of[i]) / (1 - abar_of[i + 1]) * x0
        mean = mean + (1 - abar_of[i]) * np.sqrt(1 - beta[i]) / (1 - abar_of[i + 1]) * x
        noise = torch.randn_like(x)  # at the last step too
        x = mean + (noise * torch.exp(0.5 * log_variance) if i else 0)
    return x[:n].numpy()


@pytest.mark.parametrize("scale", [4.0, 1.5])
def test_the_official_samplers_pictures(scale: float, tmp_path: Path):
    dit = random_dit(config())
    torch.save(official_state(dit), tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "native", "--to", "scaledit", *OPTIONS)
    classes, seed, steps = [3, 0, 4], 7, 12
    expected = official_pictures(dit, classes, seed, steps, scale)
    pipeline = load(tmp_path / "native").with_official_noise()
    settings = pipeline.settings(seed, steps=steps, cfg_scale=scale)
    latents = pipeline.latents(classes, settings, batch_size=2)  # one batch whatever batch_size is
    assert np.abs(latents.numpy() - expected).max() <= 2e-5 * np.abs(expected).max()
    direct = load(tmp_path / "in.pt", hints=Hints(heads=HEADS, num_classes=5)).with_official_noise()
    assert torch.equal(direct.latents(classes, settings), latents)
    keyed = load(tmp_path / "native").latents(classes, settings)
    assert np.abs(keyed.numpy() - expected).max() > 0.1 * np.abs(expected).max()
    with pytest.raises(UsageError, match="so start must be 0"):
        pipeline.latents(classes, settings, start=3)
    with pytest.raises(UsageError, match="choose one with --decoder"):
        pipeline(classes, seed=seed)
    with pytest.raises(ValueError, match="in order"):
        OfficialNoise(0, 1, (1,)).step(3)
    plain = OfficialNoise(seed, 2, (3,), doubled=False)
    torch.manual_seed(seed)
    assert all(torch.equal(x, torch.randn(2, 3)) for x in (plain.initial(), plain.step(0), plain.step(1)))


def test_the_hub_is_asked_only_with_an_id(
    pixel_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """A mistyped path is not an id; under HF_HUB_OFFLINE an id is looked up in the cache only."""
    commit = "0" * 40
    cache = tmp_path / "cache/models--someone--digits"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(commit)
    load(pixel_run).save_pretrained(cache / "snapshots" / commit)
    code = (
        "import sys, scaledit\n"
        "from scaledit.errors import RunError, UsageError\n"
        "print(scaledit.load('someone/digits').origin['step'])\n"
        "for call in (lambda: scaledit.load('someone/else'), lambda: scaledit.load(sys.argv[1]),\n"
        "             lambda: scaledit.load('hf://someone/digits').push_to_hub('someone/new')):\n"
        "    try: call()\n"
        "    except (UsageError, RunError) as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(pixel_run / "no")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    step, missing, mistyped, refused = done.stdout.splitlines()
    assert step == "4"
    assert "does not exist on this machine, and the Hub did not provide it" in missing
    assert mistyped == f"{pixel_run / 'no'} does not exist"
    assert refused == "someone/new was not uploaded, because HF_HUB_OFFLINE is set"
    monkeypatch.chdir(pixel_run.parent)
    assert main(["sample", "run/typo", "--out", "x.png"]) == 2
    assert "run/typo does not exist" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("to", ["scaledit", "official"])
def test_xl_2_is_converted_in_less_than_1_6_times_its_size(to: str, tmp_path: Path):
    """675 M parameters, 2.7 GB; 5.4 GB of disk. Peak memory of the whole command, torch included."""
    shape = DiTConfig.named("DiT-XL/2")
    state = {
        key: torch.from_numpy(lazy.read().numpy()) if key == "pos_embed" else torch.zeros(lazy.shape)
        for key, lazy in official.to_official(
            {key: Lazy("F32", size, lambda: torch.empty(0)) for key, size in shapes(shape).items()}, shape
        ).items()
    }
    torch.save(state, tmp_path / "xl2.pt")
    del state
    code = (
        "import sys; from scaledit import progress; from scaledit.cli import main\n"
        "from scaledit.machine import peak_memory\n"
        "progress.SHORTEST = progress.LONGEST = 0\n"  # a line at every call, however fast the disk is
        "assert main(sys.argv[1:]) == 0\n"
        "print(peak_memory())"
    )
    out = tmp_path / ("out.pt" if to == "official" else "out")
    arguments = ["convert", str(tmp_path / "xl2.pt"), str(out), "--to", to]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 1.6 * (tmp_path / "xl2.pt").stat().st_size
    assert "674,834,720 parameters" in done.stdout
    assert "converting, MB" in done.stderr
