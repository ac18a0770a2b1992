"""MosaicML Streaming where torchvision does not fit to torch.

Its package imports torchvision for data sets of its own, which are not used here. A torchvision
for other hardware than torch's cannot be imported; an empty stand-in lets the rest be tested.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NAMES = ("", ".datasets", ".transforms", ".transforms.functional")


class _Empty(ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


try:
    importlib.import_module("torchvision")
except ImportError:
    pass
except RuntimeError:
    for end in _NAMES:
        made = _Empty(f"torchvision{end}")
        made.__spec__ = ModuleSpec(f"torchvision{end}", None, is_package=True)
        sys.modules[f"torchvision{end}"] = made
