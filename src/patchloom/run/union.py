"""What patches take of a block: each pixel once, or as often as it is taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["counted", "layers"]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_FEW = 16
"""Boxes that pixels are taken apart into; beyond them each pixel is told apart."""


def layers(
    each: str, low: Ints, high: Ints, extent: Sequence[int]
) -> Iterator[tuple[Flags | None, int]]:
    """The pixels of a block that count, layer by layer: how often is a sum of powers of two.

    Parameters
    ----------
    each
        ``"once"``, or as often as it is ``"taken"``.
    low, high
        Half-open boxes in pixels of the block, clipped to it: int64[n, ndim].
    extent
        Shape of the block.

    Yields
    ------
    (where, times)
        Which pixels, bool[*extent] or None for all; and how often each of these counts, besides
        what other layers say.
    """
    for cells, edges, times in _layers(each, low, high, extent):
        yield (None if cells.all() else _spread(cells, edges)), times


def counted(
    each: str, low: Ints, high: Ints, extent: Sequence[int]
) -> Iterator[tuple[tuple[Any, ...], Flags | None, int]]:
    """The same as views where pixels lie in a few boxes, which costs no copy.

    Parameters
    ----------
    each, low, high, extent
        As of `layers`.

    Yields
    ------
    (part, where, times)
        An index into the block; which pixels there count, None for all; and how often.
    """
    for cells, edges, times in _layers(each, low, high, extent):
        ends = [axis.tolist() for axis in edges]
        apart = list(itertools.islice(_apart(cells, ends), _FEW + 1))
        if len(apart) <= _FEW:
            yield from ((box, None, times) for box in apart)
        else:
            yield (), _spread(cells, edges), times


def _layers(
    each: str, low: Ints, high: Ints, extent: Sequence[int]
) -> Iterator[tuple[Flags, list[Ints], int]]:
    """Which cells of a grid count how often, and the edges of the cells on each axis."""
    whole = np.asarray(extent)
    if each == "once" and ((low == 0) & (high == whole)).all(-1).any():
        # Where one box is the block, no other matters.
        yield np.ones((1,) * len(extent), np.bool_), [np.array([0, n]) for n in extent], 1
        return
    counts, edges = _counted(low, high, extent)
    if each == "once":
        counts = np.minimum(counts, 1)
    for bit in range(int(counts.max(initial=0)).bit_length()):
        cells = (counts >> bit) & 1 == 1
        if cells.any():
            yield cells, edges, 1 << bit


def _apart(cells: Flags, edges: Sequence[list[int]]) -> Iterator[tuple[slice, ...]]:
    """Boxes of pixels that cover the cells, each once: runs of equal lines, axis by axis."""
    # There are few, and of few Python is faster than NumPy.
    lines = cells.tolist() if cells.ndim == 1 else [line.tobytes() for line in cells]
    begin = 0
    for end in range(1, len(lines) + 1):
        if end < len(lines) and lines[end] == lines[begin]:
            continue
        span = slice(edges[0][begin], edges[0][end])
        if cells.ndim > 1:
            yield from ((span, *rest) for rest in _apart(cells[begin], edges[1:]))
        elif lines[begin]:
            yield (span,)
        begin = end


def _counted(low: Ints, high: Ints, extent: Sequence[int]) -> tuple[Ints, list[Ints]]:
    """How many boxes lie over each cell of a grid, and the edges of the cells on each axis.

    The boxes' faces cut the block into few cells; a difference array counts the boxes over
    each cell, so the cost grows with faces and pixels, never with boxes times pixels.
    """
    ndim = low.shape[1]
    edges = [
        np.unique(np.concatenate([[0, extent[a]], low[:, a], high[:, a]])) for a in range(ndim)
    ]
    counts: npt.NDArray[Any] = np.zeros([len(e) for e in edges], np.int64)
    ends = [[np.searchsorted(edges[a], side[:, a]) for side in (low, high)] for a in range(ndim)]
    for pick in itertools.product((0, 1), repeat=ndim):
        np.add.at(counts, tuple(ends[a][pick[a]] for a in range(ndim)), (-1) ** sum(pick))
    for axis in range(ndim):
        counts = np.cumsum(counts, axis=axis)
    return counts[(slice(0, -1),) * ndim], edges


def _spread(cells: Flags, edges: Sequence[Ints]) -> Flags:
    """What holds for each cell, for each pixel."""
    for axis, ends in enumerate(edges):
        cells = np.repeat(cells, np.diff(ends), axis=axis)
    return cells
