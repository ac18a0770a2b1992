"""Bars: a histogram coarse enough to be drawn, and to be kept in a store's attributes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries import Summary

__all__ = ["MOST", "Bars"]

MOST = 256
"""Bars of a histogram at most."""
_CENTRAL = 0.001
"""Share of the pixels at either end that need not lie in a bar."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bars:
    """Counts of pixels in bars whose width is a power of two, and whose ends are multiples of it.

    So bars of any two histograms fit together: those of one split into, or make up, those of the
    other, and histograms add without a pixel being guessed into the wrong bar. The width is the
    least at which the middle 99.8 % of the pixels fit (of whole numbers, at least 1); one hot
    pixel does not squeeze all others into a single bar. What lies beyond the bars is counted too.

    >>> from patchloom.summaries import summarize
    >>> bars = Bars.of(summarize(np.array([0, 3, 3, 1000], np.uint16)), most=4)
    >>> bars.edges.tolist(), bars.counts
    ([0.0, 256.0, 512.0, 768.0, 1024.0], (3, 0, 0, 1))
    """

    first: int
    """The lowest bar's lower end, in widths."""
    exponent: int
    """Of the width, which is 2 ** exponent grey levels."""
    counts: tuple[int, ...]
    """Pixels of each bar; its lower end belongs to it, its upper end to the next."""
    below: int = 0
    """Pixels below the first bar, those of minus infinity too."""
    above: int = 0
    """Pixels above the last bar, those of infinity too."""
    most: int = MOST
    """Bars that there may be."""

    @classmethod
    def of(cls, summary: Summary, most: int = MOST) -> Bars:
        """The bars of a summary.

        Parameters
        ----------
        summary
            If it is in buckets, each counts where it begins.
        most
            Bars at most.
        """
        finite = np.isfinite(summary.values) & (summary.counts > 0)
        values, counts = summary.values[finite], summary.counts[finite]
        low = int(summary.counts[summary.values == -math.inf].sum())
        high = int(summary.counts[summary.values == math.inf].sum())
        if not len(values):
            return cls(0, 0, (), low, high, most)
        upto = np.cumsum(counts)
        rank = int(upto[-1] * _CENTRAL)
        ends = np.searchsorted(upto, [rank, upto[-1] - 1 - rank], side="right")
        first, exponent, n = _fitting(float(values[ends[0]]), float(values[ends[1]]), values, most)
        whole = [_bar(float(v), exponent) for v in (values[0], values[-1])]
        if whole[1] - whole[0] < most:
            first, n = whole[0], whole[1] - whole[0] + 1
        place = np.searchsorted(_edges(first, exponent, n), values, side="right")
        totals = np.zeros(n + 2, np.int64)
        np.add.at(totals, place, counts)
        below, *inside, above = totals.tolist()
        return cls(first, exponent, tuple(inside), low + below, high + above, most)

    @property
    def edges(self) -> Floats:
        """Ends of the bars in grey levels: float64[n + 1]."""
        return _edges(self.first, self.exponent, len(self.counts))

    def __add__(self, other: Bars) -> Bars:
        if not isinstance(other, Bars):
            return NotImplemented
        below, above = self.below + other.below, self.above + other.above
        most = min(self.most, other.most)
        known = [bars for bars in (self, other) if bars.counts]
        if not known:
            return Bars(0, 0, (), below, above, most)
        exponent = max(bars.exponent for bars in known)
        while True:
            spans = [bars._at(exponent) for bars in known]
            first, stop = min(a for a, _ in spans), max(b for _, b in spans)
            if stop - first <= most:
                break
            exponent += 1
        totals = np.zeros(stop - first, np.int64)
        for bars in known:
            place = (bars.first + np.arange(len(bars.counts), dtype=object)) // 2 ** (
                exponent - bars.exponent
            )
            np.add.at(totals, (place - first).astype(np.int64), bars.counts)
        return Bars(first, exponent, tuple(totals.tolist()), below, above, most)

    def _at(self, exponent: int) -> tuple[int, int]:
        """The bars of a greater width that these lie in: the first, and the one after the last."""
        shift = exponent - self.exponent
        return self.first >> shift, ((self.first + len(self.counts) - 1) >> shift) + 1

    def to_document(self) -> dict[str, Any]:
        """Ready for JSON; counts are one text, which takes one line."""
        return {
            "first": self.first,
            "exponent": self.exponent,
            "counts": " ".join(map(str, self.counts)),
            "below": self.below,
            "above": self.above,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Bars:
        """Inverse of `to_document`."""
        counts = tuple(int(n) for n in document["counts"].split())
        return cls(
            document["first"], document["exponent"], counts, document["below"], document["above"]
        )


def _fitting(low: float, high: float, values: Floats, most: int) -> tuple[int, int, int]:
    """First bar, exponent and number of the narrowest bars that hold low to high."""
    # Halved first: the distance of two large numbers may be infinite.
    span = high / 2 - low / 2 or max(abs(low), 1.0) / 2
    exponent = max(math.frexp(span)[1] - most.bit_length(), -1074)
    if (values == np.trunc(values)).all():
        exponent = max(exponent, 0)
    while _bar(high, exponent) - _bar(low, exponent) >= most:
        exponent += 1
    return _bar(low, exponent), exponent, _bar(high, exponent) - _bar(low, exponent) + 1


def _bar(value: float, exponent: int) -> int:
    """The bar that a value lies in; whole numbers of any size are exact."""
    top, bottom = value.as_integer_ratio()
    return top // (bottom << exponent) if exponent >= 0 else (top << -exponent) // bottom


def _edges(first: int, exponent: int, n: int) -> Floats:
    whole = (first + np.arange(n + 1, dtype=object)).astype(np.float64)
    with np.errstate(over="ignore"):  # the upper end of the largest numbers is infinite
        return np.ldexp(whole, exponent)
