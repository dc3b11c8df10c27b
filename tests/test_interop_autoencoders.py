"""Autoencoders as the Hub has them: configs of old versions of diffusers, old names of weights."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from layouts import config as dit_config
from layouts import convert, official_state, random_dit
from scaledit.autoencoders import kl, open_autoencoder
from scaledit.errors import UsageError

OLD_CONFIG: dict[str, Any] = {  # as stabilityai/sd-vae-ft-mse has it, at small widths
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
OLD_NAMES = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


def old_names(state: dict[str, torch.Tensor], convolutions: bool) -> dict[str, torch.Tensor]:
    """Attention under its names before diffusers 0.15. convolutions: linear layers as 1x1 ones."""
    out = {}
    for key, value in state.items():
        if ".attentions." in key:
            for new, old in OLD_NAMES.items():
                key = key.replace(new, old)
            if convolutions and value.ndim == 2:
                value = value[:, :, None, None]
        out[key] = value.contiguous()
    return out


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as stabilityai/sd-vae-ft-mse is, with random weights."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("published") / "sd-vae"
    folder.mkdir()
    torch.manual_seed(0)
    net: Any = AutoencoderKL.from_config(OLD_CONFIG)
    state = old_names(net.state_dict(), convolutions=False)
    assert sum(".query." in key for key in state) == 4  # encoder and decoder, weight and bias
    save_file(state, folder / kl.WEIGHTS)
    (folder / kl.CONFIG).write_text(json.dumps(OLD_CONFIG))
    return folder


def test_the_published_autoencoders_open_as_in_diffusers(published: Path):
    from diffusers import AutoencoderKL

    own, net = open_autoencoder(str(published)), AutoencoderKL.from_pretrained(published)
    assert own.scale == net.config["scaling_factor"] == 0.18215
    assert (own.channels, own.downsampling) == (4, 4)
    x, z = torch.rand(1, 3, 16, 24) * 2 - 1, torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        moments, decoded = net.encode(x).latent_dist.parameters, net.decode(z / 0.18215).sample
    assert torch.equal(own.encode(x), moments)
    assert torch.equal(own.decode(z), decoded.clamp(-1, 1))
    assert moments.std() > 0.01


def test_old_names_and_convolutions_are_the_same_autoencoder(published: Path, tmp_path: Path):
    """The hash of the encoder, which latents are compared with, does not depend on the names of weights."""
    from diffusers import AutoencoderKL

    net: Any = AutoencoderKL.from_pretrained(published)
    net.save_pretrained(tmp_path / "today")
    save_file(old_names(net.state_dict(), convolutions=True), tmp_path / kl.WEIGHTS)
    (tmp_path / kl.CONFIG).write_text(json.dumps(OLD_CONFIG))
    hashes = {
        open_autoencoder(str(folder)).encoder_sha256 for folder in (published, tmp_path, tmp_path / "today")
    }
    assert len(hashes) == 1


def test_the_table_of_defaults_is_that_of_the_installed_diffusers():
    from diffusers import AutoencoderKL

    parameters = inspect.signature(AutoencoderKL.__init__).parameters
    assert {name: p.default for name, p in parameters.items() if name != "self"} == kl.DEFAULTS


def test_what_was_filled_in_is_said(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    torch.save(official_state(random_dit(dit_config())), tmp_path / "in.pt")
    options = ["--heads", 2, "--num-classes", 5, "--autoencoder", published]
    convert(tmp_path / "in.pt", tmp_path / "out", "--to", "scaledit", *options)
    output = " ".join(capsys.readouterr().out.split())
    assert output.count("does not say scaling_factor 0.18215: the default of diffusers' AutoencoderKL") == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers_per_block": 60_000}, "declares 180000 layers"),
        ({"layers_per_block": 10**9}, "layers_per_block must be a whole number from 1 to"),
        ({"block_out_channels": [8, 8, 65_536]}, "has the shape"),
        ({"block_out_channels": "8"}, "block_out_channels must be a list"),
        ({"latent_channels": None}, "latent_channels must be a whole number"),
        ({"scaling_factor": "nan"}, "scaling_factor must be a number above 0"),
        ({"norm_num_groups": 7}, "cannot be read as the config of an AutoencoderKL"),
        ({"down_block_types": ["os.system"] * 3}, "cannot be read as the config of an AutoencoderKL"),
        ({"act_fn": 3}, "cannot be read as the config of an AutoencoderKL"),
    ],
)
def test_a_config_that_makes_no_sense_is_one_sentence(
    changes: dict[str, object], says: str, published: Path, tmp_path: Path
):
    (tmp_path / kl.WEIGHTS).symlink_to(published / kl.WEIGHTS)
    (tmp_path / kl.CONFIG).write_text(json.dumps({**OLD_CONFIG, **changes}))
    with pytest.raises(UsageError, match=says) as caught:
        open_autoencoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused_by_name(published: Path, tmp_path: Path):
    state = load_file(published / kl.WEIGHTS)
    state["decoder.conv_out.bias"][1] = torch.nan
    save_file(state, tmp_path / kl.WEIGHTS)
    (tmp_path / kl.CONFIG).write_text(json.dumps(OLD_CONFIG))
    with pytest.raises(UsageError, match=r"not finite \(1 of the 3 in decoder\.conv_out\.bias\)"):
        open_autoencoder(str(tmp_path))
