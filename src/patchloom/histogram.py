"""Histogram: how often grey levels occur, in bins few enough to be drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "Histogram", "span_of"]

BINS = 128
"""Bins of a drawn histogram, at most."""
_MARGIN = 0.5
"""How far an axis goes on beyond the marked grey levels, in units of their distance."""
_FARTHEST = 2.0**1020

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Pixels by grey level, in bins of one width.

    >>> found = Histogram.of(np.array([0.0, 1.0, 7.0]), np.array([5, 3, 2]), (0.0, 3.0))
    >>> found.counts.tolist(), found.above, found.edges[:2].tolist()
    ([5.0, 3.0, 0.0, 0.0], 2.0, [-0.5, 0.5])
    """

    edges: Floats
    """Ends of the bins, ascending: float64[bins + 1]."""
    counts: Floats
    """Pixels of each bin; what a bucket of pixels shares between bins is no whole number:
    float64[bins]."""
    below: float
    """Pixels below the first bin."""
    above: float
    """Pixels above the last bin."""

    @property
    def total(self) -> float:
        """All pixels, those beyond the bins too."""
        return float(self.counts.sum()) + self.below + self.above

    @property
    def whole(self) -> bool:
        """Whether bins hold whole numbers only, equally many each."""
        return bool(float(self.edges[0]) % 1 == 0.5 and float(self.edges[1]) % 1 == 0.5)

    @classmethod
    def of(
        cls,
        values: Floats,
        counts: Ints,
        span: tuple[float, float],
        *,
        far: Floats | None = None,
        bins: int = BINS,
    ) -> Histogram:
        """Bin counted grey levels.

        Parameters
        ----------
        values
            Grey levels, or one end of each bucket of them; ascending: float64[k].
        counts
            Pixels of each: int64[k].
        span
            Lowest and highest grey level of the axis, finite.
        far
            Other end of each bucket; by default grey levels are exact. Pixels of a bucket are
            taken to be spread evenly over it.
        bins
            At most so many.
        """
        low, high = span
        exact = np.ones(len(values), bool) if far is None else far == values
        whole = bool(exact.all()) and _whole(values[(values >= low) & (values <= high)])
        edges = _integer_edges(low, high, bins) if whole else np.linspace(low, high, bins + 1)
        upto = _upto(values[exact], counts[exact], edges)
        if far is not None and not exact.all():
            upto = upto + _spread(values[~exact], far[~exact], counts[~exact], edges)
        total = float(counts.sum())
        return cls(edges, np.diff(upto), float(upto[0]), max(0.0, total - float(upto[-1])))


def span_of(lowest: float, highest: float, marks: Sequence[float] = ()) -> tuple[float, float]:
    """The axis on which marked grey levels are seen best.

    The outermost marks and half their distance beyond them, but no further than there are
    pixels: a few bright ones do not squeeze all others into one bin.

    Parameters
    ----------
    lowest, highest
        Of all pixels, finite.
    marks
        Grey levels to see, such as percentiles; those where no pixel can be are left out.

    Examples
    --------
    >>> span_of(0, 65535, [100, 300])
    (0.0, 400.0)
    >>> span_of(7, 7)
    (6.5, 7.5)
    """
    known = [v for v in marks if math.isfinite(v) and lowest <= v <= highest]
    low, high = float(lowest), float(highest)
    if known and (wide := max(known) - min(known)) > 0 and math.isfinite(wide):
        low = max(low, min(known) - _MARGIN * wide)
        high = min(high, max(known) + _MARGIN * wide)
    # Two floats of the greatest size lie further apart than a float can say.
    low, high = (min(max(v, -_FARTHEST), _FARTHEST) for v in (low, high))
    # Nearer than floats of this size, or any, can be told apart in a drawing.
    least = max(max(abs(low), abs(high)) * 2.0**-40, 1e-290)
    if high - low < least:
        half = max(0.5, least)
        low, high = low - half, high + half
    return low, high


def _whole(values: Floats) -> bool:
    """Whether all are integers that a bin can be centred on."""
    return bool(len(values)) and bool(
        np.all(values == np.trunc(values)) and np.abs(values).max() < 2.0**50
    )


def _integer_edges(low: float, high: float, bins: int) -> Floats:
    """Bins of equally many integers each: no comb where levels and bins do not match."""
    first, last = math.ceil(low), math.floor(high)
    step = max(1, -(-(last - first + 1) // bins))
    n = max(1, -(-(last - first + 1) // step))
    return first - 0.5 + step * np.arange(n + 1, dtype=np.float64)


def _upto(values: Floats, counts: Ints, edges: Floats) -> Floats:
    """Pixels below each edge, and at the last edge those on it too."""
    before = np.concatenate([[0], np.cumsum(counts)])
    place = np.searchsorted(values, edges, side="left")
    place[-1] = np.searchsorted(values, edges[-1], side="right")
    return np.asarray(before[place], np.float64)


def _spread(near: Floats, far: Floats, counts: Ints, edges: Floats) -> Floats:
    """Pixels of buckets below each edge, each bucket cut where an edge goes through it."""
    low, high = np.minimum(near, far), np.maximum(near, far)
    knots = np.stack([low, high], 1).ravel()
    ends = np.cumsum(counts).astype(np.float64)
    reached = np.stack([ends - counts, ends], 1).ravel()
    return np.interp(edges, knots, reached)
