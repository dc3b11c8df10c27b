"""The Inception network of 2015-12-05, on which FID, sFID and the Inception Score are defined.

    uint8  --TF1 bilinear to 299-->  (x - 128)/128  -->  stem, A A A, B, C C C C, D, E E'  --mean-->  pool

    pool     (N, 2048)  pool_3                                                  FID, KID, precision, recall
    spatial  (N, 2023)  mixed_6/conv: the first 7 channels of 17 x 17, H W C    sFID (Nash et al. 2021)
    logits   (N, 1008)  pool times the last layer's weights, without its bias   Inception Score

Szegedy et al. 2015 (arXiv:1512.00567), as frozen in TensorFlow's inception-2015-12-05 graph: average pools
do not count the padding, and the last pool takes the maximum. Parameters have torchvision's names.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, linear, max_pool2d, relu
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scaledit.errors import UsageError, near_path
from scaledit.files.cache import user_cache
from scaledit.files.manifest import sha256_of

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SOURCE = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAME}"
VARIABLE = "SCALEDIT_INCEPTION"
LARGEST_FILE = 512 * 1024**2
"""Bytes; the known file has 96 MB."""

SIDE = 299
SPATIAL_CHANNELS = 7
RESIZE = f"TF1 bilinear to {SIDE}x{SIDE}, no half-pixel centers, no antialiasing"


Size = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution without bias, batch normalization (eps 1e-3), ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel_size: Size, stride: int = 1, padding: Size = 0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)), inplace=True)


def _mean3(x: Tensor) -> Tensor:
    """3x3 average of the same size; TensorFlow does not count the padding."""
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35."""

    def __init__(self, inputs: int, pooled: int):
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1 = Conv(inputs, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean3(x))], dim=1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """17 x 17, with 7x7 kernels factored into 1x7 and 7x1."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1 = Conv(inputs, width, 1)
        self.branch7x7_2 = Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = Conv(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = Conv(inputs, width, 1)
        self.branch7x7dbl_2 = Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = Conv(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean3(x))], dim=1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1 = Conv(inputs, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(inputs, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """8 x 8. pool_maximum: the pool of the last block takes the maximum, a slip frozen into the graph."""

    def __init__(self, inputs: int, pool_maximum: bool):
        super().__init__()
        self.pool_maximum = pool_maximum
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = max_pool2d(x, 3, stride=1, padding=1) if self.pool_maximum else _mean3(x)
        branches = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        branches += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(branches, dim=1)


class Inception(nn.Module):
    """The network with random weights; `load` loads trained ones. Always used in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = BlockA(192, pooled=32)
        self.Mixed_5c = BlockA(256, pooled=64)
        self.Mixed_5d = BlockA(288, pooled=64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, width=128)
        self.Mixed_6c = BlockC(768, width=160)
        self.Mixed_6d = BlockC(768, width=160)
        self.Mixed_6e = BlockC(768, width=192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, pool_maximum=False)
        self.Mixed_7c = BlockE(2048, pool_maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (N, 3, H, W) uint8 (or float in 0..255), of any size -> {"pool", "spatial", "logits"}."""
        x = (resize(images.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pool = x.mean(dim=(2, 3))
        spatial = spatial.permute(0, 2, 3, 1).flatten(1)
        return {"pool": pool, "spatial": spatial, "logits": linear(pool, self.fc.weight)}


def resize(x: Tensor, side: int = SIDE) -> Tensor:
    """(N, C, H, W) -> (N, C, side, side), as TensorFlow 1's ResizeBilinear with align_corners=False: output
    pixel i lies at i * H / side of the input, interpolated linearly between the two nearest pixels."""
    for axis in (3, 2):
        size = x.shape[axis]
        at = torch.arange(side, device=x.device, dtype=torch.float32) * torch.tensor(size / side)
        low = at.floor().long()
        high = (low + 1).clamp(max=size - 1)
        weight = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        below, above = x.index_select(axis, low), x.index_select(axis, high)
        x = below + (above - below) * weight
    return x


def fused(network: Inception) -> Inception:
    """A copy with batch normalization fused into the convolutions: the same function to 1e-6 in two thirds of
    the time (docs/log.md)."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, Conv):
            module.conv = fuse_conv_bn_eval(module.conv, cast(nn.BatchNorm2d, module.bn))
            module.bn = nn.Identity()
    return network


class InceptionExtractor:
    """images (N, 3, H, W) uint8 -> {"pool", "spatial", "logits"}, float32 on the CPU."""

    name = "inception-2015-12-05"
    resize = RESIZE

    def __init__(self, network: Inception, sha256: str, device: torch.device | str = "cpu"):
        self.network = fused(network).to(device)
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.sha256 = sha256
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        return {name: value.cpu() for name, value in self.network(images).items()}


def find_weights(path: str | Path | None = None) -> Path:
    """The file of weights: `path`, else that of the environment variable SCALEDIT_INCEPTION, else the known
    file in the user's cache of scaledit or of torch.hub. Nothing is downloaded.

    Raises UsageError saying where to get it and where to put it.
    """
    named = path or os.environ.get(VARIABLE)
    if named:
        file = Path(named).expanduser()
        if file.is_file():
            return file
        source = "--inception" if path else f"the environment variable {VARIABLE}"
        raise UsageError(
            f"{source} is set to {file}, which does not exist{near_path(file)}; download it from {SOURCE}"
        )
    for place in _places():
        if place.is_file():
            return place
    raise UsageError(
        "FID, sFID and the Inception Score need the Inception weights, which are missing: download "
        f"{SOURCE} (96 MB) to {_places()[0]}, or name the file with --inception"
    )


def is_found() -> bool:
    """Whether the weights are in one of the places where they are looked for without being named."""
    return any(place.is_file() for place in _places())


def _places() -> list[Path]:
    return [user_cache() / FILE_NAME, Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME]


def load(
    weights_path: str | Path | None = None, verify: bool = True, device: torch.device | str = "cpu"
) -> InceptionExtractor:
    """The extractor with the weights of a file (.pth of tensors, or .safetensors; see `find_weights`).

    verify=False accepts weights whose SHA-256 is not the known one; the protocol records their hash. Raises
    UsageError for a missing file, another hash, or the weights of another network.
    """
    path = find_weights(weights_path)
    if path.stat().st_size > LARGEST_FILE:
        raise UsageError(f"{path} has {path.stat().st_size / 1e6:.0f} MB; the Inception weights have 96")
    sha256 = sha256_of(path)
    if verify and sha256 != SHA256:
        raise UsageError(
            f"{path} has SHA-256 {sha256[:8]}..., but the known Inception weights have {SHA256[:8]}..., so "
            f"its metrics could not be compared with others; download {SOURCE}, or accept this file with "
            "--any-inception (verify=False)"
        )
    network = Inception()
    _fill(network, _read(path), path)
    return InceptionExtractor(network, sha256, device)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Nothing but tensors is ever unpickled."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many types for other files
        reason = str(error).partition("\n")[0][:120]
        raise UsageError(f"{path} cannot be read as a file of tensors: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} contains no state dict (a table of tensors)")
    return state


def _fill(network: Inception, weights: dict[str, Tensor], path: Path) -> None:
    """Raises UsageError unless names and shapes of the weights are Inception's."""
    expected, actual = (
        {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        for state in (network.state_dict(), weights)
    )
    for key in sorted(expected.keys() | actual.keys()):
        have, want = (tuple(x[key].shape) if key in x else "nothing" for x in (actual, expected))
        if have != want:
            raise UsageError(
                f"{path} belongs to another network: its {key} is {have}, but Inception has {want}"
            )
    network.load_state_dict(actual, strict=False)
