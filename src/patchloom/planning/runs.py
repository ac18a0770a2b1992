"""Runs: whole output shards dealt out to tasks, with their peak memory known beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import BudgetError
from patchloom.image import Image, Layout
from patchloom.planning.cells import Cells
from patchloom.planning.incidence import Cut
from patchloom.summaries import DISTINCT

__all__ = ["FETCH", "GATHER", "MIN_TASKS", "RUN_BYTES", "Runs", "arrange", "pack", "shard_rows"]

Ints = npt.NDArray[np.int64]

SHARD_BYTES = 32 * 2**20
"""Default size of an output shard before compression."""
MIN_TASKS = 16
"""A plan is cut into at least so many tasks where it has as many shards."""
RUN_BYTES = 2**30
"""Patches of one task, in bytes before compression, at most: what a lost worker costs at most."""
FETCH = 32 * 2**20
"""Bytes of decoded blocks that a task asks for in one batch, at least one block."""
GATHER = 16 * 2**20
"""Bytes of patches that a task cuts together, at least one patch."""
_AHEAD = 4096
"""How many units `pack` looks ahead to fill a gap."""
_ROW_BYTES = 64
"""Bytes that a patch costs beside its pixels: headers, checksum, entry in the shard's index."""
_TASK_BYTES = 256 * 1024
"""Small things of a task that are not worth counting one by one."""
_COUNT_BYTES = 24
"""Bytes a pixel while it is counted: a wide copy for the histogram and the union's mask."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Task k writes the shards [bounds[k], bounds[k + 1])."""

    n_rows: int
    rows_per_shard: int
    bounds: Ints
    """First shard of each task, and the number of shards at the end: int64[n_tasks + 1]."""
    memory: Ints
    """Projected peak memory of each task, in bytes: int64[n_tasks]."""

    def __len__(self) -> int:
        return len(self.memory)

    @property
    def peak_memory(self) -> int:
        """The largest projection."""
        return int(self.memory.max()) if len(self.memory) else 0

    def rows(self) -> Iterator[tuple[int, int]]:
        """The rows [start, stop) of each task."""
        rows = np.minimum(self.bounds * self.rows_per_shard, self.n_rows).tolist()
        yield from pairwise(rows)

    def shards(self, task: int) -> range:
        """The shards of one task."""
        return range(int(self.bounds[task]), int(self.bounds[task + 1]))


def shard_rows(patch_bytes: int, kept: Ints) -> int:
    """The default number of patches of a shard: near 32 MiB, and whole cells where they fit.

    Parameters
    ----------
    patch_bytes
        Bytes of one patch.
    kept
        Patches of each cell.
    """
    fit = max(1, SHARD_BYTES // max(1, patch_bytes))
    n_patches = int(kept.sum())
    largest = int(kept.max()) if len(kept) else 1
    if largest <= fit:
        # A shard border inside a cell would cost its chunks a second read.
        return min(fit // largest, -(-n_patches // largest) or 1) * largest
    return 1 << (fit.bit_length() - 1)


def pack(sizes: Ints, rows: int, used: int = 0) -> Ints:
    """An order of units in which shard borders fall between units wherever that can be.

    Units keep their order, except that a gap before a border is filled with later units that
    fit into it.

    Parameters
    ----------
    sizes
        Patches of each unit, in order: int64[n], at least 1.
    rows
        Patches of a shard.
    used
        Patches that the first shard already has.

    Returns
    -------
    int64[n]
        Positions of the units in the new order.

    >>> pack(np.array([3, 3, 2, 3, 1]), 4).tolist()
    [0, 4, 1, 2, 3]
    """
    upto = np.cumsum(sizes)
    borders = np.arange(rows - used % rows, int(upto[-1]) if len(upto) else 0, rows)
    if np.isin(borders, upto).all():
        return np.arange(len(sizes))
    free = np.ones(len(sizes), np.bool_)
    order: list[Ints] = []
    begin, room = 0, rows - used % rows
    while begin < len(sizes):
        window = np.arange(begin, min(begin + rows + _AHEAD, len(sizes)))
        window = window[free[window]]
        fits = window[: int(np.searchsorted(np.cumsum(sizes[window]), room, side="right"))]
        order.append(fits)
        free[fits] = False
        room -= int(sizes[fits].sum())
        rest = window[len(fits) :]
        while room and len(rest):
            small = rest[sizes[rest] <= room]
            if not len(small):
                break
            best = small[int(sizes[small].argmax())]
            order.append(best[None])
            free[best] = False
            room -= int(sizes[best])
            rest = rest[rest != best]
        if room and len(rest):
            # Nothing fits: the next unit lies on the border, and what is over begins a shard.
            order.append(rest[:1])
            free[rest[0]] = False
            room = (room - int(sizes[rest[0]])) % -rows + rows if rows > 1 else rows
        else:
            room = rows
        ahead = np.flatnonzero(free[begin : begin + rows + _AHEAD])
        begin = begin + int(ahead[0]) if len(ahead) else begin + rows + _AHEAD
    return np.concatenate(order).astype(np.int64) if order else np.zeros(0, np.int64)


def arrange(
    images: Sequence[Image],
    cells: Cells,
    cut: Cut,
    rows: int,
    memory: int,
    *,
    aligned: bool,
) -> Runs:
    """Deal the shards of a plan out to tasks: as long runs as memory and parallelism allow.

    Parameters
    ----------
    images, cells
        Of the plan.
    cut
        What is cut for each patch.
    rows
        Patches of a shard.
    memory
        Bytes that one task may use.
    aligned
        Whether every patch lies inside one chunk: then tasks end where units end, so that no
        chunk is read by two of them.

    Raises
    ------
    BudgetError
        If not even one shard fits into the memory.
    """
    n = int(cells.first[-1])
    if not n:
        return Runs(0, rows, np.zeros(1, np.int64), np.zeros(0, np.int64))
    n_shards = -(-n // rows)
    clean = np.ones(n_shards + 1, np.bool_)
    if aligned:
        clean = np.isin(np.arange(n_shards + 1) * rows, cells.unit_ends(images))
    shard_bytes = rows * _patch_bytes(images, cut)
    longest = max(1, min(n_shards // MIN_TASKS, RUN_BYTES // max(1, shard_bytes)))
    length = 1 << (longest.bit_length() - 1)
    while True:
        bounds = _bounds(clean, length)
        needs = _project(images, cells, cut, rows, bounds)
        if length == 1 or needs.max() <= memory:
            break
        length //= 2
    worst = int(needs.max())
    if worst > memory:
        raise BudgetError(
            f"one task must fit into memory={memory:,} bytes, but task {int(needs.argmax())} with "
            f"shards of {rows:,} patches needs {worst:,}; raise memory, lower rows_per_shard "
            f"({rows:,}) or the patch size {list(cut.size)}"
        )
    return Runs(n, rows, bounds, needs)


def _bounds(clean: npt.NDArray[np.bool_], length: int) -> Ints:
    """Run borders at least `length` shards apart, only where a border is clean."""
    n = len(clean) - 1
    places = np.flatnonzero(clean[:n])
    found = [0]
    while True:
        k = int(np.searchsorted(places, found[-1] + length))
        if k == len(places):
            return np.array([*found, n], np.int64)
        found.append(int(places[k]))


def _project(images: Sequence[Image], cells: Cells, cut: Cut, rows: int, bounds: Ints) -> Ints:
    """An upper bound of each task's memory, from cells alone."""
    first = cells.first
    starts = bounds[:-1] * rows
    stops = np.minimum(bounds[1:] * rows, first[-1])
    lows = np.searchsorted(first, starts, side="right") - 1
    highs = np.searchsorted(first, stops, side="left")
    patch = _patch_bytes(images, cut)
    # Encoded patches of one shard (at worst as large as they are) twice: apart and joined.
    fixed = (
        _TASK_BYTES + 2 * rows * (patch + _ROW_BYTES) + 2 * min(max(GATHER, patch), rows * patch)
    )
    return np.array(
        [
            fixed + _live(images, cells, cut, np.arange(low, high), int(n_shards))
            for low, high, n_shards in zip(lows, highs, np.diff(bounds), strict=True)
        ],
        np.int64,
    )


def _patch_bytes(images: Sequence[Image], cut: Cut) -> int:
    """Bytes of one patch in all arrays that are cut, before compression."""
    arrays = images[0].cut_arrays.values()
    return math.prod(cut.size) * sum(a.layout.n_channels * a.dtype.itemsize for a in arrays)


def _live(images: Sequence[Image], cells: Cells, cut: Cut, positions: Ints, n_shards: int) -> int:
    """Bytes that a walk over the cells of some shards holds at once, at most."""
    worst = 0
    of_image = cells.image[positions]
    for part in np.split(positions, np.flatnonzero(np.diff(of_image)) + 1):
        image = images[int(cells.image[part[0]])]
        held = 0
        for array in image.cut_arrays.values():
            nbytes = math.prod(array.layout.block_shape()) * array.dtype.itemsize
            peak, n = _peak(image, cells, cut, array.layout, part)
            # A batch is fetched ahead, compressed beside decoded.
            held += peak * nbytes + 2 * min(max(FETCH, nbytes), n * nbytes)
        counted = math.prod(image.layout.block_shape()[2:]) * _COUNT_BYTES
        chunks = image.layout.space.chunks
        parts = zip(chunks, cut.size, cut.back, strict=True)
        region = math.prod(c + p + back for c, p, back in parts)
        # Other padding than 0 gathers the region once more.
        region *= 1 + (cut.padding != "constant")
        held += counted + region * image.layout.n_channels * image.dtype.itemsize
        # Counts of the shard that is cut, and of those that own a block fetched ahead.
        block = math.prod(image.layout.block_shape()) * image.dtype.itemsize
        ahead = min(n_shards, 1 + max(1, FETCH // block))
        held += ahead * image.layout.n_channels * _tally_bytes(image.dtype)
        worst = max(worst, held)
    return worst


def _tally_bytes(dtype: np.dtype[Any]) -> int:
    """Most that the counts of one channel take."""
    if dtype.itemsize <= 2 and dtype.kind in "biu":
        return int(2 ** (8 * dtype.itemsize) * 8)
    return 2 * DISTINCT * 8


def _peak(image: Image, cells: Cells, cut: Cut, layout: Layout, positions: Ints) -> tuple[int, int]:
    """Most blocks of an array alive at once, each from its first to its last cell; and all."""
    space = image.layout.space
    sample, chunk = np.divmod(cells.cell[positions], space.n_chunks)
    start = space.unflat(chunk) * np.asarray(space.chunks)
    reach = start + np.asarray(space.chunks) + np.asarray(cut.size) - 1
    stop = np.minimum(reach, np.asarray(space.shape))
    low = layout.space.chunk_of(np.maximum(start - np.asarray(cut.back), 0))
    high = layout.space.chunk_of(stop - 1)
    widest = (high - low).max(0) + 1
    if layout.n_samples == 1:
        sample = np.zeros_like(sample)
    owners, blocks = [], []
    for step in np.ndindex(*widest.tolist()):
        at = low + np.asarray(step)
        hit = np.flatnonzero((at <= high).all(-1))
        owners.append(hit)
        blocks.append(layout.blocks_of(sample[hit], at[hit]))
    owner, block = np.concatenate(owners), np.concatenate(blocks)
    _, place = np.unique(block, return_inverse=True)
    n = int(place.max()) + 1
    begin = np.full(n, len(positions), np.int64)
    end = np.zeros(n, np.int64)
    np.minimum.at(begin, place, owner)
    np.maximum.at(end, place, owner)
    change = np.zeros(len(positions) + 1, np.int64)
    np.add.at(change, begin, 1)
    np.add.at(change, end + 1, -1)
    return int(np.cumsum(change).max()), n
