"""The loops in which statistics spend their time, compiled by numba (the extra ``fast``).

They find what `counting` and `moments` find with NumPy, to the last bit, do not hold the
interpreter's lock, and are several times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.compiled_loops import CompiledLoops
from patchloom.summaries.counting import PIECE
from patchloom.summaries.keys import Floats, Ints, ends
from patchloom.summaries.moments import Sums
from patchloom.summaries.refining import Targets

__all__ = [
    "SETTLED",
    "Buckets",
    "Leaves",
    "Octaves",
    "Patterns",
    "count_distinct",
    "kernels",
]

SETTLED = 2**23
"""Pixels after which counts of 24 or 32 bits and sums of 64 are emptied: before they overflow."""
_UPPER = np.uint64(48)
"""Bits of a key below the 16 that are looked up."""
_FEW = 2**12
"""Slots of the first table of different values."""


kernels = CompiledLoops("patchloom.summaries.compiled", 2**28, "NumPy counts")


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


class Buckets:
    """Counts and exact sums of float32 numbers by bucket, since they were last emptied.

    Parameters
    ----------
    first, n
        Exponent of float64 of the first octave, and how many there are.
    times
        How often each number counts.
    """

    def __init__(self, first: int, n: int, times: int) -> None:
        self.span, self.times = (first, n), times
        self.numbers = 0
        """How many were added."""
        self.table = np.zeros((2, n << 8, 2), np.uint64)
        """Of each sign and bucket: 2^40 times how many, and the sum of the lowest 15 bits of
        their patterns; and the sum of the squares of these."""

    @property
    def full(self) -> bool:
        """Whether another `SETTLED` numbers could be too many."""
        return self.numbers >= SETTLED

    def counts(self) -> Ints:
        """Numbers of each bucket: int64[2, buckets]."""
        return (self.table[..., 0] >> np.uint64(40)).astype(np.int64) * self.times

    def sums(self) -> Sums:
        """The sums of all numbers."""
        parts = self.table.reshape(2, -1, 256, 2)
        n = (parts[..., 0] >> np.uint64(40)).astype(np.int64)
        total = (parts[..., 0] & np.uint64(2**40 - 1)).astype(np.int64)
        square = parts[..., 1].astype(np.int64)
        # A number is its bucket's first one and its lowest bits: by octave, a few sums of these.
        begin = np.arange(256, 512)
        sums = ((n * begin).sum(-1), total.sum(-1), (n * begin**2).sum(-1))
        mixed, squares = (begin * total).sum(-1), square.sum(-1)
        first = second = 0
        for sign, *columns in zip((1, -1), *sums, mixed, squares, strict=True):
            for octave, (a, b, c, d, e) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), self.span[0] + 28
            ):
                first += sign * ((a << 15) + b) << octave
                second += (c << 30) + (d << 16) + e << 2 * octave
        return Sums(first, second).times(self.times)


class Octaves:
    """Exact sums of float64 numbers, of each sixteenth of an octave apart, since last emptied.

    Parameters
    ----------
    first, n
        Exponent of the first octave, and how many there are.
    times
        How often each number counts.
    """

    def __init__(self, first: int, n: int, times: int) -> None:
        self.span, self.times = (first, n), times
        self.numbers = 0
        """How many were added."""
        # A count, a sum, and a sum of squares of two words.
        self.table = np.zeros((2, 16 * n, 4), np.uint64)

    @property
    def full(self) -> bool:
        """Whether sums of 64 bits could overflow soon."""
        return self.numbers >= SETTLED

    def counts(self) -> None:
        """None: numbers are counted elsewhere."""

    def sums(self) -> Sums:
        """The sums of all numbers."""
        first = second = 0
        for sign, cells in zip((1, -1), self.table, strict=True):
            found = np.flatnonzero(cells[:, 0])
            for cell, (n, total, *squares) in zip(
                found.tolist(), cells[found].tolist(), strict=True
            ):
                octave, sixteenth = self.span[0] + (cell >> 4), cell & 15
                # What lies below the smallest normal float64 has no implicit bit.
                begin = sixteenth + (16 if octave else 0) << 48
                unit = max(octave, 1) - 1
                total += n >> 40 << 64
                n &= 2**40 - 1
                square = sum(word << (64 * k) for k, word in enumerate(squares))
                first += sign * (n * begin + total) << unit
                second += n * begin * begin + 2 * begin * total + square << 2 * unit
        return Sums(first, second).times(self.times)


class Patterns:
    """Numbers of a float type as bit patterns.

    Parameters
    ----------
    dtype
        float32 or float64.
    nodata
        Value to leave out.
    """

    def __init__(self, dtype: np.dtype[Any], nodata: float | None) -> None:
        self.dtype, self._whole = dtype, np.dtype(f"u{dtype.itemsize}")
        self._fraction = 23 if dtype.itemsize == 4 else 52
        self._lift = 896 if dtype.itemsize == 4 else 0
        self._sign = 1 << (8 * dtype.itemsize - 1)
        self._infinite = int(self.of(np.array([np.inf]))[0])
        # Without a value, the pattern of a NaN: those are counted first.
        self.hole = self.of(np.array([np.nan if nodata is None else nodata + 0.0]))[0]

    def of(self, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The patterns of numbers."""
        return flat.astype(self.dtype, copy=False).view(self._whole)

    def octaves(self, fast: Any, patterns: npt.NDArray[Any]) -> tuple[int, int] | None:
        """Exponents of float64 of the smallest and the largest number; None if all are 0."""
        least, most = fast.extremes(patterns, self._sign - 1, self._infinite)
        return (self._octave(least), self._octave(most)) if least <= most else None

    def _octave(self, size: int) -> int:
        exponent = size >> self._fraction
        if self._lift and not exponent:
            return self._lift - self._fraction + size.bit_length()
        return exponent + self._lift


class Leaves:
    """The bins of the leaves of a pass, one after the other in one array.

    Parameters
    ----------
    targets
        The leaves.
    counts
        What was counted of each so far; empty if nothing.
    """

    def __init__(self, targets: Targets, counts: Sequence[Ints]) -> None:
        self._low, self._last = ends(targets.values, targets.bits)
        self._left = targets.left.astype(np.uint64)
        bins = ((self._last - self._low) >> self._left).astype(np.int64) + 1
        bins[targets.listed] = 0
        stop = np.cumsum(bins)
        self._starts = np.where(targets.listed, -1, stop - bins)
        self._bins = np.zeros(int(stop[-1]), np.int64)
        self._views = np.split(self._bins, stop[:-1])
        for view, before in zip(self._views, counts, strict=True):
            view[: len(before)] = before
        self._listed = np.zeros(PIECE if targets.listed.any() else 0, np.uint64)
        # Of the numbers that agree in their upper 16 bits, most lie in no leaf at all.
        upper = np.arange(2**16)
        leaf = np.searchsorted(self._last >> _UPPER, upper)
        begin = (self._low >> _UPPER)[np.minimum(leaf, len(bins) - 1)]
        self._near = np.where((leaf < len(bins)) & (begin <= upper), leaf, 255).astype(np.uint8)

    def views(self) -> list[Ints]:
        """The bins of each leaf; none of those that are listed."""
        return self._views

    def count(self, fast: Any, values: Floats, nodata: float | None, times: int) -> Floats:
        """Count up to `PIECE` numbers; what lies in leaves that are listed is returned."""
        form = Patterns(values.dtype, nodata)
        n = fast.count_leaves(
            form.of(values), form.hole, times, self._near, self._low, self._last, self._left,
            self._starts, self._bins, self._listed,
        )  # fmt: skip
        return self._listed[:n].view(np.float64).copy()
