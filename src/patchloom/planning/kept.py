"""Kept: the patches that the cells of a plan keep, made anew wherever they are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from patchloom.image import Image
from patchloom.patching.protocol import GridPatching
from patchloom.planning.cells import Cells
from patchloom.planning.incidence import Cut, Patches
from patchloom.planning.rows import ranges

__all__ = ["FEW", "Kept", "Stretches"]

Ints = npt.NDArray[np.int64]
FEW = 2**10
"""Patches that are looked at one by one as fast as they are told by chunks."""
_CANDIDATES = 2**18
"""Candidates that are looked at together where only some are kept."""
_BATCH = 2**20
"""Patches that a pass over a whole plan looks at together."""


@dataclass(frozen=True, eq=False)
class Stretches:
    """Consecutive patches of one cell each, some cells perhaps several times."""

    position: Ints
    """Position of the cell in the plan: int64[n]."""
    start: Ints
    """The first of its kept patches that counts: int64[n]."""
    stop: Ints
    """And the first one that does not any more: int64[n]."""
    part: Ints
    """What it is asked for: int64[n]."""

    def __len__(self) -> int:
        return len(self.position)

    def take(self, where: npt.NDArray[np.bool_] | Ints | slice) -> Stretches:
        """Some of them."""
        return Stretches(
            self.position[where], self.start[where], self.stop[where], self.part[where]
        )


@dataclass(frozen=True, eq=False)
class Kept:
    """The patches of a plan, along the curve."""

    images: Sequence[Image]
    patching: GridPatching
    cells: Cells
    cut: Cut

    def along(self, positions: Ints) -> list[Patches]:
        """The patches of some cells (ascending positions), image by image; rows are ranks."""
        images = self.cells.image_of(positions)
        cuts = np.flatnonzero(np.diff(images)) + 1
        return [self._of_image(part) for part in np.split(positions, cuts) if len(part)]

    def of_image(self, index: int) -> Iterator[Patches]:
        """The patches of one image in the order of its cells, a bounded number at a time."""
        yield from self.all_of(np.arange(*self.cells.span(index)))

    def all_of(self, positions: Ints) -> Iterator[Patches]:
        """The patches of cells of one image (ascending), a bounded number at a time."""
        if len(positions):
            yield from map(self._of_image, self._batches(positions))

    def _batches(self, positions: Ints) -> list[Ints]:
        """Some positions at a time, that keep a bounded number of patches together."""
        upto = np.cumsum(self.cells.kept[positions], dtype=np.int64)
        return np.split(positions, np.flatnonzero(np.diff(upto // _BATCH)) + 1)

    def stretches(self, begin: Ints, end: Ints, part: Ints) -> Stretches:
        """The stretches that lie in ranges [begin, end) of ranks, none of which is empty.

        Parameters
        ----------
        begin, end
            int64[k] each.
        part
            What each range is asked for: int64[k].
        """
        cells = self.cells
        first, last = cells.positions_of(begin), cells.positions_of(end - 1)
        n = last - first + 1
        position = ranges(first, last + 1)
        kept = cells.kept[position].astype(np.int64)
        upto = np.cumsum(kept) - kept
        head = np.cumsum(n) - n
        # The rank of the first patch of each cell, from where its range begins.
        rank = upto + np.repeat(cells.rows_of(first) - upto[head], n)
        start = np.maximum(np.repeat(begin, n) - rank, 0)
        stop = np.minimum(np.repeat(end, n) - rank, kept)
        return Stretches(position, start, stop, np.repeat(part, n))

    def within(self, stretches: Stretches) -> Iterator[tuple[Patches, Ints]]:
        """The patches of stretches of one image, along the curve, a bounded number at a time.

        Parameters
        ----------
        stretches
            Of which no two have a patch in common.

        Yields
        ------
        Patches, int64[n]
            Some of them, and the part that each is asked for.
        """
        if not len(stretches):
            return
        first = self.cells.rows_of(stretches.position)
        begin, end = first + stretches.start, first + stretches.stop
        order = np.argsort(begin)
        begin, end, part = begin[order], end[order], stretches.part[order]
        for patches in self.all_of(np.unique(stretches.position)):
            of = np.maximum(np.searchsorted(begin, patches.rank, side="right") - 1, 0)
            inside = (patches.rank >= begin[of]) & (patches.rank < end[of])
            yield patches.take(inside), part[of[inside]]

    def _of_image(self, positions: Ints) -> Patches:
        cells = self.cells
        image = int(cells.image_of(positions[0]))
        ids = cells.cell[positions].astype(np.int64)
        bounds = np.array([0, len(ids)])
        if not cells.is_whole(positions):
            # Candidates are many more than what is kept: so many at a time.
            upto = np.cumsum(self.patching.counts_of(image, ids), dtype=np.int64)
            bounds = np.append(np.flatnonzero(np.diff(upto // _CANDIDATES, prepend=-1)), len(ids))
        parts = [self._part(image, positions, a, b) for a, b in pairwise(np.unique(bounds))]
        corners, owner = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:2])
        places = [place for _, _, place in parts if place is not None]
        place = np.concatenate(places) if places else None
        kept = cells.kept[positions].astype(np.int64)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(kept) - kept, kept)
        rank = cells.rows_of(positions)[owner] + within
        return Patches(
            image,
            rank,
            rank,
            (ids // self.images[image].layout.space.n_chunks)[owner],
            corners - np.asarray(self.cut.context, np.int64),
            positions[owner],
            place,
        )

    def _part(
        self, image: int, positions: Ints, low: int, high: int
    ) -> tuple[Ints, Ints, Ints | None]:
        """Corners, owners and places of what cells [low, high) of some positions keep."""
        some = positions[low:high]
        ids = self.cells.cell[some].astype(np.int64)
        corners, counts = self.patching.corners(image, ids)
        owner, place = np.repeat(np.arange(low, high), counts), self.patching.places(image, ids)
        if self.cells.is_whole(some):
            return corners, owner, place
        flags = self.cells.flags(some, counts)
        return corners[flags], owner[flags], None if place is None else place[flags]
