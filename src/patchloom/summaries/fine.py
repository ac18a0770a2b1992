"""Counts inside the leaves that hold wanted ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries.counting import PIECE, count_leaf
from patchloom.summaries.keys import Floats, Ints, ends, floors, keys_of, nearest_zero, values_of
from patchloom.summaries.moments import Sums
from patchloom.summaries.refining import Targets
from patchloom.summaries.summary import Summary
from patchloom.summaries.wide import numbers

__all__ = ["Fine"]


class Fine:
    """At most `LEAVES` leaves, each of at most `BINS` bins or `LISTED` values."""

    def __init__(self, dtype: np.dtype[Any], nodata: float | None, targets: Targets) -> None:
        self._dtype, self._nodata = dtype, nodata
        low, last = ends(targets.values, targets.bits)
        self._low, self._last, self._left = low.tolist(), last.tolist(), targets.left.tolist()
        self._counts: list[Ints] = [np.zeros(0, np.int64) for _ in self._low]
        self._lists: list[Summary] = [Summary.empty() for _ in self._low]
        self._listed = targets.listed.tolist()

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(c.nbytes for c in self._counts) + sum(s.nbytes for s in self._lists)

    def add(self, flat: npt.NDArray[Any], times: int) -> None:
        """Count pixels of the type, each `times` times."""
        for start in range(0, len(flat), PIECE):
            some, _, _ = numbers(flat[start : start + PIECE], self._nodata)
            values = some.astype(np.float64) + 0.0
            for leaf, (low, last) in enumerate(zip(self._low, self._last, strict=True)):
                if self._listed[leaf]:
                    self._list(leaf, values, times)
                    continue
                if not len(self._counts[leaf]):
                    parts = (last - low >> self._left[leaf]) + 1
                    self._counts[leaf] = np.zeros(parts, np.int64)
                count_leaf(values, low, last, self._left[leaf], times, self._counts[leaf])

    def _list(self, leaf: int, values: Floats, times: int) -> None:
        keys = keys_of(values)
        mine = values[(keys >= self._low[leaf]) & (keys <= self._last[leaf])]
        found, counts = np.unique(mine, return_counts=True)
        part = Summary(found, counts.astype(np.int64) * times, bits=np.zeros(len(found), np.uint8))
        self._lists[leaf] = self._lists[leaf] + part

    def summary(self) -> Summary:
        """What was counted so far: leaves inside the targets only."""
        values, counts, bits = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
        for leaf, left in enumerate(self._left):
            if self._listed[leaf]:
                found = self._lists[leaf]
                values.append(found.values)
                counts.append(found.counts)
                bits.append(found.bits)
                continue
            where = np.flatnonzero(self._counts[leaf])
            keys = np.uint64(self._low[leaf]) + (where.astype(np.uint64) << np.uint64(left))
            open_bits = np.full(len(keys), left, np.uint8)
            # The key next to 0 of a part: its first if positive, its last if negative.
            names = nearest_zero(values_of(keys), open_bits)
            values.append(names)
            counts.append(self._counts[leaf][where])
            bits.append(floors(names, self._dtype, left))
        return Summary(
            np.concatenate(values),
            np.concatenate(counts),
            bits=np.concatenate(bits),
            exact=False,
            sums=Sums(),
        )
