"""Thresholds: where a histogram falls into two parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Histogram", "Method", "isodata", "li", "otsu", "percentile", "triangle"]

Counts = npt.NDArray[np.int64]
Method = Literal["otsu", "triangle", "li", "isodata", "percentile"]
_STEPS = 256
"""Bins that the triangle is laid over."""
_ROUNDS = 1000


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often values occur, in bins of one width."""

    low: float
    """Where the first bin begins; with whole numbers, the number that it counts."""
    width: float
    """0 for whole numbers: each bin counts one of them."""
    counts: Counts

    def split(self, method: Method, share: float | None = None) -> int | None:
        """The last bin of the darker part; None if all values lie in one bin.

        Parameters
        ----------
        method
            How.
        share
            For ``"percentile"``: in percent.
        """
        used = np.flatnonzero(self.counts)
        if len(used) < 2:
            return None
        first, last = int(used[0]), int(used[-1])
        counts = self.counts[first : last + 1]
        if method == "percentile":
            return first + percentile(counts, 50.0 if share is None else share)
        return first + _METHODS[method](counts)

    def value(self, k: int) -> float:
        """What lies above is in a bin after bin k."""
        if self.width == 0:
            return int(self.low) + k
        # In halves, which are exact: the last bin may end beyond the largest float.
        return 2 * (self.low / 2 + (k + 1) * (self.width / 2))


def otsu(counts: Counts) -> int:
    """The split with the largest variance between its two parts; of equal ones the first.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems,
    Man, and Cybernetics 9 (1979).

    Parameters
    ----------
    counts
        int64[n]; first and last are above 0, and n is at least 2.

    Returns
    -------
    int
        The last bin of the first part.
    """
    n, mean_low, mean_high = _parts(counts)
    between = n * (int(counts.sum()) - n).astype(np.float64) * (mean_high - mean_low) ** 2
    return int(between.argmax())


def triangle(counts: Counts) -> int:
    """The bin farthest below a line from the peak to the end of the longer tail.

    Zack, Rogers and Latt, "Automatic measurement of sister chromatid exchange frequency", Journal
    of Histochemistry and Cytochemistry 25 (1977). The histogram has at most 256 bins, so that
    empty ones between full ones do not count.

    Parameters
    ----------
    counts
        As in `otsu`.

    Returns
    -------
    int
        The last bin of the first part.
    """
    together = -(-len(counts) // _STEPS)
    heights = np.add.reduceat(counts, np.arange(0, len(counts), together)).astype(np.float64)
    peak, last = int(heights.argmax()), len(heights) - 1
    end = 0 if peak > last - peak else last
    x = np.arange(len(heights))
    line = heights[end] + (heights[peak] - heights[end]) * (x - end) / ((peak - end) or 1)
    # The distance to the line is the height below it, times the same cosine everywhere.
    below = np.where((x >= min(peak, end)) & (x <= max(peak, end)), line - heights, -np.inf)
    return min(int(below.argmax()) * together + together - 1, len(counts) - 2)


def li(counts: Counts) -> int:
    """The split with the least cross entropy, as an iteration from the mean finds it.

    Li and Tam, "An iterative algorithm for minimum cross entropy thresholding", Pattern
    Recognition Letters 19 (1998). Grey values count from the darkest.

    Parameters
    ----------
    counts
        As in `otsu`.

    Returns
    -------
    int
        The last bin of the first part.
    """
    _, mean_low, mean_high = _parts(counts)

    def following(k: int) -> int:
        low, high = float(mean_low[k]), float(mean_high[k])
        return int((high - low) / (math.log(high) - math.log(low))) if low else k

    return _settled(counts, following, _ROUNDS)


def isodata(counts: Counts) -> int:
    """The split that lies midway between the means of its parts, found from the mean.

    Ridler and Calvard, "Picture thresholding using an iterative selection method", IEEE
    Transactions on Systems, Man, and Cybernetics 8 (1978).

    Parameters
    ----------
    counts
        As in `otsu`.

    Returns
    -------
    int
        The last bin of the first part.
    """
    _, mean_low, mean_high = _parts(counts)
    return _settled(counts, lambda k: int((mean_low[k] + mean_high[k]) / 2), len(counts))


def percentile(counts: Counts, share: float) -> int:
    """The first bin at or below which lies a share of all values, in percent."""
    least = math.ceil(Fraction(str(share)) / 100 * int(counts.sum()))
    return int(np.searchsorted(np.cumsum(counts), max(least, 1)))


_METHODS: dict[str, Callable[[Counts], int]] = {
    "otsu": otsu,
    "triangle": triangle,
    "li": li,
    "isodata": isodata,
}


def _parts(counts: Counts) -> tuple[Counts, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each split: values in the first part, mean bin of the first part and of the second."""
    bins = np.arange(len(counts), dtype=np.int64)
    n, total = np.cumsum(counts), np.cumsum(counts * bins)
    rest = (total[-1] - total[:-1]) / (n[-1] - n[:-1])
    return n[:-1], total[:-1] / n[:-1], rest


def _settled(counts: Counts, following: Callable[[int], int], rounds: int) -> int:
    """The split that follows from itself, found from the mean in so many rounds at most."""
    k = _mean(counts)
    for _ in range(rounds):
        found = min(following(k), len(counts) - 2)
        if found == k:
            break
        k = found
    return k


def _mean(counts: Counts) -> int:
    n = int(counts.sum())
    return min(int((counts * np.arange(len(counts))).sum()) // n, len(counts) - 2)
