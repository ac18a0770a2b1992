"""Runs: whole output shards dealt out to tasks, with their peak memory known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import BudgetError
from patchloom.grid import ChunkGrid
from patchloom.image import Image, Layout
from patchloom.planning.cells import Cells
from patchloom.planning.incidence import Cut
from patchloom.planning.lenses import bound, is_context
from patchloom.planning.rows import Rows, ranges
from patchloom.summaries import tally_bytes
from patchloom.table import as_bytes

__all__ = [
    "FETCH",
    "GATHER",
    "LEG_BYTES",
    "MAX_TASKS",
    "MIN_TASKS",
    "RUN_BYTES",
    "Runs",
    "arrange",
    "borders",
    "fetch_bytes",
    "fewer_rows",
    "pack",
    "pack_units",
    "patches_together",
    "shard_rows",
    "upload_bytes",
    "window_rows",
]

Ints = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

SHARD_BYTES = 32 * 2**20
"""Default size of an output shard before compression."""
SHARD_ROWS = 2**17
"""Patches of a shard by default, at most: small ones cost more in columns than in pixels."""
MIN_TASKS = 16
"""A plan is cut into at least so many tasks where it has as many shards."""
LEG_BYTES = 2**30
"""Patches of one leg, in bytes before compression, at most."""
RUN_BYTES = 2**32
"""Patches of one task, in bytes before compression, at most, unless there were too many tasks."""
MAX_TASKS = 2**14
"""Tasks of a plan, at most, as far as its shards can be dealt out so."""
FETCH = 32 * 2**20
"""Bytes of decoded blocks that a task asks for in one batch, at most, unless a block has more."""
GATHER = 16 * 2**20
"""Bytes of patches that a task cuts together, at least one patch."""
_BATCH = 2**18
"""Cells that a pass looks at together."""
_PAIRS = 2**20
"""Pairs of a cell and a block that are looked at one by one; of more, cells go together."""
_STEPS = 8
"""Steps of a task's walk, at least, when cells go together."""
_AHEAD = 4096
"""How many units `pack` looks ahead to fill a gap."""
_ROW_BYTES = 64
"""Bytes that a patch costs beside its pixels: headers, checksum, entry in the shard's index."""
_TASK_BYTES = 256 * 1024
"""Small things of a task that are not worth counting one by one."""
_COLUMN_BYTES = 800
"""Bytes of columns that a patch costs a leg: its place, its blocks, its row of the manifest."""
_MIXED_BYTES = 320
"""Bytes that a patch of a window costs besides: its columns, and the permutation of the window."""
_COUNT_BYTES = 40
"""Bytes a pixel of a wide type while it is counted: copies that are sorted, distinct values."""
_NARROW_BYTES = 2**20
"""Bytes that counting small integers takes whatever the block: some are widened at a time."""


def fetch_bytes(memory: int) -> int:
    """Bytes of decoded blocks that a task of some memory asks for in one batch."""
    return min(FETCH, memory // 16)


@dataclass(frozen=True, eq=False)
class Runs:
    """Task k writes the shards [bounds[k], bounds[k + 1])."""

    n_rows: int
    rows_per_shard: int
    bounds: Ints
    """First shard of each task, and the number of shards at the end: int64[n_tasks + 1]."""
    legs: Ints
    """The same of each leg: a task goes through its shards leg by leg, and by the end of a leg
    has given back all that the leg held. Every border of tasks is one of legs."""
    memory: Ints
    """Projected peak memory of each task, in bytes: int64[n_tasks]."""

    def __len__(self) -> int:
        return len(self.memory)

    @property
    def peak_memory(self) -> int:
        """The largest projection."""
        return int(self.memory.max()) if len(self.memory) else 0

    def rows(self) -> Iterator[tuple[int, int]]:
        """The rows [start, stop) of each leg."""
        rows = np.minimum(self.legs * self.rows_per_shard, self.n_rows).tolist()
        yield from pairwise(rows)

    def legs_of(self, shards: Sequence[int]) -> list[tuple[int, list[int]]]:
        """The legs that hold some shards (ascending), and which of the shards each holds."""
        leg = np.searchsorted(self.legs, shards, side="right") - 1
        cuts = np.flatnonzero(np.diff(leg)) + 1
        parts = np.split(np.asarray(shards, np.int64), cuts) if len(leg) else []
        return [(int(leg[at]), p.tolist()) for at, p in zip([0, *cuts], parts, strict=False)]

    def legs_at(self, turns: Ints) -> Ints:
        """The leg that goes through each of some turns: int64[n]."""
        found: Ints = np.searchsorted(self.legs, turns // self.rows_per_shard, side="right") - 1
        return found

    def shards(self, task: int) -> range:
        """The shards of one task."""
        return range(int(self.bounds[task]), int(self.bounds[task + 1]))


def shard_rows(patch_bytes: int, kept: Column) -> int:
    """The default number of patches of a shard: near 32 MiB, and whole cells where they fit.

    Parameters
    ----------
    patch_bytes
        Bytes of one patch.
    kept
        Patches of each unit.
    """
    fit = max(1, min(SHARD_ROWS, SHARD_BYTES // max(1, patch_bytes)))
    n_patches = int(kept.sum(dtype=np.int64))
    largest = int(kept.max()) if len(kept) else 1
    if largest <= fit:
        # A shard border inside a cell would cost its chunks a second read.
        return min(fit // largest, -(-n_patches // largest) or 1) * largest
    return 1 << (fit.bit_length() - 1)


def fewer_rows(rows: int, kept: Column) -> Iterator[int]:
    """Smaller shards, each of about half as many patches, down to a sixteenth.

    Parameters
    ----------
    rows
        Patches of a shard.
    kept
        As of `shard_rows`.

    Yields
    ------
    int
        Whole units while there are any.

    Examples
    --------
    >>> list(fewer_rows(511, np.array([73, 20]))), list(fewer_rows(3, np.array([5])))
    ([219, 73, 64, 32], [2, 1])
    """
    largest, least = max(1, int(kept.max(initial=1))), max(1, rows // 16)
    while rows > least:
        half = rows // 2 if rows >= 2 * largest else 1 << ((rows - 1).bit_length() - 1)
        rows = half // largest * largest or half
        if rows >= least:
            yield rows


def shard_layout(rows: int, patch_bytes: int, kept: Column) -> str:
    """What a chunk and a shard of a store hold, and why.

    Parameters
    ----------
    rows
        Patches of a shard.
    patch_bytes, kept
        As of `shard_rows`.

    Examples
    --------
    >>> print(shard_layout(8, 2**20, np.array([4, 4, 4, 4])))
    ... # doctest: +NORMALIZE_WHITESPACE
    a chunk is one patch (1.0 MiB), to be read alone; a shard is one object of 8 patches
    (8.0 MiB), as asked, or as the memory allows
    """
    n_patches = int(kept.sum(dtype=np.int64))
    default = shard_rows(patch_bytes, kept)
    if rows != default:
        why = "as asked, or as the memory allows" if rows < default else "as asked"
    elif rows >= n_patches:
        why = "all there are"
    elif rows % max(1, int(kept.max(initial=1))):
        why = f"a power of two up to {as_bytes(SHARD_BYTES)}"
    else:
        why = f"whole chunks of the images up to {as_bytes(SHARD_BYTES)}"
    return (
        f"a chunk is one patch ({as_bytes(patch_bytes)}), to be read alone; a shard is one object "
        f"of {rows:,} patches ({as_bytes(rows * patch_bytes)}), {why}"
    )


def borders(sizes: Column, rows: int) -> npt.NDArray[np.bool_]:
    """Which shard borders fall between units: bool[n_shards + 1].

    Parameters
    ----------
    sizes
        Patches of each unit, in order.
    rows
        Patches of a shard.

    >>> borders(np.array([3, 1, 3]), 4).tolist()
    [True, True, True]
    """
    n = int(sizes.sum(dtype=np.int64))
    clean = np.zeros(-(-n // rows) + 1, np.bool_)
    clean[[0, -1]] = True
    upto = 0
    for low in range(0, len(sizes), _BATCH):
        ends = upto + np.cumsum(sizes[low : low + _BATCH], dtype=np.int64)
        shard = ends // rows
        clean[shard[shard * rows == ends]] = True
        upto = int(ends[-1])
    return clean


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
    if not used and borders(sizes, rows).all():
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


def pack_units(cells: Cells, units: Ints | None, rows: int) -> Ints | None:
    """An order of the cells of an aligned plan in which shard borders cut no unit.

    Parameters
    ----------
    cells
        Of the plan; images stay apart: only within one do units change places.
    units
        From `Cells.unit_begins`.
    rows
        Patches of a shard.

    Returns
    -------
    int64[n] or None
        Positions of the cells in the new order; None if they can stay.
    """
    sizes = cells.unit_sizes(units)
    if borders(sizes, rows).all():
        return None
    begins = np.arange(len(cells)) if units is None else units
    bounds = np.searchsorted(begins, cells.bounds)
    order, used = [np.zeros(0, np.int64)], 0
    for low, high in pairwise(bounds.tolist()):
        order.append(low + pack(sizes[low:high].astype(np.int64), rows, used))
        used += int(sizes[low:high].sum())
    units_in_order = np.concatenate(order)
    n = np.diff(begins, append=len(cells))[units_in_order]
    within = np.arange(len(cells)) - np.repeat(np.cumsum(n) - n, n)
    placed: Ints = np.repeat(begins[units_in_order], n) + within
    return placed


def arrange(
    images: Sequence[Image],
    cells: Cells,
    cut: Cut,
    rows: int,
    memory: int,
    *,
    aligned: bool,
    sticks_out: bool,
    order: Rows,
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
    sticks_out
        Whether what is cut may lie partly outside the image.
    order
        The rows of the plan. Where they are mixed, each window is a task.

    Raises
    ------
    BudgetError
        If not even one shard, or window, fits into the memory.
    """
    n = cells.n_rows
    if not n:
        return Runs(0, rows, np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64))
    n_shards, fetch = -(-n // rows), fetch_bytes(memory)
    if order.is_mixed:
        bounds = np.append(np.arange(0, n_shards, order.window // rows), n_shards)
        needs = _project(images, cells, cut, rows, bounds, aligned, sticks_out, order, fetch)
        return Runs(n, rows, bounds, bounds, _fitting(needs, memory, rows, cut, order))
    clean = np.ones(n_shards + 1, np.bool_)
    if aligned and order.is_straight:
        clean = borders(cells.unit_sizes(cells.unit_begins(images)), rows)
    shard_bytes = rows * _patch_bytes(images, cut)
    longest = max(1, min(n_shards // MIN_TASKS, LEG_BYTES // max(1, shard_bytes)))
    length = 1 << (longest.bit_length() - 1)
    handed = not all(a.source.addressable for image in images for a in image.cut_arrays.values())
    # What a leg leaves over keeps blocks for the next ones, where legs have blocks in common.
    room = memory if aligned or handed else memory // 2
    while True:
        legs = _bounds(clean, length)
        needs = _project(images, cells, cut, rows, legs, aligned, sticks_out, order, fetch)
        if length == 1 or needs.max() + upload_bytes(images, cut, rows) <= room:
            break
        length //= 2
    worst = int(needs.max())
    if worst > memory:
        at = int(needs.argmax())
        lower = f"rows_per_shard ({rows:,}) or " if rows > 1 else ""
        raise BudgetError(
            f"one task must fit into memory={memory:,} bytes, but shards {legs[at]:,} to "
            f"{legs[at + 1] - 1:,} of {rows:,} patches each need {worst:,}; raise memory, lower "
            f"{lower}the patch size {list(cut.size)}"
        )
    # Dask hands a task all its chunks at once: then the task is one leg.
    together = 1 if handed else _legs_of_task(len(needs), length * shard_bytes)
    first = np.arange(0, len(needs), together)
    return Runs(n, rows, np.append(legs[first], n_shards), legs, np.maximum.reduceat(needs, first))


def _legs_of_task(n_legs: int, leg_bytes: int) -> int:
    """How many legs make a task: as many as parallelism allows."""
    longest = min(n_legs // MIN_TASKS, RUN_BYTES // max(1, leg_bytes))
    return max(1, longest, -(-n_legs // MAX_TASKS))


def window_rows(
    images: Sequence[Image],
    cells: Cells,
    cut: Cut,
    rows: int,
    memory: int,
    deal: Callable[[int], Rows],
    *,
    aligned: bool,
    sticks_out: bool,
) -> int:
    """Rows of the widest windows that fit into the memory of a task, all about as wide.

    Parameters
    ----------
    images, cells, cut, rows, memory, aligned, sticks_out
        As for `arrange`.
    deal
        From the rows of a window to the rows of the plan.
    """
    n_shards = -(-cells.n_rows // rows)
    one = rows * _mixed_bytes(images, cut)
    fixed = _fixed_bytes(images, cut, rows, rows)
    # As `arrange` does, which knows the whole memory.
    fetch = fetch_bytes(memory)
    # Wherever the store is: the plan does not know.
    memory -= upload_bytes(images, cut, rows)
    n = max(1, min(n_shards, (memory - fixed) // one))
    while True:
        # As many windows as before, but even ones.
        n = -(-n_shards // -(-n_shards // n)) if n_shards else 1
        bounds = np.append(np.arange(0, n_shards, n), n_shards)
        order = deal(n * rows)
        needs = _project(images, cells, cut, rows, bounds, aligned, sticks_out, order, fetch)
        over = int(needs.max(initial=0)) - memory
        if over <= 0 or n == 1:
            return int(n * rows)
        n = max(1, min(n - 1, n - -(-over // one)))


def _fitting(needs: Ints, memory: int, rows: int, cut: Cut, order: Rows) -> Ints:
    worst = int(needs.max())
    if worst > memory:
        out = (
            f"take a smaller window= (windows here have {order.window // rows:,} shards)"
            if order.window > rows
            else f"lower rows_per_shard ({rows:,}) or the patch size {list(cut.size)}"
        )
        raise BudgetError(
            f"one window of shuffled rows must fit into memory={memory:,} bytes, but window "
            f"{int(needs.argmax())} of {order.window:,} patches needs {worst:,}; raise memory, or "
            f"{out}"
        )
    return needs


def _bounds(clean: npt.NDArray[np.bool_], length: int) -> Ints:
    """Run borders at least `length` shards apart, only where a border is clean."""
    n = len(clean) - 1
    if clean.all():
        return np.append(np.arange(0, n, length), n)
    places = np.flatnonzero(clean[:n])
    found = [0]
    while True:
        k = int(np.searchsorted(places, found[-1] + length))
        if k == len(places):
            return np.array([*found, n], np.int64)
        found.append(int(places[k]))


def _project(
    images: Sequence[Image],
    cells: Cells,
    cut: Cut,
    rows: int,
    bounds: Ints,
    aligned: bool,
    sticks_out: bool,
    order: Rows,
    fetch: int,
) -> Ints:
    """An upper bound of each task's memory, from cells alone."""
    made = order.window or rows
    pixels = patches_together(images, cells, cut, made) * _largest_bytes(images, cut)
    columns = np.diff(np.minimum(bounds * rows, cells.n_rows)) * _COLUMN_BYTES
    if not order.is_straight:
        live = _live_in_pieces(
            images, cells, cut, rows, bounds, pixels, aligned, sticks_out, order, fetch
        )
        # The last window may be a narrow one.
        n = np.diff(np.minimum(bounds * rows, cells.n_rows)) if order.is_mixed else made
        less = (made - np.maximum(n, rows)) * _mixed_bytes(images, cut)
        fixed = _fixed_bytes(images, cut, rows, made)
        return np.asarray(fixed + columns + live - less, np.int64)
    lows = cells.positions_of(bounds[:-1] * rows)
    highs = cells.positions_of(np.minimum(bounds[1:] * rows, cells.n_rows) - 1) + 1
    worst = np.zeros(len(lows), np.int64)
    for index, image in enumerate(images):
        low, high = cells.span(index)
        some = slice(np.searchsorted(highs, low, side="right"), np.searchsorted(lows, high))
        if low < high and some.start < some.stop:
            parts = np.maximum(lows[some], low), np.minimum(highs[some], high)
            n_shards = np.diff(bounds)[some]
            held = _live(image, cells, cut, *parts, n_shards, pixels, aligned, sticks_out, fetch)
            worst[some] = np.maximum(worst[some], held)
    return np.asarray(_fixed_bytes(images, cut, rows, rows) + columns + worst, np.int64)


def _fixed_bytes(images: Sequence[Image], cut: Cut, rows: int, made: int) -> int:
    """What a task holds all the time, while it makes `made` rows at once."""
    patch = _patch_bytes(images, cut)
    # A shard in the making has room for patches that do not compress, reserved once.
    fixed = _TASK_BYTES + rows * (patch + patch // 4096 + _ROW_BYTES)
    return fixed + (made - rows) * _mixed_bytes(images, cut)


def patches_together(images: Sequence[Image], cells: Cells, cut: Cut, made: int) -> int:
    """Most patches that a task which makes `made` rows at once cuts in one step."""
    image = images[0]
    nbytes = math.prod(cut.size) * image.layout.n_channels * image.dtype.itemsize
    most = int(cells.kept.max(initial=1))
    return min(max(1, GATHER // max(1, nbytes)), made, most)


def upload_bytes(images: Sequence[Image], cut: Cut, rows: int) -> int:
    """Bytes of one shard beside the others: a store that is not local is sent a copy."""
    return rows * _largest_bytes(images, cut)


def _largest_bytes(images: Sequence[Image], cut: Cut) -> int:
    """Bytes of one patch in the widest array that is cut, before compression."""
    arrays = images[0].cut_arrays.values()
    return math.prod(cut.size) * max(a.layout.n_channels * a.dtype.itemsize for a in arrays)


def _mixed_bytes(images: Sequence[Image], cut: Cut) -> int:
    """Bytes of a row of a window."""
    return _patch_bytes(images, cut) + _ROW_BYTES + _MIXED_BYTES


def _live_in_pieces(
    images: Sequence[Image],
    cells: Cells,
    cut: Cut,
    rows: int,
    bounds: Ints,
    pixels: int,
    aligned: bool,
    sticks_out: bool,
    order: Rows,
    fetch: int,
) -> Ints:
    """Like `_live` of all tasks, whose cells are those of several pieces each."""
    borders = np.minimum(bounds * rows, cells.n_rows)
    turn = np.unique(np.concatenate([order.turn[:-1], borders[:-1]]))
    rank = order.ranks_of(turn)
    task = np.searchsorted(borders, turn, side="right") - 1
    low = cells.positions_of(rank)
    high = cells.positions_of(rank + np.diff(np.append(turn, cells.n_rows)) - 1) + 1
    image = cells.image_of(low)
    by_image = np.argsort(image, kind="stable")
    worst, none = np.zeros(len(bounds) - 1, np.int64), np.zeros(0, np.uint8)
    for some in np.split(by_image, np.flatnonzero(np.diff(image[by_image])) + 1):
        n = high[some] - low[some]
        ends = np.cumsum(n)
        at = ranges(low[some], high[some])
        # The cells of one image in the order of its turns: then those of a task are a stretch.
        own = Cells(np.array([0, len(at)]), cells.cell[at], none, none, none)
        tasks, first = np.unique(task[some], return_index=True)
        lows = (ends - n)[first]
        highs = np.append(lows[1:], ends[-1])
        of = images[int(image[some[0]])]
        n_shards = np.diff(bounds)[tasks]
        held = _live(of, own, cut, lows, highs, n_shards, pixels, aligned, sticks_out, fetch)
        worst[tasks] = np.maximum(worst[tasks], held)
    return worst


def _patch_bytes(images: Sequence[Image], cut: Cut) -> int:
    """Bytes of one patch in all arrays that are cut, before compression."""
    arrays = images[0].cut_arrays.values()
    return math.prod(cut.size) * sum(a.layout.n_channels * a.dtype.itemsize for a in arrays)


def _live(
    image: Image,
    cells: Cells,
    cut: Cut,
    lows: Ints,
    highs: Ints,
    n_shards: Ints,
    pixels: int,
    aligned: bool,
    sticks_out: bool,
    fetch: int,
) -> Ints:
    """Bytes that walks over the cells [low, high) of some shards hold at once, at most.

    `pixels` is what the patches of one step take.
    """
    # While a plane is counted: copies of its pixels under the union of the patches, and masks.
    narrow = image.dtype.itemsize <= 2
    each = 2 + image.dtype.itemsize + (0 if narrow else _COUNT_BYTES)
    loading = np.full(len(lows), math.prod(image.layout.block_shape()[2:]) * each)
    loading += narrow * _NARROW_BYTES
    # Before the image a patch begins at most a patch away; padded, a region is made once more.
    before = cut.size if sticks_out else cut.back
    extents = zip(image.layout.space.chunks, cut.size, before, strict=True)
    region = math.prod(c + p + back for c, p, back in extents) * (1 + sticks_out)
    held, touched = np.zeros(len(lows), np.int64), n_shards
    for name, array in image.cut_arrays.items():
        nbytes = math.prod(array.layout.block_shape()) * array.dtype.itemsize
        # What aligned patches take is inside their cell, as if they were one pixel.
        ones = (1,) * len(cut.size)
        span = Cut(ones, (0,) * len(ones)) if aligned else cut
        layout = array.layout
        if is_context(name):
            layout, span = bound(image, name, layout, cut)
            # Padded, a region is made once more.
            wide = zip(image.layout.space.chunks, cut.size, strict=True)
            nearby = math.prod(c + 2 * p for c, p in wide)
            held += 2 * nearby * layout.n_channels * array.dtype.itemsize
        peak, n = _peaks(image.layout, cells, span, layout, lows, highs)
        touched = n if array is image else touched
        # A batch is fetched ahead. What is decoded is forgotten as stored, but for chunks that
        # came in one piece with others; and one block is joined from its chunks.
        batch = np.minimum(max(1, fetch // max(1, nbytes)), n)
        loading += (batch if array.shards is not None else 1) * nbytes
        held += np.minimum(peak + batch, n) * nbytes + getattr(array.source, "held_bytes", 0)
    # Blocks are loaded and counted, then patches are cut.
    cutting = region * image.layout.n_channels * image.dtype.itemsize + pixels
    held += np.maximum(loading, cutting)
    # Counts of the shard that is cut, and of those that own a block fetched ahead.
    block = math.prod(image.layout.block_shape()) * image.dtype.itemsize
    ahead = np.minimum(n_shards, 1 + np.minimum(max(1, fetch // block), touched))
    held += ahead * image.layout.n_channels * tally_bytes(image.dtype)
    return held


def _peaks(
    own: Layout, cells: Cells, cut: Cut, layout: Layout, lows: Ints, highs: Ints
) -> tuple[Ints, Ints]:
    """Most blocks of an array that each task has alive at once, and all that it touches.

    A block is alive from the first to the last cell of the task that touches it. Of a large
    plan, neighbouring cells are taken as one, which is an upper bound. Walks of the same shape
    over the same blocks but for a shift are looked at once: a plan of a billion patches has
    tens of thousands of tasks and hundreds of shapes.

    Parameters
    ----------
    own
        Layout of the image that owns the cells.
    cells, cut
        Of the plan.
    layout
        Of the array that is read.
    lows, highs
        Positions of each task's cells: int64[n], ascending.
    """
    chunks, blocks = np.asarray(own.space.chunks), np.asarray(layout.space.chunks)
    # As if all lay farther on by whole blocks, so that nothing is needed before the first.
    back = -(-np.asarray(cut.back) // blocks) * blocks
    size = np.asarray(cut.size) + back
    reach = (chunks + size - 2) // blocks + 1
    if own.space == layout.space and (reach == 1).all():
        return np.ones(len(lows), np.int64), highs - lows
    merge = _merge(own, int((highs - lows).sum()), len(lows), int(reach.prod()))
    at = ChunkGrid(own.space.counts, tuple(merge.tolist()))
    positions, keys = _steps(own, cells, layout, at, int(lows[0]), int(highs[-1]))
    begin = np.searchsorted(positions, lows, side="right") - 1
    length = np.searchsorted(positions, highs) - begin
    answers = np.zeros((len(lows), 2), np.int64)
    for n in np.unique(length).tolist():
        alike = np.flatnonzero(length == n)
        together = max(1, _BATCH // n)
        for low in range(0, len(alike), together):
            tasks = alike[low : low + together]
            walks = _walks(keys[begin[tasks][:, None] + np.arange(n)], at, own, layout, size, back)
            shapes: dict[bytes, int] = {}
            which = [shapes.setdefault(walk.tobytes(), len(shapes)) for walk in walks]
            first = np.unique(which, return_index=True)[1]
            few = max(1, together // int((merge + reach).prod()))
            found = [
                _live_blocks(walks[first[k : k + few]], chunks * merge, size, layout)
                for k in range(0, len(first), few)
            ]
            answers[tasks] = np.concatenate(found)[which]
    return answers[:, 0], answers[:, 1]


def _walks(
    keys: Ints, at: ChunkGrid, own: Layout, layout: Layout, size: Ints, back: Ints
) -> npt.NDArray[np.int32]:
    """Walks of one length as rows that are equal if the walks differ by a shift.

    Parameters
    ----------
    keys
        What `_steps` answers for each step: int64[n_walks, n].

    Returns
    -------
    int32[n_walks, ndim + n * (ndim + 1)]
        Pixels left on each axis, the groups, the merged cells.
    """
    wide = np.asarray(own.space.chunks) * np.asarray(at.chunks)
    # Moved by a common multiple of both grids' chunks, a walk touches as many blocks.
    period = np.lcm(wide, np.asarray(layout.space.chunks)) // wide
    group = keys // at.n_chunks
    index = at.unflat(keys - group * at.n_chunks)
    origin = index[:, 0] // period * period
    index -= origin[:, None]
    # How far the array's end is matters only to those that it cuts short.
    left = np.minimum(
        np.asarray(own.space.shape) + back - origin * wide, (index.max(1) + 1) * wide + size
    )
    columns = [left, group - group[:, :1], index.reshape(len(index), -1)]
    return np.concatenate(columns, 1).astype(np.int32)


def _merge(own: Layout, n_cells: int, n_tasks: int, n_blocks: int) -> Ints:
    """Cells on each axis that are taken as one, powers of two."""
    counts = np.asarray(own.space.counts)
    merge = np.ones(len(counts), np.int64)
    axis = 0
    while n_cells * n_blocks > _PAIRS and n_cells > 2 * _STEPS * n_tasks * merge.prod():
        # In the order in which the Z curve turns, so that what goes together is one stretch.
        axis = (axis - 1) % len(counts)
        if (merge >= counts).all():
            break
        merge[axis] *= 2 if merge[axis] < counts[axis] else 1
    return merge


def _steps(
    own: Layout, cells: Cells, layout: Layout, at: ChunkGrid, low: int, high: int
) -> tuple[Ints, Ints]:
    """Where a walk over cells [low, high) enters other merged cells or another group of samples.

    Returns
    -------
    int64[n], int64[n]
        Positions, and ``group * at.n_chunks + merged cell`` there.
    """
    positions, keys, last = [], [], -1
    for begin in range(low, high, _BATCH):
        cell, group = cells.cell[begin : min(begin + _BATCH, high)], None
        if own.n_samples > 1:
            sample, cell = np.divmod(cell.astype(np.int64), own.space.n_chunks)
            group = layout.groups_of(sample) if layout.n_samples > 1 else None
        key, *others = own.space.columns(cell)
        key //= at.chunks[0]
        for axis, column in enumerate(others, 1):
            key *= at.counts[axis]
            key += column // at.chunks[axis]
        if group is not None:
            key = key + group * at.n_chunks
        change = np.flatnonzero(key[1:] != key[:-1]) + 1
        if key[0] != last:
            change = np.concatenate([np.zeros(1, np.int64), change])
        positions.append(begin + change)
        keys.append(key[change].astype(np.int64))
        last = int(key[-1])
    return np.concatenate(positions), np.concatenate(keys)


def _live_blocks(walks: npt.NDArray[np.int32], wide: Ints, size: Ints, layout: Layout) -> Ints:
    """Most blocks alive at once on each of some `_walks` over cells of `wide` pixels, and all.

    Returns
    -------
    int64[n_walks, 2]
    """
    ndim = len(wide)
    n_walks, n = len(walks), (walks.shape[1] - ndim) // (ndim + 1)
    left, group, index = np.split(walks.astype(np.int64), [ndim, ndim + n], 1)
    start = index.reshape(n_walks, n, ndim) * wide
    low = layout.space.chunk_of(start)
    high = layout.space.chunk_of(np.minimum(start + wide + size - 1, left[:, None]) - 1)
    widest = (high - low).max((0, 1)) + 1
    reach = np.stack([m.ravel() for m in np.meshgrid(*map(np.arange, widest), indexing="ij")], -1)
    touched = low[:, :, None] + reach
    walk, step, which = np.nonzero((touched <= high[:, :, None]).all(-1))
    columns = [walk, group[walk, step], *touched[walk, step, which].T]
    columns = [column - column.min() for column in columns]
    block = np.ravel_multi_index(columns, [int(column.max()) + 1 for column in columns])
    # Steps ascend, so that in a stable order a block's first is its first step, and so its last.
    order = np.argsort(block, kind="stable")
    first = np.flatnonzero(np.diff(block[order], prepend=-1))
    last = np.append(first[1:], len(order)) - 1
    place = walk * (n + 1) + step
    change = np.bincount(place[order[first]], minlength=n_walks * (n + 1))
    change -= np.bincount(place[order[last]] + 1, minlength=n_walks * (n + 1))
    alive = np.cumsum(change.reshape(n_walks, n + 1), axis=1)
    return np.stack([alive.max(1), np.bincount(walk[order[first]], minlength=n_walks)], 1)
