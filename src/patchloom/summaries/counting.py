"""The inner loops: arrays in, counts out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.summaries.keys import Floats, Ints, keys_of

__all__ = ["PIECE", "count_leaf", "count_sizes", "count_values"]

PIECE = 2**16
"""Pixels that are counted together: counting widens them to 64 bits, which stay in the cache."""


def count_values(flat: npt.NDArray[Any], counts: Ints) -> None:
    """Add to `counts` how often each value occurs.

    Parameters
    ----------
    flat
        uint8[n] or uint16[n].
    counts
        int64[256] or int64[65536].
    """
    for start in range(0, len(flat), PIECE):
        some = flat[start : start + PIECE]
        if some[0] == some[-1] and (some == some[0]).all():
            # To count one value again, a processor waits until it has stored the last count of it.
            counts[some[0]] += len(some)
            continue
        # Only as many counts as the largest value asks for: most images leave most bins empty.
        found = np.bincount(some)
        counts[: len(found)] += found


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
