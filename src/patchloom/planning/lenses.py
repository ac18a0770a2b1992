"""Lenses: where the patches of an array lie that is seen around those of its image.

Most arrays that are cut have their image's pixels, and patches lie in them as they do in the image.
A context level shows as many pixels of its own, which are larger, around the same centre.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from patchloom.grid import ChunkGrid
from patchloom.image import CONTEXT, Image, Layout
from patchloom.planning.incidence import Cut

__all__ = ["around", "bound", "breadth", "is_context", "shown"]

Ints = npt.NDArray[np.int64]


def is_context(name: str) -> bool:
    """Whether an array is seen around the patches of its image."""
    return name.startswith(CONTEXT)


def around(image: Image, name: str, corner: Ints, cut: Cut) -> tuple[Ints, Cut]:
    """Where patches lie in one of the arrays that are cut, and what is cut there.

    The centre of a patch of a context level is the centre of the image's patch, rounded to the
    nearest pixel border of the level (half a pixel up) on each axis. Patches show at least one
    pixel of the level.

    Parameters
    ----------
    image, name
        The image, and the role of the array.
    corner, cut
        First pixels of what is cut of the image, int64[n, ndim], and what that is.

    Returns
    -------
    int64[n, ndim], Cut
        First pixels in the array, and what is cut there.
    """
    if not is_context(name):
        return corner, cut
    role = image.more[name]
    found = np.empty_like(corner)
    rows = zip(role.alignment.scale, role.alignment.offset, cut.size, strict=True)
    for axis, (scale, offset, size) in enumerate(rows):
        # floor((corner + size / 2 - offset) / scale - size / 2 + 1 / 2), in integers.
        start = (Fraction(size, 2) - offset) / scale - Fraction(size, 2) + Fraction(1, 2)
        whole = np.lcm(scale.numerator, start.denominator)
        moved = corner[:, axis] * int(whole / scale) + int(whole * start)
        extent = role.image.layout.space.shape[axis]
        found[:, axis] = np.clip(moved // int(whole), 1 - size, extent - 1)
    return found, Cut(cut.size, (0,) * len(cut.size), cut.padding)


def shown(image: Image, corner: Ints, cut: Cut) -> tuple[Ints, Ints]:
    """The half-open boxes of all pixels of the image that patches show, in context levels too.

    A pixel of a level shows the pixels of the image that it lies on, in part or as a whole.

    Parameters
    ----------
    image
        With its levels.
    corner, cut
        First pixels of what is cut of the image, int64[n, ndim], and what that is.

    Returns
    -------
    int64[n, ndim], int64[n, ndim]
    """
    extent = np.asarray(image.layout.space.shape, np.int64)
    low, high = cut.span(corner, extent)
    for name in filter(is_context, image.more):
        role = image.more[name]
        first, there = around(image, name, corner, cut)
        ends = there.span(first, np.asarray(role.image.layout.space.shape, np.int64))
        rows = zip(role.alignment.scale, role.alignment.offset, strict=True)
        for axis, (scale, offset) in enumerate(rows):
            unit = int(np.lcm(scale.denominator, offset.denominator))
            begin, end = (e[:, axis] * int(scale * unit) + int(offset * unit) for e in ends)
            low[:, axis] = np.minimum(low[:, axis], np.maximum(begin // unit, 0))
            high[:, axis] = np.maximum(high[:, axis], np.minimum(-(-end // unit), extent[axis]))
    return low, high


def breadth(image: Image, cut: Cut) -> list[int]:
    """The least extent that a patch shows on each axis, far from the border of its image."""
    found = list(cut.size)
    for name in filter(is_context, image.more):
        for axis, scale in enumerate(image.more[name].alignment.scale):
            wide = min(cut.size[axis] * scale // 1, image.layout.space.shape[axis])
            found[axis] = max(found[axis], int(wide))
    return found


def bound(image: Image, name: str, layout: Layout, cut: Cut) -> tuple[Layout, Cut]:
    """A layout and a cut in pixels of the image under which a walk holds as many blocks or more.

    Each block of a context level stands for the one that its first pixel falls into, of a grid
    over the image that is as wide or narrower, so that no two stand for the same. A walk that needs
    a block then needs the one it stands for, if what is cut reaches back by one block more.

    Parameters
    ----------
    image, name, layout
        The image, and the role and layout of an array that is cut.
    cut
        What is cut of the image.
    """
    if not is_context(name):
        return layout, cut
    space, scales = layout.space, image.more[name].alignment.scale
    wide = [-(-c * s // 1) for c, s in zip(space.chunks, scales, strict=True)]
    narrow = [max(1, c * s // 1) for c, s in zip(space.chunks, scales, strict=True)]
    # From the centre, and mirrored as far again; and what rounding and offsets move.
    times = 2 if cut.is_mirrored else 1
    reach = [times * -(-size * s // 1) + 2 * -(-s // 1)
             for size, s in zip(cut.size, scales, strict=True)]  # fmt: skip
    back = tuple(int(r + w) for r, w in zip(reach, wide, strict=True))
    size = tuple(int(c + 2 * b) for c, b in zip(cut.size, back, strict=True))
    grid = ChunkGrid(image.layout.space.shape, tuple(int(n) for n in narrow))
    return Layout(layout.samples, layout.channels, grid), Cut(size, back)
