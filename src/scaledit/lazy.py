"""Modules that are loaded when something of them is first used, so that parts can be listed without them.

    if TYPE_CHECKING:
        import torch
    else:
        from scaledit.lazy import torch

PyTorch takes a second or two to load, and `scaledit sample --help` names every sampler with its fields. So
the files that define parts use torch inside functions only; a module-level use (a decorator, a constant, a
base class) would load it. tests/test_part.py holds them to that.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class Lazy(ModuleType):
    """Stands for a module until something of it is used. An attribute that was used once is kept, so that it
    costs what a module's attribute costs."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        self.__dict__[name] = value
        return value


torch = Lazy("torch")
np = Lazy("numpy")
