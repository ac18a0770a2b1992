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
    "count_buckets",
    "count_distinct",
    "count_leaves",
    "count_octaves_64",
    "count_pairs",
    "count_values",
    "extremes",
    "place",
    "reach",
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
def count_pairs(pairs: Any, counts: Any) -> None:
    """Add to `counts` how often each 8-bit integer occurs, two of them read as one of 16 bits."""
    table = np.zeros(2**16, np.uint32)
    count_values(pairs, table)
    for upper in range(256):
        total = np.uint32(0)
        for lower in range(256):
            n = table[256 * upper + lower]
            counts[lower] += n
            total = np.uint32(total + n)
        counts[upper] += total


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
def reach(patterns: Any, hole: int) -> tuple[Any, Any, Any, Any, Any]:
    """Least and greatest absolute value of float32 numbers, times of a pattern, lowest, highest.

    All are patterns; the last two are negative where their numbers are.
    """
    # Numbers as wide as the patterns: a processor compares several at once.
    size_bits, left_out, sign = np.uint32(2**31 - 1), np.uint32(hole), np.int32(31)
    least, most, found = size_bits, np.uint32(0), np.uint32(0)
    low, high = np.int32(2**31 - 1), np.int32(1 - 2**31)
    for i in range(len(patterns)):
        pattern = patterns[i]
        size = np.uint32(pattern & size_bits)
        least = least if least < size else size
        most = most if most > size else size
        found = np.uint32(found + np.uint32(pattern == left_out))
        negative = np.int32(np.int32(pattern) >> sign)
        order = np.int32(np.int32(np.int32(size) ^ negative) - negative)
        low = low if low < order else order
        high = high if high > order else order
    return least, most, found, low, high


@_compiled
def count_buckets(patterns: Any, hole: int, first: int, table: Any, ends: Any, apart: Any) -> None:
    """Add float32 numbers to what a table knows of each bucket: how many, sums, squares."""
    size_bits, normal, infinite = u8(2**31 - 1), u8(1 << 23), u8(0x7F800000)
    # An exponent of float64 is that of float32 and 896; what wraps here wraps back.
    up = u8(896 << 23) - (u8(first) << u8(23))
    left_out, rest_bits, one = u8(hole), u8(2**15 - 1), u8(1 << 40)
    nans, holes, zeros, minus, plus = 0, 0, 0, 0, 0
    low, high = ends[0], ends[1]
    for start in range(0, len(patterns), 2048):
        some = patterns[start : start + 2048]
        least, most, found, left, right = reach(some, hole)
        if least >= normal and most < infinite and found == 0:
            low, high = min(low, np.int64(left)), max(high, np.int64(right))
            for i in range(len(some)):
                pattern = u8(some[i])
                key = (pattern & size_bits) + up
                rest, negative = key & rest_bits, pattern >> u8(31)
                table[negative, key >> u8(15), 0] += one + rest
                table[negative, key >> u8(15), 1] += rest * rest
            continue
        for i in range(len(some)):
            pattern = u8(some[i])
            size = pattern & size_bits
            if size > infinite:
                nans += 1
                continue
            if pattern == left_out or (size == u8(0) and left_out == u8(0)):
                holes += 1
                continue
            negative = pattern >> u8(31)
            order = -np.int64(size) if negative else np.int64(size)
            low, high = min(low, order), max(high, order)
            if size == u8(0):
                zeros += 1
                continue
            if size == infinite:
                minus += negative == u8(1)
                plus += negative == u8(0)
                continue
            key = up
            # A denormal number: float64 holds it like any other.
            while size < normal:
                size = size << u8(1)
                key = key - normal
            key = key + size
            rest = key & rest_bits
            table[negative, key >> u8(15), 0] += one + rest
            table[negative, key >> u8(15), 1] += rest * rest
    ends[0], ends[1] = low, high
    apart += np.array([nans, holes, zeros, minus, plus])


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
