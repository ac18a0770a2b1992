"""Incidence: which patches touch which blocks, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from patchloom.image import Layout

__all__ = ["PADDINGS", "Cut", "Padding", "Patches", "joined", "touches"]

Ints = npt.NDArray[np.int64]
Padding = Literal["constant", "edge", "reflect", "symmetric"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)


@dataclass(frozen=True)
class Cut:
    """What is cut around a corner, and where its pixels come from beyond the image."""

    size: tuple[int, ...]
    """Extent on each spatial axis, context included, in pixels."""
    context: tuple[int, ...]
    """Pixels on both sides that are read around the patch proper, on each spatial axis."""
    padding: Padding = "constant"
    """As `numpy.pad` names it; constant is 0."""

    @property
    def proper(self) -> tuple[int, ...]:
        """Extent of the patch proper: what its strategy placed."""
        return tuple(s - 2 * c for s, c in zip(self.size, self.context, strict=True))

    @property
    def back(self) -> tuple[int, ...]:
        """Most pixels that a patch needs before its first proper one, on each axis."""
        return self.size if self.is_mirrored else self.context

    @property
    def is_mirrored(self) -> bool:
        """Whether padding repeats pixels that lie inside the image."""
        return self.padding in ("reflect", "symmetric")

    def span(self, corner: Ints, extent: Ints) -> tuple[Ints, Ints]:
        """The half-open boxes of pixels that patches need: int64[n, ndim] each.

        Parameters
        ----------
        corner
            First pixels of what is cut: int64[n, ndim].
        extent
            Of the image, int64[ndim].
        """
        stop = corner + np.asarray(self.size, np.int64)
        low, high = np.maximum(corner, 0), np.minimum(stop, extent)
        if self.is_mirrored:
            more = int(self.padding == "reflect")
            before, after = -np.minimum(corner, 0), np.maximum(stop - extent, 0)
            high = np.maximum(high, np.minimum(extent, (before + more) * (before > 0)))
            low = np.minimum(low, np.maximum(0, extent - (after + more) * (after > 0)))
        return low, high

    def source(self, start: int, stop: int, extent: int) -> Ints:
        """The pixel that each position of one axis shows: int64[stop - start].

        >>> Cut((4,), (0,), "symmetric").source(-2, 2, 10).tolist()
        [1, 0, 0, 1]
        >>> Cut((4,), (0,), "reflect").source(8, 12, 10).tolist()
        [8, 9, 8, 7]
        """
        place = np.arange(start, stop)
        if not self.is_mirrored or extent == 1:
            return np.clip(place, 0, extent - 1)
        repeated = int(self.padding == "symmetric")
        period = 2 * (extent - 1 + repeated)
        place %= period
        return np.where(place < extent, place, period - repeated - place)


@dataclass(frozen=True, eq=False)
class Patches:
    """Some patches of one image, as columns in the plan's order."""

    image: int
    row: Ints
    """Row of the plan, or from `Plan.along` its rank: int64[n]."""
    rank: Ints
    """Its number along the curve, in every order of rows the same: int64[n]."""
    sample: Ints
    """Flat sample of the image: int64[n]."""
    corner: Ints
    """First pixel on each spatial axis: int64[n, ndim]."""
    cell: Ints
    """Position of the owner cell in the plan: int64[n]."""
    place: Ints | None = None
    """What each was placed by, where its strategy goes by places: int64[n]."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, where: npt.NDArray[np.bool_] | Ints | slice) -> Patches:
        """Some of them."""
        return Patches(
            self.image,
            self.row[where],
            self.rank[where],
            self.sample[where],
            self.corner[where],
            self.cell[where],
            None if self.place is None else self.place[where],
        )


def joined(parts: Sequence[Patches]) -> list[Patches]:
    """Parts one after another, neighbours of one image as one."""
    images = np.array([part.image for part in parts])
    cuts = np.flatnonzero(np.diff(images)) + 1
    found = []
    for same in np.split(np.arange(len(parts)), cuts):
        some = [parts[k] for k in same.tolist()]
        if len(some) > 1:
            places = [part.place for part in some if part.place is not None]
            row, rank, sample, corner, cell = (
                np.concatenate([getattr(part, name) for part in some])
                for name in ("row", "rank", "sample", "corner", "cell")
            )
            place = np.concatenate(places) if places else None
            some = [Patches(some[0].image, row, rank, sample, corner, cell, place)]
        found += some
    return found


def touches(layout: Layout, sample: Ints, corner: Ints, cut: Cut) -> tuple[Ints, Ints]:
    """All pairs of a patch and a block that it needs.

    Parameters
    ----------
    layout
        Of the array that is read, on the pixels of the patches.
    sample, corner
        Flat sample int64[n] and first pixel int64[n, ndim] of what is cut for each patch.
    cut
        What is cut; what sticks out of the array needs what its padding shows.

    Returns
    -------
    int64[m], int64[m]
        Position of the patch and flat block of each pair, in no promised order.
    """
    space = layout.space
    if not len(corner):
        none = np.zeros(0, np.int64)
        return none, none
    start, stop = cut.span(corner, np.asarray(space.shape, np.int64))
    low, high = space.chunk_of(start), space.chunk_of(stop - 1)
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
