"""Representation alignment with a frozen teacher: REPA (Yu et al. 2024, arXiv:2410.06940) and iREPA (Singh et
al. 2025, arXiv:2512.10794).

    L = - mean over tokens of cos(project(h), z)

h: the tokens after some blocks, of the noisy image; z: the teacher's feature map of the clean image,
interpolated to the grid of h (bilinear, antialiased). iREPA projects with a 3x3 convolution, which keeps the
tokens' neighborhoods, and takes what all tokens of an image share out of z:

    z <- (z - gamma mean(z)) / std(z)        over the tokens of an image, per channel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from scaledit.diffusion.teachers import Teacher
from scaledit.diffusion.terms.base import Seen, Term
from scaledit.errors import UsageError, did_you_mean
from scaledit.lazy import Tensor, torch
from scaledit.part import field

Projector = Literal["mlp", "conv"]
SMALLEST_STD = 1e-6
"""Added to the deviation of the teacher's tokens."""
TRAIN_FORWARDS = 3
"""A trained module costs its forward pass and a backward pass of two."""


@dataclass(frozen=True, kw_only=True)
class Alignment(Term, name="alignment"):
    """Minus the cosine between projected tokens and those of a frozen teacher (REPA). projector=conv and
    normalize=true are iREPA. The teacher and the projector are no part of the model that is exported."""

    images: ClassVar[bool] = True

    weight: float = field(0.5, gt=0, doc="factor of the term in the loss")
    teacher: Teacher = field(doc="the frozen network: efficientnet-lite0, or dinov2 with a folder")
    after: int = field(8, ge=1, doc="number of blocks after which the tokens are read")
    projector: Projector = field("mlp", doc="mlp: three layers with SiLU; conv: a 3x3 convolution")
    width: int = field(2048, ge=1, doc="width of the mlp's hidden layers")
    normalize: bool = field(False, doc="whether the teacher's tokens are normalized over those of an image")
    gamma: float = field(1.0, ge=0, le=1, doc="share of their mean that is subtracted, with normalize")
    until: int = field(0, ge=0, doc="steps after which the term is dropped; 0: never (REPA helps early)")

    @property
    def hidden(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.after - 1,)

    def check(self, where: str = "") -> None:
        super().check(where)
        if self.projector not in (words := get_args(Projector)):
            raise UsageError(f"{where}projector is {self.projector!r}{did_you_mean(self.projector, words)}")

    def fits(self, config, schedule, parameterization):
        if self.after > config.depth:
            raise UsageError(
                f"diffusion.terms: alignment.after is {self.after}, but the model has {config.depth} blocks; "
                f"use {max(1, config.depth // 3)}, a third of them"
            )

    def ready(self) -> None:
        self.teacher.ready()

    def active(self, step: int) -> bool:
        return not self.until or step < self.until

    def frozen(self, config, device) -> Any:
        return self.teacher.load(device)

    def modules(self, config) -> torch.nn.Module:
        nn, inputs, outputs = torch.nn, config.hidden_size, self.teacher.width()
        if self.projector == "conv":
            return nn.Conv2d(inputs, outputs, 3, padding=1)
        return nn.Sequential(
            nn.Linear(inputs, self.width),
            nn.SiLU(),
            nn.Linear(self.width, self.width),
            nn.SiLU(),
            nn.Linear(self.width, outputs),
        )

    def extra_macs(self, config) -> int:
        inputs, outputs = config.hidden_size, self.teacher.width()
        mlp = self.width * (inputs + self.width + outputs)
        projector = config.tokens * (9 * inputs * outputs if self.projector == "conv" else mlp)
        return TRAIN_FORWARDS * projector + self.teacher.macs(*self.teacher.size(config.height, config.width))

    def __call__(self, seen: Seen) -> Tensor:
        assert seen.images is not None  # asked for
        tokens = seen.hidden[self.after - 1].float()
        rows, columns = grid_of(tokens.shape[1], seen.x_t.shape[2], seen.x_t.shape[3])
        with torch.no_grad():
            features = seen.frozen(self.teacher.resized(seen.images)).float()
            target = self.target(features, rows, columns)
        if self.projector == "conv":
            maps = tokens.transpose(1, 2).unflatten(2, (rows, columns))
            projected = seen.modules(maps).flatten(2).transpose(1, 2)
        else:
            projected = seen.modules(tokens)
        return -torch.nn.functional.cosine_similarity(projected.float(), target, dim=-1).mean(1)

    def target(self, features: Tensor, rows: int, columns: int) -> Tensor:
        """z: the teacher's feature map (N, D, h, w) as rows x columns tokens (N, T, D), normalized if that is
        chosen."""
        if features.shape[2:] != (rows, columns):
            how = {"mode": "bilinear", "align_corners": False, "antialias": True}
            features = torch.nn.functional.interpolate(features, size=(rows, columns), **how)
        z = features.flatten(2).transpose(1, 2)
        if not self.normalize:
            return z
        mean, std = z.mean(1, keepdim=True), z.std(1, unbiased=False, keepdim=True)
        return (z - self.gamma * mean) / (std + SMALLEST_STD)


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of that many square patches of an input."""
    rows = round((tokens * height / width) ** 0.5)
    return rows, tokens // rows
