"""Reading masks: the exact coverage of patches, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.coverage import Alignment, coverage
from patchloom.image import Image, Reads, Role
from patchloom.patching.protocol import Edge
from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan
from patchloom.run.blocks import BlockCache, Meter

__all__ = [
    "Regions",
    "Walk",
    "covered_area",
    "covered_share",
    "read_region",
    "stored_box",
    "volumes",
]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
Regions = Callable[[int, Sequence[tuple[int, int]]], Pixels]
"""Pixels of one sample of an array, its first channel, in a spatial window."""
_LIMIT = 2**23
"""Mask pixels that are looked at together."""


def covered_area(
    image: Image,
    sample: Ints,
    corner: Ints,
    size: Sequence[int],
    regions: Regions | None = None,
) -> tuple[npt.NDArray[Any], int]:
    """Area of each patch under the mask, and of one pixel of the image, in the same unit.

    Without a mask the whole image is covered; padding never is.

    Parameters
    ----------
    image
        The image that the patches lie in.
    sample, corner
        Flat sample int64[n] and first pixel int64[n, ndim] of each patch.
    size
        Extent of a patch, in pixels of the image.
    regions
        Reads the mask; by default its chunks are read anew.
    """
    extent = np.asarray(image.layout.space.shape, np.int64)
    low = np.maximum(corner, 0)
    high = np.minimum(corner + np.asarray(size, np.int64), extent)
    if image.mask is None:
        return (high - low).prod(-1), 1
    role = image.mask
    axes = [image.axes.spatial.index(a) for a in role.axes]
    missing = [a for a in range(corner.shape[1]) if a not in axes]
    # A mask without z holds for every z: only the part of the patch inside the image counts.
    factor = (high - low)[:, missing].prod(-1)
    low, high = low[:, axes], high[:, axes]
    which = role.image.layout.own_samples(sample)
    pixel, regions = role.alignment.pixel, regions or _fresh(role.image)
    area = np.zeros(len(sample), object if pixel * math.prod(size) >= 2**62 else np.int64)
    for s in np.unique(which):
        mine = np.flatnonzero(which == s)
        for group in _groups(role, low, high, mine):
            area[group] = _area(role, int(s), low[group], high[group], regions)
    return area * factor, pixel


def volumes(image: Image, corner: Ints, size: Sequence[int], edge: Edge) -> Ints:
    """Pixels of each patch, all of them or under ``"shrink"`` those in the image: int64[n]."""
    if edge != "shrink":
        return np.full(len(corner), math.prod(size), np.int64)
    extent = np.asarray(image.layout.space.shape, np.int64)
    stop = np.minimum(corner + np.asarray(size, np.int64), extent)
    volume: Ints = (stop - np.maximum(corner, 0)).prod(-1)
    return volume


def covered_share(plan: Plan, patches: Patches) -> npt.NDArray[np.float64]:
    """Share of each patch proper that its mask covers: float64[n], in [0, 1]."""
    image, size = plan.images[patches.image], plan.cut.proper
    corner = patches.corner + np.asarray(plan.cut.context, np.int64)
    area, pixel = covered_area(image, patches.sample, corner, size)
    whole = volumes(image, corner, size, plan.edge).astype(area.dtype) * pixel
    return np.asarray(area / whole, np.float64)


def read_region(image: Image, sample: int, window: Sequence[tuple[int, int]]) -> npt.NDArray[Any]:
    """Pixels of one sample, all channels, in a spatial window: [channels, *space]."""
    start, stop = stored_box(image, sample, window)
    pixels = image.read(start, stop).transpose(image.axes.order)
    return pixels.reshape(image.layout.n_channels, *(b - a for a, b in window))


def stored_box(
    image: Image, sample: int, window: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """The half-open box of one sample, all channels, in a spatial window; in stored axis order."""
    axes = image.axes
    start, stop = [0] * image.ndim, list(image.shape)
    index = np.unravel_index(sample, image.layout.samples.shape) if axes.sample else ()
    for letter, i in zip(axes.sample, index, strict=True):
        at = axes.names.index(letter)
        start[at], stop[at] = int(i), int(i) + 1
    for letter, (a, b) in zip(axes.spatial, window, strict=True):
        at = axes.names.index(letter)
        start[at], stop[at] = a, b
    return start, stop


class Walk:
    """A walk over boxes of an image that reads another array under them, each chunk once.

    First `note` what every step looks at, then `enter` each step in order, look at its
    `region`s, and `leave` it. A block is read with the first step that needs it, several
    together, and forgotten after the last.

    Parameters
    ----------
    image
        Whose boxes they are.
    role
        The other array, a mask or labels.
    """

    def __init__(self, image: Image, role: Role) -> None:
        self._role = role
        self._axes = [image.axes.spatial.index(a) for a in role.axes]
        self._steps: list[Ints] = []
        self._blocks: list[Ints] = []
        self._cache: BlockCache | None = None
        self._meter = Meter()

    @property
    def reads(self) -> Reads:
        """What was read so far."""
        return Reads() if self._cache is None else self._cache.reads

    @property
    def blocks(self) -> Ints:
        """The array's blocks that some step looks at, ascending: int64[n]."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *self._blocks]))

    @property
    def peak(self) -> int:
        """Most bytes of the array that were held at once."""
        return self._meter.peak

    def touched(self, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """The array's pixels that half-open boxes of the image touch, on the axes it has.

        Parameters
        ----------
        low, high
            Boxes in pixels of the image: int64[n, ndim] each.
        """
        alignment, shape = self._role.alignment, self._role.image.layout.space.shape
        first, last = (
            np.stack([_cut(side[:, a], alignment, k, up) for k, a in enumerate(self._axes)], -1)
            for side, up in ((low, False), (high, True))
        )
        extent = np.asarray(shape, np.int64)
        first = np.clip(first, 0, extent)
        return first, np.clip(last, first, extent)

    def samples(self, sample: Ints) -> Ints:
        """The array's samples that belong to samples of the image."""
        return self._role.image.layout.own_samples(sample)

    def note(self, step: int, sample: Ints, first: Ints, last: Ints) -> None:
        """Say what a step looks at.

        Parameters
        ----------
        step
            Its number, 0, 1, ...
        sample
            Flat sample of the image of each box: int64[n].
        first, last
            The array's pixels that it touches, from `touched`.
        """
        layout = self._role.image.layout
        inside = (first < last).all(-1)
        if not inside.all():
            sample, first, last = sample[inside], first[inside], last[inside]
        if not len(first):
            return
        group = layout.groups_of(self.samples(sample))
        low, high = layout.space.chunk_of(first), layout.space.chunk_of(last - 1)
        for one in np.unique(group):
            mine = slice(None) if group[0] == one and (group == one).all() else group == one
            index = _boxed(low[mine], high[mine])
            blocks = one * layout.space.n_chunks + layout.space.flat(index)
            self._steps.append(np.full(len(blocks), step, np.int64))
            self._blocks.append(blocks)

    def enter(self, step: int) -> None:
        """Have what a step looks at."""
        if self._cache is None:
            none = np.zeros(0, np.int64)
            steps = np.concatenate([none, *self._steps])
            blocks = np.concatenate([none, *self._blocks])
            array = self._role.image
            reader = array.source.reader()
            self._cache = BlockCache(array, steps, blocks, reader, self._meter)
        self._cache.enter(step)

    def leave(self, step: int) -> None:
        """Forget what no later step looks at."""
        assert self._cache is not None
        self._cache.leave(step)

    def region(self, sample: int, window: Sequence[tuple[int, int]]) -> Pixels:
        """Pixels of one of the array's samples, first channel, that the step may look at."""
        assert self._cache is not None
        shape = [b - a for a, b in window]
        if not all(shape):
            return np.zeros(shape, self._role.image.dtype)
        start, stop = np.asarray(window, np.int64).T
        pixels, first = self._cache.box(sample, start, stop)
        inside = tuple(slice(a - f, b - f) for (a, b), f in zip(window, first, strict=True))
        return np.asarray(pixels[0][inside])


def _fresh(array: Image) -> Regions:
    return lambda sample, window: read_region(array, sample, window)[0]


def _cut(pixels: Ints, alignment: Alignment, axis: int, up: bool) -> Ints:
    """Where image pixels begin on one axis, in whole pixels of the other array, rounded."""
    scale, offset = alignment.scale[axis], alignment.offset[axis]
    over = offset.denominator * scale.numerator
    # (pixel - offset) / scale, as one division of integers.
    slope = offset.denominator * scale.denominator
    base = offset.numerator * scale.denominator
    wide: Any = pixels
    if (int(np.abs(pixels).max(initial=0)) + 1) * slope + abs(base) >= 2**62:
        wide = pixels.astype(object)
    whole = wide * slope - base
    found: Ints = np.asarray(-(-whole // over) if up else whole // over).astype(np.int64)
    return found


def _boxed(low: Ints, high: Ints) -> Ints:
    """All cells of a grid that lie in at least one box: int64[m, ndim], in C order.

    Parameters
    ----------
    low, high
        First and last cell of each box: int64[n, ndim] each.
    """
    ndim = low.shape[1]
    origin: Ints = low.min(0)
    extent = high.max(0) - origin + 1
    if extent.prod() == 1:
        return origin[None]
    # How many boxes hold each cell is the running sum of where they begin and end.
    begins = np.zeros(extent + 1, np.int64)
    ends = low - origin, high - origin + 1
    for turn in np.ndindex(*(2,) * ndim):
        place = tuple(ends[side][:, axis] for axis, side in enumerate(turn))
        np.add.at(begins, place, (-1) ** sum(turn))
    for axis in range(ndim):
        np.cumsum(begins, axis=axis, out=begins)
    cells: Ints = np.argwhere(begins) + origin
    return cells


def _groups(role: Role, corner: Ints, stop: Ints, members: Ints) -> list[Ints]:
    """Cut patches into groups whose window of the mask is small enough."""
    window = _window(role, corner[members], stop[members])
    if len(members) == 1 or math.prod(b - a for a, b in window) <= _LIMIT:
        return [members]
    spans = np.ptp(corner[members], axis=0)
    axis = int(spans.argmax())
    if not spans[axis]:
        return [members]
    middle = np.median(corner[members, axis])
    low = corner[members, axis] <= middle
    if low.all():
        low = corner[members, axis] < middle
    return _groups(role, corner, stop, members[low]) + _groups(role, corner, stop, members[~low])


def _window(role: Role, low: Ints, high: Ints) -> tuple[tuple[int, int], ...]:
    shape = role.image.layout.space.shape
    return role.alignment.window(low.min(0).tolist(), high.max(0).tolist(), shape)


def _area(role: Role, sample: int, low: Ints, high: Ints, regions: Regions) -> npt.NDArray[Any]:
    window = _window(role, low, high)
    block = regions(sample, window) != 0
    return coverage(block, [a for a, _ in window], role.alignment, low, high)[0]
