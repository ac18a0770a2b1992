"""Needs: which blocks of which arrays patches need, told by chunks where that goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from patchloom.image import Layout
from patchloom.patching.lattice import LatticePatching
from patchloom.planning.incidence import touches
from patchloom.planning.kept import FEW, Kept, Stretches
from patchloom.planning.lenses import around, is_context
from patchloom.planning.reach import Reach

__all__ = ["Needs"]

Ints = npt.NDArray[np.int64]
_BATCH = 2**18
"""Stretches of patches that are looked at together."""
_KNOWN = 2**10
"""Arrays into which the reach of patches is remembered."""


@dataclass(frozen=True, eq=False)
class Needs:
    """What patches need, in blocks of the layout of an array.

    Patches that leave no chunk need the chunk that owns them. Of grids all that a cell keeps is
    told axis by axis. What is drawn, listed, or chosen patch by patch in a cell is looked at
    patch by patch.
    """

    kept: Kept
    is_aligned: bool
    """Whether all that any patch needs of its image lies inside its owner chunk."""

    def of_ranks(self, begin: Ints, end: Ints, name: str) -> Iterator[tuple[int, Ints]]:
        """What the patches of some ranks need of the arrays of one role, image by image.

        Parameters
        ----------
        begin, end
            Ranges [begin, end) of ranks that have none in common: int64[k] each.
        name
            The role.

        Yields
        ------
        int, int64[n]
            The image, and its distinct blocks, ascending. Images without the role are left out.
        """
        for index, _, blocks in self.of_parts(begin, end, np.zeros_like(begin), name):
            yield index, blocks

    def of_parts(
        self, begin: Ints, end: Ints, part: Ints, name: str
    ) -> Iterator[tuple[int, Ints, Ints]]:
        """The same for several parts of the patches at once.

        Parameters
        ----------
        begin, end, name
            As of `of_ranks`.
        part
            The part that each range is of: int64[k].

        Yields
        ------
        int, int64[n], int64[n]
            The image, the part, ascending, and the distinct blocks of each part, ascending.
        """
        some = np.flatnonzero(begin < end)
        if not len(some):
            return
        stretches = self.kept.stretches(begin[some], end[some], part[some])
        image = self.kept.cells.image_of(stretches.position)
        order = np.argsort(image, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(image[order])) + 1):
            index = int(image[mine[0]])
            array = self.kept.images[index].cut_arrays.get(name)
            if array is not None:
                codes = self._codes(index, name, stretches.take(mine))
                yield index, *np.divmod(codes, _n_blocks(array.layout))

    def of_image(self, index: int, name: str = "image") -> Ints:
        """The distinct blocks that all patches of an image need of one of its arrays, ascending."""
        cells, layout = self.kept.cells, self.kept.images[index].cut_arrays[name].layout
        low, high = cells.span(index)
        flags = np.zeros(_n_blocks(layout), np.bool_)
        for begin in range(low, high, _BATCH):
            position = np.arange(begin, min(begin + _BATCH, high))
            none, kept = np.zeros_like(position), cells.kept[position].astype(np.int64)
            for blocks in self._some(index, name, Stretches(position, none, kept, none)):
                flags[blocks] = True
        return np.flatnonzero(flags)

    def _codes(self, index: int, name: str, stretches: Stretches) -> Ints:
        """The distinct blocks of each part, ascending: ``part * n_blocks + block``."""
        found = [np.zeros(0, np.int64)]
        for low in range(0, len(stretches), _BATCH):
            found += self._some(index, name, stretches.take(slice(low, low + _BATCH)))
        return found[1] if len(found) == 2 else np.unique(np.concatenate(found))

    def _some(self, index: int, name: str, stretches: Stretches) -> Iterator[Ints]:
        """Those of some stretches, several times perhaps."""
        image, cells = self.kept.images[index], self.kept.cells
        layout = image.cut_arrays[name].layout
        same = not is_context(name) and layout.space == image.layout.space
        if self.is_aligned and same:
            yield self._owners(index, name, stretches)
            return
        if isinstance(self.kept.patching, LatticePatching):
            whole = cells.are_whole(stretches.position)
            # A few that are looked at one by one anyway may all be.
            if whole.all() or (whole.any() and (stretches.stop - stretches.start).sum() > FEW):
                some = stretches.take(whole)
                ids = cells.cell[some.position].astype(np.int64)
                reach = self._reach(index, name)
                yield reach.blocks(ids, some.start, some.stop, some.part)
                stretches = stretches.take(~whole)
        for patches, part in self.kept.within(stretches):
            place, cut = around(image, name, patches.corner, self.kept.cut)
            sample = layout.own_samples(patches.sample)
            patch, block = touches(layout, sample, place, cut)
            yield np.unique(part[patch] * _n_blocks(layout) + block)

    def _owners(self, index: int, name: str, stretches: Stretches) -> Ints:
        """The blocks that own patches."""
        image = self.kept.images[index]
        layout, space = image.cut_arrays[name].layout, image.layout.space
        ids = self.kept.cells.cell[stretches.position].astype(np.int64)
        sample, chunk = np.divmod(ids, space.n_chunks)
        blocks: Ints = layout.groups_of(layout.own_samples(sample)) * space.n_chunks + chunk
        return np.unique(stretches.part * _n_blocks(layout) + blocks)

    @cached_property
    def _reach(self) -> Callable[[int, str], Reach]:
        return lru_cache(_KNOWN)(self._reach_of)

    def _reach_of(self, index: int, name: str) -> Reach:
        patching, image = self.kept.patching, self.kept.images[index]
        assert isinstance(patching, LatticePatching)
        return Reach.of(patching, index, image, name, self.kept.cut)


def _n_blocks(layout: Layout) -> int:
    return layout.samples.n_chunks * layout.space.n_chunks
