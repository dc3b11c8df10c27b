"""The config of a DiT and the paper's model sizes (table 1). Imports no torch.

T = (H / p) (W / p) tokens of width d, depth blocks
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from scaledit import part
from scaledit.errors import UsageError, did_you_mean
from scaledit.models import switches
from scaledit.models.blocks import Block
from scaledit.models.conditioners import Conditioner
from scaledit.models.mlps import MLP
from scaledit.models.norms import Norm
from scaledit.models.patch_embeds import PatchEmbed
from scaledit.models.positions import Position
from scaledit.models.time_embeddings import TimeEmbedding
from scaledit.values import check_bounds, field, is_written

# Paper, table 1: depth, hidden size, heads.
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
PATCHES = (2, 4, 8)
LATENT_CHANNELS = 4
LATENT_DOWNSAMPLING = 8
IMAGENET_CLASSES = 1000

MODEL_NAMES = tuple(f"DiT-{size}/{patch}" for size in SIZES for patch in PATCHES)
PARTS = {
    "conditioning": Block,
    "position": Position,
    "conditioner": Conditioner,
    "time_embedding": TimeEmbedding,
    "norm": Norm,
    "mlp": MLP,
    "patch_embed": PatchEmbed,
}
"""Fields of a config that are parts, with their kinds."""

Kind = TypeVar("Kind", bound=part.Part)


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a DiT: everything that a checkpoint's tensors depend on.

    The fields in `PARTS` are parts: a name, MODULE:CLASS, a table with its fields, or the part itself. A
    built-in part with default fields is stored as its name. Raises UsageError if the sizes are inconsistent,
    or a field has no effect on the block design."""

    input_size: int | tuple[int, int] = field(
        doc="side of the square input, or [height, width], in pixels or latents"
    )
    patch_size: int = field(ge=1, doc="side of a patch; divides both sides of the input")
    in_channels: int = field(ge=1, doc="channels of the input")
    hidden_size: int = field(ge=1, doc="width of the tokens")
    depth: int = field(ge=1, doc="number of blocks")
    num_heads: int = field(ge=1, doc="number of attention heads; divides hidden_size")
    num_classes: int = field(
        ge=1, doc="number of classes without the null label; 1 for an unconditional model"
    )
    learn_sigma: bool = field(True, doc="whether the output has in_channels more channels, for the variance")
    conditioning: Block | str = field("adaln_zero", doc="block design; adaln_zero is the paper's final one")
    mlp_ratio: float = field(4.0, gt=0, doc="width of the MLP divided by hidden_size")
    class_dropout: float = field(
        0.1,
        ge=0,
        le=1,
        doc="fraction of labels replaced by the null label in training; 0 leaves it untrained, which rules "
        "out guidance",
    )
    position: Position | str = field("sincos", doc="position encoding; sincos is the paper's frozen table")
    conditioner: Conditioner | str = field(
        "labels", doc="embedding of the conditions; labels is the paper's table of classes", added=True
    )
    second_time: bool = field(
        False,
        doc="whether the network accepts a second time, DiT(config)(x, t, y, second=s); its embedding is "
        "added to that of the first",
        added=True,
    )
    early_output: int = field(
        0,
        ge=0,
        doc="number of blocks after which a second final layer predicts too, for internal guidance (about a "
        "third of the depth); 0: none",
        added=True,
    )
    time_embedding: TimeEmbedding | str = field(
        "sinusoidal", doc="embedding of the times; sinusoidal is the paper's", added=True
    )
    norm: Norm | str = field(
        "layer", doc="norm of the blocks and of the final layer; layer is the paper's", added=True
    )
    mlp: MLP | str = field("gelu", doc="MLP of the blocks; gelu is the paper's", added=True)
    patch_embed: PatchEmbed | str = field(
        "linear", doc="from the numbers of a patch to a token; linear is the paper's", added=True
    )
    qk_norm: bool = field(
        False,
        doc="whether queries and keys are normalized per head by an RMSNorm with a learned scale, before "
        "they are rotated (Henry et al. 2020; Dehghani et al. 2023)",
        added=True,
    )
    value_residual: bool = field(
        False,
        doc="whether the values of each attention are mixed with those of the first block: l v_1 + (1 - l) "
        "v, with a learned l per block that starts at 0.5 (Zhou et al. 2024)",
        added=True,
    )
    registers: int = field(
        0,
        ge=0,
        doc="learned tokens in the sequence beside the patches, dropped at the end (Darcet et al. 2024)",
        added=True,
    )

    def __post_init__(self) -> None:
        size = self.input_size
        if isinstance(size, list):  # from TOML or JSON
            size = tuple(size)
            object.__setattr__(self, "input_size", size)
        sides = size if isinstance(size, tuple) and len(size) == 2 else (size,)
        if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
            raise UsageError(f"model.input_size must be a whole number or (height, width), got {size!r}")
        for name in (
            "patch_size",
            "in_channels",
            "hidden_size",
            "depth",
            "num_heads",
            "num_classes",
            "early_output",
            "registers",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"model.{name} must be a whole number, got {value!r}")
        check_bounds(self, "model.")
        for side in (self.height, self.width):
            if side < 1 or side % self.patch_size:
                raise UsageError(
                    f"model.patch_size {self.patch_size} does not divide the input size "
                    f"{self.height}x{self.width}; choose a patch size that divides both sides"
                )
        if self.hidden_size % self.num_heads:
            raise UsageError(
                f"model.num_heads {self.num_heads} does not divide model.hidden_size {self.hidden_size}; "
                f"choose a number of heads that divides it"
            )
        for name, kind in PARTS.items():
            object.__setattr__(self, name, _shortened(_part(kind, getattr(self, name), f"model.{name}")))
        if self.early_output >= self.depth:
            raise UsageError(
                f"model.early_output {self.early_output} must be less than model.depth {self.depth}, the "
                f"number of blocks; use {self.depth // 3}, or 0 for none"
            )
        for name in ("second_time", "qk_norm", "value_residual"):
            if not isinstance(value := getattr(self, name), bool):
                raise UsageError(f"model.{name} must be true or false, got {value!r}")
        self.position_part.fits(self)
        self.patch_embed_part.fits(self)
        if self.qk_norm and self.hidden_size == self.num_heads:
            raise UsageError(
                "model.qk_norm with heads of one channel leaves only the signs of queries and keys; choose "
                "fewer heads (model.num_heads), or leave it out"
            )
        if self.value_residual and self.depth == 1:
            raise UsageError(
                "model.value_residual hands the values of the first block to later ones, but model.depth is "
                "1; leave it out"
            )
        if self.mlp_hidden < 1:
            raise UsageError(f"model.mlp_ratio {self.mlp_ratio} leaves the MLP without hidden units; use 4")
        switches.check(self)

    @property
    def block(self) -> Block:
        """The block design."""
        return _part(Block, self.conditioning, "model.conditioning")

    @property
    def position_part(self) -> Position:
        return _part(Position, self.position, "model.position")

    @property
    def conditioner_part(self) -> Conditioner:
        return _part(Conditioner, self.conditioner, "model.conditioner")

    @property
    def time_embedding_part(self) -> TimeEmbedding:
        return _part(TimeEmbedding, self.time_embedding, "model.time_embedding")

    @property
    def norm_part(self) -> Norm:
        return _part(Norm, self.norm, "model.norm")

    @property
    def mlp_part(self) -> MLP:
        return _part(MLP, self.mlp, "model.mlp")

    @property
    def patch_embed_part(self) -> PatchEmbed:
        return _part(PatchEmbed, self.patch_embed, "model.patch_embed")

    def to_json(self) -> dict[str, Any]:
        """Plain values, with all fields of parts; `DiTConfig(**value)` is the inverse."""
        return {
            field.name: part.plain(value)
            for field in dataclasses.fields(self)
            if is_written(field, value := getattr(self, field.name))
        }

    @property
    def mlp_hidden(self) -> int:
        """Width of an MLP's hidden layer."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def has_null_label(self) -> bool:
        """Whether the null label is trained, as classifier-free guidance requires."""
        return self.class_dropout > 0

    @property
    def height(self) -> int:
        return self.input_size if isinstance(self.input_size, int) else self.input_size[0]

    @property
    def width(self) -> int:
        return self.input_size if isinstance(self.input_size, int) else self.input_size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches of one image: the sequence length without the condition tokens of in-context."""
        rows, columns = self.grid
        return rows * columns

    @property
    def sequence(self) -> int:
        """Tokens of one image in the blocks, patches and registers, without those of the condition."""
        return self.tokens + self.registers

    @property
    def patch_numbers(self) -> int:
        """Numbers of one patch of the input, C p p."""
        return self.in_channels * self.patch_size**2

    def at(self, height: int, width: int) -> DiTConfig:
        """The same model for inputs of another size. Raises UsageError if the patch size does not divide
        it."""
        return replace(self, input_size=height if height == width else (height, width))

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one input."""
        return self.in_channels, self.height, self.width

    @classmethod
    def named(cls, name: str, image_size: int = 256, **changes: object) -> DiTConfig:
        """One of the paper's twelve models, `DiT-{S,B,L,XL}/{2,4,8}`, on the latents of an f8 autoencoder.

        image_size: in pixels, divisible by 8 times the patch size. changes: other fields. Raises UsageError.
        """
        if name not in MODEL_NAMES:
            raise UsageError(f"unknown model {name!r}{did_you_mean(name, MODEL_NAMES)}")
        if image_size % LATENT_DOWNSAMPLING:
            raise UsageError(
                f"image_size {image_size} is not divisible by {LATENT_DOWNSAMPLING}, the downsampling of the "
                f"paper's autoencoder"
            )
        size, patch = name.removeprefix("DiT-").split("/")
        depth, width, heads = SIZES[size]
        side = image_size // LATENT_DOWNSAMPLING
        config = cls(side, int(patch), LATENT_CHANNELS, width, depth, heads, IMAGENET_CLASSES)
        return replace(config, **changes)  # type: ignore[arg-type]  # checked by __post_init__


ADDED = tuple(item.name for item in dataclasses.fields(DiTConfig) if item.metadata["added"])
"""Fields that the paper's models do not have."""


def _shortened(value: part.Part) -> part.Part | str:
    """The name of a built-in part with default fields; any other part unchanged."""
    name = value.part_name()
    return name if ":" not in name and value == type(value)() else value


def _part(kind: type[Kind], value: object, where: str) -> Kind:
    if isinstance(value, str) and ":" not in value:
        return _built_in(kind, value, where)
    return part.build(kind, value, where)


@lru_cache
def _built_in(kind: type[Kind], name: str, where: str) -> Kind:
    return part.build(kind, name, where)
