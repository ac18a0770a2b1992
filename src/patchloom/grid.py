"""ChunkGrid: the chunks of one array, and the lines between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ChunkGrid", "morton", "z_order"]

Ints = npt.NDArray[np.int64]
_TURN = 12
"""Steps of the Z curve that are written down once, as powers of two: 4096 cells."""


@dataclass(frozen=True)
class ChunkGrid:
    """A regular grid of chunks over an array; the last ones may be ragged.

    >>> grid = ChunkGrid((10, 7), (4, 4))
    >>> grid.counts, grid.n_chunks
    ((3, 2), 6)
    >>> grid.box((2, 1))
    ((8, 4), (10, 7))
    """

    shape: tuple[int, ...]
    """Extent of the array on each axis, in pixels."""

    chunks: tuple[int, ...]
    """Extent of a whole chunk on each axis, in pixels; at least 1."""

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.chunks):
            raise ValueError(
                f"a chunk has as many axes as its array, got {self.chunks} for {self.shape}"
            )
        if any(c < 1 for c in self.chunks):
            raise ValueError(f"a chunk extends at least 1 pixel on each axis, got {self.chunks}")

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Chunks on each axis."""
        return tuple(-(-s // c) for s, c in zip(self.shape, self.chunks, strict=True))

    @cached_property
    def n_chunks(self) -> int:
        """Chunks in all."""
        return math.prod(self.counts)

    def chunk_of(self, points: npt.ArrayLike) -> Ints:
        """Index of the chunk that holds each point.

        Parameters
        ----------
        points
            Pixels of this array, int[..., ndim].

        Returns
        -------
        int64[..., ndim]
            Chunk indices on each axis. Not bounds-checked.
        """
        return np.asarray(points, np.int64) // np.asarray(self.chunks, np.int64)

    def box(self, index: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First and last-but-one pixel (start, stop) of one chunk, clipped to the array."""
        start = tuple(int(i) * c for i, c in zip(index, self.chunks, strict=True))
        stop = tuple(min(a + c, s) for a, c, s in zip(start, self.chunks, self.shape, strict=True))
        return start, stop

    def flat(self, index: npt.ArrayLike) -> Ints:
        """Position of chunks in C order: int64[...] from int[..., ndim]."""
        strides = [math.prod(self.counts[k + 1 :]) for k in range(len(self.counts))]
        flat: Ints = np.asarray(index, np.int64) @ np.asarray(strides, np.int64)
        return flat

    def unflat(self, flat: npt.ArrayLike) -> Ints:
        """Inverse of `flat`: int64[..., ndim] from int[...]."""
        index = np.empty((len(self.counts), *np.shape(flat)), np.int64)
        for axis, column in enumerate(self.columns(flat)):
            index[axis] = column
        return index.transpose(*range(1, index.ndim), 0)

    def columns(self, flat: npt.ArrayLike) -> list[npt.NDArray[Any]]:
        """`unflat`, one integer array an axis."""
        # Division by one number, of 32 bits where they do, is what NumPy is fastest at.
        rest: npt.NDArray[Any] = np.asarray(flat).astype(
            np.uint32 if self.n_chunks < 2**32 else np.int64
        )
        found: list[npt.NDArray[Any]] = []
        for n in reversed(self.counts[1:]):
            above = rest // max(1, n)
            found.append(rest - above * n)
            rest = above
        return [rest, *reversed(found)] if self.counts else []

    def pick(self, axes: Sequence[int]) -> ChunkGrid:
        """The grid along some of the axes."""
        return ChunkGrid(tuple(self.shape[a] for a in axes), tuple(self.chunks[a] for a in axes))


def morton(index: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Position of each cell along the Z curve (G. M. Morton, IBM, 1966).

    Consecutive cells stay close on every axis, so that a run of them touches few others.

    Parameters
    ----------
    index
        Cell indices, int[n, ndim] with at most three axes, each below 2**21.

    Returns
    -------
    uint64[n]
        Sort by it to walk the curve.

    >>> morton([[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]).tolist()
    [0, 1, 2, 3, 4]
    """
    columns = np.asarray(index, np.uint64)
    ndim = columns.shape[-1]
    code = np.zeros(columns.shape[:-1], np.uint64)
    bits = int(columns.max()).bit_length() if columns.size else 0
    for bit in range(bits):
        for axis in range(ndim):
            taken = (columns[..., axis] >> np.uint64(bit)) & np.uint64(1)
            code |= taken << np.uint64(bit * ndim + (ndim - 1 - axis))
    return code


def z_order(counts: Sequence[int], batch: int = 2**18) -> Iterator[Ints]:
    """All cells of a grid along the Z curve, without sorting: `morton` ascends.

    Parameters
    ----------
    counts
        Cells on each axis.
    batch
        Cells of one part, about.

    Yields
    ------
    int64[n]
        Positions in C order of the next cells of the curve.

    >>> [part.tolist() for part in z_order((2, 3))]
    [[0, 1, 3, 4, 2, 5]]
    """
    if math.prod(counts) <= min(batch, 2**_TURN):
        yield from _short(tuple(counts))
        return
    yield from _along(counts, batch)


@lru_cache(maxsize=64)
def _short(counts: tuple[int, ...]) -> tuple[Ints, ...]:
    """A short curve, which many images have in common: read-only, and none of no cells."""
    parts = [*_along(counts, math.prod(counts))]
    if not parts:
        return ()
    whole = np.concatenate(parts)
    whole.setflags(write=False)
    return (whole,)


def _along(counts: Sequence[int], batch: int) -> Iterator[Ints]:
    """The curve as `z_order` gives it."""
    ndim = len(counts)
    bits = [max(0, n - 1).bit_length() for n in counts]
    strides = np.array([math.prod(counts[a + 1 :]) for a in range(ndim)], np.int64)
    steps = [(axis, k) for k in range(max(bits, default=0)) for axis in reversed(range(ndim))]
    steps = [(axis, k) for axis, k in steps if k < bits[axis]]
    turn, origins = np.zeros((1, ndim), np.int64), np.zeros((1, ndim), np.int64)
    for axis, k in steps[:_TURN]:
        turn = np.concatenate([turn, turn + (np.arange(ndim) == axis) * 2**k])
    for axis, k in reversed(steps[_TURN:]):
        both = np.stack([origins, origins + (np.arange(ndim) == axis) * 2**k], 1)
        origins = both.reshape(-1, ndim)
        origins = origins[origins[:, axis] < counts[axis]]
    if not math.prod(counts):
        return
    extent, inside = turn[-1] + 1, turn @ strides
    together = max(1, batch // len(turn))
    for begin in range(0, len(origins), together):
        some = origins[begin : begin + together]
        cells = (some @ strides)[:, None] + inside
        over = np.flatnonzero((some + extent > counts).any(0))
        if not len(over):
            yield cells.ravel()
            continue
        within = np.ones(cells.shape, np.bool_)
        for axis in over.tolist():
            within &= some[:, axis, None] + turn[:, axis] < counts[axis]
        yield cells[within]
