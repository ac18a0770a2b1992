"""The inner loops: arrays in, counts out."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries.keys import Floats, Ints, keys_of

__all__ = [
    "COLUMN",
    "FEW",
    "PIECE",
    "count_buckets",
    "count_leaf",
    "count_pairs",
    "count_sizes",
    "count_values",
]

PIECE = 2**16
"""Pixels that are counted together: counting widens them to 64 bits, which stay in the cache."""
COLUMN = 2**18
"""Pixels that are counted together without the interpreter's lock, which widens them to 32 bits."""
FEW = 2**17
"""Pixels of which NumPy makes less work."""


def count_values(flat: npt.NDArray[Any], counts: Ints) -> None:
    """Add to `counts` how often each value occurs.

    Parameters
    ----------
    flat
        uint8[n] or uint16[n].
    counts
        int64[256] or int64[65536].
    """
    step = COLUMN if len(flat) >= FEW else PIECE
    for start in range(0, len(flat), step):
        some = flat[start : start + step]
        if some[0] == some[-1] and (some == some[0]).all():
            # To count one value again, a processor waits until it has stored the last count of it.
            counts[some[0]] += len(some)
            continue
        # Only as many counts as the largest value asks for: most images leave most bins empty.
        n = int(some.max()) + 1
        counts[:n] += _occurrences(some, n)


def count_pairs(pairs: npt.NDArray[Any], counts: Ints) -> None:
    """Add to `counts` how often each 8-bit integer occurs.

    Parameters
    ----------
    pairs
        uint16[n]: two integers each.
    counts
        int64[256].
    """
    for start in range(0, len(pairs), COLUMN):
        some = pairs[start : start + COLUMN]
        if some[0] == some[-1] and (some == some[0]).all():
            counts[some[0] & 0xFF] += len(some)
            counts[some[0] >> 8] += len(some)
            continue
        found = _occurrences(some, 256 * (int(some.max() >> 8) + 1)).reshape(-1, 256)
        counts += found.sum(0)
        counts[: len(found)] += found.sum(1)


def _occurrences(places: npt.NDArray[Any], n: int, weights: Ints | None = None) -> Ints:
    """`numpy.bincount`, which holds the interpreter's lock where a sparse product does not.

    Parameters
    ----------
    places
        Whole numbers from 0 to `n` - 1, at most 2^31 - 1 of them.
    weights
        int64, as many; each counts 1 if None.
    """
    if len(places) < FEW and weights is None:
        return np.bincount(places, minlength=n)
    from scipy.sparse import csc_array

    # One column that holds a number at each place; numbers at one place are added.
    some = _ones(COLUMN)[: len(places)] if weights is None else weights
    ends = np.array([0, len(places)], np.int32)
    column = csc_array((some, places.astype(np.int32, copy=False), ends), shape=(n, 1))
    found: Ints = column @ np.ones(1, some.dtype)
    return found


@cache
def _ones(n: int) -> npt.NDArray[np.int32]:
    return np.ones(n, np.int32)


def count_buckets(patterns: npt.NDArray[np.uint32], first: int, table: npt.NDArray[Any]) -> None:
    """Add float32 numbers to what a table knows of each bucket.

    Parameters
    ----------
    patterns
        uint32[n]: numbers that are neither 0, denormal nor infinite.
    first
        Exponent of float64 of the first octave of the table.
    table
        uint64[2, buckets, 2]: by sign, how many and 2^40 times and the sum of the lowest 15 bits,
        and the sum of their squares.
    """
    width = table.shape[1]
    flat = table.reshape(-1, 2)
    # Buffers for all pieces, so that they stay in the cache.
    most = min(len(patterns), PIECE)
    places, low = np.empty(most, np.int32), np.empty(most, np.int32)
    rests, squares = np.empty(most, np.int64), np.empty(most, np.int64)
    for start in range(0, len(patterns), PIECE):
        some = patterns[start : start + PIECE].view(np.int32)
        place, sign = places[: len(some)], low[: len(some)]
        rest, square = rests[: len(some)], squares[: len(some)]
        np.right_shift(some, 15, out=place)
        place &= 0xFFFF
        place -= (first - 896) << 8
        np.right_shift(some, 31, out=sign)
        sign &= width
        place += sign
        np.bitwise_and(some, 0x7FFF, out=rest)
        np.multiply(rest, rest, out=square)
        rest += 1 << 40
        n = int(place.max()) + 1
        flat[:n, 0] += _occurrences(place, n, rest).view(np.uint64)
        flat[:n, 1] += _occurrences(place, n, square).view(np.uint64)


def count_sizes(values: Floats, bits: int) -> tuple[int, Ints]:
    """How often each bucket of absolute value occurs, by sign.

    Parameters
    ----------
    values
        float64[n], finite and not 0, at least one.
    bits
        Bits of the pattern that a bucket leaves open.

    Returns
    -------
    int, int64[2, buckets]
        Pattern without those bits of the first bucket, and counts of positive and of negative
        values.
    """
    pattern = np.ascontiguousarray(values).view(np.int64)
    size = (pattern >> bits) & (2 ** (63 - bits) - 1)
    first = int(size.min())
    span = int(size.max()) - first + 1
    size -= first
    size += (pattern >> 63) & span
    return first, np.bincount(size, minlength=2 * span).reshape(2, span)


def count_leaf(values: Floats, low: float, high: float, left: int, counts: Ints) -> None:
    """Add to `counts` how often each part of a leaf occurs.

    Parameters
    ----------
    values
        float64[n], no NaN.
    low, high
        Least and greatest number of the leaf.
    left
        Bits that a part leaves open.
    counts
        int64[parts].
    """
    inside = values[(values >= low) & (values <= high)] + 0.0
    if len(inside):
        keys = keys_of(inside) - keys_of(np.array([low]))
        found = np.bincount((keys >> np.uint64(left)).astype(np.int64))
        counts[: len(found)] += found
