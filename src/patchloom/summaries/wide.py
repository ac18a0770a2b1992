"""Counts of types beyond 16 bits: value by value while there are few, then by buckets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries.counting import PIECE, count_sizes
from patchloom.summaries.keys import BITS, Floats, Ints, floors, keys_of
from patchloom.summaries.moments import Sums, power_sums
from patchloom.summaries.summary import DISTINCT, Summary

__all__ = ["Wide", "numbers"]

_SORTED = 2 * DISTINCT
"""Pixels that are sorted together while values are counted one by one."""
_PAGE = 16 << (52 - BITS)
"""Buckets of 16 octaves: by so many the table of counts grows."""


class Wide:
    """At most `DISTINCT` values, or the buckets of the octaves that occur."""

    def __init__(self, dtype: np.dtype[Any], nodata: float | None) -> None:
        self._dtype, self._nodata = dtype, nodata
        self._found = Summary.empty()
        self._rough: _Rough | None = None
        self._nans = self._left_out = 0

    @staticmethod
    def most_bytes() -> int:
        """Most bytes that it holds, of numbers that lie within 288 octaves (a float32's do).

        Only a float64 may lie further apart: 8 MiB at most.
        """
        return max(DISTINCT * 17, 18 * 2 * 8 * _PAGE)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self._found.nbytes if self._rough is None else self._rough.counts.nbytes

    def add(self, flat: npt.NDArray[Any], times: int) -> None:
        """Count pixels of the type, each `times` times."""
        start = 0
        while start < len(flat):
            stop = start + (_SORTED if self._rough is None else PIECE)
            some, nans, left_out = numbers(flat[start:stop], self._nodata)
            self._nans += nans * times
            self._left_out += left_out * times
            if len(some) and self._rough is None:
                self._one_by_one(some, times)
            elif len(some):
                self._rough.add(some.astype(np.float64), times)  # type: ignore[union-attr]
            start = stop

    def _one_by_one(self, some: npt.NDArray[Any], times: int) -> None:
        found, counts = np.unique(some, return_counts=True)
        # Wide integers may meet as floats, and signed zeros are one value.
        values, place = np.unique(found.astype(np.float64) + 0.0, return_inverse=True)
        often: Ints = np.zeros(len(values), np.int64)
        np.add.at(often, place, counts.astype(np.int64))
        if len(values) <= DISTINCT:
            part = Summary(values, often * times, bits=floors(values, self._dtype))
            together = self._found + part
            if together.exact:
                self._found = together
                return
        self._rough = _Rough(self._dtype)
        self._rough.add(values, 1, often * times)
        self._rough.add(self._found.values, 1, self._found.counts)
        self._found = Summary.empty()

    def summary(self) -> Summary:
        """What was counted so far."""
        if self._rough is None:
            found = self._found
            return Summary(
                found.values, found.counts, bits=found.bits, nans=self._nans, nodata=self._left_out
            )
        return self._rough.summary(self._nans, self._left_out)


class _Rough:
    """Buckets and exact sums."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._short = dtype == np.float32
        self._first = 0
        self.counts: Ints = np.zeros((2, 0), np.int64)
        self._apart = {0.0: 0, math.inf: 0, -math.inf: 0}
        self._sums = Sums()
        self._low, self._high = math.inf, -math.inf

    def add(self, values: Floats, times: int, counts: Ints | None = None) -> None:
        """Count numbers; as often as `counts` says, if given."""
        if not len(values):
            return
        low, high = float(values.min()), float(values.max())
        self._low, self._high = min(self._low, low + 0.0), max(self._high, high + 0.0)
        for special in self._apart:
            if low <= special <= high:
                mine = values == special
                n = int(np.count_nonzero(mine)) if counts is None else int(counts[mine].sum())
                if n:
                    self._apart[special] += n * times
                    values = values[~mine]
                    counts = None if counts is None else counts[~mine]
        if not len(values):
            return
        if counts is None:
            first, found = count_sizes(values, BITS)
            self._table(first, found.shape[1])[:] += found * times
            self._sums = self._sums.plus(power_sums(values, short=self._short).times(times))
            return
        sizes = (np.abs(values).view(np.int64) >> BITS).astype(np.int64)
        first = int(sizes.min())
        table = self._table(first, int(sizes.max()) - first + 1)
        np.add.at(table, ((values < 0).astype(np.int64), sizes - first), counts)
        self._sums = self._sums.plus(power_sums(values, counts, short=self._short))

    def _table(self, first: int, n: int) -> Ints:
        """The counts of `n` buckets, with room made for them."""
        have = self.counts.shape[1]
        if not have:
            self._first = first // _PAGE * _PAGE
        low = min(self._first, first // _PAGE * _PAGE)
        high = max(self._first + have, -(-(first + n) // _PAGE) * _PAGE)
        if high - low > have:
            wider = np.zeros((2, high - low), np.int64)
            wider[:, self._first - low : self._first - low + have] = self.counts
            self._first, self.counts = low, wider
        return self.counts[:, first - low : first - low + n]

    def summary(self, nans: int, left_out: int) -> Summary:
        """What was counted so far."""
        negative, positive = (np.flatnonzero(row) for row in self.counts[::-1])
        sizes = [
            ((at + self._first).astype(np.uint64) << np.uint64(BITS)).view(np.float64)
            for at in (negative[::-1], positive)
        ]
        values = np.concatenate([-sizes[0], sizes[1], list(self._apart)])
        counts = np.concatenate(
            [self.counts[1][negative[::-1]], self.counts[0][positive], list(self._apart.values())]
        ).astype(np.int64)
        keys, first, place = np.unique(keys_of(values), return_index=True, return_inverse=True)
        often = np.zeros(len(keys), np.int64)
        np.add.at(often, place, counts)
        kept = often > 0
        values = values[first[kept]]
        return Summary(
            values,
            often[kept],
            bits=floors(values, self._dtype),
            exact=False,
            nans=nans,
            nodata=left_out,
            low=self._low,
            high=self._high,
            sums=self._sums,
        )


def numbers(flat: npt.NDArray[Any], nodata: float | None) -> tuple[npt.NDArray[Any], int, int]:
    """Pixels that are to be counted, and how many are NaN and nodata."""
    nans = left_out = 0
    if flat.dtype.kind == "f":
        bad = np.isnan(flat)
        nans = int(np.count_nonzero(bad))
        flat = flat[~bad] if nans else flat
    if nodata is not None:
        gone = flat == nodata
        left_out = int(np.count_nonzero(gone))
        flat = flat[~gone] if left_out else flat
    return flat, nans, left_out
