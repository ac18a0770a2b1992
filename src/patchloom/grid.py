"""ChunkGrid: the chunks of one array, and the lines between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["ChunkGrid", "morton"]

Ints = npt.NDArray[np.int64]


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
        flat = np.asarray(flat, np.int64)
        if not self.counts:
            return np.zeros((*flat.shape, 0), np.int64)
        return np.stack(np.unravel_index(flat, self.counts), -1).astype(np.int64)

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
