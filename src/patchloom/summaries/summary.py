"""What is known of the pixels of one channel: counts by value, exact sums, what was left out."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from patchloom.errors import SourceChangedError
from patchloom.summaries.keys import (
    RELATIVE_WIDTH,
    Bits,
    Floats,
    Ints,
    ends,
    floors,
    keys_of,
    nearest_zero,
)
from patchloom.summaries.moments import Sums, deviation, mean, power_sums, rounded_sums
from patchloom.summaries.ranking import middle
from patchloom.summaries.refining import Targets

__all__ = ["DISTINCT", "RELATIVE_ERROR", "Summary"]

DISTINCT = 65_536
"""Different values up to which a summary stays exact."""
RELATIVE_ERROR = RELATIVE_WIDTH / 2
"""How far a value known by its bucket may be off, relative to it: half a bucket (1/512).
Numbers nearer to 0 than 2^-1022 are off by 2^-1030 at most."""


@dataclass(frozen=True, eq=False)
class Summary:
    """Counts of the pixels of one channel by value.

    It depends on the pixels alone: `a + b` is the summary of the pixels of both, the same to the
    last bit for any order and grouping. Pixels equal to the image's nodata value, and NaN, are
    left out and counted apart. Infinities are values. -0.0 is 0.0.

    >>> pixels = np.array([3, 1, 4, 1, 5], np.uint8)
    >>> from patchloom.summaries import percentiles, summarize
    >>> whole = summarize(pixels[:2]) + summarize(pixels[2:])
    >>> whole.count, whole.mean, whole.median, percentiles(whole, [90]).tolist()
    (5, 2.8, 3.0, [4.6])
    """

    values: Floats
    """Distinct values, or what names the leaves (the end nearest 0), ascending: float64[k]."""
    counts: Ints
    """How often each occurs: int64[k]."""
    _: KW_ONLY
    exact: bool = True
    """Whether `values` are the pixels' own: at most `DISTINCT` of them."""
    bits: Bits = field(default_factory=lambda: np.zeros(0, np.uint8))
    """Bits of the ordered pattern that each leaf leaves open, 0 where it is a value: uint8[k].
    If exact, those that are left open once there are too many values. Buckets if not given."""
    nans: int = 0
    """Pixels that are NaN."""
    nodata: int = 0
    """Pixels left out since they equal the image's nodata value."""
    low: float = math.inf
    """Smallest value; infinity if there is none."""
    high: float = -math.inf
    """Largest value; minus infinity if there is none."""
    sums: Sums | None = None
    """Exact sums of the finite pixels; None if they follow from `values`."""

    def __post_init__(self) -> None:
        if len(self.bits) != len(self.values):
            object.__setattr__(self, "bits", floors(self.values, np.dtype("float64")))
        if self.exact and len(self.values):
            object.__setattr__(self, "low", float(self.values[0]))
            object.__setattr__(self, "high", float(self.values[-1]))

    @classmethod
    def empty(cls) -> Summary:
        """The summary of no pixels."""
        return cls(np.zeros(0), np.zeros(0, np.int64))

    @classmethod
    def of_floats(
        cls,
        values: Floats,
        counts: Ints,
        exact: bool,
        nans: int,
        low: float,
        high: float,
        total: float,
        squares: float,
    ) -> Summary:
        """A summary of times when sums were floating point: mean times count, and M2."""
        if exact:
            return cls(values, counts, nans=nans)
        sums = None
        if math.isfinite(total) and math.isfinite(squares) and squares > 0:
            sums = rounded_sums(total, squares, int(counts.sum()))
        # Else squares were too large or too small for a float64: buckets know more.
        return cls(values, counts, exact=False, nans=nans, low=low, high=high, sums=sums)

    @cached_property
    def count(self) -> int:
        """Pixels that are counted: numbers and infinities."""
        return int(self.counts.sum())

    @property
    def error(self) -> float:
        """Most that a percentile that is not resolved is off, relative to the pixels' values."""
        return 0.0 if self.exact else RELATIVE_ERROR

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self.values.nbytes + self.counts.nbytes + self.bits.nbytes

    @property
    def mean(self) -> float:
        """Arithmetic mean, correctly rounded; NaN if there is no pixel or infinities cancel."""
        if not self.count:
            return math.nan
        if math.isinf(self.low) or math.isinf(self.high):
            ends = {end for end in (self.low, self.high) if math.isinf(end)}
            return math.nan if len(ends) > 1 else ends.pop()
        return mean(self._sums, self.count)

    @property
    def std(self) -> float:
        """Population standard deviation; NaN if there is no pixel, or an infinite one."""
        if not self.count or math.isinf(self.low) or math.isinf(self.high):
            return math.nan
        return deviation(self._sums, self.count)

    @property
    def median(self) -> float:
        """`numpy.median` of the pixels; NaN if there is none."""
        if not self.count:
            return math.nan
        a, b = self.ranked(np.array([(self.count - 1) // 2, self.count // 2])).tolist()
        return middle(a, b)

    @property
    def mad(self) -> float:
        """Median of absolute differences from the median, not scaled; NaN if there is no pixel.

        Exact if the summary is; else off by at most `error` (2 |median| + mad).
        """
        if not self.count or math.isinf(self.median):
            return math.nan
        with np.errstate(over="ignore"):
            apart = np.abs(self._estimates - self.median)
        order = np.argsort(apart)
        upto = np.cumsum(self.counts[order])
        ranks = [(self.count - 1) // 2, self.count // 2]
        a, b = apart[order][np.searchsorted(upto, ranks, side="right")].tolist()
        return middle(a, b)

    def ranked(self, ranks: Ints) -> Floats:
        """The pixels of these ranks (0 is the smallest), as far as they are known."""
        found = self._estimates[self.leaves(ranks)]
        if self.exact:
            return found
        found = np.clip(found, self.low, self.high)
        found = np.where(ranks == 0, self.low, found)
        return np.where(ranks == self.count - 1, self.high, found)

    def leaves(self, ranks: Ints) -> Ints:
        """Positions in `values` of the pixels of these ranks."""
        return np.searchsorted(np.cumsum(self.counts), ranks, side="right").astype(np.int64)

    def __add__(self, other: Summary) -> Summary:
        if not isinstance(other, Summary):
            return NotImplemented
        if not (other.count or other.nans or other.nodata):
            return self
        if not (self.count or self.nans or self.nodata):
            return other
        if self.count + other.count >= 2**63:
            raise OverflowError(
                f"a summary counts fewer than 2^63 pixels, got {self.count + other.count}; "
                "take them apart"
            )
        nans, nodata = self.nans + other.nans, self.nodata + other.nodata
        if self.exact and other.exact:
            values, counts, bits = _joined(self, other)
            if len(values) <= DISTINCT:
                return Summary(values, counts, bits=bits, nans=nans, nodata=nodata)
        a, b = self._coarse(), other._coarse()
        values, counts, bits = _gathered(
            np.concatenate([a.values, b.values]),
            np.concatenate([a.counts, b.counts]),
            np.concatenate([a.bits, b.bits]),
        )
        return Summary(
            values,
            counts,
            bits=bits,
            exact=False,
            nans=nans,
            nodata=nodata,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            sums=self._sums.plus(other._sums),
        )

    def refined(self, more: Summary, targets: Targets) -> Summary:
        """The same summary, with what another pass has counted inside some of its leaves.

        Parameters
        ----------
        more
            Of a `Tally` with `targets`, over the same pixels.
        targets
            From `targets` of this summary, or of a sum of it and others.

        Raises
        ------
        SourceChangedError
            If that pass has not seen as many pixels in each leaf.
        """
        if self.exact:
            return self.opened(targets)
        seen, found = _inside(self, targets)[1], _inside(more, targets)[1]
        for n, m in zip(seen.tolist(), found.tolist(), strict=True):
            _check_passes(n, m)
        values = np.concatenate([self.values, more.values])
        counts = np.concatenate([self.counts, more.counts])
        bits = np.concatenate([self.bits, more.bits])
        low, last = ends(values, bits)
        order = np.lexsort((~last, low))
        # A leaf in which the next one lies is known more finely now.
        keep = np.ones(len(order), bool)
        keep[:-1] = low[order][1:] > last[order][:-1]
        kept = order[keep]
        _check_passes(self.count, int(counts[kept].sum()))
        return replace(self, values=values[kept], counts=counts[kept], bits=bits[kept])

    def opened(self, targets: Targets) -> Summary:
        """An exact summary that keeps its values inside `targets` in any sum.

        No pass is needed for it. A summary that is not exact is returned as it is.
        """
        if not self.exact or not len(targets):
            return self
        inside, _ = _inside(self, targets)
        return replace(self, bits=np.where(inside, 0, self.bits).astype(np.uint8))

    @cached_property
    def _sums(self) -> Sums:
        if self.sums is not None:
            return self.sums
        values = self._estimates
        finite = np.isfinite(values)
        return power_sums(values[finite], self.counts[finite])

    @property
    def _estimates(self) -> Floats:
        """A number of each leaf: its middle, 0 for the one at 0."""
        if self.exact:
            return self.values
        half = np.where(self.bits > 0, np.uint64(1) << (np.maximum(self.bits, 1) - 1), 0)
        pattern = self.values.view(np.uint64) + half.astype(np.uint64)
        return np.where(self.values == 0, 0.0, pattern.view(np.float64))

    def _coarse(self) -> Summary:
        """The summary that is left when there are too many values to keep."""
        if not self.exact:
            return self
        values = nearest_zero(self.values, self.bits)
        values, counts, bits = _gathered(values, self.counts, self.bits)
        return replace(self, values=values, counts=counts, bits=bits, exact=False, sums=self._sums)


Leaves = tuple[Floats, Ints, Bits]


def _joined(a: Summary, b: Summary) -> Leaves:
    """The values of two exact summaries; what either leaves open stays open."""
    if np.array_equal(a.values, b.values):
        return a.values, a.counts + b.counts, np.maximum(a.bits, b.bits)
    values = np.concatenate([a.values, b.values])
    order = np.argsort(values, kind="stable")
    values = values[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    counts = np.concatenate([a.counts, b.counts])[order]
    bits = np.concatenate([a.bits, b.bits])[order]
    return (
        values[starts],
        np.add.reduceat(counts, starts),
        np.maximum.reduceat(bits, starts),
    )


def _gathered(values: Floats, counts: Ints, bits: Bits) -> Leaves:
    """Leaves of which none lies in another: the coarser takes what lies in it."""
    if not len(values):
        return values, counts, bits
    low, last = ends(values, bits)
    order = np.lexsort((~last, low))
    low, last = low[order], last[order]
    reach = np.maximum.accumulate(last)
    starts = np.flatnonzero(np.concatenate([[True], low[1:] > reach[:-1]]))
    first = order[starts]
    return values[first], np.add.reduceat(counts[order], starts), bits[first]


def _inside(summary: Summary, leaves: Targets) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Whether each value lies in one of some leaves, and how many pixels each leaf holds."""
    held: Ints = np.zeros(len(leaves.values), np.int64)
    if not len(held):
        return np.zeros(len(summary.values), bool), held
    low, last = ends(leaves.values, leaves.bits)
    keys = keys_of(summary.values)
    at = np.searchsorted(low, keys, side="right") - 1
    inside: npt.NDArray[np.bool_] = (at >= 0) & (keys <= last[at])
    np.add.at(held, at[inside], summary.counts[inside])
    return inside, held


def _check_passes(n: int, m: int) -> None:
    if n != m:
        raise SourceChangedError(
            f"passes over an image see the same pixels, but one saw {n} where another saw {m}: "
            "the image has changed meanwhile; take its statistics again"
        )
