"""Modules that are imported when an attribute of them is first used, so that parts can be listed without
them.

    from scaledit.lazy import Tensor, torch

PyTorch takes a second or two to import, and `scaledit sample --help` lists every sampler with its fields. So
the files that define parts use torch inside functions only: use at module level (a decorator, a constant, a
base class) would import it. tests/test_part.py checks that."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class Lazy(ModuleType):
    """Stands for a module until an attribute is used. Attributes are cached, so that later uses cost as much
    as those of a module."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        self.__dict__[name] = value
        return value


if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    torch, np = Lazy("torch"), Lazy("numpy")
    Tensor = Any  # for annotations only
