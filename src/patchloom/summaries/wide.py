"""Counts of types beyond 16 bits: value by value while there are few, then by buckets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries import counting
from patchloom.summaries.counting import COLUMN, FEW, PIECE, count_buckets, count_sizes
from patchloom.summaries.kernels import (
    SETTLED,
    Buckets,
    Octaves,
    Patterns,
    count_distinct,
    kernels,
)
from patchloom.summaries.keys import BITS, Floats, Ints, floors, keys_of
from patchloom.summaries.moments import Sums, power_sums
from patchloom.summaries.summary import DISTINCT, Summary

__all__ = ["Wide", "numbers"]

_SORTED = 2 * DISTINCT
"""Pixels that are sorted together while values are counted one by one."""
_PAGE = 16 << (52 - BITS)
"""Buckets of 16 octaves: by so many the table of counts grows."""
_EXACT = 2**24
"""Whole numbers below have differences that every type holds."""


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

        Only a float64 may lie further apart: 10 MiB at most.
        """
        # Each bucket has a count and, of float32, a sum and a sum of squares.
        return max(DISTINCT * 17, 18 * 2 * 24 * _PAGE)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self._found.nbytes if self._rough is None else self._rough.nbytes

    def add(self, flat: npt.NDArray[Any], times: int) -> None:
        """Count pixels of the type, each `times` times."""
        fast = kernels.after(len(flat))
        start = 0
        while start < len(flat):
            if fast is not None and self._rough is not None:
                nans, left_out = self._rough.sweep(fast, flat[start:], self._nodata, times)
                self._nans += nans
                self._left_out += left_out
                return
            stop = start + (_SORTED if self._rough is None else PIECE)
            if self._rough is not None and self._dtype == np.float32:
                stop = start + COLUMN
            if fast is not None:
                stop = start + SETTLED
            some, nans, left_out = numbers(flat[start:stop], self._nodata)
            self._nans += nans * times
            self._left_out += left_out * times
            if len(some) and self._rough is None:
                self._one_by_one(some, times, fast)
            elif self._rough is not None and self._dtype == np.float32 and len(some) >= FEW:
                self._rough.add_short(some, times)
            elif self._rough is not None:
                self._rough.add(some.astype(np.float64), times)
            start = stop

    def _one_by_one(self, some: npt.NDArray[Any], times: int, fast: Any) -> None:
        found = _distinct(some, fast)
        if found is not None and len(found[0]) <= DISTINCT:
            values, counts = found
            part = Summary(values, counts * times, bits=floors(values, self._dtype))
            together = self._found + part
            if together.exact:
                self._found = together
                return
        self._rough = _Rough(self._dtype)
        if found is None:
            self._rough.sweep(fast, some, None, times)
        else:
            self._rough.add(found[0], 1, found[1] * times)
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
        self._short = dtype != np.float64
        self._first = 0
        self.counts: Ints = np.zeros((2, 0), np.int64)
        self._apart = {0.0: 0, math.inf: 0, -math.inf: 0}
        self._sums = Sums()
        self._pending: Octaves | Buckets | None = None
        self._low, self._high = math.inf, -math.inf

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self.counts.nbytes + (0 if self._pending is None else self._pending.table.nbytes)

    def sweep(
        self, fast: Any, flat: npt.NDArray[Any], nodata: float | None, times: int
    ) -> tuple[int, int]:
        """Count pixels by what numba compiled; how many counted as NaN and as nodata."""
        if flat.dtype.kind != "f":
            left_out = 0
            for start in range(0, len(flat), PIECE):
                some, _, gone = numbers(flat[start : start + PIECE], nodata)
                self.sweep(fast, some.astype(np.float64), None, times)
                left_out += gone * times
            return 0, left_out
        form = Patterns(flat.dtype, nodata)
        apart = np.zeros(5, np.int64)
        for start in range(0, len(flat), SETTLED):
            self._sweep(fast, form, flat[start : start + SETTLED], times, apart)
        nans, holes, *special = apart.tolist()
        for value, n in zip((0.0, -math.inf, math.inf), special, strict=True):
            self._apart[value] += n
        return nans, holes

    def _sweep(
        self, fast: Any, form: Patterns, flat: npt.NDArray[Any], times: int, apart: Ints
    ) -> None:
        patterns = form.of(flat)
        octaves = form.octaves(fast, patterns)
        pending = self._waiting(octaves or (1023, 1023), times, len(flat))
        first, table = pending.span[0], pending.table
        if flat.itemsize == 8:
            ends = np.array([self._low, self._high])
            fast.count_octaves_64(
                flat, patterns, form.hole, first, times, self.counts, table, ends, apart
            )
            self._low, self._high = ends.tolist()
            return
        some = np.zeros(5, np.int64)
        reach = np.array([2**31, -(2**31)])
        fast.count_buckets(patterns, form.hole, first, table, reach, some)
        apart += some * times
        if reach[0] <= reach[1]:
            ends = np.copysign(np.abs(reach).astype(np.uint32).view(np.float32), reach)
            low, high = ends.tolist()
            self._low, self._high = min(self._low, low + 0.0), max(self._high, high + 0.0)

    def add_short(self, flat: npt.NDArray[np.float32], times: int) -> None:
        """Count float32 numbers, none of them NaN."""
        if not len(flat):
            return
        size = flat.view(np.uint32) & np.uint32(2**31 - 1)
        usual = size - np.uint32(1 << 23) < np.uint32(0x7F000000)
        if not usual.all():
            self.add(flat[~usual].astype(np.float64), times)
            flat, size = flat[usual], size[usual]
            if not len(flat):
                return
        low, high = float(flat.min()), float(flat.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        octaves = [(int(end) >> 23) + 896 for end in (size.min(), size.max())]
        pending = self._waiting((octaves[0], octaves[1]), times, len(flat))
        count_buckets(flat.view(np.uint32), pending.span[0], pending.table)

    def _waiting(self, octaves: tuple[int, int], times: int, n: int) -> Octaves | Buckets:
        """Where `n` numbers of the octaves from one exponent to another are added to."""
        low, high = octaves
        self._table(low << 52 - BITS, high - low + 1 << 52 - BITS)
        span = self._first >> 52 - BITS, self.counts.shape[1] >> 52 - BITS
        pending = self._pending
        if pending is None or pending.full or (pending.span, pending.times) != (span, times):
            self._settle()
            kind = Buckets if self._dtype == np.float32 else Octaves
            pending = self._pending = kind(*span, times)
        pending.numbers += n
        return pending

    def _settle(self) -> None:
        if self._pending is None:
            return
        self._sums = self._sums.plus(self._pending.sums())
        counts = self._pending.counts()
        if counts is not None:
            first, n = (octave << 52 - BITS for octave in self._pending.span)
            self.counts[:, first - self._first : first - self._first + n] += counts
        self._pending = None

    def add(self, values: Floats, times: int, counts: Ints | None = None) -> None:
        """Count numbers; as often as `counts` says, if given."""
        if not len(values):
            return
        low, high = float(values.min()) + 0.0, float(values.max()) + 0.0
        self._low, self._high = min(self._low, low), max(self._high, high)
        if math.isinf(low) or math.isinf(high):
            for end in (low, high):
                mine = values == end
                if math.isinf(end) and mine.any():
                    self._apart[end] += times * _total(mine, counts)
                    values = values[~mine]
                    counts = None if counts is None else counts[~mine]
            self.add(values, times, counts)
            return
        part = power_sums(values, counts, short=self._short)
        self._sums = self._sums.plus(part.times(times))
        zero = values == 0
        n = _total(zero, counts) if low <= 0 <= high else 0
        self._apart[0.0] += n * times
        if low == high == 0:
            return
        if n:
            # Far from all others in the table: another one stands for it.
            other = high or low
            values = np.where(zero, other, values)
        if counts is None:
            first, found = count_sizes(values, BITS)
        else:
            first, found = _counted_sizes(values, counts)
        if n:
            found[int(other < 0), _size(other) - first] -= n
        self._table(first, found.shape[1])[:] += found * times

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
        self._settle()
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


def _distinct(some: npt.NDArray[Any], fast: Any) -> tuple[Floats, Ints] | None:
    """Different values and how often each occurs; None if numba finds more than `DISTINCT`."""
    if (near := _whole_numbers(some, fast)) is not None:
        return near
    if fast is not None:
        if some.dtype.itemsize == 8:
            some = some.astype(np.float64, copy=False)
        few = count_distinct(fast, some, DISTINCT)
        return None if few is None else (few[0].astype(np.float64), few[1])
    found, counts = np.unique(some, return_counts=True)
    # Wide integers may meet as floats, and signed zeros are one value.
    values, place = np.unique(found.astype(np.float64) + 0.0, return_inverse=True)
    often: Ints = np.zeros(len(values), np.int64)
    np.add.at(often, place, counts.astype(np.int64))
    return values, often


def _whole_numbers(some: npt.NDArray[Any], fast: Any) -> tuple[Floats, Ints] | None:
    """The same of whole numbers that lie within `DISTINCT` of one another; None of others."""
    if some.dtype.kind == "f" and not _are_whole(some[:64]):
        return None
    low, high = some.min(), some.max()
    if not (low > -_EXACT and high < _EXACT and int(high) - int(low) < DISTINCT):
        return None
    if some.dtype.kind == "f" and not _are_whole(some):
        return None
    counts: Ints = np.zeros(int(high) - int(low) + 1, np.int64)
    (fast or counting).count_values((some - low).astype(np.uint16), counts)
    found = np.flatnonzero(counts)
    return found.astype(np.float64) + float(low) + 0.0, counts[found]


def _are_whole(some: npt.NDArray[Any]) -> bool:
    return bool((np.rint(some) == some).all())


def _total(mine: npt.NDArray[np.bool_], counts: Ints | None) -> int:
    return int(np.count_nonzero(mine)) if counts is None else int(counts[mine].sum())


def _size(value: float) -> int:
    """Bucket of an absolute value."""
    return int(np.array([abs(value)]).view(np.int64)[0] >> BITS)


def _counted_sizes(values: Floats, counts: Ints) -> tuple[int, Ints]:
    """As `count_sizes`, of values that occur as often as `counts` says."""
    sizes = np.abs(values).view(np.int64) >> BITS
    first = int(sizes.min())
    found: Ints = np.zeros((2, int(sizes.max()) - first + 1), np.int64)
    np.add.at(found, ((values < 0).astype(np.int64), sizes - first), counts)
    return first, found


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
