"""Alike: patches of a grid that stand for their neighbours, with how many each stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from patchloom.patching.lattice import LatticePatching
from patchloom.patching.protocol import ramp
from patchloom.planning.incidence import Patches
from patchloom.planning.kept import FEW, Kept
from patchloom.planning.reach import side_by_side

__all__ = ["alike"]

Ints = npt.NDArray[np.int64]
_BATCH = 2**16
"""Cells that a pass looks at together."""


def alike(kept: Kept, index: int, kinds: Callable[[Ints], Ints]) -> Iterator[tuple[Patches, Ints]]:
    """Some patches of one image that stand for all that are kept, a bounded number at a time.

    Neighbours in a cell that are of one kind along each axis are one. Of cells that keep only
    some of what they own, where patches are few or in no grid, each stands for itself.

    Parameters
    ----------
    kept, index
        The patches, and which image.
    kinds
        From first pixels of what is cut, int64[n, ndim], to what is asked of them along each
        axis: int64[n, ndim]. A kind on one axis must not depend on the others.

    Yields
    ------
    Patches, int64[n]
        Some of them, and how many each stands for.
    """
    patching, cells = kept.patching, kept.cells
    low, high = cells.span(index)
    if low == high:
        return
    few = cells.kept[low:high].sum(dtype=np.int64) <= FEW
    if few or not isinstance(patching, LatticePatching):
        for part in kept.of_image(index):
            yield part, np.ones(len(part), np.int64)
        return
    whole = cells.are_whole(np.arange(low, high))
    axes = _axes(patching, index, kinds(side_by_side(patching, index, kept.cut)))
    some = low + np.flatnonzero(whole)
    for begin in range(0, len(some), _BATCH):
        yield _products(kept, index, some[begin : begin + _BATCH], axes)
    for part in kept.all_of(low + np.flatnonzero(~whole)):
        yield part, np.ones(len(part), np.int64)


_Axis = tuple[Ints, Ints, Ints, Ints]
"""Of each chunk the first that stands for others, and how many do; first pixels, and weights."""


def _axes(patching: LatticePatching, index: int, kinds: Ints) -> list[_Axis]:
    found = []
    for axis in range(kinds.shape[1]):
        starts = patching.starts(index, axis)
        first, n = patching.per_chunk(index, axis)
        new = np.diff(kinds[: len(starts), axis], prepend=kinds[0, axis]) != 0
        new[first[n > 0]] = True
        at = np.flatnonzero(new)
        bounds = np.searchsorted(at, np.append(first, len(starts)))
        found.append((bounds[:-1], np.diff(bounds), starts[at], np.diff(at, append=len(starts))))
    return found


def _products(kept: Kept, index: int, positions: Ints, axes: list[_Axis]) -> tuple[Patches, Ints]:
    space = kept.images[index].layout.space
    sample, chunk = np.divmod(kept.cells.cell[positions].astype(np.int64), space.n_chunks)
    keys = space.unflat(chunk).T
    owner, columns = np.arange(len(positions)), np.zeros((0, len(positions)), np.int64)
    weight = np.ones(len(positions), np.int64)
    for key, (first, n, starts, weights) in zip(keys, axes, strict=True):
        begin, repeats = first[key[owner]], n[key[owner]]
        at = np.repeat(begin, repeats) + ramp(repeats)
        columns = np.vstack([np.repeat(columns, repeats, axis=1), starts[at]])
        weight = np.repeat(weight, repeats) * weights[at]
        owner = np.repeat(owner, repeats)
    rank = kept.cells.rows_of(positions)[owner]
    corner = columns.T - np.asarray(kept.cut.context, np.int64)
    return Patches(index, rank, rank, sample[owner], corner, positions[owner]), weight
