"""Incidence: which patches touch which blocks, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchloom.image import Layout

__all__ = ["Patches", "reach", "touches"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Patches:
    """Some patches of one image, as columns in the plan's order."""

    image: int
    row: Ints
    """Row of the plan: int64[n]."""
    sample: Ints
    """Flat sample of the image: int64[n]."""
    corner: Ints
    """First pixel on each spatial axis: int64[n, ndim]."""
    cell: Ints
    """Position of the owner cell in the plan: int64[n]."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, where: npt.NDArray[np.bool_] | Ints | slice) -> Patches:
        """Some of them."""
        return Patches(
            self.image, self.row[where], self.sample[where], self.corner[where], self.cell[where]
        )


def touches(layout: Layout, sample: Ints, corner: Ints, size: Sequence[int]) -> tuple[Ints, Ints]:
    """All pairs of a patch and a block that it needs.

    Parameters
    ----------
    layout
        Of the array that is read, on the pixels of the patches.
    sample, corner
        Flat sample int64[n] and first pixel int64[n, ndim] of each patch.
    size
        Extent of a patch, in pixels; what sticks out of the array needs nothing.

    Returns
    -------
    int64[m], int64[m]
        Position of the patch and flat block of each pair, in no promised order.
    """
    space = layout.space
    extent = np.asarray(space.shape, np.int64)
    low = space.chunk_of(corner)
    high = space.chunk_of(np.minimum(corner + np.asarray(size, np.int64), extent) - 1)
    if not len(corner):
        none = np.zeros(0, np.int64)
        return none, none
    widest = (high - low).max(0) + 1
    steps = np.stack(
        [m.ravel() for m in np.meshgrid(*(np.arange(w) for w in widest), indexing="ij")], -1
    )
    patches, blocks = [], []
    for step in steps:
        at = low + step
        hit = np.flatnonzero((at <= high).all(-1))
        patches.append(hit)
        blocks.append(layout.blocks_of(sample[hit], at[hit]))
    return np.concatenate(patches), np.concatenate(blocks)


def reach(chunks: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """How many chunks beyond its own a patch can extend into, on each axis."""
    return tuple((c + p - 2) // c for c, p in zip(chunks, size, strict=True))
