"""Views: what of a plan lies in one plane of one image, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan

__all__ = ["PlaneView", "plane_view"]

Ints = npt.NDArray[np.int64]
_LOOK = 2**18
"""Patches of which corners are computed to draw some of them."""
_SCAN = 2**24
"""Candidates that are gone through to find those that a plan keeps."""


@dataclass(frozen=True, eq=False)
class PlaneView:
    """The patches that meet one plane of one sample: the whole of it if the image has no z."""

    image: int
    sample: int
    """The one that keeps most patches."""
    plane: int | None
    """Which z, if the image has z: the middle, or one near it where patches are."""
    extent: tuple[int, int]
    """Of the plane (y, x), in pixels; a line is one pixel high."""
    chunk: tuple[int, int]
    """Extent of a chunk (y, x)."""
    low: Ints
    """First pixels of the patches proper, on all spatial axes: int64[n, ndim]."""
    high: Ints
    """Where they end."""
    split: npt.NDArray[np.int8]
    """Position in the plan's `split_names`; -1 for what is left out: int8[n]."""
    kept: npt.NDArray[np.bool_]
    """Whether the plan takes it: bool[n]."""
    drawn: bool
    """Whether the kept ones are all that meet the plane, else only a sample of them."""
    n_kept: int
    """Kept patches that meet the plane; at most, if not `drawn`."""
    n_left: int
    """Candidates meeting it that are left out; at most, if not all are here."""
    density: npt.NDArray[np.int64]
    """Kept patches that each chunk under the plane owns: int64[y, x], in chunks."""

    @property
    def boxes(self) -> Ints:
        """First and last-but-one pixel of each patch: y, x, y, x; int64[n, 4]."""
        return np.concatenate([_flat(self.low, 0), _flat(self.high, 1)], 1)


def plane_view(plan: Plan, index: int, most: int = 2_000) -> PlaneView:
    """What one image of a plan shows. Work grows with its chunks, not with its patches.

    Parameters
    ----------
    plan
        Any plan.
    index
        Which of its images.
    most
        Patches, and as many candidates that are left out, that are listed; of more than these
        a sample is, spread evenly.

    Examples
    --------
    >>> import patchloom
    >>> images = patchloom.open_images(np.zeros((100, 100), "uint8"))
    >>> plan = patchloom.plan(images, {"name": "sequential", "patch_size": [64, 64]})
    >>> plane_view(plan, 0).boxes.tolist()
    [[0, 0, 64, 64]]
    """
    layout = plan.images[index].layout
    space = layout.space
    begin, end = plan.cells.span(index)
    sample, chunk = np.divmod(plan.cells.cell[begin:end].astype(np.int64), space.n_chunks)
    kept = plan.cells.kept[begin:end].astype(np.int64)
    shown = int(np.bincount(sample, kept).argmax()) if len(sample) else 0
    mine = np.flatnonzero(sample == shown)
    at = space.unflat(chunk[mine])
    plane = None
    if len(space.shape) == 3:
        plane = _plane(plan, index, begin + mine, at[:, 0])
        layers = _layers(plan, index, plane)
        inside = (at[:, 0] >= layers.start) & (at[:, 0] < layers.stop)
        mine, at = mine[inside], at[inside]
    rows, columns = ([1] * 2 + list(space.counts))[-2:]
    flat = at[:, -1] if at.shape[1] == 1 else at[:, -2] * columns + at[:, -1]
    density = np.bincount(flat, kept[mine], rows * columns).astype(np.int64)
    found = _kept(plan, index, begin + mine, plane, most)
    parts, n_kept, drawn = found
    left, n_left = _left(plan, index, shown, plane, int(kept[mine].sum()), most)
    none = np.zeros((0, len(space.shape)), np.int64)
    context = np.asarray(plan.cut.context, np.int64)
    low = np.concatenate([none, *(part.corner + context for part in parts), left])
    high = low + np.asarray(plan.cut.proper, np.int64)
    if plan.edge == "shrink":
        low, high = np.maximum(low, 0), np.minimum(high, space.shape)
    splits = [np.zeros(0, np.int8), *(plan.split_of(part) for part in parts)]
    split = np.concatenate([*splits, np.full(len(left), -1, np.int8)])
    extent, chunks = (([1, *values])[-2:] for values in (space.shape, space.chunks))
    return PlaneView(
        image=index,
        sample=shown,
        plane=plane,
        extent=(extent[0], extent[1]),
        chunk=(chunks[0], chunks[1]),
        low=low,
        high=high,
        split=split,
        kept=np.arange(len(low)) < len(low) - len(left),
        drawn=drawn,
        n_kept=n_kept,
        n_left=n_left,
        density=density.reshape(rows, columns),
    )


def _flat(corner: Ints, line: int) -> Ints:
    if corner.shape[1] == 1:
        return np.concatenate([np.full_like(corner, line), corner], 1)
    return corner[:, -2:]


def _plane(plan: Plan, index: int, positions: Ints, layer: Ints) -> int:
    """The plane in the middle of z, or one through a patch where none meets that."""
    depth = plan.images[index].layout.space.shape[0]
    middle = depth // 2
    near = _layers(plan, index, middle)
    if not len(layer) or ((layer >= near.start) & (layer < near.stop)).any():
        return middle
    first = positions[np.abs(layer - near.stop).argmin()]
    if plan.cells.kept[first] > _LOOK:
        return middle
    [part] = plan.owned_by(np.array([first]))
    found = int(part.corner[0, 0]) + plan.cut.size[0] // 2
    return min(max(found, 0), depth - 1)


def _layers(plan: Plan, index: int, plane: int) -> range:
    """Layers of chunks that may own patches that meet a plane."""
    space, size = plan.images[index].layout.space, plan.cut.proper[0]
    return range(max(0, (plane - size + 1) // space.chunks[0]), plane // space.chunks[0] + 1)


def _meets(low: Ints, depth: int, plane: int | None) -> npt.NDArray[np.bool_]:
    if plane is None:
        return np.ones(len(low), np.bool_)
    found: npt.NDArray[np.bool_] = (low[:, 0] <= plane) & (low[:, 0] + depth > plane)
    return found


def _spread(n: int, most: int) -> Ints:
    """At most so many positions out of n, spread evenly."""
    return np.arange(n) if n <= most else np.arange(most) * n // most


def _kept(
    plan: Plan, index: int, positions: Ints, plane: int | None, most: int
) -> tuple[list[Patches], int, bool]:
    """Kept patches that meet a plane, all or a sample; how many; whether these are all."""
    kept = plan.cells.kept[positions].astype(np.int64)
    total, drawn = int(kept.sum()), True
    some = positions
    candidates = 0
    if len(plan.cells.bit):
        cells = plan.cells.cell[positions].astype(np.int64)
        candidates = int(plan.patching.counts_of(index, cells).astype(np.int64).sum())
    if total > _LOOK or candidates > _SCAN:
        # Few cells, evenly spread; of those that hold too many none.
        drawn = False
        few = _spread(len(positions), max(1, most * len(positions) // max(1, total)))
        some = positions[few[np.cumsum(kept[few]) <= _LOOK]]
    depth, back = plan.cut.proper[0], np.asarray(plan.cut.context, np.int64)
    parts = plan.owned_by(some) if len(some) else []
    parts = [part.take(_meets(part.corner + back, depth, plane)) for part in parts]
    n = sum(map(len, parts))
    if n > most:
        wanted, drawn_all, upto = _spread(n, most), False, 0
        taken = []
        for part in parts:
            inside = wanted[(wanted >= upto) & (wanted < upto + len(part))] - upto
            taken.append(part.take(inside))
            upto += len(part)
        return taken, n if drawn else total, drawn_all
    return parts, n if drawn else total, drawn


def _left(
    plan: Plan, index: int, sample: int, plane: int | None, kept: int, most: int
) -> tuple[Ints, int]:
    """Corners of candidates that meet a plane and are left out, at most so many; how many."""
    space = plan.images[index].layout.space
    none = np.zeros((0, len(space.shape)), np.int64)
    if not sum(plan.rejected.values()):
        return none, 0
    layers = range(space.counts[0]) if plane is None else _layers(plan, index, plane)
    per_layer = space.n_chunks // space.counts[0]
    first = sample * space.n_chunks + layers.start * per_layer
    cells = np.arange(first, first + len(layers) * per_layer, dtype=np.int64)
    counts = plan.patching.counts_of(index, cells).astype(np.int64)
    total = int(counts.sum())
    if total == kept:
        return none, 0
    cells, counts = cells[counts > 0], counts[counts > 0]
    exact = total <= _SCAN // 4
    if not exact:
        few = _spread(len(cells), max(1, most * len(cells) // total))
        few = few[np.cumsum(counts[few]) <= _LOOK]
        cells, counts = cells[few], counts[few]
    if not len(cells):
        return none, total - kept
    corners, counts = plan.patching.corners(index, cells)
    counts = np.asarray(counts, np.int64)
    out = ~_taken(plan, index, cells, counts) & _meets(corners, plan.cut.proper[0], plane)
    left = corners[out]
    return left[_spread(len(left), most)], len(left) if exact else total - kept


def _taken(plan: Plan, index: int, cells: Ints, counts: Ints) -> npt.NDArray[np.bool_]:
    """Which candidates of some cells (ascending) a plan keeps: bool[counts.sum()]."""
    positions = plan.cells.find(index, cells)
    at = np.searchsorted(cells, plan.cells.cell[positions].astype(np.int64))
    n, begin = counts[at], (np.cumsum(counts) - counts)[at]
    within = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
    found = np.zeros(int(counts.sum()), np.bool_)
    found[np.repeat(begin, n) + within] = plan.cells.flags(positions, n)
    return found
