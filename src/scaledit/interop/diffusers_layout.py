"""diffusers' DiTTransformer2DModel <-> scaledit's DiT: names and shapes. The same weights are another
function there.

    blocks.i.attn.qkv (3D, D)     <->  transformer_blocks.i.attn1.to_q, to_k, to_v (D, D) each
    time_embed, label_embed       <->  transformer_blocks.i.norm1.emb.*, a copy in every block i
    final.modulation, .linear     <->  proj_out_1, proj_out_2

DiTTransformer2DModel divides its timestep exponents by 127 instead of 128 and normalises before the MLP with
an eps of 1e-5 instead of 1e-6; interop/exact_diffusers.py is a class that does neither.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from scaledit.errors import UsageError
from scaledit.interop.lazy_tensors import Lazy, cat
from scaledit.interop.official import check_conditioning
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
    """Our names and shapes. Raises UsageError where the copies of the embeddings differ: such a model has a
    function that scaledit's DiT cannot compute."""
    out: dict[str, Lazy] = {}
    given = {key: value for key, value in weights.items() if key != POSITION}
    blocks = sorted({int(key.split(".")[1]) for key in given if _is_block(key)})
    for theirs, native in ENDS:
        for kind in ("weight", "bias"):
            _take(given, f"{theirs}{kind}", out, f"{native}{kind}")
    for i in blocks:
        prefix = f"transformer_blocks.{i}."
        for kind in ("weight", "bias"):
            for theirs, native in PARTS:
                _take(given, f"{prefix}{theirs}{kind}", out, f"blocks.{i}.{native}{kind}")
            qkv = [given.pop(f"{prefix}attn1.to_{which}.{kind}", None) for which in "qkv"]
            present = [part for part in qkv if part is not None]
            if len({(part.shape, part.dtype) for part in present}) > 1:
                raise UsageError(f"{prefix}attn1 has queries, keys and values of different shapes or dtypes")
            if len(present) == 3:
                out[f"blocks.{i}.attn.qkv.{kind}"] = cat(present)
            for theirs, native in EMBEDDINGS:
                key = f"{prefix}norm1.emb.{theirs}{kind}"
                if f"{native}{kind}" in out and key not in given:
                    raise UsageError(f"the diffusers folder lacks {key}")
                if key in given:
                    _same(out.setdefault(f"{native}{kind}", given[key]), given.pop(key), key)
    if given:
        raise UsageError(
            f"the diffusers folder has {min(given)[:100]} and {len(given) - 1} more weights that no DiT has"
        )
    if "patch_embed.weight" in out and len(out["patch_embed.weight"].shape) == 4:
        width, channels, rows, columns = out["patch_embed.weight"].shape
        out["patch_embed.weight"] = out["patch_embed.weight"].reshaped((width, channels * rows * columns))
    return out


def _is_block(key: str) -> bool:
    words = key.split(".")
    return words[0] == "transformer_blocks" and len(words) > 2 and words[1].isdecimal() and len(words[1]) < 6


def _take(given: dict[str, Lazy], theirs: str, out: dict[str, Lazy], native: str) -> None:
    if theirs in given:
        out[native] = given.pop(theirs)


def _same(first: Lazy, other: Lazy, key: str) -> None:
    if first is not other and (first.shape != other.shape or not torch.equal(first.read(), other.read())):
        raise UsageError(
            f"{key} differs from that of another block; scaledit has one embedding for all blocks"
        )


def to_diffusers(weights: Mapping[str, Lazy], config: DiTConfig) -> dict[str, Lazy]:
    """diffusers' names and shapes. Raises UsageError for what DiTTransformer2DModel cannot be."""
    check_conditioning(config, "diffusers")
    if config.height != config.width:
        raise UsageError(
            f"diffusers' DiT takes squares; this model's input is {config.height}x{config.width}"
        )
    if int(config.hidden_size * config.mlp_ratio) != MLP_RATIO * config.hidden_size:
        raise UsageError(
            f"diffusers' DiT has an MLP ratio of {MLP_RATIO}; this model's is {config.mlp_ratio}"
        )
    patch = (config.hidden_size, config.in_channels, config.patch_size, config.patch_size)
    out: dict[str, Lazy] = {}
    for theirs, native in ENDS:
        for kind in ("weight", "bias"):
            out[f"{theirs}{kind}"] = weights[f"{native}{kind}"]
    out[PATCHES] = out[PATCHES].reshaped(patch)
    for i in range(config.depth):
        prefix = f"transformer_blocks.{i}."
        for kind in ("weight", "bias"):
            for theirs, native in EMBEDDINGS:
                if f"{native}{kind}" in weights:  # the label table has no bias
                    out[f"{prefix}norm1.emb.{theirs}{kind}"] = weights[f"{native}{kind}"]
            for theirs, native in PARTS:
                out[f"{prefix}{theirs}{kind}"] = weights[f"blocks.{i}.{native}{kind}"]
            qkv = weights[f"blocks.{i}.attn.qkv.{kind}"]
            for place, which in enumerate("qkv"):
                width = config.hidden_size
                out[f"{prefix}attn1.to_{which}.{kind}"] = qkv.rows(place * width, (place + 1) * width)
    return out


def transformer_config(config: DiTConfig, kind: str, version: str) -> dict[str, object]:
    """transformer/config.json. norm_eps 1e-6 makes the second norm right in the plain class as well."""
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
