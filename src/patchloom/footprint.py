"""Footprints: what another array says of each single pixel of an image.

A pixel is under a mask if the mask covers at least half of it: what `min_coverage=0.5` keeps of
patches of one pixel. Its label is the one at its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.coverage import Alignment

__all__ = ["labelled", "under"]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_SAFE = 2**62
_SLAB = 2**20
"""Pixels that are looked at together where a mask's borders cut them."""


def under(
    block: npt.NDArray[np.bool_],
    origin: Sequence[int],
    alignment: Alignment,
    low: Sequence[int],
    high: Sequence[int],
) -> Flags:
    """Which pixels of a box a mask covers, at least half of each.

    Parameters
    ----------
    block
        The mask where it touches the box, bool[*block]; outside it nothing is covered.
    origin
        Index of the block's first pixel in the whole mask.
    alignment
        Where the mask's pixels lie on the image.
    low, high
        The half-open box, in pixels of the image.

    Returns
    -------
    bool[*(high - low)]

    Examples
    --------
    >>> halves = Alignment.of_shapes((4,), (2,))
    >>> under(np.array([False, True]), [0], halves, [0], [4]).tolist()
    [False, False, True, True]
    """
    shape = tuple(b - a for a, b in zip(low, high, strict=True))
    if not block.any():
        return np.zeros(shape, np.bool_)
    ends = [
        _borders(a, b, origin[axis], block.shape[axis], alignment, axis)
        for axis, (a, b) in enumerate(zip(low, high, strict=True))
    ]
    inside = [
        _inside(end, alignment, axis, n)
        for axis, (end, n) in enumerate(zip(ends, block.shape, strict=True))
    ]
    if all(index is not None for index in inside):
        return _picked(block, [index for index in inside if index is not None], False)
    found = np.empty(shape, np.bool_)
    rows = max(1, _SLAB // max(1, int(np.prod(shape[1:]))))
    for start in range(0, shape[0], rows):
        slab = slice(start, start + rows)
        some = [ends[0][start : start + rows + 1], *ends[1:]]
        found[slab] = 2 * _areas(block, some, alignment) >= alignment.pixel
    return found


def labelled(
    block: npt.NDArray[Any],
    origin: Sequence[int],
    alignment: Alignment,
    low: Sequence[int],
    high: Sequence[int],
) -> tuple[npt.NDArray[Any], Flags | None]:
    """The label at the centre of each pixel of a box.

    Parameters
    ----------
    block, origin, alignment, low, high
        As of `under`, with labels instead of a mask.

    Returns
    -------
    [*(high - low)], bool[*(high - low)] or None
        Labels, and where there is one; None if everywhere.

    Examples
    --------
    >>> from fractions import Fraction
    >>> shifted = Alignment((Fraction(2),), (Fraction(1),))
    >>> values, known = labelled(np.array([5, 7]), [0], shifted, [0], [6])
    >>> values.tolist(), known.tolist()
    ([0, 5, 5, 7, 7, 0], [False, True, True, True, True, False])
    """
    index = [
        _centres(a, b, alignment, axis) - origin[axis]
        for axis, (a, b) in enumerate(zip(low, high, strict=True))
    ]
    index = [
        np.where((at >= 0) & (at < n), at, -1) for at, n in zip(index, block.shape, strict=True)
    ]
    known = None
    if any((at < 0).any() for at in index):
        known = np.ones((1,) * len(index), np.bool_)
        for axis, at in enumerate(index):
            known = known & (at >= 0).reshape([-1 if a == axis else 1 for a in range(len(index))])
    return _picked(block, index, 0), known


def _picked(block: npt.NDArray[Any], index: Sequence[Ints], outside: Any) -> npt.NDArray[Any]:
    """The block's pixels at some positions of each axis; what lies at -1 is outside."""
    found: npt.NDArray[Any] = block
    for axis, at in enumerate(index):
        if len(at) == found.shape[axis] and bool((at == np.arange(len(at))).all()):
            continue
        none = at < 0
        if none.all():
            shape = [len(i) for i in index]
            return np.full(shape, outside, block.dtype)
        found = found.take(np.maximum(at, 0), axis)
        if none.any():
            found[(slice(None),) * axis + (none,)] = outside
    return found


def _borders(
    low: int, high: int, origin: int, extent: int, alignment: Alignment, axis: int
) -> npt.NDArray[Any]:
    """Where pixels [low, high) begin and end in a block, in parts of its pixels: int[n + 1]."""
    scale, offset, unit = (
        alignment.scale[axis],
        alignment.offset[axis],
        alignment.units[axis],
    )
    slope = int(unit / scale)
    base = int(-offset * slope) - origin * unit
    wide: npt.NDArray[Any] = np.arange(low, high + 1)
    if (abs(high) + 1) * slope + abs(base) >= _SAFE:
        wide = wide.astype(object)
    found: npt.NDArray[Any] = np.clip(wide * slope + base, 0, extent * unit)
    return found


def _inside(ends: npt.NDArray[Any], alignment: Alignment, axis: int, extent: int) -> Ints | None:
    """The one pixel of a block that holds each pixel, -1 for none; None if borders cut some."""
    unit = alignment.units[axis]
    begin, stop = ends[:-1], ends[1:]
    first = begin // unit
    out = begin == stop
    whole = (stop - begin == int(unit / alignment.scale[axis])) & (stop <= (first + 1) * unit)
    if not (whole | out).all():
        return None
    found: Ints = np.where(out, -1, np.minimum(first, extent - 1)).astype(np.int64)
    return found


def _areas(
    block: npt.NDArray[np.bool_], ends: Sequence[npt.NDArray[Any]], alignment: Alignment
) -> npt.NDArray[Any]:
    """The covered area of each pixel, exactly: what is covered up to its borders, axis by axis."""
    table: npt.NDArray[Any] = block.astype(np.int64)
    bound = int(np.prod(block.shape)) * int(
        np.prod([int(u) for u in alignment.units], dtype=object)
    )
    if bound >= _SAFE:
        table = table.astype(object)
    for axis, (place, unit) in enumerate(zip(ends, alignment.units, strict=True)):
        first, part = np.divmod(place, unit)
        last = table.shape[axis]
        begin = int(min(first[0], last))
        some = (slice(None),) * axis + (slice(begin, int(first[-1]) + 1),)
        upto = np.zeros([n + (a == axis) for a, n in enumerate(table[some].shape)], table.dtype)
        upto[(slice(None),) * axis + (slice(1, None),)] = table[some].cumsum(axis)
        n = upto.shape[axis] - 1
        shape = [-1 if a == axis else 1 for a in range(table.ndim)]
        left = upto.take(np.minimum(first - begin, n).astype(np.int64), axis)
        right = upto.take(np.minimum(first - begin + 1, n).astype(np.int64), axis)
        inside = left * (unit - part).reshape(shape) + right * part.reshape(shape)
        table = np.diff(inside, axis=axis)
    return table


def _centres(low: int, high: int, alignment: Alignment, axis: int) -> Ints:
    """The pixel of another array that holds the centre of each pixel [low, high): int64[n]."""
    scale, offset = alignment.scale[axis], alignment.offset[axis]
    # (2 i + 1 - 2 offset) / (2 scale), as one division of integers.
    slope = offset.denominator * scale.denominator
    base = 2 * offset.numerator * scale.denominator
    over = 2 * offset.denominator * scale.numerator
    wide: npt.NDArray[Any] = 2 * np.arange(low, high) + 1
    if (2 * abs(high) + 2) * slope + abs(base) >= _SAFE:
        wide = wide.astype(object)
    found: Ints = np.asarray((wide * slope - base) // over).astype(np.int64)
    return found
