"""Runs: whole output shards dealt out to tasks, with their peak memory known beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from patchloom.errors import BudgetError
from patchloom.image import Image, Layout

if TYPE_CHECKING:
    from patchloom.planning.plans import Plan

__all__ = ["FETCH", "GATHER", "MIN_TASKS", "Runs", "arrange", "shard_rows"]

Ints = npt.NDArray[np.int64]

SHARD_BYTES = 32 * 2**20
"""Default size of an output shard before compression."""
MIN_TASKS = 16
"""A plan is cut into at least so many tasks where it has as many shards."""
FETCH = 32 * 2**20
"""Bytes of decoded blocks that a task asks for in one batch, at least one block."""
GATHER = 16 * 2**20
"""Bytes of patches that a task cuts together, at least one patch."""
_COUNT_BYTES = 24
"""Bytes a pixel while it is counted: a wide copy for the histogram and the union's mask."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Task k writes the shards [k * shards_per_run, (k + 1) * shards_per_run)."""

    n_rows: int
    rows_per_shard: int
    shards_per_run: int
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
        step = self.rows_per_shard * self.shards_per_run
        for start in range(0, self.n_rows, step):
            yield start, min(start + step, self.n_rows)

    def shards(self, task: int) -> range:
        """The shards of one task."""
        n = -(-self.n_rows // self.rows_per_shard)
        start = task * self.shards_per_run
        return range(start, min(start + self.shards_per_run, n))


def shard_rows(patch_bytes: int, n_patches: int) -> int:
    """The default number of patches of a shard: a power of two, near 32 MiB."""
    fit = max(1, SHARD_BYTES // max(1, patch_bytes))
    rows = 1 << (fit.bit_length() - 1)
    while rows > 1 and rows // 2 >= n_patches:
        rows //= 2
    return rows


def arrange(plan: Plan) -> Runs:
    """Deal the shards of a plan out to tasks: as long runs as memory and parallelism allow.

    Raises
    ------
    BudgetError
        If not even one shard fits into the plan's memory.
    """
    n, rows = plan.n_patches, plan.rows_per_shard
    if not n:
        return Runs(0, rows, 1, np.zeros(0, np.int64))
    shards = -(-n // rows)
    longest = max(1, shards // MIN_TASKS)
    length = 1 << (longest.bit_length() - 1)
    while True:
        memory = _project(plan, length)
        if length == 1 or memory.max() <= plan.memory:
            break
        length //= 2
    worst = int(memory.max())
    if worst > plan.memory:
        raise BudgetError(
            f"one task must fit into memory={plan.memory:,} bytes, but task "
            f"{int(memory.argmax())} with one shard of {rows:,} patches needs {worst:,}; "
            f"raise memory, lower rows_per_shard ({rows:,}) or the patch size "
            f"{list(plan.patch_size)}"
        )
    return Runs(n, rows, length, memory)


def _project(plan: Plan, shards_per_run: int) -> Ints:
    """An upper bound of each task's memory, from cells alone."""
    rows = plan.rows_per_shard * shards_per_run
    first = plan.cells.first
    starts = np.arange(0, plan.n_patches, rows)
    stops = np.minimum(starts + rows, plan.n_patches)
    lows = np.searchsorted(first, starts, side="right") - 1
    highs = np.searchsorted(first, stops, side="left")
    patch = math.prod(plan.patch_shape) * plan.dtype.itemsize
    extra = [
        math.prod(role.image.layout.data_shape[1:2]) * math.prod(plan.patch_size)
        * role.image.dtype.itemsize
        for role in (plan.images[0].labels, plan.images[0].target)
        if role is not None
    ]
    # Encoded patches of one shard (at worst as large as they are) twice: apart and joined.
    fixed = 2 * (plan.rows_per_shard * (patch + sum(extra)))
    fixed += 2 * max(GATHER, patch + sum(extra))
    found = np.empty(len(starts), np.int64)
    for k, (low, high) in enumerate(zip(lows, highs, strict=True)):
        found[k] = fixed + _live(plan, np.arange(low, high))
    return found


def _live(plan: Plan, positions: Ints) -> int:
    """Bytes of decoded blocks that a walk over some cells holds at once, at most."""
    worst = 0
    images = plan.cells.image[positions]
    for part in np.split(positions, np.flatnonzero(np.diff(images)) + 1):
        image = plan.images[int(plan.cells.image[part[0]])]
        held = 0
        for array in (image, *(r.image for r in (image.labels, image.target) if r is not None)):
            size = math.prod(array.layout.block_shape()) * array.dtype.itemsize
            peak = _peak(plan, image, array.layout, part)
            # A batch is fetched ahead, compressed beside decoded.
            held += max(peak * size, size) + 2 * max(FETCH, size)
        counted = math.prod(image.layout.block_shape()[2:]) * _COUNT_BYTES
        region = math.prod(
            c + p for c, p in zip(image.layout.space.chunks, plan.patch_size, strict=True)
        )
        held += counted + region * image.layout.n_channels * image.dtype.itemsize
        held += image.layout.n_channels * 2 ** (8 * min(image.dtype.itemsize, 2)) * 8
        worst = max(worst, held)
    return worst


def _peak(plan: Plan, image: Image, layout: Layout, positions: Ints) -> int:
    """Most blocks of an array alive at once, each from its first to its last cell."""
    space = image.layout.space
    sample, chunk = np.divmod(plan.cells.cell[positions], space.n_chunks)
    start = space.unflat(chunk) * np.asarray(space.chunks)
    stop = np.minimum(
        start + np.asarray(space.chunks) + np.asarray(plan.patch_size) - 1, np.asarray(space.shape)
    )
    low, high = layout.space.chunk_of(start), layout.space.chunk_of(stop - 1)
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
    return int(np.cumsum(change).max())
