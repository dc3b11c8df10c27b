"""The modules of a DiT besides its blocks: patches, embeddings, attention, the MLP.

tokens  =  patchify(x) W + b + pos              (paper, section 3.2, "Patchify")
gamma(t) = [cos(t w_k), sin(t w_k)],  w_k = 10000^(-k/128),  k = 0..127
Attn(q, k, v) = softmax(q k^T / sqrt(head)) v

These are the paper's; `variants` has the modules of other parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from scaledit.errors import UsageError
from scaledit.models.description import TIME_FREQUENCIES
from scaledit.models.positions import Places
from scaledit.models.variants import RMSNorm

FIRST_MIX = 0.5
"""The first value of l in a value residual."""


def patchify(x: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, H/p * W/p, C*p*p): tokens in row-major order, each flattened as C, p, p."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """(N, H/p * W/p, p*p*C) -> (N, C, H, W). Each token is laid out as p, p, C (the official order)."""
    n = tokens.shape[0]
    x = tokens.reshape(n, height // patch, width // patch, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(n, -1, height, width)


def time_frequencies() -> Tensor:
    """10000^(-k/128), k = 0..127, (128,) float32 on the CPU; bit-identical on every machine.

    An ulp here changes the embedding at t = 999 by 3e-5, and float32 exp differs by an ulp between
    processors. Therefore the exponent is rounded to float32 (as in the official code), its exp is computed in
    float64, and the result is rounded once. At k = 12 the exact value lies 0.479 of the way between two
    floats; the official outputs that the tests compare with use the upper one.
    """
    half = TIME_FREQUENCIES // 2
    exponent = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device="cpu") / half
    frequencies = exponent.double().exp().float()
    frequencies[12] = torch.nextafter(frequencies[12], torch.tensor(1.0, device="cpu"))
    return frequencies


def timestep_embedding(t: Tensor, frequencies: Tensor) -> Tensor:
    """Sinusoidal embedding of t (N,), in 0..1000, at the frequencies (K,) -> (N, 2K): cosines, then sines.
    float64 if t is (so that derivatives in t can be checked), else float32. (diffusers divides by K - 1 in
    the exponent, which is a different function.)"""
    angles = (t if t.dtype == torch.float64 else t.float())[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_table(width: int, rows: int, columns: int, span: tuple[float, float] | None = None) -> Tensor:
    """Frozen 2-D sin-cos position embedding, (rows * columns, width) float32 on the CPU.

    The first half of the channels encodes the column (the official code puts the width grid first), and the
    second half the row; within each half sines precede cosines. Computed in float64. span: the rows and
    columns of the grid that the coordinates are measured in; None means this grid. Raises UsageError if width
    is not divisible by 4.
    """
    if width % 4:
        raise UsageError(
            f"a sin-cos position table needs a hidden size divisible by 4, got {width}; "
            f"use {max(4, round(width / 4) * 4)}"
        )
    quarter = width // 4

    def arange(n: int) -> Tensor:
        return torch.arange(n, dtype=torch.float64, device="cpu")

    omega = 10000.0 ** -(arange(quarter) / quarter)

    def encode(position: Tensor) -> Tensor:
        angles = position.reshape(-1, 1) * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    span_rows, span_columns = span or (rows, columns)
    row, column = torch.meshgrid(
        arange(rows) * (span_rows / rows), arange(columns) * (span_columns / columns), indexing="ij"
    )
    return torch.cat([encode(column), encode(row)], dim=1).float()


class Derived(nn.Module):
    """A module with one buffer that is a function of the config instead of a weight, and in no state dict.

    `to_empty` leaves such a buffer uninitialized, a state dict does not restore it, and a cast rounds it.
    Therefore it is recomputed whenever the module is moved, cast, materialized or loaded, and is correct
    however the module was made: on the meta device, under FSDP, by `load_state_dict(assign=True)`.
    """

    def derive(self, name: str, value: Callable[[], Tensor], *, exact: bool) -> None:
        """Registers the buffer `name`. value: computes it, on the CPU. exact: whether it keeps its dtype when
        the module is cast; otherwise it follows the weights."""
        self._name, self._value, self._exact = name, value, exact
        self.register_buffer(name, value().to(torch.get_default_device()), persistent=False)
        self.register_load_state_dict_post_hook(_rederive_after_loading)

    def rederive(self, device: torch.device, dtype: torch.dtype) -> None:
        """Recomputes the buffer. dtype: of the weights."""
        value = self._value()
        setattr(self, self._name, value.to(device=device, dtype=value.dtype if self._exact else dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Derived:
        """Called by `to`, `cuda`, `half`, `to_empty` and the like."""
        super()._apply(fn, recurse)
        buffer: Tensor = getattr(self, self._name)
        self.rederive(buffer.device, buffer.dtype)
        return self


def _rederive_after_loading(module: nn.Module, keys: object) -> None:
    assert isinstance(module, Derived)
    weight = next(module.parameters())
    module.rederive(weight.device, weight.dtype)


class TimestepEmbedder(Derived):
    """t (N,) -> (N, D): cosines and sines, Linear, SiLU, Linear. frequencies: makes the angles per unit of t,
    (128,) float32; the paper's by default."""

    def __init__(self, width: int, frequencies: Callable[[], Tensor] = time_frequencies):
        super().__init__()
        self.fc1 = nn.Linear(TIME_FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)
        # Exact, since rounded frequencies would be a different function.
        self.derive("frequencies", frequencies, exact=True)
        self.frequencies: Tensor

    def forward(self, t: Tensor) -> Tensor:
        embedding = timestep_embedding(t, self.frequencies)
        return self.fc2(F.silu(self.fc1(embedding.to(self.fc1.weight.dtype))))


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys (N, heads, T, head) with the pairs of neighboring channels of the first P tokens
    rotated; rotation (2, P, head / 2) holds cosines and sines. Computed in the wider of both dtypes."""
    patches = rotation.shape[1]
    x = x.transpose(1, 2)  # the order in memory, which the result of attention then has too
    a, b = x[:, :patches].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation.unsqueeze(2).unbind(0)
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)
    if x.shape[1] > patches:
        turned = torch.cat([turned, x[:, patches:]], dim=1)
    return turned.transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Attention of q (N, heads, T, head) to k and v (N, heads, S, head) -> (N, T, heads * head). mask: (N,
    S), false at keys to ignore; None if there are none. bias: (heads, P, P), added to the scores of the first
    P tokens."""
    keys = None if mask is None else mask[:, None, None, :]
    if bias is not None:
        more = q.shape[2] - bias.shape[1]
        bias = F.pad(bias, (0, more, 0, more)).unsqueeze(0).to(q.dtype)
        keys = bias if keys is None else bias.masked_fill(~keys, -math.inf)
    # The fused kernels have no forward-mode derivative, which both torch.func.jvp and dual_level ask for, and
    # the CPU's have none in the bias.
    learned = bias is not None and bias.device.type == "cpu" and torch.is_grad_enabled()
    with sdpa_kernel(SDPBackend.MATH) if learned or forward_ad._current_level >= 0 else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    n, heads, tokens, head = q.shape
    return out.transpose(1, 2).reshape(n, tokens, heads * head)


class SelfAttention(nn.Module):
    """Multi-head self-attention with qkv bias: x (N, T, D) -> (N, T, D). qk_norm: whether queries and keys
    are normalized per head. mixes_values: whether the values are l v_1 + (1 - l) v, with those of the first
    block, v_1, and a learned l that starts at 0.5. places: where the tokens are, and v_1. mask: (N, T), as in
    `attend`. Raises UsageError if a block does not pass on the places and they are needed."""

    needs_places = False
    """Whether the position encoding acts here; set by the network."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False, mixes_values: bool = False):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = _qk_norms(width // heads, qk_norm)
        self.mix = nn.Parameter(torch.full((1,), FIRST_MIX)) if mixes_values else None

    def forward(self, x: Tensor, places: Places | None = None, mask: Tensor | None = None) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self._placed(self.q_norm(q), places), self._placed(self.k_norm(k), places)
        v = self._mixed(v, places)
        return self.proj(attend(q, k, v, mask, None if places is None else places.bias))

    def _placed(self, x: Tensor, places: Places | None) -> Tensor:
        """Queries or keys, rotated if the position encoding is rotary."""
        if places is None and self.needs_places:
            raise UsageError(
                "this block design does not tell attention where the tokens are, which the model's position "
                "encoding needs; call m.attn(h, embedded.places)"
            )
        return x if places is None or places.rotation is None else rotated(x, places.rotation)

    def _mixed(self, v: Tensor, places: Places | None) -> Tensor:
        """The values, mixed with those of the first block; in that block, they are handed on."""
        if places is not None and places.kept is not None:
            places.kept.append(v)
        if self.mix is None:
            return v
        if places is None or places.values is None:
            raise UsageError(
                "model.value_residual needs the values of the first block, which this block design does not "
                "pass to its attention; call m.attn(x, embedded.places)"
            )
        share = self.mix.to(v.dtype)
        return share * places.values + (1 - share) * v


def _qk_norms(head: int, wanted: bool) -> tuple[nn.Module, nn.Module]:
    return (RMSNorm(head), RMSNorm(head)) if wanted else (nn.Identity(), nn.Identity())


class BiasTable(nn.Module):
    """A learned number for each head and relative offset, (heads, offsets of rows, offsets of columns)."""

    def __init__(self, heads: int, rows: int, columns: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, rows, columns))

    def forward(self) -> Tensor:
        return self.weight


class CrossAttention(nn.Module):
    """Multi-head attention from x (N, T, D) to a context (N, S, D). qk_norm: whether queries and keys are
    normalized per head. mask: (N, S), as in `attend`."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = _qk_norms(width // heads, qk_norm)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        n, tokens, width = x.shape
        head = width // self.heads
        q = self.q(x).reshape(n, tokens, self.heads, head).transpose(1, 2)
        k, v = self.kv(context).reshape(n, -1, 2, self.heads, head).permute(2, 0, 3, 1, 4)
        return self.proj(attend(self.q_norm(q), self.k_norm(k), v, mask))


class MLP(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
