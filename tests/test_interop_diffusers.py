"""The installed diffusers on exported folders: exact with scaledit's class, another function without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from layouts import OPTIONS, TOLERANCE, config, convert, distance, equal, inputs, official_state, random_dit
from scaledit import DiT, load
from scaledit.autoencoders.config import AutoencoderConfig
from scaledit.cli import main
from scaledit.diffusion import DDIM, ClassifierFree, LearnedRange, LinearBeta, NetDenoiser, sample
from scaledit.diffusion.parameterization import Epsilon
from scaledit.errors import UsageError
from scaledit.models.layers import time_frequencies
from scaledit.training.autoencoder_state import build

SHAPE = config(depth=3, width=32, num_classes=1000)
DIFFUSERS_EPS, DIFFUSERS_EXPONENTS = 1e-5, 127


@pytest.fixture(scope="module")
def dit() -> DiT:
    return random_dit(SHAPE)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """f4: 8x8 latents of 4 channels are 32x32 pixels."""
    path = tmp_path_factory.mktemp("autoencoder") / "vae"
    net = build(AutoencoderConfig(widths=(8, 8, 8)), 32, seed=0)
    net.register_to_config(scaling_factor=0.7)
    net.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folders(dit: DiT, autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """official, and converted from it: native, exact, plain."""
    folder = tmp_path_factory.mktemp("folders")
    torch.save(official_state(dit), folder / "official.pt")
    convert(
        folder / "official.pt",
        folder / "native",
        "--to",
        "scaledit",
        *OPTIONS[:2],
        "--autoencoder",
        autoencoder,
    )
    for name, more in (("exact", []), ("plain", ["--plain"])):
        convert(folder / "native", folder / name, "--to", "diffusers", *more, "--max-shard-size", "200KB")
    return folder


@torch.no_grad()
def test_the_exact_class_has_scaledits_outputs(dit: DiT, folders: Path):
    """Loaded three ways, none of which needs the network: a pipeline, AutoModel, the class in scaledit."""
    from diffusers import AutoModel, DiTPipeline

    from scaledit.interop.exact_diffusers import ExactDiTTransformer2DModel

    transformer = folders / "exact/transformer"
    nets: list[Any] = [
        DiTPipeline.from_pretrained(folders / "exact", trust_remote_code=True).transformer,
        AutoModel.from_pretrained(str(transformer), trust_remote_code=True),
        ExactDiTTransformer2DModel.from_pretrained(transformer),
    ]
    x, t, y = inputs(SHAPE)
    for net in nets:
        assert distance(net(x, timestep=t, class_labels=y).sample, dit(x, t, y)) <= TOLERANCE
    assert len(list(transformer.glob("*.safetensors"))) > 1  # in shards


class FixedNoise:
    def __init__(self, x: torch.Tensor):
        self.x = x

    def initial(self) -> torch.Tensor:
        return self.x

    def step(self, i: int) -> torch.Tensor:
        raise AssertionError("DDIM draws nothing")


@pytest.mark.parametrize("classes", [1000, 5])
def test_a_guided_loop_of_diffusers_pipeline(
    classes: int, dit: DiT, folders: Path, autoencoder: Path, tmp_path: Path
):
    """DiTPipeline, 20 guided DDIM steps and its VAE, against scaledit's sampler and decoder; also for
    fewer classes than the 1000 whose null label the pipeline always uses."""
    from diffusers import DiTPipeline

    folder, seed, y = folders, 3, [4, 0]
    if classes != 1000:
        dit, folder = random_dit(config(num_classes=classes)), tmp_path
        torch.save(official_state(dit), folder / "official.pt")
        autoencoded = ["--autoencoder", autoencoder]
        convert(folder / "official.pt", folder / "exact", "--to", "diffusers", *OPTIONS, *autoencoded)
    pipe: Any = DiTPipeline.from_pretrained(folder / "exact", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    images = pipe(y, guidance_scale=3.0, generator=generator, num_inference_steps=20, output_type="np").images
    z = torch.randn(2, *dit.config.shape, generator=torch.Generator().manual_seed(seed))
    denoiser = NetDenoiser(dit, LinearBeta(steps=1000), LearnedRange(Epsilon()))
    sampler = DDIM(steps=20, times="stride")  # type: ignore[arg-type]  # diffusers' times
    x = sample(ClassifierFree(denoiser, 3.0), sampler, FixedNoise(z), torch.tensor(y))
    decoder = load(folder / "exact", device="cpu").decoder
    assert decoder is not None
    native = (decoder(x) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert images.std() > 0.05
    assert np.abs(images - native).max() <= 2e-5


@torch.no_grad()
def test_diffusers_own_class_is_another_function_for_these_two_reasons(dit: DiT, folders: Path):
    """With /127 and eps 1e-5 scaledit's network is diffusers'; without, it is not."""
    from diffusers import DiTTransformer2DModel

    x, t, y = inputs(SHAPE)
    expected = dit(x, t, y)
    transformer = folders / "plain/transformer"
    plain: Any = DiTTransformer2DModel.from_pretrained(transformer)
    default: Any = DiTTransformer2DModel.from_pretrained(transformer, norm_eps=DIFFUSERS_EPS)
    nets = {"as exported": plain, "diffusers' default": default}
    outputs = {name: net(x, timestep=t, class_labels=y).sample for name, net in nets.items()}
    half = torch.arange(128)
    other = random_dit(SHAPE)
    frequencies = torch.exp(-np.log(10000.0) * half / DIFFUSERS_EXPONENTS).float()
    other.time_embed.frequencies = frequencies
    assert distance(other(x, t, y), outputs["as exported"]) <= 1e-5
    for block in other.blocks:
        block.norm2.eps = DIFFUSERS_EPS  # pyright: ignore[reportAttributeAccessIssue]
    assert distance(other(x, t, y), outputs["diffusers' default"]) <= 1e-5
    assert distance(outputs["as exported"], expected) > 0.05
    assert distance(outputs["diffusers' default"], outputs["as exported"]) > 0
    angles = 999 * time_frequencies(), 999 * frequencies
    a, b = (torch.cat([angle.cos(), angle.sin()]) for angle in angles)
    assert abs(float(torch.cosine_similarity(a, b, dim=0)) - 0.49) < 0.01


def test_the_difference_of_the_plain_layout_is_reported(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    arguments = ["convert", str(folders / "native"), str(tmp_path / "out"), "--to", "diffusers", "--plain"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["difference"]["output"] > 0.05
    assert report["difference"]["embedding"] < 0.99
    assert not (tmp_path / "out/transformer/exact_diffusers.py").exists()


def test_folders_of_diffusers_are_read(dit: DiT, folders: Path, autoencoder: Path, tmp_path: Path):
    """What diffusers itself saves: single or sharded, safetensors or .bin; with and without a pipeline."""
    from diffusers import DiTPipeline, DiTTransformer2DModel

    pipe: Any = DiTPipeline.from_pretrained(folders / "plain")
    pipe.save_pretrained(tmp_path / "pipeline")
    pipe.transformer.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    pipe.transformer.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    weights = load_file(folders / "native/model.safetensors")
    for name in ("pipeline", "sharded", "pickled"):
        convert(tmp_path / name, tmp_path / f"{name}-native", "--to", "scaledit")
        assert equal(load_file(tmp_path / f"{name}-native/model.safetensors"), weights)
    assert list((tmp_path / "pickled").glob("*.bin"))
    back = load(tmp_path / "pipeline-native", device="cpu")
    assert back.config.diffusion == load(folders / "native").config.diffusion
    assert back.decoder is not None and back.decoder.autoencoder_info.scale == 0.7
    net = DiTTransformer2DModel.from_pretrained(tmp_path / "sharded")
    with torch.no_grad():
        net.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight[3] += 1
    net.save_pretrained(tmp_path / "uneven")
    with pytest.raises(UsageError, match="differs from that of another block"):
        load(tmp_path / "uneven")


def test_a_converted_model_draws_pictures(folders: Path, autoencoder: Path, tmp_path: Path):
    """The command line on scaledit's folder and on diffusers', with the recorded autoencoder."""
    sampling = ["--classes", "3,7", "--per-class", "1", "--steps", "3", "--device", "cpu"]
    batches = {}
    for name in ("native", "exact"):
        out = tmp_path / f"{name}.npz"
        assert main(["sample", str(folders / name), *sampling, "--out", str(out)]) == 0
        batches[name] = np.load(out)["arr_0"]
    assert batches["native"].shape == (2, 32, 32, 3)
    assert np.abs(batches["native"].astype(int) - batches["exact"].astype(int)).max() <= 1
    official = [
        "sample",
        str(folders / "native"),
        *sampling,
        "--official-noise",
        "--out",
        str(tmp_path / "x.npz"),
    ]
    assert main(official) == 0
    origin = json.loads(str(np.load(tmp_path / "x.npz")["origin"]))
    assert origin["noise"] == "official sample.py"
    assert not np.array_equal(np.load(tmp_path / "x.npz")["arr_0"], batches["native"])


def test_what_diffusers_cannot_hold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    from safetensors.torch import save_file

    for changes, says in (
        ({"conditioning": "in_context"}, "supports adaLN-Zero models only"),
        ({"mlp_ratio": 2.0}, "MLP ratio"),
    ):
        shape = config(**changes)
        save_file(dict(random_dit(shape).state_dict()), tmp_path / "x.safetensors")
        options = [*OPTIONS, "--patch-size", "2", "--input-size", "8"]
        arguments = ["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "out"), "--to", "diffusers"]
        assert main([*arguments, *options]) == 2
        assert says in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors"]
