"""The shape of a DiT and the paper's table of sizes (table 1); imports no torch.

T = (H / p) (W / p) tokens of width d, depth blocks
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from scaledit.errors import UsageError, did_you_mean

Conditioning = Literal["in_context", "cross_attention", "adaln", "adaln_zero"]
Position = Literal["sincos"]

# Paper, table 1: depth, hidden size, heads.
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
PATCHES = (2, 4, 8)
TIME_FREQUENCIES = 256  # length of the sinusoidal timestep embedding: half cosines, half sines
CONDITION_TOKENS = 2  # the time and the label, where a block design treats them as tokens
LATENT_CHANNELS = 4
LATENT_DOWNSAMPLING = 8
IMAGENET_CLASSES = 1000

MODEL_NAMES = tuple(f"DiT-{size}/{patch}" for size in SIZES for patch in PATCHES)


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a DiT; everything a checkpoint's tensors depend on.

    input_size: side of the square input, or (height, width); pixels or latents.
    patch_size: side of a patch; must divide both sides.
    num_classes: classes of the data, without the null label; 1 for an unconditional model.
    learn_sigma: whether the output has a second set of `in_channels` channels for the variance.
    conditioning: the paper's block design.
    class_dropout: fraction of labels replaced by the null label in training (`DiT.drop_labels`). 0: the null
        label was never trained, and the model can only be sampled without guidance (`has_null_label`).
    position: the position embedding; "sincos" is the paper's frozen table.

    Raises UsageError for sizes that do not fit together.
    """

    input_size: int | tuple[int, int]
    patch_size: int
    in_channels: int
    hidden_size: int
    depth: int
    num_heads: int
    num_classes: int
    learn_sigma: bool = True
    conditioning: Conditioning = "adaln_zero"
    mlp_ratio: float = 4.0
    class_dropout: float = 0.1
    position: Position = "sincos"

    def __post_init__(self) -> None:
        size = self.input_size
        if isinstance(size, list):  # from TOML or JSON
            size = tuple(size)
            object.__setattr__(self, "input_size", size)
        sides = size if isinstance(size, tuple) and len(size) == 2 else (size,)
        if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
            raise UsageError(f"model.input_size must be a whole number or (height, width), got {size!r}")
        for name in ("patch_size", "in_channels", "hidden_size", "depth", "num_heads", "num_classes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"model.{name} must be a whole number of at least 1, got {value!r}")
        for side in (self.height, self.width):
            if side < 1 or side % self.patch_size:
                raise UsageError(
                    f"model.patch_size {self.patch_size} does not divide the input size "
                    f"{self.height}x{self.width}; choose a patch size that divides both sides"
                )
        if self.hidden_size % self.num_heads:
            raise UsageError(
                f"model.num_heads {self.num_heads} does not divide model.hidden_size {self.hidden_size}; "
                f"choose heads that divide the width"
            )
        if self.hidden_size % 4:
            raise UsageError(
                f"model.hidden_size {self.hidden_size} is not divisible by 4, which the sin-cos position "
                f"table needs; use {max(4, round(self.hidden_size / 4) * 4)}"
            )
        if self.conditioning not in get_args(Conditioning):
            hint = did_you_mean(str(self.conditioning), get_args(Conditioning))
            raise UsageError(f"unknown model.conditioning {self.conditioning!r}{hint}")
        if self.position not in get_args(Position):
            hint = did_you_mean(str(self.position), get_args(Position))
            raise UsageError(f"unknown model.position {self.position!r}{hint}")
        if not 0 <= self.class_dropout <= 1:
            raise UsageError(f"model.class_dropout must lie in [0, 1], got {self.class_dropout}")
        if not (math.isfinite(self.mlp_ratio) and int(self.hidden_size * self.mlp_ratio) >= 1):
            raise UsageError(f"model.mlp_ratio {self.mlp_ratio} leaves the MLP without a hidden unit; use 4")

    @property
    def has_null_label(self) -> bool:
        """Whether the null label is trained, so that classifier-free guidance has something to guide away
        from."""
        return self.class_dropout > 0

    @property
    def height(self) -> int:
        return self.input_size if isinstance(self.input_size, int) else self.input_size[0]

    @property
    def width(self) -> int:
        return self.input_size if isinstance(self.input_size, int) else self.input_size[1]

    @property
    def tokens(self) -> int:
        """Patches of one image: the sequence length, without in-context's two condition tokens."""
        return (self.height // self.patch_size) * (self.width // self.patch_size)

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one input."""
        return self.in_channels, self.height, self.width

    @classmethod
    def named(cls, name: str, image_size: int = 256, **changes: object) -> DiTConfig:
        """One of the paper's twelve, `DiT-{S,B,L,XL}/{2,4,8}`, on the latents of an f8 autoencoder.

        image_size is in pixels and must be divisible by 8 times the patch size.
        """
        if name not in MODEL_NAMES:
            raise UsageError(f"unknown model {name!r}{did_you_mean(name, MODEL_NAMES)}")
        if image_size % LATENT_DOWNSAMPLING:
            raise UsageError(
                f"image_size {image_size} is not divisible by {LATENT_DOWNSAMPLING}, the downsampling "
                f"of the paper's autoencoder"
            )
        size, patch = name.removeprefix("DiT-").split("/")
        depth, hidden_size, num_heads = SIZES[size]
        config = cls(
            input_size=image_size // LATENT_DOWNSAMPLING,
            patch_size=int(patch),
            in_channels=LATENT_CHANNELS,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            num_classes=IMAGENET_CLASSES,
        )
        return replace(config, **changes)  # type: ignore[arg-type]  # checked by __post_init__
