"""Reach: the blocks that stretches of a grid of patches need, axis by axis, not patch by patch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from patchloom.grid import ChunkGrid
from patchloom.image import Image, Layout
from patchloom.patching.lattice import LatticePatching
from patchloom.patching.protocol import ramp
from patchloom.planning.incidence import Cut
from patchloom.planning.lenses import around
from patchloom.planning.rows import ranges

__all__ = ["Reach", "boxes_between", "side_by_side"]

Ints = npt.NDArray[np.int64]


class _Table(NamedTuple):
    """Some chunks of one axis for each of some keys."""

    n: Ints
    chunk: Ints
    """Those of one key after the other."""


class _Axis(NamedTuple):
    """A grid of patches along one axis."""

    first: Ints
    """The first patch of each chunk that owns some: int64[n_chunks]."""
    n: Ints
    """How many it owns: int64[n_chunks]."""
    kind: Ints
    """Neighbours of one kind need the same chunks: int64[n_patches], ascending."""
    low: Ints
    """The first chunk that each kind needs: int64[n_kinds]."""
    high: Ints
    """And the last one: int64[n_kinds]."""

    def table(self, low: Ints, high: Ints, n_chunks: int) -> _Table:
        """The chunks that patches [low, high) need: one key a pair."""
        some = np.flatnonzero(high > low)
        first, last = self.kind[low[some]], self.kind[high[some] - 1]
        kind, owner = ranges(first, last + 1), np.repeat(some, last - first + 1)
        begin, end = self.low[kind], self.high[kind] + 1
        codes = np.unique(np.repeat(owner, end - begin) * n_chunks + ranges(begin, end))
        owner, chunk = np.divmod(codes, n_chunks)
        return _Table(np.bincount(owner, minlength=len(low)), chunk)


@dataclass(frozen=True, eq=False)
class Reach:
    """The blocks of one array that the patches of a grid over one image need.

    A grid is a product of columns of first pixels, and so is what a cell owns of it. What the
    patches of a product need is the product of what they need along each axis: nothing is asked
    of any patch, only of the positions that patches have along an axis.
    """

    owners: ChunkGrid
    """The chunks that own patches."""
    layout: Layout
    """Of the array."""
    axes: tuple[_Axis, ...]

    @classmethod
    def of(cls, patching: LatticePatching, index: int, image: Image, name: str, cut: Cut) -> Reach:
        """The reach of the patches of one image into one of its arrays.

        Parameters
        ----------
        patching, index
            The grid, and the number of the image.
        image, name
            The image, and the role of the array.
        cut
            What is cut of the image.
        """
        layout = image.cut_arrays[name].layout
        corner, there = around(image, name, side_by_side(patching, index, cut), cut)
        start, stop = there.span(corner, np.asarray(layout.space.shape, np.int64))
        low, high = layout.space.chunk_of(start), layout.space.chunk_of(stop - 1)
        axes = []
        for axis in range(len(cut.size)):
            first, n = patching.per_chunk(index, axis)
            end = len(patching.starts(index, axis))
            a, b = low[:end, axis], high[:end, axis]
            new = np.append(True, (np.diff(a) != 0) | (np.diff(b) != 0))[:end]
            axes.append(_Axis(first, n, np.cumsum(new) - 1, a[new], b[new]))
        return cls(patching.grids[index], layout, tuple(axes))

    @cached_property
    def _whole(self) -> list[_Table]:
        """What all patches of a chunk need, along each axis."""
        pairs = zip(self.axes, self.layout.space.counts, strict=True)
        return [axis.table(axis.first, axis.first + axis.n, count) for axis, count in pairs]

    def blocks(self, cells: Ints, start: Ints, stop: Ints, part: Ints) -> Ints:
        """The distinct blocks that each part of some stretches of patches needs, ascending.

        Parameters
        ----------
        cells
            The cell of each stretch: int64[k].
        start, stop
            Which patches of those that the cell owns: int64[k] each, ``start < stop``.
        part
            The part that each is of: int64[k].

        Returns
        -------
        int64[n]
            Part after part, ``part * n_blocks + block``.
        """
        sample, chunk = np.divmod(cells, self.owners.n_chunks)
        group = self.layout.groups_of(self.layout.own_samples(sample))
        group = part * self.layout.samples.n_chunks + group
        index = self.owners.unflat(chunk)
        n = np.stack([axis.n[k] for axis, k in zip(self.axes, index.T, strict=True)], -1)
        whole = (start == 0) & (stop == n.prod(-1))
        if whole.all():
            return self._spread(group, index, self._whole)
        some = np.flatnonzero(~whole)
        owner, low, high = boxes_between(n[some], start[some], stop[some])
        owner = some[owner]
        keys, tables = [], []
        for k, (axis, all_of) in enumerate(zip(self.axes, self._whole, strict=True)):
            first, width = axis.first[index[owner, k]], len(axis.kind) + 1
            codes, key = np.unique(
                (first + low[:, k]) * width + first + high[:, k], return_inverse=True
            )
            some_of = axis.table(codes // width, codes % width, self.layout.space.counts[k])
            keys.append(np.concatenate([index[whole, k], len(all_of.n) + key]))
            joined = zip(all_of, some_of, strict=True)
            tables.append(_Table(*(np.concatenate(columns) for columns in joined)))
        return self._spread(
            np.concatenate([group[whole], group[owner]]), np.stack(keys, -1), tables
        )

    def _spread(self, group: Ints, keys: Ints, tables: list[_Table]) -> Ints:
        """The blocks of products of tables: one axis after the other becomes chunks."""
        codes = group
        for key, table in zip(keys.T, tables, strict=True):
            codes = codes * len(table.n) + key
        codes = np.unique(codes)
        after = [int(np.prod([len(t.n) for t in tables[k + 1 :]])) for k in range(len(tables))]
        for table, count, stride in zip(tables, self.layout.space.counts, after, strict=True):
            head, rest = np.divmod(codes, stride)
            head, key = np.divmod(head, len(table.n))
            n, first = table.n[key], (np.cumsum(table.n) - table.n)[key]
            chunk = table.chunk[np.repeat(first, n) + ramp(n)]
            codes = np.unique((np.repeat(head, n) * count + chunk) * stride + np.repeat(rest, n))
        return codes


def side_by_side(patching: LatticePatching, index: int, cut: Cut) -> Ints:
    """First pixels of what is cut along each axis of one image: int64[n, ndim].

    Columns have nothing to do with one another; shorter ones repeat their last number.
    """
    columns = [patching.starts(index, axis) for axis in range(len(cut.size))]
    n = max(len(column) for column in columns) if all(map(len, columns)) else 0
    found = np.stack([c[np.minimum(np.arange(n), len(c) - 1)] for c in columns], -1)
    return found - np.asarray(cut.context, np.int64)


def boxes_between(n: Ints, start: Ints, stop: Ints) -> tuple[Ints, Ints, Ints]:
    """Boxes that make up stretches of the C order of arrays: at most ``2 * ndim - 1`` of each.

    Parameters
    ----------
    n
        Extents of the arrays: int64[k, ndim].
    start, stop
        Stretches [start, stop) of their elements: int64[k] each.

    Returns
    -------
    int64[m], int64[m, ndim], int64[m, ndim]
        Which array, and the half-open box.

    >>> owner, low, high = boxes_between(np.array([[4, 5]]), np.array([3]), np.array([16]))
    >>> low.tolist(), high.tolist()
    ([[1, 0], [0, 3], [3, 0]], [[3, 5], [1, 5], [4, 1]])
    """
    ndim = n.shape[1]
    # Elements right before and right behind each stretch; the first axis may be left.
    steps = np.column_stack([n[:, k + 1 :].prod(-1) for k in range(ndim)])
    before, behind = ((at[:, None] // steps) for at in (start - 1, stop))
    for index in (before, behind):
        index[:, 1:] %= n[:, 1:]
    parting = (before != behind).argmax(-1)
    found = []
    for k in range(ndim):
        last = np.where(parting == k, behind[:, k], n[:, k])
        sides = (
            (before, before[:, k] + 1, last, parting <= k),
            (behind, np.zeros_like(last), behind[:, k], parting < k),
        )
        for index, first, end, mine in sides:
            some = np.flatnonzero(mine & (first < end))
            prefix, rest = index[some, :k], n[some, k + 1 :]
            low = np.column_stack([prefix, first[some], np.zeros_like(rest)])
            found.append((some, low, np.column_stack([prefix + 1, end[some], rest])))
    owners, lows, highs = (np.concatenate(column) for column in zip(*found, strict=True))
    return owners, lows, highs
