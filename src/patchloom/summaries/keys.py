"""The ordered bit pattern of float64: numbers as whole numbers that sort alike.

A *leaf* is the numbers whose patterns agree but for the lowest `bits` bits. Leaves lie inside
one another or apart, never across. A leaf is named by the one of its numbers nearest to 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BITS",
    "RELATIVE_WIDTH",
    "Bits",
    "Floats",
    "Ints",
    "Keys",
    "ends",
    "floors",
    "keys_of",
    "nearest_zero",
    "values_of",
]

BITS = 44
"""Bits that a bucket leaves open: 8 of the mantissa's 52 are kept."""
RELATIVE_WIDTH = 2.0 ** (BITS - 52)
"""Width of a bucket relative to its value (1/256)."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Bits = npt.NDArray[np.uint8]

_SIGN = np.int64(-(2**63))


def keys_of(values: Floats) -> Keys:
    """Whole numbers in the order of `values`; -0.0 comes just before 0.0."""
    pattern = np.ascontiguousarray(values, np.float64).view(np.int64)
    # A negative number's pattern is turned round as a whole, another's gets the upper half.
    return (pattern ^ ((pattern >> 63) | _SIGN)).view(np.uint64)


def values_of(keys: Keys) -> Floats:
    """The numbers of keys."""
    pattern = keys.view(np.int64) ^ _SIGN
    return np.where(pattern < 0, pattern ^ (2**63 - 1), pattern).view(np.float64)


def ends(values: Floats, bits: Bits) -> tuple[Keys, Keys]:
    """First and last key of each leaf."""
    keys, low_bits = keys_of(values), _low_bits(bits)
    return keys & ~low_bits, keys | low_bits


def nearest_zero(values: Floats, bits: Bits) -> Floats:
    """The numbers that name the leaves that hold `values`."""
    pattern = np.ascontiguousarray(values, np.float64).view(np.uint64)
    return (pattern & ~_low_bits(bits)).view(np.float64)


def floors(values: Floats, dtype: np.dtype[Any], bits: int = BITS) -> Bits:
    """How much a bucket of each value leaves open: `bits`, or 0 if it holds nothing else.

    Parameters
    ----------
    values
        The values, or the numbers that name their leaves.
    dtype
        Type of the pixels: most patterns of float64 are none of its numbers.
    """
    alone = np.isinf(values)
    if dtype.kind in "biu":
        # Whole numbers lie 1 apart, and a leaf of x is 2^(bits - 52) |x| wide at most.
        alone |= np.abs(values) < 2.0 ** (53 - bits)
    elif dtype.itemsize < 8:
        spare = 52 - np.finfo(dtype).nmant
        alone |= (values == 0) | (bits <= spare)
    return np.where(alone, np.uint8(0), np.uint8(bits)).astype(np.uint8)


def _low_bits(bits: Bits) -> Keys:
    return (np.uint64(1) << bits.astype(np.uint64)) - np.uint64(1)
