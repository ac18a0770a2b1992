"""Counts of all values that a type of up to 16 bits has."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries import counting
from patchloom.summaries.kernels import SETTLED, kernels
from patchloom.summaries.keys import Bits, Floats, Ints, floors
from patchloom.summaries.summary import Summary

__all__ = ["Dense", "exactly"]

PAIRED = 2**16
"""8-bit pixels from which on adding up the counts of 65,536 pairs takes less than it saves."""


class Dense:
    """One bin for each bit pattern."""

    def __init__(self, dtype: np.dtype[Any], nodata: float | None) -> None:
        self._dtype, self._nodata = dtype, nodata
        self._patterns = np.dtype(f"u{dtype.itemsize}")
        self._counts: Ints = np.zeros(0, np.int64)

    @staticmethod
    def most_bytes(dtype: np.dtype[Any]) -> int:
        """Bytes that it holds."""
        return int(2 ** (8 * dtype.itemsize)) * 8

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self._counts.nbytes

    def add(self, flat: npt.NDArray[Any], times: int) -> None:
        """Count pixels of the type, each `times` times."""
        if not len(self._counts):
            self._counts = np.zeros(self.most_bytes(self._dtype) // 8, np.int64)
        if times == 1:
            self._count(flat.view(self._patterns), self._counts)
            return
        once = np.zeros_like(self._counts)
        self._count(flat.view(self._patterns), once)
        self._counts += once * times

    def _count(self, flat: npt.NDArray[Any], counts: Ints) -> None:
        loops = kernels.after(len(flat)) or counting
        for start in range(0, len(flat), SETTLED):
            some = flat[start : start + SETTLED]
            even = len(some) // 2 * 2
            if some.itemsize == 1 and even >= PAIRED:
                # Two 8-bit pixels, read as one of 16 bits, are one count.
                pairs = some[:even].view(np.uint16)
                if pairs.flags.aligned:
                    loops.count_pairs(pairs, counts)
                    some = some[even:]
            if len(some):
                loops.count_values(some, counts)

    def summary(self) -> Summary:
        """What was counted so far."""
        where = np.flatnonzero(self._counts)
        if self._dtype.kind == "b":
            values = (where > 0).astype(np.float64)
        else:
            # Some patterns of NaN are a signal.
            with np.errstate(invalid="ignore"):
                values = where.astype(self._patterns).view(self._dtype).astype(np.float64)
        return exactly(values, self._counts[where], self._dtype, self._nodata)


def exactly(values: Floats, counts: Ints, dtype: np.dtype[Any], nodata: float | None) -> Summary:
    """The summary of values in any order, NaN, nodata and signed zeros among them."""
    nan = np.isnan(values)
    gone = values == nodata if nodata is not None else np.zeros(len(values), bool)
    kept = ~(nan | gone)
    found, often = values[kept] + 0.0, counts[kept]
    if not (np.diff(found) > 0).all():
        found, place = np.unique(found, return_inverse=True)
        often = np.zeros(len(found), np.int64)
        np.add.at(often, place, counts[kept])
    bits: Bits = floors(found, dtype)
    nans, nodatas = int(counts[nan].sum()), int(counts[gone].sum())
    return Summary(found, often, bits=bits, nans=nans, nodata=nodatas)
