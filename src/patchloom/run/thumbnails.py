"""Thumbnails: a look at an image and its mask that reads no more bytes than it may."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.coverage import Alignment, coverage
from patchloom.errors import PatchloomError
from patchloom.image import ChunkReader, Image, Role, overlap
from patchloom.planning.prices import is_far
from patchloom.planning.views import PlaneView
from patchloom.run.masks import stored_box
from patchloom.sources.arrays import ArraySource

__all__ = ["BUDGET", "MaskLook", "Thumbnail", "budget_of", "mask_look", "thumbnail"]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BUDGET = 960_000
"""Stored bytes that looking at one image and its mask may fetch over a network."""
_NEAR = 2**26
"""The same of an image on this machine."""
_NEAR_TOGETHER = 2**29
"""The same of all images of a page on this machine."""
_CHANNELS = 4
"""Channels that are looked at."""
_ASK = 1_024
"""Chunks whose stored size is asked for."""
_ONE = 2**26
"""Bytes of the largest chunk that is decoded."""
_ALL = 2**27
"""Bytes that are decoded for one picture."""
_BATCH = 2**25
"""Bytes that are decoded together."""
_BOXES = 64
"""Boxes whose coverage is computed together."""


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """Pixels of a plane, averaged until they are few."""

    pixels: npt.NDArray[np.float64]
    """[c, y, x]"""
    known: Flags
    """Where pixels were read: bool[y, x]."""
    box: tuple[float, float, float, float]
    """Where the picture begins and ends (y, x, y, x), in pixels of the image."""
    level: int
    nbytes: int
    """Stored bytes that came back."""

    def coarser(self) -> Thumbnail:
        """The same with half the pixels along y and x, each the mean of what was read."""
        weight = _pooled(self.known[None].astype(np.float64), (0, 0), (2, 2))
        total = _pooled(np.where(self.known, self.pixels, 0), (0, 0), (2, 2))
        y, x, bottom, right = self.box
        height, width = self.known.shape
        ends = (
            y + (bottom - y) * total.shape[1] * min(2, height) / height,
            x + (right - x) * total.shape[2] * min(2, width) / width,
        )
        known = weight[0] > 0
        mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
        return Thumbnail(mean, known, (y, x, *ends), self.level, self.nbytes)


@dataclass(frozen=True, eq=False)
class MaskLook:
    """A part of a mask that was read, over the plane and the patches of a view."""

    covered: Flags
    """bool, on the axes that the mask has."""
    origin: tuple[int, ...]
    """Index of its first pixel in the mask."""
    alignment: Alignment
    axes: tuple[int, ...]
    """The image's spatial axes that it has."""
    is_exact: bool
    """Whether it is the mask itself, not a coarser level of it."""

    def of_plane(self, plane: int | None) -> tuple[Flags, tuple[float, float, float, float]]:
        """bool[y, x] and where it begins and ends (y, x, y, x), in pixels of the image."""
        covered, ndim = self.covered, self.covered.ndim
        if ndim == 3:
            assert plane is not None
            at = math.floor((plane - self.alignment.offset[0]) / self.alignment.scale[0])
            covered = covered[min(max(at - self.origin[0], 0), len(covered) - 1)]
        begins, ends = [], []
        for axis in range(max(0, ndim - 2), ndim):
            scale, offset = self.alignment.scale[axis], self.alignment.offset[axis]
            begins.append(float(offset + self.origin[axis] * scale))
            ends.append(float(begins[-1] + self.covered.shape[axis] * scale))
        if ndim == 1:
            covered, begins, ends = covered[None], [0.0, *begins], [1.0, *ends]
        return covered, (begins[0], begins[1], ends[0], ends[1])

    def share(self, low: Ints, high: Ints, extent: Sequence[int]) -> npt.NDArray[np.float64]:
        """Share of each box that the mask covers; exact if the mask is: float64[n]."""
        axes = list(self.axes)
        volume = (high - low).prod(-1)
        low, high = np.maximum(low, 0), np.minimum(high, np.asarray(extent, np.int64))
        missing = [a for a in range(low.shape[1]) if a not in axes]
        factor = (high - low)[:, missing].prod(-1)
        low, high = low[:, axes], high[:, axes]
        found = np.zeros(len(low))
        order = np.lexsort(low.T[::-1])
        for some in np.split(order, range(_BOXES, len(order), _BOXES)):
            if not len(some):
                continue
            window = self.alignment.window(
                low[some].min(0).tolist(),
                high[some].max(0).tolist(),
                [o + n for o, n in zip(self.origin, self.covered.shape, strict=True)],
            )
            begins = [max(a, o) for (a, _), o in zip(window, self.origin, strict=True)]
            block = self.covered[
                tuple(
                    slice(a - o, max(a, b) - o)
                    for a, (_, b), o in zip(begins, window, self.origin, strict=True)
                )
            ]
            area, pixel = coverage(block, begins, self.alignment, low[some], high[some])
            whole = volume[some].astype(area.dtype) * pixel
            found[some] = np.asarray(area * factor[some] / whole, np.float64)
        return found


def budget_of(image: Image, shown: int = 1) -> int:
    """Stored bytes that looking at an image and its mask may fetch.

    Parameters
    ----------
    image
        What is looked at; more may be read of it where it and its mask lie on this machine.
    shown
        Images that are looked at for one page.
    """
    arrays = [image] if image.mask is None else [image, image.mask.image]
    places = [getattr(array.source, "location", None) for array in arrays]
    if any(place is None or is_far(place) for place in places):
        return BUDGET
    return max(BUDGET, min(_NEAR, _NEAR_TOGETHER // max(1, shown)))


def thumbnail(
    image: Image, view: PlaneView, nbytes: int = BUDGET, side: int = 640
) -> tuple[Thumbnail | None, str]:
    """The plane of a view in few pixels, and what to know about it in words.

    The coarsest level of a pyramid that still has about `side` pixels is read, or a coarser one
    where that is too dear. Of an image without, as many chunks as the bytes allow, spread evenly.

    Parameters
    ----------
    image, view
        What to look at.
    nbytes
        Stored bytes that may be fetched: told by the store, else those of decoded chunks.
    side
        Pixels along the longer of y and x that suffice.

    Returns
    -------
    Thumbnail or None, str
        None where not even one chunk may be read.
    """
    array = _in_memory(image)
    if array is not None:
        return _of_array(image, view, array, side), ""
    spent = 0
    try:
        whole = Alignment.of_shapes(image.layout.space.shape, image.layout.space.shape)
        levels = [Role(image, whole, image.axes.spatial), *image.levels]
        longest = [max(role.image.layout.space.shape[-2:]) for role in levels]
        enough = [k for k, n in enumerate(longest) if 3 * n >= 2 * side]
        for k in range(enough[-1] if enough else 0, len(levels)):
            look = _Look.of(levels[k], view)
            reader = look.image.source.reader()
            chosen = _affordable(look, reader, nbytes - spent)
            last = k == len(levels) - 1
            if len(chosen) == len(look.places) or (last and len(chosen)):
                found = _read(look, reader, chosen, side, spent)
                if len(chosen) == len(look.places):
                    return found, ""
                return found, (
                    f"{len(chosen):,} of the {len(look.places):,} chunks of this plane were read, "
                    "spread evenly"
                )
            spent += reader.reads.nbytes
    except PatchloomError as error:
        return None, f"Drawn without pixels, they could not be read: {error}"
    return None, (
        "Drawn without pixels: one chunk is more than may be read for a page; an image with a "
        "pyramid is shown from a coarse level"
    )


def mask_look(
    image: Image, view: PlaneView, nbytes: int = BUDGET // 3
) -> tuple[MaskLook | None, str, int]:
    """The mask over a view, read whole or not at all; what to know about it; bytes fetched.

    Parameters
    ----------
    image, view
        What to look at.
    nbytes
        Stored bytes that may be fetched.
    """
    role = image.mask
    if role is None:
        return None, "", 0
    axes = tuple(image.axes.spatial.index(a) for a in role.axes)
    low, high = _over(image, view, axes)
    spent = 0
    try:
        for k, one in enumerate(_mask_levels(role)):
            shape = one.image.layout.space.shape
            window = one.alignment.window(low, high, shape)
            sample = view.sample if one.image.layout.n_samples > 1 else 0
            look = _Look.over(one, sample, window, 1)
            pixels = math.prod(b - a for a, b in window)
            if not pixels or pixels > _ALL:
                continue
            reader = one.image.source.reader()
            free = _in_memory(one.image) is not None
            chosen = _affordable(look, reader, 2**62 if free else nbytes - spent)
            if len(chosen) < len(look.places):
                spent += reader.reads.nbytes
                continue
            covered = np.zeros([b - a for a, b in window], np.bool_)
            for into, part in _parts(look, reader, chosen):
                covered[into] = part[0] != 0
            spent += 0 if free else reader.reads.nbytes
            origin = tuple(a for a, _ in window)
            return MaskLook(covered, origin, one.alignment, axes, not k), "", spent
    except PatchloomError as error:
        # What came before the error is not known: the pixels get what is left for certain.
        return None, f"The mask is not drawn, it could not be read: {error}", nbytes
    return None, "The mask is not drawn: it is more than may be read for a page", spent


# -- what lies under a view ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Look:
    """Chunks of one array under a window of one sample."""

    image: Image
    start: list[int]
    stop: list[int]
    places: Ints
    """Chunks under the window, those of all channels together: int64[n, channels, ndim]."""
    alignment: Alignment

    @classmethod
    def of(cls, role: Role, view: PlaneView) -> _Look:
        """All of a plane."""
        window = [(0, n) for n in role.image.layout.space.shape]
        if view.plane is not None:
            scale, offset = role.alignment.scale[0], role.alignment.offset[0]
            at = math.floor((view.plane + Fraction(1, 2) - offset) / scale)
            at = min(max(at, 0), window[0][1] - 1)
            window[0] = (at, at + 1)
        return cls.over(role, view.sample, window, _CHANNELS)

    @classmethod
    def over(
        cls, role: Role, sample: int, window: Sequence[tuple[int, int]], channels: int
    ) -> _Look:
        image, axes = role.image, role.image.axes
        start, stop = stored_box(image, sample, window)
        if axes.has_channel:
            at = axes.names.index("c")
            stop[at] = min(channels, stop[at])
        ranges = [
            np.arange(a // c, -(-b // c))
            for a, b, c in zip(start, stop, image.grid.chunks, strict=True)
        ]
        places = np.stack(np.meshgrid(*ranges, indexing="ij"), -1)
        n = 1
        if axes.has_channel:
            at = axes.names.index("c")
            places, n = np.moveaxis(places, at, -2), len(ranges[at])
        return cls(image, start, stop, places.reshape(-1, n, image.ndim), role.alignment)


def _over(image: Image, view: PlaneView, axes: Sequence[int]) -> tuple[list[int], list[int]]:
    """The box around a plane and all that is listed of a view, on some axes."""
    extent = np.asarray(image.layout.space.shape, np.int64)
    low, high = np.zeros_like(extent), extent.copy()
    if view.plane is not None:
        first = view.low[:, 0].min(initial=view.plane)
        last = view.high[:, 0].max(initial=view.plane + 1)
        low[0], high[0] = max(first, 0), min(last, extent[0])
    return low[list(axes)].tolist(), high[list(axes)].tolist()


def _mask_levels(role: Role) -> Iterator[Role]:
    yield role
    first = role.alignment
    for level in role.image.levels:
        second = level.alignment
        pairs = list(zip(first.scale, first.offset, second.scale, second.offset, strict=True))
        yield Role(
            level.image,
            Alignment(
                tuple(a * c for a, _, c, _ in pairs), tuple(b + a * d for a, b, _, d in pairs)
            ),
            role.axes,
        )


# -- reading it ---------------------------------------------------------------------------


def _affordable(look: _Look, reader: ChunkReader, nbytes: int) -> Ints:
    """Which places may be read: all, or some that are spread evenly; int64[m]."""
    image, n = look.image, len(look.places)
    decoded = math.prod(image.grid.chunks) * image.dtype.itemsize
    each = decoded * look.places.shape[1]
    if decoded > _ONE or nbytes <= 0:
        return np.zeros(0, np.int64)
    index = _index_bytes(image)
    most = min(n, _ALL // max(1, each))
    shards = min(n, _n_shards(image, look)) if index else 0
    if most == n and n * each + shards * index <= nbytes:
        return np.arange(n)
    some = np.arange(min(n, _ASK)) * n // min(n, _ASK)
    price = np.full(len(some), each + index, np.int64)
    # A large index of a shard may cost more than what it tells about.
    if hasattr(reader, "stored") and shards * index <= nbytes // 4:
        stored = reader.stored(look.places[some].reshape(-1, image.ndim))
        stored = np.where(stored < 0, decoded, stored).reshape(len(some), -1)
        price, nbytes = stored.sum(1), nbytes - reader.reads.nbytes
    if len(some) == n and most == n and price.sum() <= nbytes:
        return np.arange(n)
    wanted = min(most, len(some), int(nbytes // max(1.0, float(price.mean()))))
    few = np.arange(wanted) * len(some) // max(1, wanted)
    chosen: Ints = some[few[np.cumsum(price[few]) <= nbytes]]
    return chosen


def _index_bytes(image: Image) -> int:
    """What reading the index of a shard costs; 0 where there are no shards."""
    if image.shards is None:
        return 0
    inner = (-(-s // c) for s, c in zip(image.shards, image.grid.chunks, strict=True))
    return 16 * math.prod(inner) + 4


def _n_shards(image: Image, look: _Look) -> int:
    assert image.shards is not None
    return math.prod(
        -(-b // s) - a // s for a, b, s in zip(look.start, look.stop, image.shards, strict=True)
    )


def _parts(
    look: _Look, reader: ChunkReader, chosen: Ints
) -> Iterator[tuple[tuple[slice, ...], npt.NDArray[Any]]]:
    """Where pixels lie in the window (on the spatial axes), and these: [c, *space]."""
    image = look.image
    index = look.places[chosen].reshape(-1, image.ndim)
    each = max(1, math.prod(image.grid.chunks) * image.dtype.itemsize)
    # Chunks of a shard are read one by one: between two of them lies what nobody asked for.
    together = 1 if image.shards is not None else max(1, _BATCH // each)
    shape = [b - a for a, b in zip(look.start, look.stop, strict=True)]
    spatial = image.axes.pick(image.axes.spatial)
    at = image.axes.names.index("c") if image.axes.has_channel else None
    for rows in np.split(index, range(together, len(index), together)):
        for row, pixels in zip(rows, reader.read(rows), strict=True):
            first, _ = image.grid.box(row.tolist())
            into, of = overlap(first, pixels.shape, look.start, shape)
            part = pixels[of].transpose(image.axes.order)
            part = part.reshape(-1, *part.shape[part.ndim - len(spatial) :])
            where = tuple(into[a] for a in spatial)
            if at is not None and shape[at] > len(part):
                wide = np.zeros((shape[at], *part.shape[1:]), part.dtype)
                wide[into[at]] = part
                part = wide
            yield where, part


def _read(look: _Look, reader: ChunkReader, chosen: Ints, side: int, spent: int) -> Thumbnail:
    image = look.image
    space = [look.stop[a] - look.start[a] for a in image.axes.pick(image.axes.spatial)]
    height, width = ([1, *space])[-2:]
    steps = (max(1, -(-height // side)), max(1, -(-width // side)))
    n = 1
    if image.axes.has_channel:
        n = look.stop[image.axes.names.index("c")]
    total = np.zeros((n, -(-height // steps[0]), -(-width // steps[1])))
    weight = np.zeros(total.shape[1:])
    for where, part in _parts(look, reader, chosen):
        y, x = ([slice(0, 1), *where])[-2:]
        flat = part.reshape(len(part), y.stop - y.start, x.stop - x.start).astype(np.float64)
        summed = _pooled(flat, (y.start, x.start), steps)
        rows, columns = y.start // steps[0], x.start // steps[1]
        into = np.s_[rows : rows + summed.shape[1], columns : columns + summed.shape[2]]
        total[:, *into] += summed
        weight[into] += _pooled(np.ones_like(flat[:1]), (y.start, x.start), steps)[0]
    # Each place came once for each chunk of its channels.
    weight /= look.places.shape[1]
    mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    scale = [Fraction(1), *look.alignment.scale][-2:]
    offset = [Fraction(0), *look.alignment.offset][-2:]
    ends = [
        float(o + s * m * k) for o, s, m, k in zip(offset, scale, weight.shape, steps, strict=True)
    ]
    return Thumbnail(
        mean,
        weight > 0,
        (float(offset[0]), float(offset[1]), ends[0], ends[1]),
        image.level,
        spent + reader.reads.nbytes,
    )


def _pooled(
    pixels: npt.NDArray[np.float64], begin: tuple[int, int], steps: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Sums over blocks of y and x that begin at multiples of the steps."""
    for axis, (first, step) in enumerate(zip(begin, steps, strict=True), 1):
        if step > 1:
            n = pixels.shape[axis]
            cuts = np.arange(-(first % step), n, step).clip(0)
            pixels = np.add.reduceat(pixels, cuts, axis=axis)
    return pixels


def _in_memory(image: Image) -> npt.NDArray[Any] | None:
    """Its pixels, if they lie in memory: looking at them fetches nothing."""
    array = image.source.array if isinstance(image.source, ArraySource) else None
    base = array
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    return array if isinstance(array, np.ndarray) and base is None else None


def _of_array(image: Image, view: PlaneView, array: npt.NDArray[Any], side: int) -> Thumbnail:
    """An array in memory costs nothing to look at: every so many pixels are taken."""
    whole = Alignment.of_shapes(image.layout.space.shape, image.layout.space.shape)
    look = _Look.of(Role(image, whole, image.axes.spatial), view)
    steps = [1] * image.ndim
    for letter in "yx":
        if letter in image.axes.names:
            at = image.axes.names.index(letter)
            steps[at] = max(1, -(-image.shape[at] // side))
    taken = array[tuple(slice(*s) for s in zip(look.start, look.stop, steps, strict=True))]
    pixels = taken.transpose(image.axes.order).astype(np.float64)
    height = pixels.shape[-2] if "y" in image.axes.names else 1
    pixels = pixels.reshape(-1, height, pixels.shape[-1])
    tall, wide = (steps[image.axes.names.index(a)] if a in image.axes.names else 1 for a in "yx")
    box = (0.0, 0.0, float(height * tall), float(pixels.shape[2] * wide))
    return Thumbnail(pixels, np.ones(pixels.shape[1:], np.bool_), box, image.level, 0)
