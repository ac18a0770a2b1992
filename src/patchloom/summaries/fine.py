"""Counts inside the leaves that hold wanted ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries.counting import PIECE, count_leaf
from patchloom.summaries.kernels import Leaves, kernels
from patchloom.summaries.keys import Floats, Ints, ends, floors, nearest_zero, values_of
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
        self._keys, self._left = low.tolist(), targets.left.tolist()
        self._parts = ((last - low >> targets.left.astype(np.uint64)) + np.uint64(1)).tolist()
        self._low, high = values_of(low).tolist(), values_of(last)
        # 0 is no number of the leaf that ends at -0.
        self._high = np.where((high == 0) & np.signbit(high), -5e-324, high).tolist()
        self._counts: list[Ints] = [np.zeros(0, np.int64) for _ in self._low]
        self._lists: list[Summary] = [Summary.empty() for _ in self._low]
        self._listed = targets.listed.tolist()
        self._targets = targets
        self._leaves: Leaves | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(c.nbytes for c in self._counts) + sum(s.nbytes for s in self._lists)

    def add(self, flat: npt.NDArray[Any], times: int) -> None:
        """Count pixels of the type, each `times` times."""
        fast = kernels.after(len(flat))
        if fast is not None:
            self._sweep(fast, flat, times)
            return
        picked: list[list[Floats]] = [[] for _ in self._low]
        for start in range(0, len(flat), PIECE):
            some, _, _ = numbers(flat[start : start + PIECE], self._nodata)
            values = some.astype(np.float64)
            for leaf, (low, high) in enumerate(zip(self._low, self._high, strict=True)):
                if self._listed[leaf]:
                    picked[leaf].append(values[(values >= low) & (values <= high)])
                    continue
                once = np.zeros(self._parts[leaf], np.int64) if times > 1 else self._bins(leaf)
                count_leaf(values, low, high, self._left[leaf], once)
                if times > 1:
                    self._bins(leaf)[:] += once * times
        for leaf, found in enumerate(picked):
            if found:
                self._list(leaf, np.concatenate(found) + 0.0, times)

    def _sweep(self, fast: Any, flat: npt.NDArray[Any], times: int) -> None:
        """Count pixels by what numba compiled."""
        if self._leaves is None:
            self._leaves = Leaves(self._targets, self._counts)
            self._counts = self._leaves.views()
        whole = flat.dtype.kind != "f"
        picked = []
        for start in range(0, len(flat), PIECE):
            some = flat[start : start + PIECE]
            if whole:
                some, _, _ = numbers(some, self._nodata)
            with np.errstate(invalid="ignore"):
                values = some.astype(np.float64, copy=False)
            picked.append(self._leaves.count(fast, values, None if whole else self._nodata, times))
        listed = np.concatenate(picked) if picked else np.zeros(0)
        for leaf in np.flatnonzero(self._listed).tolist() if len(listed) else ():
            mine = (listed >= self._low[leaf]) & (listed <= self._high[leaf])
            self._list(leaf, listed[mine], times)

    def _bins(self, leaf: int) -> Ints:
        if not len(self._counts[leaf]):
            self._counts[leaf] = np.zeros(self._parts[leaf], np.int64)
        return self._counts[leaf]

    def _list(self, leaf: int, values: Floats, times: int) -> None:
        found, counts = np.unique(values, return_counts=True)
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
            keys = np.uint64(self._keys[leaf]) + (where.astype(np.uint64) << np.uint64(left))
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
