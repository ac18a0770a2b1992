"""Summaries: histograms and moments that add.

A summary of two sets of pixels is the sum of their summaries, in any order and grouping.
Integers of up to 16 bits are counted value by value, so percentiles and moments are exact.
Wider types are exact as long as at most `DISTINCT` different values occur; beyond that the
values are counted in buckets of relative width `RELATIVE_WIDTH`, and the summary says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DISTINCT", "RELATIVE_WIDTH", "Summary", "Tally", "percentiles", "summarize"]

DISTINCT = 65_536
"""Different values up to which a summary of a wide type stays exact."""

_TOGETHER = 2**16
"""Small integers that are counted together."""
_BITS = 44
RELATIVE_WIDTH = 2.0 ** (_BITS - 52)
"""Width of a bucket of the bounded mode, relative to its value (1/256)."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Summary:
    """Counts of the pixels of one channel by value. NaN is counted apart and left out.

    >>> pixels = np.array([3, 1, 4, 1, 5], np.uint8)
    >>> whole = summarize(pixels[:2]) + summarize(pixels[2:])
    >>> whole.count, whole.mean, percentiles(whole, [50]).tolist()
    (5, 2.8, [3.0])
    """

    values: Floats
    """Distinct values (of each bucket the end nearest 0 if not exact), ascending: float64[k]."""
    counts: Ints
    """How often each occurs: int64[k]."""
    exact: bool = True
    """Whether `values` are the pixels' own."""
    nans: int = 0
    low: float = math.inf
    """Smallest value; infinity if there is none."""
    high: float = -math.inf
    """Largest value; minus infinity if there is none."""
    total: float = 0.0
    """Mean times count; from `values` if exact."""
    squares: float = 0.0
    """Sum of squared differences from the mean (M2)."""

    @classmethod
    def empty(cls) -> Summary:
        """The summary of no pixels."""
        return cls(np.zeros(0), np.zeros(0, np.int64))

    @property
    def count(self) -> int:
        """Pixels that are numbers."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Arithmetic mean; NaN if there is no pixel."""
        if not self.count:
            return math.nan
        if self.exact:
            return _exact_sum(self.values, self.counts) / self.count
        return self.total / self.count

    @property
    def std(self) -> float:
        """Population standard deviation; NaN if there is no pixel, or an infinite one."""
        if not self.count or not math.isfinite(self.mean):
            return math.nan
        if self.exact:
            # Centred on the mean, so that nothing cancels.
            with np.errstate(over="ignore"):
                centred = (self.values - self.mean) ** 2
            return math.sqrt(_exact_sum(centred, self.counts) / self.count)
        return math.sqrt(self.squares / self.count)

    def __add__(self, other: Summary) -> Summary:
        if not isinstance(other, Summary):
            return NotImplemented
        if not other.count and not other.nans:
            return self
        if not self.count and not self.nans:
            return other
        exact = self.exact and other.exact
        values, counts = _join(self.values, self.counts, other.values, other.counts)
        if exact and len(values) > DISTINCT:
            exact = False
        if not exact:
            values, counts = _bucketed(values, counts)
            return self._merged(other, values, counts)
        return Summary(
            values,
            counts,
            True,
            self.nans + other.nans,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    def _merged(self, other: Summary, values: Floats, counts: Ints) -> Summary:
        """The sum in buckets, with moments that cannot be had from the values any more."""
        n, m = self.count, other.count
        delta = (other._sum() / m - self._sum() / n) if n and m else 0.0
        return Summary(
            values,
            counts,
            False,
            self.nans + other.nans,
            min(self.low, other.low),
            max(self.high, other.high),
            self._sum() + other._sum(),
            # T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise
            # algorithm for computing sample variances", 1979.
            self._m2() + other._m2() + (delta * delta * n * m / (n + m) if n and m else 0.0),
        )

    def _sum(self) -> float:
        return _exact_sum(self.values, self.counts) if self.exact else self.total

    def _m2(self) -> float:
        return self.std**2 * self.count if self.exact and self.count else self.squares


def summarize(pixels: npt.NDArray[Any]) -> Summary:
    """Summarize the pixels of one channel.

    Parameters
    ----------
    pixels
        Any shape; bool, integers or floats.
    """
    kind, itemsize = pixels.dtype.kind, pixels.dtype.itemsize
    flat = pixels.reshape(-1)
    if kind in "biu" and itemsize <= 2:
        tally = Tally(pixels.dtype)
        tally.add(pixels)
        return tally.summary()
    numbers, nans = _numbers(flat)
    if not numbers.size:
        return Summary(np.zeros(0), np.zeros(0, np.int64), True, nans)
    found, counts = np.unique(numbers, return_counts=True)
    if len(found) > DISTINCT:
        return _bounded(numbers, nans)
    # Signed zeros are one value.
    values = found.astype(np.float64) + 0.0
    low, high = float(values[0]), float(values[-1])
    return Summary(values, counts.astype(np.int64), True, nans, low, high)


def _numbers(flat: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
    """Pixels without NaN, and how many were NaN."""
    if flat.dtype.kind != "f":
        return flat, 0
    bad = np.isnan(flat)
    n = int(np.count_nonzero(bad))
    return (flat[~bad] if n else flat), n


def _bounded(numbers: npt.NDArray[Any], nans: int) -> Summary:
    """A summary in buckets; no sorting of pixels."""
    if not numbers.size:
        return Summary(np.zeros(0), np.zeros(0, np.int64), False, nans)
    wide = numbers.astype(np.float64) + 0.0
    mean = float(wide.mean())
    m2 = float(np.square(wide - mean).sum()) if math.isfinite(mean) else math.nan
    dense = np.bincount((wide.view(np.uint64) >> np.uint64(_BITS)).astype(np.int64))
    keys = np.flatnonzero(dense)
    values = (keys.astype(np.uint64) << np.uint64(_BITS)).view(np.float64)
    order = np.argsort(values)
    return Summary(
        values[order],
        dense[keys][order].astype(np.int64),
        False,
        nans,
        float(wide.min()),
        float(wide.max()),
        mean * wide.size,
        m2,
    )


def from_counts(dense: Ints, first: int) -> Summary:
    """A summary from dense counts of consecutive integers that begin at `first`."""
    where = np.flatnonzero(dense)
    if not len(where):
        return Summary.empty()
    values = (where + first).astype(np.float64)
    return Summary(
        values, dense[where].astype(np.int64), True, 0, float(values[0]), float(values[-1])
    )


def percentiles(summary: Summary, q: Sequence[float]) -> Floats:
    """Percentiles of the summarized pixels, as ``numpy.percentile(pixels, q)`` gives them.

    Linear interpolation between the closest ranks (type 7 of Hyndman and Fan, "Sample
    quantiles in statistical packages", The American Statistician 50, 1996). Bit for bit
    equal on float64 pixels if the summary is exact; else off by at most one bucket.

    Parameters
    ----------
    summary
        What to rank.
    q
        In percent, from 0 to 100.

    Returns
    -------
    float64[len(q)]
        NaN if there is no pixel.
    """
    n = summary.count
    if not n:
        return np.full(len(q), math.nan)
    upto = np.cumsum(summary.counts)
    virtual = np.asarray(q, np.float64) / 100.0 * (n - 1)
    below = np.floor(virtual)
    part = virtual - below
    ranks = below.astype(np.int64)
    a = summary.values[np.searchsorted(upto, ranks, side="right")]
    b = summary.values[np.searchsorted(upto, np.minimum(ranks + 1, n - 1), side="right")]
    with np.errstate(invalid="ignore"):
        step = b - a
        # NumPy interpolates from the nearer end, which keeps the result inside [a, b].
        found = np.where(part >= 0.5, b - step * (1 - part), a + step * part)
    found = np.where(a == b, a, found)
    return np.clip(found, summary.low, summary.high) if not summary.exact else found


def _join(va: Floats, ca: Ints, vb: Floats, cb: Ints) -> tuple[Floats, Ints]:
    values, place = np.unique(np.concatenate([va, vb]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, place, np.concatenate([ca, cb]))
    return values, counts


def _bucketed(values: Floats, counts: Ints) -> tuple[Floats, Ints]:
    """Drop the low bits of the mantissa: buckets of constant relative width."""
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    mask = np.uint64((2**64 - 1) ^ (2**_BITS - 1))
    coarse = (bits & mask).view(np.float64)
    kept, place = np.unique(coarse, return_inverse=True)
    total = np.zeros(len(kept), np.int64)
    np.add.at(total, place, counts)
    return kept, total


def _exact_sum(values: Floats, counts: Ints) -> float:
    small = len(values) > 0 and bool(np.abs(values).max() < 2**31)
    if small and bool(np.all(values == np.trunc(values))):
        # Integers: exact whatever their number.
        whole = values.astype(np.int64).astype(object) * counts.astype(object)
        return float(sum(whole.tolist()))
    with np.errstate(invalid="ignore", over="ignore"):
        products = values * counts
        if np.isfinite(products).all():
            return math.fsum(products.tolist())
        return float(products.sum())


class Tally:
    """Adds up the pixels of one channel, chunk by chunk, without sorting small integers.

    >>> tally = Tally(np.dtype("uint8"))
    >>> tally.add(np.array([1, 2, 2], np.uint8))
    >>> tally.summary().count
    3
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._narrow = dtype.kind in "biu" and dtype.itemsize <= 2
        self._signed = dtype.kind == "i"
        self._bins = 2 ** (8 * dtype.itemsize) if self._narrow else 0
        self._dense: Ints | None = None
        self._sum = Summary.empty()

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        dense = 0 if self._dense is None else self._dense.nbytes
        return dense + self._sum.values.nbytes * 2

    def add(self, pixels: npt.NDArray[Any]) -> None:
        """Count some pixels."""
        if not pixels.size:
            return
        if not self._narrow:
            # Once too many values were seen, looking for distinct ones again is of no use.
            flat = pixels.reshape(-1)
            part = summarize(flat) if self._sum.exact else _bounded(*_numbers(flat))
            self._sum = self._sum + part
            return
        flat = np.ascontiguousarray(pixels).reshape(-1).view(f"u{pixels.dtype.itemsize}")
        # Counting widens each pixel to 64 bits: some at a time, so that this stays in the cache.
        for low in range(0, len(flat), _TOGETHER):
            # Only as many counts as the largest value asks for: most images leave most bins empty.
            counts: Ints = np.bincount(flat[low : low + _TOGETHER])
            dense = self._dense
            if dense is None or len(dense) < len(counts):
                self._dense = counts
                if dense is not None:
                    counts[: len(dense)] += dense
            else:
                dense[: len(counts)] += counts

    def summary(self) -> Summary:
        """What was counted so far."""
        if self._dense is None:
            return self._sum
        # Two's complement: the upper half of the unsigned counts are the negative values.
        if not self._signed:
            return from_counts(self._dense, 0)
        half = self._bins // 2
        whole = np.zeros(self._bins, np.int64)
        whole[: len(self._dense)] = self._dense
        return from_counts(np.roll(whole, half), -half)
