"""The loops in which statistics spend their time, compiled by numba (the extra ``fast``).

They find what `counting` and `moments` find with NumPy, to the last bit, do not hold the
interpreter's lock, and are several times as fast. Importing numba takes more than a second and
some 120 MB, so a process turns to it only after as many pixels as make up for that.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries.keys import Floats, Ints
from patchloom.summaries.moments import Sums

__all__ = ["PATIENCE", "Octaves", "Unpacked", "count_distinct", "kernels"]

PATIENCE = 2**28
"""Pixels that a process counts with NumPy before it imports numba: about what that costs."""

_SETTLED = 2**25
"""Pixels after which sums of 64 bits are emptied, long before they could overflow."""
_FEW = 2**12
"""Slots of the first table of different values."""

_log = logging.getLogger(__name__)


class _Kernels:
    """The module `compiled`, once it pays."""

    def __init__(self) -> None:
        self._module: Any = None
        self._counted = 0
        self._possible = find_spec("numba") is not None

    def after(self, n: int) -> Any:
        """What numba compiled, or None if NumPy is to count these `n` pixels."""
        if self._module is None and self._possible:
            self._counted += n
            if self._counted > PATIENCE:
                self._load()
        return self._module

    def _load(self) -> None:
        try:
            self._module = import_module("patchloom.summaries.compiled")
        except ImportError as error:
            _log.warning("numba is installed but cannot be imported, NumPy counts: %s", error)
            self._possible = False


kernels = _Kernels()


def count_distinct(
    fast: Any, flat: npt.NDArray[Any], limit: int
) -> tuple[npt.NDArray[Any], Ints] | None:
    """Count numbers of more than 16 bits value by value, if few different ones occur.

    Parameters
    ----------
    fast
        What numba compiled.
    flat
        Integers or floats of 32 or 64 bits, no NaN. -0.0 is counted as 0.0.
    limit
        Different values up to which it goes on.

    Returns
    -------
    (values[k], int64[k]) or None
        The different ones, ascending, and how often each occurs; None if there are more.
    """
    patterns = flat.view(f"u{flat.itemsize}")
    signed_zero = flat.dtype.kind == "f"
    minus_zero = np.uint64(1 << (8 * flat.itemsize - 1))
    slots = _FEW
    keys, counts = np.zeros(slots, patterns.dtype), np.zeros(slots, np.int64)
    done = 0
    while True:
        most = min(limit, slots // 2)
        done, used = fast.count_distinct(
            patterns, done, minus_zero, signed_zero, keys, counts, most
        )
        if done == len(patterns):
            found = np.flatnonzero(counts)
            values = keys[found].view(flat.dtype)
            order = np.argsort(values)
            return values[order], counts[found][order]
        if used == limit:
            return None
        slots *= 4
        old = keys, counts
        keys, counts = np.zeros(slots, patterns.dtype), np.zeros(slots, np.int64)
        fast.place(*old, keys, counts)


class Unpacked:
    """Layout of a float type: a sign, an exponent and the rest."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.fraction = 23 if dtype.itemsize == 4 else 52
        self.width = 8 * dtype.itemsize
        self.sign = 1 << (self.width - 1)
        self.infinite = (self.sign - 1) >> self.fraction << self.fraction
        self.lift = 896 if dtype.itemsize == 4 else 0
        """What an exponent of float64 is above one of this type."""

    def octave(self, size: int) -> int:
        """Exponent of float64 of an absolute value's pattern."""
        exponent = size >> self.fraction
        if self.lift and not exponent:
            return self.lift - self.fraction + size.bit_length()
        return exponent + self.lift

    def hole(self, nodata: float | None) -> np.uint64:
        """Pattern of the value to leave out; that of a NaN if there is none."""
        if nodata is None:
            return np.uint64(2**self.width - 1)
        number = np.array([nodata + 0.0], f"f{self.width // 8}")
        return np.uint64(number.view(f"u{self.width // 8}")[0])

    def number(self, rank: int) -> float:
        """The number of a whole number that sorts like it."""
        pattern = rank if rank >= 0 else ~rank | self.sign
        dtype = f"u{self.width // 8}"
        return float(np.array([pattern], dtype).view(f"f{self.width // 8}")[0])
