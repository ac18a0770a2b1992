"""What patches take of a block: each pixel once, or as often as it is taken."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["EACH", "counted", "taken", "union"]

Ints = npt.NDArray[np.int64]

EACH = ("once", "taken")
"""How often a pixel counts: once, or once for each patch that takes it."""

_TOGETHER = 2**17
"""Pixels that are told together how often they are taken."""


def union(low: Ints, high: Ints, extent: Sequence[int]) -> npt.NDArray[np.bool_] | None:
    """Which pixels of a block lie in at least one box.

    Parameters
    ----------
    low, high
        Half-open boxes in pixels of the block, clipped to it: int64[n, ndim].
    extent
        Shape of the block.

    Returns
    -------
    bool[*extent] or None
        None if every pixel is covered.
    """
    if ((low == 0) & (high == np.asarray(extent))).all(-1).any():
        return None
    counts, edges = _counted(low, high, extent)
    return None if (counts > 0).all() else _spread(counts > 0, edges)


def counted(
    each: str, low: Ints, high: Ints, extent: Sequence[int]
) -> Iterator[tuple[tuple[Any, ...], npt.NDArray[np.bool_] | None, Ints | int]]:
    """The pixels of a block that count, part by part.

    Parameters
    ----------
    each
        One of `EACH`.
    low, high
        Half-open boxes in pixels of the block, clipped to it: int64[n, ndim].
    extent
        Shape of the block.

    Yields
    ------
    (part, where, times)
        An index into the block; which pixels there count, None for all; and how often each of
        these does.
    """
    if each == "once":
        yield (), union(low, high, extent), 1
        return
    for part, times in taken(low, high, extent):
        if isinstance(times, int):
            if times:
                yield part, None, times
            continue
        where = times > 0
        yield part, where, times[where]


def taken(
    low: Ints, high: Ints, extent: Sequence[int]
) -> Iterator[tuple[tuple[Any, ...], Ints | int]]:
    """How many boxes each pixel of a block lies in, part by part of the block.

    Parameters
    ----------
    low, high
        Half-open boxes in pixels of the block, clipped to it: int64[n, ndim].
    extent
        Shape of the block.

    Yields
    ------
    (where, times)
        An index into the block, and for each pixel there a number: int64 of its shape, or one
        int if it is the same for all.
    """
    counts, edges = _counted(low, high, extent)
    if (counts == counts.flat[0]).all():
        yield (), int(counts.flat[0])
    else:
        yield from _parts(counts, edges)


def _parts(
    counts: Ints, edges: Sequence[Ints], where: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Ints]]:
    """Parts of bounded size: some lines, or of what is larger line by line."""
    cell = np.repeat(np.arange(len(counts)), np.diff(edges[0]))
    line = math.prod(int(ends[-1]) for ends in edges[1:])
    if line > _TOGETHER:
        for k, c in enumerate(cell.tolist()):
            yield from _parts(counts[c], edges[1:], (*where, k))
        return
    step = max(1, _TOGETHER // line)
    for start in range(0, len(cell), step):
        lines = slice(start, start + step)
        yield (*where, lines), _spread(counts[cell[lines]], edges[1:], axis=1)


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


def _spread(cells: npt.NDArray[Any], edges: Sequence[Ints], axis: int = 0) -> npt.NDArray[Any]:
    """What holds for each cell, for each pixel, from some axis on."""
    for k, ends in enumerate(edges):
        cells = np.repeat(cells, np.diff(ends), axis=axis + k)
    return cells
