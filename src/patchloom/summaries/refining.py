"""Targets: where the next pass looks closer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchloom.summaries.keys import Bits, Floats, ends

__all__ = ["BINS", "LEAVES", "LISTED", "Targets"]

BINS = 2**17
"""Bins into which one pass divides a leaf."""
LISTED = 2**16
"""Pixels of a leaf up to which a pass counts it value by value instead."""
LEAVES = 32
"""Leaves that one pass divides at most: 34 MiB of counts."""

_STEP = BINS.bit_length() - 1


@dataclass(frozen=True, eq=False)
class Targets:
    """The leaves that hold wanted ranks, and how finely to count inside them.

    In ascending order, apart from one another, at most `LEAVES`.
    """

    values: Floats
    """The numbers of the leaves nearest to 0: float64[t]."""
    bits: Bits
    """Bits of the ordered pattern that each leaves open: uint8[t]."""
    listed: npt.NDArray[np.bool_]
    """Whether its values are counted one by one: bool[t]."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def left(self) -> Bits:
        """Bits that are still open after the pass: uint8[t]."""
        step = np.where(self.listed, 64, _STEP)
        return np.maximum(self.bits.astype(np.int64) - step, 0).astype(np.uint8)

    def __or__(self, other: Targets) -> Targets:
        """The leaves of both: of nested ones the larger, of one in both the finer counting."""
        if not isinstance(other, Targets):
            return NotImplemented
        values = np.concatenate([self.values, other.values])
        bits = np.concatenate([self.bits, other.bits])
        listed = np.concatenate([self.listed, other.listed])
        low, last = ends(values, bits)
        order = np.lexsort((~listed, ~last, low))
        reach = np.maximum.accumulate(last[order])
        keep = np.ones(len(order), bool)
        keep[1:] = low[order][1:] > reach[:-1]
        kept = order[keep][:LEAVES]
        return Targets(values[kept], bits[kept], listed[kept])
