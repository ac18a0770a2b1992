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

__all__ = ["DEALING", "GROUP_BYTES", "MIN_GROUPS", "Groups"]

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

DEALING = 2
"""Version of how groups are made and dealt out: the rows of shuffled plans follow from it."""
GROUP_BYTES = 16 * 2**20
"""Decoded bytes of the blocks of one group, at most, or one block: its patches share them."""
MIN_GROUPS = 320
"""A plan is cut into at least so many groups where it has as many units: 16 of each of 20 images,
so that a window of a quarter of them can hold one of each quarter of each image."""
_TOP = np.uint64(63)
_PIECE = 2**16
"""Groups that are spread together: their columns stay in a processor's cache."""
_LEVELS = 12
"""Times that the groups of an image are halved to spread them evenly."""


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
        most = _power(len(units) // MIN_GROUPS)
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

        Each image's groups are spread evenly over it, as points of a scrambled van der Corput
        sequence are (Owen, "Randomly permuted (t,m,s)-nets", 1995): of any 2**k consecutive ones
        from a multiple of 2**k on, one falls into each 2**k-th of the order. So a window has its
        share of every image, and of every part of it. Where a group falls depends on chance by
        addresses in its own image alone.
        """
        keys = [key_of(seed, "shuffled", image.id, image.level) for image in images]
        image = cells.image_of(self.begin)
        first = np.searchsorted(image, np.arange(len(images) + 1))
        within = np.arange(len(self)) - first[image]
        n = np.diff(first)[image]
        high, low, *_ = philox(np.asarray(keys, np.uint64)[image], within)
        return np.argsort(_spread(within, n, high << np.uint64(32) | low), kind="stable")

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


def _spread(within: Ints, n: Ints, word: Words) -> Words:
    """Where the groups of each image fall in the order, as 64 bits: uint64[k].

    Bit by bit of their numbers, from the last: the groups that share the bits so far go half
    and half, the later half first if the word of the first group that has the next bit says so.
    What is left is by chance.

    Parameters
    ----------
    within, n
        Number of each group in its image, and how many that has, image by image: int64[k].
    word
        64 random bits of each: uint64[k].
    """
    found = word >> np.uint64(_LEVELS)
    for low in range(0, len(word), _PIECE):
        some = slice(low, low + _PIECE)
        number, count, own = within[some], n[some], word[some]
        first = np.arange(low, low + len(number)) - number
        for level in range(_LEVELS):
            sibling = number & ((1 << level) - 1) | 1 << level
            flip = (number >> level).astype(np.uint64) ^ (
                word[first + np.minimum(sibling, count - 1)] >> _TOP
            )
            # One that has no sibling goes either way.
            turn = np.where(sibling < count, flip, own >> np.uint64(level)) & np.uint64(1)
            found[some] |= turn << np.uint64(63 - level)
    return found


def _power(n: int) -> int:
    """The largest power of two up to a number, at least 1."""
    return 1 << (max(1, n).bit_length() - 1)


def _units_of(image: Image) -> int:
    """How many blocks of an image make a group: a power of two, as the curve folds."""
    nbytes = math.prod(image.layout.block_shape()) * image.dtype.itemsize
    return _power(GROUP_BYTES // max(1, nbytes))
