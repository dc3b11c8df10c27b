"""diffusers' DiTTransformer2DModel <-> scaledit's DiT: names and shapes of the same weights.

    blocks.i.attn.qkv (3D, D)     <->  transformer_blocks.i.attn1.to_q, to_k, to_v (D, D) each
    time_embed, label_embed       <->  transformer_blocks.i.norm1.emb.*, a copy in every block i
    final.modulation, .linear     <->  proj_out_1, proj_out_2

They are another function there: DiTTransformer2DModel divides its timestep exponents by 127 instead of 128,
and its norm before the MLP has an eps of 1e-5 instead of 1e-6 (interop/exact_diffusers.py corrects both).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from scaledit.errors import UsageError, and_more
from scaledit.interop.lazy_tensors import Lazy, cat
from scaledit.interop.official import NATIVE_PATCHES, check_conditioning
from scaledit.models.config import DiTConfig

EMBEDDINGS = (
    ("timestep_embedder.linear_1.", "time_embed.fc1."),
    ("timestep_embedder.linear_2.", "time_embed.fc2."),
    ("class_embedder.embedding_table.", "label_embed."),
)
PARTS = (
    ("norm1.linear.", "modulation."),
    ("attn1.to_out.0.", "attn.proj."),
    ("ff.net.0.proj.", "mlp.fc1."),
    ("ff.net.2.", "mlp.fc2."),
)
ENDS = (
    ("pos_embed.proj.", "patch_embed."),
    ("proj_out_1.", "final.modulation."),
    ("proj_out_2.", "final.linear."),
)
PATCHES = "pos_embed.proj.weight"
POSITION = "pos_embed.pos_embed"
"""A buffer that old versions of diffusers saved."""
PLAIN, EXACT = "DiTTransformer2DModel", "ExactDiTTransformer2DModel"
MLP_RATIO = 4


def to_native(weights: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """scaledit's names and shapes. Raises UsageError for weights that no DiT has, and if the copies of the
    embeddings differ: scaledit's DiT cannot compute the function of such a model."""
    out: dict[str, Lazy] = {}
    rest = {key: value for key, value in weights.items() if key != POSITION}

    def rename(key: str, native: str) -> None:
        if key in rest:
            out[native] = rest.pop(key)

    for prefix, native in ENDS:
        for kind in ("weight", "bias"):
            rename(f"{prefix}{kind}", f"{native}{kind}")
    for i in sorted({int(key.split(".")[1]) for key in rest if _is_block(key)}):
        block = f"transformer_blocks.{i}."
        for kind in ("weight", "bias"):
            for prefix, native in PARTS:
                rename(f"{block}{prefix}{kind}", f"blocks.{i}.{native}{kind}")
            projections = [rest.pop(f"{block}attn1.to_{letter}.{kind}", None) for letter in "qkv"]
            present = [projection for projection in projections if projection is not None]
            if len({(projection.shape, projection.dtype) for projection in present}) > 1:
                raise UsageError(f"{block}attn1 has queries, keys and values of different shapes or dtypes")
            if len(present) == 3:
                out[f"blocks.{i}.attn.qkv.{kind}"] = cat(present)
            for prefix, native in EMBEDDINGS:
                key = f"{block}norm1.emb.{prefix}{kind}"
                if f"{native}{kind}" in out and key not in rest:
                    raise UsageError(f"the diffusers folder lacks {key}")
                if key in rest:
                    _check_same(out.setdefault(f"{native}{kind}", rest[key]), rest.pop(key), key)
    if rest:
        raise UsageError(
            f"the diffusers folder has weights that no DiT has: {min(rest)[:100]}{and_more(len(rest) - 1)}"
        )
    if NATIVE_PATCHES in out and len(out[NATIVE_PATCHES].shape) == 4:
        width, channels, rows, columns = out[NATIVE_PATCHES].shape
        out[NATIVE_PATCHES] = out[NATIVE_PATCHES].reshaped((width, channels * rows * columns))
    return out


def _is_block(key: str) -> bool:
    words = key.split(".")
    return words[0] == "transformer_blocks" and len(words) > 2 and words[1].isdecimal() and len(words[1]) < 6


def _check_same(first: Lazy, other: Lazy, key: str) -> None:
    if first is not other and (first.shape != other.shape or not torch.equal(first.read(), other.read())):
        raise UsageError(
            f"{key} differs from that of another block; scaledit has one embedding for all blocks"
        )


def to_diffusers(weights: Mapping[str, Lazy], config: DiTConfig) -> dict[str, Lazy]:
    """diffusers' names and shapes. Raises UsageError for a config that its class does not support."""
    check_conditioning(config, "diffusers")
    if config.height != config.width:
        raise UsageError(
            f"diffusers' DiT accepts squares only; this model's input is {config.height}x{config.width}"
        )
    width = config.hidden_size
    if int(width * config.mlp_ratio) != MLP_RATIO * width:
        raise UsageError(
            f"diffusers' DiT has an MLP ratio of {MLP_RATIO}; this model's is {config.mlp_ratio}"
        )
    out: dict[str, Lazy] = {}
    for prefix, native in ENDS:
        for kind in ("weight", "bias"):
            out[f"{prefix}{kind}"] = weights[f"{native}{kind}"]
    out[PATCHES] = out[PATCHES].reshaped((width, config.in_channels, config.patch_size, config.patch_size))
    for i in range(config.depth):
        block = f"transformer_blocks.{i}."
        for kind in ("weight", "bias"):
            for prefix, native in EMBEDDINGS:
                if f"{native}{kind}" in weights:  # the label table has no bias
                    out[f"{block}norm1.emb.{prefix}{kind}"] = weights[f"{native}{kind}"]
            for prefix, native in PARTS:
                out[f"{block}{prefix}{kind}"] = weights[f"blocks.{i}.{native}{kind}"]
            qkv = weights[f"blocks.{i}.attn.qkv.{kind}"]
            for j, letter in enumerate("qkv"):
                out[f"{block}attn1.to_{letter}.{kind}"] = qkv.rows(j * width, (j + 1) * width)
    return out


def transformer_config(config: DiTConfig, kind: str, version: str) -> dict[str, object]:
    """transformer/config.json. Its norm_eps of 1e-6 is right for the norm before the MLP."""
    return {
        "_class_name": kind,
        "_diffusers_version": version,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "dropout": 0.0,
        "in_channels": config.in_channels,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": config.num_heads,
        "num_embeds_ada_norm": config.num_classes,
        "num_layers": config.depth,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "sample_size": config.height,
        "upcast_attention": False,
    }
