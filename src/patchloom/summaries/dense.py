"""Counts of all values that a type of up to 16 bits has."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries import counting
from patchloom.summaries.kernels import kernels
from patchloom.summaries.keys import Bits, Floats, Ints, floors
from patchloom.summaries.summary import Summary

__all__ = ["Dense", "exactly"]


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
        count_values = (kernels.after(len(flat)) or counting).count_values
        if times == 1:
            count_values(flat.view(self._patterns), self._counts)
            return
        once = np.zeros_like(self._counts)
        count_values(flat.view(self._patterns), once)
        self._counts += once * times

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
    found, place = np.unique(values[kept] + 0.0, return_inverse=True)
    often = np.zeros(len(found), np.int64)
    np.add.at(often, place, counts[kept])
    bits: Bits = floors(found, dtype)
    nans, nodatas = int(counts[nan].sum()), int(counts[gone].sum())
    return Summary(found, often, bits=bits, nans=nans, nodata=nodatas)
