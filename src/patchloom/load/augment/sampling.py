"""Sampling: how one array of a batch is read between and beyond its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from patchloom.errors import ConfigError

__all__ = ["FILL_MODES", "ORDERS", "Sampling"]

FILL_MODES = ("nearest", "reflect", "constant")
"""What lies beyond a patch: its edge pixel; its mirror image, edge pixel included; a constant."""
ORDERS = (0, 1, 3)
"""Nearest pixel, linear, cubic spline."""


@dataclass(frozen=True)
class Sampling:
    """Order of interpolation, and what lies beyond the patch."""

    order: int
    fill_mode: str
    cval: float = 0.0

    def fill(self, dtype: np.dtype[Any]) -> Any:
        """`cval` in a type.

        Raises
        ------
        ConfigError
            If the type does not hold it.

        >>> Sampling(0, "constant", 255).fill(np.dtype("uint8"))
        np.uint8(255)
        """
        if dtype.kind not in "biu":
            return dtype.type(self.cval)
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not low <= self.cval <= high or self.cval != int(self.cval):
            raise ConfigError(
                f"what lies beyond a patch is filled with a value of its type, but {dtype} does "
                f"not hold {self.cval}; give another cval= or cval_target="
            )
        return dtype.type(int(self.cval))
