"""Narrowing: from the cells of a plan to those of some of its patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from patchloom.image import Image
from patchloom.patching.protocol import GridPatching
from patchloom.planning.cells import Cells

__all__ = ["Narrowing"]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Narrowing:
    """Takes one flag a patch, in the order of the cells, and keeps cells with their bitmaps.

    Parameters
    ----------
    images, patching, cells
        Of the plan.
    """

    def __init__(self, images: Sequence[Image], patching: GridPatching, cells: Cells) -> None:
        self._images = images
        self._patching = patching
        self._cells = cells
        self._waiting: list[Flags] = []
        self._upto = 0
        self._at = 0
        self._parts: list[list[Cells]] = [[] for _ in images]
        self._positions: list[Ints] = [np.zeros(0, np.int64)]

    def add(self, keep: Flags) -> None:
        """Whether each of the next patches is kept: bool[n]."""
        self._waiting.append(np.asarray(keep, np.bool_))
        self._upto += len(keep)
        cells = self._cells
        # The cell that the next patch lies in waits until it is known wholly.
        done = self._upto == cells.n_rows
        stop = len(cells) if done else int(cells.positions_of(self._upto)[0])
        if stop <= self._at:
            return
        flags = np.concatenate(self._waiting)
        n = int(cells.rows_of([stop])[0]) - (self._upto - len(flags))
        self._waiting = [flags[n:]]
        self._take(np.arange(self._at, stop), flags[:n])
        self._at = stop

    def _take(self, positions: Ints, keep: Flags) -> None:
        cells = self._cells
        upto = np.cumsum(cells.kept[positions], dtype=np.int64)
        n_kept = np.add.reduceat(keep, np.append(0, upto[:-1]), dtype=np.int64)
        self._positions.append(positions[n_kept > 0])
        images = cells.image_of(positions)
        for image in np.unique(images).tolist():
            low, high = np.searchsorted(images, [image, image + 1]).tolist()
            some = positions[low:high]
            begin = int(upto[low - 1]) if low else 0
            ids = cells.cell[some].astype(np.int64)
            counts = self._patching.counts_of(image, ids).astype(np.int64)
            flags = cells.flags(some, counts)
            flags[flags] = keep[begin : int(upto[high - 1])]
            self._parts[image].append(Cells.of(ids, counts, flags))

    def cells(self) -> tuple[Cells, Ints]:
        """The cells that keep patches, and where each stood: int64[n]; after all were added."""
        found = []
        for image, parts in zip(self._images, self._parts, strict=True):
            layout = image.layout
            found.append(Cells.collect(parts, layout.n_samples * layout.space.n_chunks))
        return Cells.join(found), np.concatenate(self._positions)
