"""Stretches: neighbouring chunks whose patches are visited together, one slab of a band each.

An image is cut into bands along one of its axes, and a band into slabs, one chunk thick. What the
patches of a slab need of the next one of its band is still held when that is visited; only what
they need of the chunks beside the band is decoded again with another band. So bands are as wide as
the memory allows in which a window of slabs, one of each of several bands, and the next are held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from patchloom.image import Image, Ints, Layout
from patchloom.live.opened import is_in_memory
from patchloom.planning.incidence import Patches
from patchloom.planning.lenses import is_context
from patchloom.planning.plans import Plan
from patchloom.planning.rows import ranges

__all__ = ["WINDOWS", "Stretches", "advice"]

WINDOWS = (256, 128, 64, 32, 16, 12, 8, 6, 4)
"""Stretches of a window: as many of these as cost few chunks that are decoded again."""
AMPLE = 1.08
"""Decodes for each needed chunk, as it is estimated, that are few."""
FEW = 1.1
"""Decodes for each needed chunk up to which nothing is advised."""
_ROOM = 0.75
"""Share of the memory that windows are made for; columns and batches in flight take some."""
_PATCHES = 2**20
"""Patches of a stretch, about, unless one chunk has more."""

Sides = tuple[int, ...]
"""Chunks of a slab on each axis; 0 on the axis that its band runs along, where it has one."""


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
            Stretches that are visited together; by default from 4 to 256.
        """
        sides, n, estimate = _Shapes(plan).course(memory, window)
        spans = [_Span(plan, image, side) for image, side in enumerate(sides)]
        order = np.concatenate([np.zeros(0, np.int64), *(span.order for span in spans)])
        kind = "grouped" if plan.order == "grouped" else "spatial"
        # Along the bands; rows of shards are of no use here.
        walked = replace(plan, cells=plan.cells.take(order), order=kind, window_rows=0)
        slabs, bands = ([getattr(s, name) for s in spans] for name in ("slabs", "bands"))
        bounds = _bounds(walked, np.concatenate(slabs))
        trails = _bounds(walked, np.concatenate(bands))
        return cls(walked, order, bounds, trails, n, estimate)

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

    def __init__(self, plan: Plan, image: int, side: Sides) -> None:
        (low, high), layout = plan.cells.span(image), plan.images[image].layout
        space = layout.space
        sample, chunk = np.divmod(plan.cells.cell[low:high].astype(np.int64), space.n_chunks)
        band, along = layout.groups_of(sample), np.zeros(high - low, np.int64)
        for column, g, n in zip(space.columns(chunk), side, space.counts, strict=True):
            if g:
                band = band * -(-n // g) + column // g
            else:
                along = column.astype(np.int64)
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

    def course(self, memory: int, window: int | None) -> tuple[list[Sides], int, float]:
        """Slabs of each image, how many are visited together, and what they cost."""
        room = int(memory * _ROOM)
        for n in WINDOWS if window is None else (window,):
            sides, estimate = self.sides(room // n, self._most)
            if estimate <= AMPLE:
                break
        return sides, n, 1.0 if self.nbytes <= room else estimate

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks that patches need, at most."""
        kinds = enumerate(self._kinds)
        return sum(kind.nbytes(self._units[np.equal(self._which, k)]) for k, kind in kinds)

    def sides(self, nbytes: int, most: int) -> tuple[list[Sides], float]:
        """Slabs of each image, of so many bytes and chunks at most, and what they cost."""
        found = [kind.widest(nbytes, most) for kind in self._kinds]
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

    def widest(self, nbytes: int, most: int) -> tuple[Sides, float]:
        """The slab of which two need at most so many bytes that costs least, and what it costs."""
        if self._alone:
            return (1,) * len(self._own.space.counts), 1.0
        axes = range(len(self._own.space.counts))
        found = [self._along(axis, nbytes, most) for axis in axes]
        return min(found, key=lambda one: one[1])

    def _along(self, axis: int, nbytes: int, most: int) -> tuple[Sides, float]:
        """The slab of a band along some axis: widened where that saves most, while it fits."""
        counts = self._own.space.counts
        side: Sides = tuple(0 if a == axis else 1 for a in range(len(counts)))
        while True:
            wider = []
            for a, n in enumerate(counts):
                if a != axis and side[a] < n:
                    # One band fewer; bands of one width.
                    more = [*side]
                    more[a] = -(-n // (-(-n // side[a]) - 1))
                    wider.append(tuple(more))
            fits = [s for s in wider if self._needs(s) <= nbytes and _volume(s) <= most]
            if not fits:
                return side, self._cost(side)
            side = min(fits, key=self._cost)

    def _cost(self, side: Sides) -> float:
        """Decodes for each chunk of an image cut into such bands, if all of it is needed."""
        found, counts = 1.0, self._own.space.counts
        for n, g, over in zip(counts, side, self._over, strict=True):
            found *= 1 + (-(-n // g) - 1) * over / n if g else 1
        return found

    def _needs(self, side: Sides) -> int:
        """Bytes of all blocks that a slab and the next one need."""
        cut, own, found = self._cut, self._own.space, 0
        # Two slabs in the direction of the band.
        wide = [g or 2 for g in side]
        extents = [g * c + s - 1 for g, c, s in zip(wide, own.chunks, cut.size, strict=True)]
        for name, array in self._image.cut_arrays.items():
            space, n = array.layout.space, 1
            if name == "image":
                blocks = [g + over for g, over in zip(wide, self._over, strict=True)]
            elif is_context(name):
                scales = self._image.more[name].alignment.scale
                rows = zip(extents, scales, cut.size, space.chunks, strict=True)
                blocks = [int((e / s + p) // c) + 2 for e, s, p, c in rows]
            else:
                blocks = [e // c + 1 for e, c in zip(extents, space.chunks, strict=True)]
            for b, count in zip(blocks, space.counts, strict=True):
                n *= min(b, count)
            found += n * _block_bytes(array)
        return found


def _volume(side: Sides) -> int:
    return math.prod(g or 1 for g in side)


def _block_bytes(array: Image) -> int:
    """Bytes that a block takes when it is held."""
    if is_in_memory(array):
        return 0
    return math.prod(array.layout.block_shape()) * array.dtype.itemsize
