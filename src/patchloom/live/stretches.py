"""Stretches: neighbouring chunks whose patches are visited together, a part of a band each.

An image is cut into bands along one of its axes, and a band into slabs, one chunk thick. What the
patches of a slab need of the next one of its band is still held when that is visited; only what
they need of the chunks beside the band is decoded again with another band. So bands are as wide as
the memory allows in which a window of slabs, one of each of several bands, and the next are held.
Where that memory is short, slabs are gone through row by row, and what no later row of the band
needs is let go: then little more than one slab of each band is held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from patchloom.image import Image, Ints, Layout
from patchloom.live.opened import is_in_memory
from patchloom.planning.incidence import Patches
from patchloom.planning.lenses import is_context
from patchloom.planning.plans import Plan
from patchloom.planning.rows import ranges

__all__ = ["WINDOWS", "Bands", "Stretches", "advice"]

WINDOWS = (256, 128, 64, 32, 16, 12, 8, 6, 4)
"""Stretches of a window: as many of these as cost few chunks that are decoded again."""
_NARROW = (*WINDOWS, 3)
"""Those of rows: fewer where 4 cost many, but a batch of one or two places is no sample."""
AMPLE = 1.08
"""Decodes for each needed chunk, as it is estimated, that are few."""
FEW = 1.1
"""Decodes for each needed chunk up to which nothing is advised."""
_ROOM = 0.75
"""Share of the memory that windows are made for; columns and batches in flight take some."""
_PATCHES = 2**20
"""Patches of a stretch, about, unless one chunk has more."""

_BETWEEN = 2
"""Rows of each band that are begun while patches of earlier ones are still read."""

Sides = tuple[int, ...]
"""Chunks of a slab on each axis; 0 on the axis that its band runs along, where it has one."""


@dataclass(frozen=True)
class Bands:
    """How an image is cut into bands, and these into stretches."""

    side: Sides
    """Of a slab."""
    row: int | None = None
    """The axis along which a slab is gone through, one chunk at a time; None: as a whole."""


@dataclass(frozen=True, eq=False)
class Stretches:
    """Positions [bounds[k], bounds[k + 1]) are stretch k; each lies in one image."""

    plan: Plan
    """The same patches, along the bands: positions are its turns."""
    order: Ints
    """Which cell of the plan that was asked for each of its cells is: int64[n_cells]."""
    bounds: Ints
    """int64[n + 1]."""
    trails: Ints
    """Those of bounds with which another band begins, and the number of patches."""
    bands: tuple[Bands, ...]
    """Of each image."""
    window: int
    """So many are visited together."""
    estimate: float
    """Decodes for each chunk that is needed in an epoch that goes window by window, about."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @classmethod
    def of(cls, plan: Plan, memory: int, window: int | None = None) -> Stretches:
        """Those of a plan.

        Parameters
        ----------
        plan
            Its patches.
        memory
            Bytes of decoded chunks that may be held.
        window
            Stretches that are visited together; by default from 4 to 256, and fewer where that
            decodes few chunks again.
        """
        every, n, estimate = _Shapes(plan).course(memory, window)
        spans = [_Span(plan, image, bands) for image, bands in enumerate(every)]
        order = np.concatenate([np.zeros(0, np.int64), *(span.order for span in spans)])
        kind = "grouped" if plan.order == "grouped" else "spatial"
        # Along the bands; rows of shards are of no use here.
        walked = replace(plan, cells=plan.cells.take(order), order=kind, window_rows=0)
        slabs, bands = ([getattr(s, name) for s in spans] for name in ("slabs", "bands"))
        bounds = _bounds(walked, np.concatenate(slabs))
        trails = _bounds(walked, np.concatenate(bands))
        return cls(walked, order, bounds, trails, tuple(every), n, estimate)

    def patches(self, plan: Plan, low: int, high: int) -> list[Patches]:
        """The patches of positions [low, high), image by image, as those of the plan asked for.

        Parameters
        ----------
        plan
            That plan: `Patches.row` is its row.
        low, high
            Positions.
        """
        found = []
        for part in self.plan.visits(low, high):
            within = part.rank - self.plan.cells.rows_of(part.cell)
            cell = self.order[part.cell]
            rank = plan.cells.rows_of(cell) + within
            found.append(replace(part, row=plan.rows_along(rank), rank=rank, cell=cell))
        return found


def advice(plan: Plan, memory: int, window: int | None = None) -> str | None:
    """What to type where an epoch is told to decode many chunks again; None where it is not.

    Parameters
    ----------
    plan, memory, window
        As for `Stretches.of`.
    """
    shapes = _Shapes(plan)

    def told(memory: int, window: int | None) -> float:
        return shapes.course(memory, window)[2]

    _, n, now = shapes.course(memory, window)
    if now <= FEW:
        return None
    enough = memory
    while told(2 * enough, window) > FEW:
        enough *= 2
    for step in (enough // 2, enough // 4, enough // 8):
        if told(enough + step, window) > FEW:
            enough += step
    mib = -(-(enough + enough // 8) // 2**20)
    found = (
        f"each needed chunk is decoded about {now:.2f} times an epoch; take memory='{mib} MiB' for "
        f"{FEW} times or less"
    )
    fewer = {k: told(memory, k) for k in range(min(n, WINDOWS[-1]) - 1, 0, -1)}
    best = next((k for k in fewer if fewer[k] <= FEW), min(fewer, key=fewer.__getitem__, default=0))
    if not best or fewer[best] >= now:
        return found
    return f"{found}, or window={best} for {fewer[best]:.2f}, in batches that are mixed less"


class _Span:
    """The cells of one image in the order of its bands."""

    def __init__(self, plan: Plan, image: int, bands: Bands) -> None:
        (low, high), layout = plan.cells.span(image), plan.images[image].layout
        space = layout.space
        sample, chunk = np.divmod(plan.cells.cell[low:high].astype(np.int64), space.n_chunks)
        band, along = layout.groups_of(sample), np.zeros(high - low, np.int64)
        columns = space.columns(chunk)
        for column, g, n in zip(columns, bands.side, space.counts, strict=True):
            if g:
                band = band * -(-n // g) + column // g
            else:
                along = column.astype(np.int64)
        if bands.row is not None:
            along = along * space.counts[bands.row] + columns[bands.row]
        within = np.argsort(band * (int(along.max(initial=0)) + 1) + along, kind="stable")
        band, along = band[within], along[within]
        other = np.diff(band, prepend=-1) != 0
        self.order = low + within
        """Positions of its cells in the plan."""
        self.bands = low + np.flatnonzero(other)
        """Positions, in that order, with which a band begins."""
        self.slabs = low + np.flatnonzero(other | (np.diff(along, prepend=-1) != 0))


def _bounds(plan: Plan, begins: Ints) -> Ints:
    """First positions of runs of cells that begin at some cells, and the number of patches."""
    cells, sequence = plan.cells, plan.sequence
    if sequence.is_straight:
        return np.append(cells.rows_of(begins), plan.n_patches).astype(np.int64)
    # Pieces of cells, in the order of turns.
    rank, turn = sequence.begin, sequence.turn[:-1]
    low = cells.positions_of(rank)
    n = cells.positions_of(rank + np.diff(sequence.turn) - 1) + 1 - low
    at, piece = ranges(low, low + n), np.repeat(np.arange(len(low)), n)
    first = turn[piece] + np.maximum(0, cells.rows_of(at) - rank[piece])
    run = np.searchsorted(begins, at, side="right")
    found = first[np.flatnonzero(np.diff(run, prepend=-1))]
    return np.append(found, plan.n_patches).astype(np.int64)


class _Shapes:
    """The shapes of a plan's images, each looked at once however many have it."""

    def __init__(self, plan: Plan) -> None:
        self._which: list[int] = []
        self._kinds: list[_Shape] = []
        known: dict[object, int] = {}
        for image in plan.images:
            arrays = tuple(
                (name, a.layout, a.dtype, is_in_memory(a)) for name, a in image.cut_arrays.items()
            )
            if arrays not in known:
                known[arrays] = len(self._kinds)
                self._kinds.append(_Shape(plan, image))
            self._which.append(known[arrays])
        self._units = np.diff(plan.cells.bounds)
        """Chunks of each image that own patches."""
        self._most = max(1, _PATCHES * len(plan.cells) // plan.n_patches)

    def course(self, memory: int, window: int | None) -> tuple[list[Bands], int, float]:
        """Bands of each image, how many stretches are visited together, and what they cost."""
        room = int(memory * _ROOM)
        every, n, estimate = self._several(room, window)
        return every, n, 1.0 if self.nbytes <= room else estimate

    def _several(self, room: int, window: int | None) -> tuple[list[Bands], int, float]:
        """The most that cost little, of slabs if they do and else of rows; four if none do."""
        for n in WINDOWS if window is None else (window,):
            every, estimate = self.bands(room // n, self._most, by_row=False)
            if estimate <= AMPLE:
                return every, n, estimate
        found = every, n, estimate
        for n in _NARROW if window is None else (window,):
            every, estimate = self.bands(room // n, self._most, by_row=True)
            if estimate <= FEW:
                return every, n, estimate
            if n == found[1] and estimate < found[2]:
                found = every, n, estimate
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks that patches need, at most."""
        kinds = enumerate(self._kinds)
        return sum(kind.nbytes(self._units[np.equal(self._which, k)]) for k, kind in kinds)

    def bands(self, nbytes: int, most: int, *, by_row: bool) -> tuple[list[Bands], float]:
        """Bands of each image that need so many bytes at most, and what they cost.

        Parameters
        ----------
        nbytes
            Of one band while it is gone along.
        most
            Chunks of a stretch.
        by_row
            Whether slabs are gone through row by row.
        """
        found = [kind.widest(nbytes, most, by_row) for kind in self._kinds]
        weights = np.bincount(self._which, self._units, len(found))
        costs = np.array([cost for _, cost in found])
        return [found[k][0] for k in self._which], float(costs @ weights / weights.sum())


class _Shape:
    """An image of some shape, with what is cut along with it."""

    def __init__(self, plan: Plan, image: Image) -> None:
        self._image, self._cut, self._alone = image, plan.cut, plan.is_aligned
        self._own: Layout = image.layout
        rows = zip(plan.cut.proper, plan.cut.context, self._own.space.chunks, strict=True)
        self._over = [0 if self._alone else -(-(p - 1 + c) // n) + -(-c // n) for p, c, n in rows]
        """Chunks on each axis that patches need besides the one that owns them."""

    def nbytes(self, units: Ints) -> int:
        """Bytes of the blocks that images of this shape need, at most.

        Parameters
        ----------
        units
            Chunks of each image that own patches: int64[n].
        """
        own, whole = self._own, 0
        for array in self._image.cut_arrays.values():
            layout = array.layout
            whole += layout.space.n_chunks * layout.samples.n_chunks * _block_bytes(array)
        around = units * math.prod(1 + over for over in self._over)
        share = np.minimum(1, around / (own.space.n_chunks * own.samples.n_chunks))
        return int(np.ceil(share * whole).sum())

    def widest(self, nbytes: int, most: int, by_row: bool) -> tuple[Bands, float]:
        """The bands that need at most so many bytes and cost least, and what they cost."""
        n = len(self._own.space.counts)
        if self._alone:
            return Bands((1,) * n), 1.0
        found = [
            self._along(axis, row, nbytes, most)
            for axis in range(n)
            for row in (range(n) if by_row else (None,))
            if row != axis
        ]
        return min(found, key=lambda one: one[1])

    def _along(self, axis: int, row: int | None, nbytes: int, most: int) -> tuple[Bands, float]:
        """Bands along some axis: widened where that saves most, while they fit."""
        counts = self._own.space.counts
        bands = Bands(tuple(0 if a == axis else 1 for a in range(len(counts))), row)
        while True:
            wider = []
            for a, n in enumerate(counts):
                if a != axis and bands.side[a] < n:
                    # One band fewer; bands of one width.
                    more = [*bands.side]
                    more[a] = -(-n // (-(-n // more[a]) - 1))
                    wider.append(Bands(tuple(more), row))
            fits = [b for b in wider if self._needs(b) <= nbytes and _volume(b) <= most]
            if not fits:
                return bands, self._cost(bands.side)
            bands = min(fits, key=lambda one: self._cost(one.side))

    def _cost(self, side: Sides) -> float:
        """Decodes for each chunk of an image cut into such bands, if all of it is needed."""
        found, counts = 1.0, self._own.space.counts
        for n, g, over in zip(counts, side, self._over, strict=True):
            found *= 1 + (-(-n // g) - 1) * over / n if g else 1
        return found

    def _needs(self, bands: Bands) -> int:
        """Bytes of all blocks that are held of a band while it is gone along."""
        found, side, row = 0, bands.side, bands.row
        for name, array in self._image.cut_arrays.items():
            if row is None:
                # Two slabs in the direction of the band.
                n = math.prod(self._blocks(name, [g or 2 for g in side]))
            else:
                axis = side.index(0)
                slab = self._blocks(name, [g or 1 for g in side])
                one = self._blocks(name, [1] * len(side))[row]
                # Of the first layer what rows are left, of the last one what rows have come.
                layers, rows = slab[axis], slab[row]
                n = min(
                    (layers - 1) * rows + one + _BETWEEN, array.layout.space.counts[axis] * rows
                )
                n *= math.prod(b for a, b in enumerate(slab) if a not in (axis, row))
            found += n * _block_bytes(array)
        return found

    def _blocks(self, name: str, wide: Sequence[int]) -> list[int]:
        """Blocks of an array, on each axis, that the patches of so many chunks need at most."""
        cut, own, space = self._cut, self._own.space, self._image.cut_arrays[name].layout.space
        if name == "image":
            found = [g + over for g, over in zip(wide, self._over, strict=True)]
        else:
            extents = [g * c + s - 1 for g, c, s in zip(wide, own.chunks, cut.size, strict=True)]
            if is_context(name):
                scales = self._image.more[name].alignment.scale
                rows = zip(extents, scales, cut.size, space.chunks, strict=True)
                found = [int((e / s + p) // c) + 2 for e, s, p, c in rows]
            else:
                found = [e // c + 1 for e, c in zip(extents, space.chunks, strict=True)]
        return [min(b, count) for b, count in zip(found, space.counts, strict=True)]


def _volume(bands: Bands) -> int:
    """Chunks of a stretch."""
    return math.prod(g or 1 for a, g in enumerate(bands.side) if a != bands.row)


def _block_bytes(array: Image) -> int:
    """Bytes that a block takes when it is held."""
    if is_in_memory(array):
        return 0
    return math.prod(array.layout.block_shape()) * array.dtype.itemsize
