"""Groups: runs of neighbouring cells that a shuffled plan deals out as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchloom.image import Image
from patchloom.planning.cells import Cells
from patchloom.planning.rows import Rows
from patchloom.planning.runs import pack
from patchloom.randomness import key_of, philox

__all__ = ["GROUP_BYTES", "MIN_GROUPS", "Groups"]

Ints = npt.NDArray[np.int64]

GROUP_BYTES = 16 * 2**20
"""Decoded bytes of the blocks of one group, at most, or one block: its patches share them."""
MIN_GROUPS = 64
"""A plan is cut into at least so many groups where it has as many units."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Runs of cells along the curve, each of one image; memory grows with chunks."""

    begin: Ints
    """Position of the first cell of each: int64[k]."""
    rank: Ints
    """Number of the first patch of each along the curve: int64[k]."""
    n: Ints
    """Patches of each: int64[k]."""

    @classmethod
    def of(cls, images: Sequence[Image], cells: Cells, *, alone: bool) -> Groups:
        """The groups of a plan.

        Parameters
        ----------
        images, cells
            Of the plan.
        alone
            Whether no patch needs a block of another cell: then each unit is a group, for
            nothing is saved by keeping neighbours together.
        """
        units = cells.unit_begins(images)
        units = np.arange(len(cells)) if units is None else units
        bounds = np.searchsorted(units, cells.bounds)
        most = max(1, len(units) // MIN_GROUPS)
        step = [1 if alone else min(most, _units_of(image)) for image in images]
        image = np.repeat(np.arange(len(images)), np.diff(bounds))
        within = np.arange(len(units)) - bounds[image]
        begin = units[within % np.asarray(step, np.int64)[image] == 0].astype(np.int64)
        rank = cells.rows_of(begin)
        return cls(begin, rank, np.diff(np.append(rank, cells.n_rows)))

    def __len__(self) -> int:
        return len(self.begin)

    @property
    def mean_rows(self) -> float:
        """Patches of a group."""
        return float(self.n.sum() / max(1, len(self)))

    def order(self, images: Sequence[Image], cells: Cells, seed: int) -> Ints:
        """A permutation of the groups: int64[k].

        Every group draws by its own address (its image and first cell), so that groups keep
        their order among one another when images are added.
        """
        keys = [key_of(seed, "shuffled", image.id, image.level) for image in images]
        cell = cells.cell[self.begin].astype(np.int64)
        key = np.asarray(keys, np.uint64)[cells.image_of(self.begin)]
        high, low, *_ = philox(key, cell & 0xFFFFFFFF, cell >> 32)
        return np.argsort(high << np.uint64(32) | low, kind="stable")

    def rows(
        self, images: Sequence[Image], cells: Cells, seed: int, window: int, *, packed: bool
    ) -> Rows:
        """The rows of a plan whose groups are dealt out to windows and mixed there.

        Parameters
        ----------
        images, cells, seed
            Of the plan.
        window
            Rows of a window.
        packed
            Whether gaps before the end of a window are filled with later groups, so that no
            group lies in two windows where that can be.
        """
        if not len(self):
            return Rows.straight(0)
        order = self.order(images, cells, seed)
        if packed:
            order = order[pack(self.n[order], window)]
        return Rows.mixed(self.rank[order], self.n[order], window, key_of(seed, "window"))


def _units_of(image: Image) -> int:
    """How many blocks of an image make a group: a power of two, as the curve folds."""
    nbytes = math.prod(image.layout.block_shape()) * image.dtype.itemsize
    fit = max(1, GROUP_BYTES // max(1, nbytes))
    return 1 << (fit.bit_length() - 1)
