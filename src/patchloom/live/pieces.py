"""Pieces: which part of which block goes where in which patch, as columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.image import Ints, Layout

__all__ = ["Pieces"]

Pixels = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Pieces:
    """One row a patch and a block that it needs, block after block."""

    block: Ints
    """Distinct blocks, ascending: int64[k]."""
    begin: Ints
    """First row of each, and the number of rows: int64[k + 1]."""
    patch: Ints
    """int64[n]."""
    inside: Ints
    """The sample's place in the block: int64[n]."""
    edges: tuple[Ints, Ints, Ints, Ints]
    """Where it goes in the patch's box, from and to, and where it lies in the block: int64[n, ndim]
    each."""

    @classmethod
    def of(cls, layout: Layout, sample: Ints, low: Ints, high: Ints) -> Pieces:
        """Those of half-open boxes inside an array.

        Parameters
        ----------
        layout
            Of the array.
        sample
            Flat sample of each box: int64[n].
        low, high
            First pixels, and those past the last: int64[n, ndim] each. An empty box has none.
        """
        space = layout.space
        first, last = space.chunk_of(low), space.chunk_of(high - 1)
        # Of an empty box no chunk is the last one.
        last[(low >= high).any(-1)] = -1
        widest = np.maximum(0, (last - first).max(0, initial=-1) + 1)
        on = np.argwhere(np.ones(widest, np.bool_))
        at = first[:, None] + on
        patch, step = np.nonzero((at <= last[:, None]).all(-1))
        at = at[patch, step]
        block = layout.blocks_of(sample[patch], at)
        order = np.argsort(block, kind="stable")
        patch, at, block = patch[order], at[order], block[order]
        chunk = np.asarray(space.chunks, np.int64)
        origin = at * chunk
        start = np.maximum(low[patch], origin)
        stop = np.minimum(high[patch], origin + chunk)
        ids, begin = np.unique(block, return_index=True)
        return cls(
            ids,
            np.append(begin, len(block)),
            patch,
            _places_in_block(layout, sample)[patch],
            (start - low[patch], stop - low[patch], start - origin, stop - origin),
        )

    def copy(self, k: int, pixels: Pixels, boxes: Sequence[Pixels]) -> None:
        """Copy what lies in the k-th block.

        Parameters
        ----------
        k
            Of `block`.
        pixels
            The block's: [samples, channels, *space].
        boxes
            What each patch's box is filled in: [channels, *extent] each.
        """
        for patch, inside, into, of in self._slices(int(self.begin[k]), int(self.begin[k + 1])):
            boxes[patch][into] = pixels[inside][of]

    def _slices(self, a: int, b: int) -> Iterator[tuple[int, int, Any, Any]]:
        every = slice(None)
        edges = (edge[a:b].tolist() for edge in self.edges)
        rows = zip(self.patch[a:b].tolist(), self.inside[a:b].tolist(), *edges, strict=True)
        for patch, inside, into, end, of, stop in rows:
            yield patch, inside, (every, *map(slice, into, end)), (every, *map(slice, of, stop))


def _places_in_block(layout: Layout, sample: Ints) -> Ints:
    """Where samples lie among those of their blocks: int64[n]."""
    if not layout.samples.shape:
        return np.zeros_like(sample)
    several, place = np.unique(sample, return_inverse=True)
    return np.array([layout.sample_in_block(k) for k in several.tolist()], np.int64)[place]
