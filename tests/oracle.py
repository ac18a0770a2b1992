"""What a plan must take, computed the slow and obvious way with NumPy alone.

Nothing here is shared with the package: positions by loops, coverage by counting on a grid
fine enough for both arrays, statistics from a set of pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]


def positions(extent: int, size: int, overlap: int, edge: str) -> list[int]:
    """First pixels along one axis, found by stepping."""
    found: list[int] = []
    step, at = size - overlap, 0
    while True:
        if at + size <= extent:
            found.append(at)
            if at + size == extent:
                return found
            at += step
            continue
        if edge in ("pad", "shrink"):
            found.append(at)
        elif edge == "shift" and extent >= size:
            found.append(extent - size)
        return found


def grid(
    shape: Sequence[int], size: Sequence[int], overlaps: Sequence[int], edge: str
) -> Iterator[tuple[int, ...]]:
    """All corners of a grid, in C order."""
    axes = [positions(n, p, o, edge) for n, p, o in zip(shape, size, overlaps, strict=True)]
    yield from itertools.product(*axes)


def tiles(extent: int, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """CAREamics' tiles of one axis: first pixel, crop, kept extent and place of each."""
    if extent <= size:
        return [(0, 0, extent, 0)]
    found: list[tuple[int, int, int, int]] = []
    done = at = 0
    while done < extent:
        first = min(at, extent - size)
        last = first + size == extent
        # What the right neighbour keeps of the shared pixels is not kept here.
        stop = extent if last else first + size - (overlap - overlap // 2)
        found.append((first, done - first, stop - done, done))
        done, at = stop, at + size - overlap
    return found


def aligned(
    extent: int, size: int, overlap: int, chunk: int, shift: int, edge: str
) -> tuple[list[int], int]:
    """First pixels along one axis of a grid that begins anew in each chunk, and pixels left."""
    found: list[int] = []
    if edge == "shrink":
        edge = "pad"  # the same places; only what is cut there differs
    if extent < size and edge != "pad":
        return [], extent
    for begin in range(0, extent, chunk):
        stop = min(begin + chunk, extent)
        if edge == "pad" and stop == extent:
            found += [begin + at for at in positions(stop - begin, size, overlap, "pad")]
        elif edge == "shift" and stop == extent and stop - begin < size:
            found.append(extent - size)
        else:
            inside = positions(stop - begin, size, overlap, "drop" if edge == "drop" else "shift")
            spare = stop - begin - inside[-1] - size if inside and edge == "drop" else 0
            found += [begin + min(shift, spare) + at for at in inside]
    seen = {pixel for at in found for pixel in range(at, min(at + size, extent))}
    return found, extent - len(seen)


def canonical(image: Pixels, axes: str) -> Pixels:
    """Any axes as [sample, channel, (z,) y, x]."""
    space = [a for a in "zyx" if a in axes]
    samples = [a for a in axes if a in "st"]
    order = [*samples, *(["c"] if "c" in axes else []), *space]
    moved = image.transpose([axes.index(a) for a in order])
    channels = image.shape[axes.index("c")] if "c" in axes else 1
    shape = [image.shape[axes.index(a)] for a in space]
    count = math.prod(image.shape[axes.index(a)] for a in samples)
    return moved.reshape(count, channels, *shape)


def shown(place: int, extent: int, mode: str) -> int | None:
    """The pixel that a place on or beyond an axis shows, walking back and forth; None is 0."""
    while not 0 <= place < extent:
        if mode == "constant":
            return None
        if mode == "edge" or extent == 1:
            return min(max(place, 0), extent - 1)
        turn = 1 if mode == "symmetric" else 0
        place = -turn - place if place < 0 else 2 * (extent - 1) + turn - place
    return place


def cut(
    space: Pixels, corner: Sequence[int], size: Sequence[int], mode: str = "constant"
) -> Pixels:
    """One patch of [channel, *space], pixel by pixel."""
    out = np.zeros((space.shape[0], *size), space.dtype)
    for at in itertools.product(*map(range, size)):
        rows = zip(corner, at, space.shape[1:], strict=True)
        places = [place for c, k, n in rows if (place := shown(c + k, n, mode)) is not None]
        if len(places) == len(at):
            into, of = ((slice(None), *index) for index in (at, places))
            out[into] = space[of]
    return out


def outside(corner: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> Pixels:
    """Which pixels of a box lie outside the image."""
    out = np.zeros(tuple(size), bool)
    for at in itertools.product(*map(range, size)):
        inside = (0 <= c + k < n for c, k, n in zip(corner, at, shape, strict=True))
        out[at] = not all(inside)
    return out


def coverage(
    mask: npt.NDArray[np.bool_], shape: Sequence[int], corner: Sequence[int], size: Sequence[int]
) -> Fraction:
    """Share of a patch under a mask that is stretched over the image.

    Each image pixel is cut into as many parts as make both grids whole, and parts are counted.
    """
    fine = [math.lcm(n, m) // n for n, m in zip(shape, mask.shape, strict=True)]
    picks = []
    for axis, (n, m) in enumerate(zip(shape, mask.shape, strict=True)):
        parts = np.arange(corner[axis] * fine[axis], (corner[axis] + size[axis]) * fine[axis])
        inside = (parts >= 0) & (parts < n * fine[axis])
        picks.append((parts[inside] * m) // (n * fine[axis]))
    count = int(mask[np.ix_(*picks)].sum())
    return Fraction(count, math.prod(p * f for p, f in zip(size, fine, strict=True)))


def union_pixels(
    canonical_image: Pixels, taken: Sequence[tuple[int, tuple[int, ...]]], size: Sequence[int]
) -> Pixels:
    """Pixels of all patches, each once: [channel, n]."""
    samples, channels, *space = canonical_image.shape
    seen = np.zeros((samples, *space), np.bool_)
    for sample, corner in taken:
        box = tuple(slice(max(0, c), c + p) for c, p in zip(corner, size, strict=True))
        seen[sample][box] = True
    return np.stack([canonical_image[:, c][seen] for c in range(channels)])
