"""The loops of `kernels`, compiled by numba (the extra ``fast``) when they are first called.

Each does what the function of the same name in `kernels` does in NumPy, without the
interpreter's lock. Whole numbers are unsigned throughout, so that nothing wraps an index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = [
    "count_distinct",
    "count_leaves",
    "count_octaves_32",
    "count_octaves_64",
    "count_values",
    "extremes",
    "place",
]

u8 = np.uint64


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # There is no folder in which compiled code could be kept for the next process.
        return numba.njit(nogil=True)(function)


@_compiled
def count_values(flat: Any, counts: Any) -> None:
    """Add to `counts` how often each small integer occurs."""
    whole = len(flat) // 8 * 8
    for i in range(0, whole, 8):
        a, b, c, d = flat[i], flat[i + 1], flat[i + 2], flat[i + 3]
        e, f, g, h = flat[i + 4], flat[i + 5], flat[i + 6], flat[i + 7]
        # To count one value again, a processor waits until it has stored the last count of it.
        if ((a ^ b) | (c ^ d) | (a ^ c) | (e ^ f) | (g ^ h) | (a ^ e) | (a ^ g)) == 0:
            counts[a] += 8
            continue
        counts[a] += 1
        counts[b] += 1
        counts[c] += 1
        counts[d] += 1
        counts[e] += 1
        counts[f] += 1
        counts[g] += 1
        counts[h] += 1
    for i in range(whole, len(flat)):
        counts[flat[i]] += 1


@_compiled
def count_distinct(
    flat: Any, start: int, minus_zero: int, signed_zero: bool, keys: Any, counts: Any, limit: int
) -> tuple[int, int]:
    """Count patterns from `start` on in a table; where it ends, and how many slots are taken."""
    # Open addressing; the multiplier is 2^64 over the golden ratio (Knuth, volume 3, 6.4).
    shift = u8(64)
    size = len(keys)
    while size > 1:
        size >>= 1
        shift -= u8(1)
    last = u8(len(keys) - 1)
    zero = u8(minus_zero)
    used = 0
    for count in counts:
        used += count > 0
    for i in range(start, len(flat)):
        key = u8(flat[i])
        if signed_zero and key == zero:
            key = u8(0)
        at = (key * u8(0x9E3779B97F4A7C15)) >> shift
        while counts[at] > 0 and keys[at] != key:
            at = (at + u8(1)) & last
        if counts[at] == 0:
            if used == limit:
                return i, used
            keys[at] = key
            used += 1
        counts[at] += 1
    return len(flat), used


@_compiled
def place(keys: Any, counts: Any, to_keys: Any, to_counts: Any) -> None:
    """Put what one table counts into a larger one."""
    shift = u8(64)
    size = len(to_keys)
    while size > 1:
        size >>= 1
        shift -= u8(1)
    last = u8(len(to_keys) - 1)
    for i in range(len(keys)):
        if counts[i] == 0:
            continue
        at = (u8(keys[i]) * u8(0x9E3779B97F4A7C15)) >> shift
        while to_counts[at] > 0:
            at = (at + u8(1)) & last
        to_keys[at] = keys[i]
        to_counts[at] = counts[i]


@_compiled
def extremes(patterns: Any, size_bits: int, infinite: int) -> tuple[Any, Any]:
    """Least and greatest pattern of an absolute value that is neither 0 nor infinite."""
    # Numbers as wide as the patterns: a processor compares several at once.
    kind = patterns.dtype.type
    bits, end, zero, one = kind(size_bits), kind(infinite), kind(0), kind(1)
    least, most = end, zero
    for i in range(len(patterns)):
        size = kind(patterns[i] & bits)
        # Less 1, a zero is the largest of all.
        less = kind(size - one)
        least = least if least < less else less
        finite = size if size < end else zero
        most = most if most > finite else finite
    return kind(least + one), most


@_compiled
def count_octaves_32(
    flat: Any,
    patterns: Any,
    hole: int,
    first: int,
    times: int,
    counts: Any,
    sums: Any,
    ends: Any,
    apart: Any,
) -> None:
    """Add float32 numbers to counts of buckets and sums of sixteenths of octaves."""
    size_bits, normal, infinite = u8(2**31 - 1), u8(1 << 23), u8(0x7F800000)
    # An exponent of float64 is that of float32 and 896; what wraps here wraps back.
    up = u8(896 << 23) - (u8(first) << u8(23))
    left_out, range_bits = u8(hole), infinite - normal
    nans, holes, zeros, minus, plus = 0, 0, 0, 0, 0
    low, high = ends[0], ends[1]
    for i in range(len(patterns)):
        pattern = u8(patterns[i])
        size = pattern & size_bits
        key = size + up
        usual = size - normal < range_bits
        if not usual and size > infinite:
            nans += 1
            continue
        if pattern == left_out or (size == u8(0) and left_out == u8(0)):
            holes += 1
            continue
        number = np.float64(flat[i])
        low, high = min(low, number), max(high, number)
        negative = pattern >> u8(31)
        if not usual:
            if size == u8(0):
                zeros += 1
                continue
            if size == infinite:
                minus += negative == u8(1)
                plus += negative == u8(0)
                continue
            # A denormal number: float64 holds it like any other.
            key = up
            while size < normal:
                size = size << u8(1)
                key = key - normal
            key = key + size
        counts[negative, key >> u8(15)] += times
        cell, rest = key >> u8(19), key & u8(2**19 - 1)
        sums[negative, cell, 0] += u8(1)
        sums[negative, cell, 1] += rest
        sums[negative, cell, 2] += rest * rest
    ends[0], ends[1] = low + 0.0, high + 0.0
    apart += np.array([nans, holes, zeros, minus, plus]) * times


@_compiled
def count_octaves_64(
    flat: Any,
    patterns: Any,
    hole: int,
    first: int,
    times: int,
    counts: Any,
    sums: Any,
    ends: Any,
    apart: Any,
) -> None:
    """Add float64 numbers to counts of buckets and sums of sixteenths of octaves."""
    size_bits, infinite, one = u8(2**63 - 1), u8(0x7FF << 52), u8(1)
    left_out, down = u8(hole), u8(first) << u8(52)
    nans, holes, zeros, minus, plus = 0, 0, 0, 0, 0
    low, high = ends[0], ends[1]
    for i in range(len(patterns)):
        pattern = patterns[i]
        size = pattern & size_bits
        usual = size - one < infinite - one
        if not usual and size > infinite:
            nans += 1
            continue
        if pattern == left_out or (size == u8(0) and left_out == u8(0)):
            holes += 1
            continue
        number = flat[i]
        low, high = min(low, number), max(high, number)
        negative = pattern >> u8(63)
        if not usual:
            zeros += size == u8(0)
            minus += size == infinite and negative == one
            plus += size == infinite and negative != one
            continue
        key = size - down
        counts[negative, key >> u8(44)] += times
        cell, rest = key >> u8(48), key & u8(2**48 - 1)
        # The square has 96 bits, which are added in two halves; a carry of the sum itself goes
        # to the upper bits of the count.
        upper, lower = rest >> u8(32), rest & u8(2**32 - 1)
        middle = upper * lower
        square = lower * lower + (middle << u8(33))
        more = upper * upper + (middle >> u8(31)) + u8(square < lower * lower)
        total = sums[negative, cell, 2] + square
        sums[negative, cell, 2] = total
        sums[negative, cell, 3] += more + u8(total < square)
        total = sums[negative, cell, 1] + rest
        sums[negative, cell, 1] = total
        sums[negative, cell, 0] += one + (u8(total < rest) << u8(40))
    ends[0], ends[1] = low + 0.0, high + 0.0
    apart += np.array([nans, holes, zeros, minus, plus]) * times


@_compiled
def count_leaves(
    patterns: Any,
    hole: int,
    times: int,
    near: Any,
    low: Any,
    last: Any,
    left: Any,
    starts: Any,
    counts: Any,
    listed: Any,
) -> int:
    """Count float64 numbers inside leaves, and list those of leaves that have no bins."""
    sign, left_out = u8(1 << 63), u8(hole)
    n = 0
    for pattern in patterns:
        some = u8((pattern & ~sign) != u8(0))
        number = pattern * some
        key = ~number if number >= sign else number | sign
        leaf = near[key >> u8(48)]
        if leaf == 255 or number == left_out:
            continue
        while leaf < len(low) and last[leaf] < key:
            leaf += 1
        if leaf == len(low) or key < low[leaf]:
            continue
        if starts[leaf] < 0:
            listed[n] = number
            n += 1
        else:
            counts[u8(starts[leaf]) + ((key - low[leaf]) >> left[leaf])] += times
    return n
