"""Reading masks: the exact coverage of patches, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.coverage import coverage
from patchloom.image import Image, Role

__all__ = ["covered_area", "read_region"]

Ints = npt.NDArray[np.int64]
_LIMIT = 2**23
"""Mask pixels that are looked at together."""


def covered_area(
    image: Image, sample: Ints, corner: Ints, size: Sequence[int]
) -> tuple[npt.NDArray[Any], int]:
    """Area of each patch under the mask, and of a whole patch, in the same unit.

    Without a mask the whole image is covered; padding never is.

    Parameters
    ----------
    image
        The image that the patches lie in.
    sample, corner
        Flat sample int64[n] and first pixel int64[n, ndim] of each patch.
    size
        Extent of a patch, in pixels of the image.
    """
    whole = math.prod(size)
    extent = np.asarray(image.layout.space.shape, np.int64)
    inside = np.minimum(corner + np.asarray(size), extent) - corner
    if image.mask is None:
        return inside.prod(-1), whole
    role = image.mask
    axes = [image.axes.spatial.index(a) for a in role.axes]
    missing = [a for a in range(corner.shape[1]) if a not in axes]
    # A mask without z holds for every z: only the part of the patch inside the image counts.
    factor = inside[:, missing].prod(-1)
    flat = corner[:, axes]
    which = sample if role.image.layout.n_samples > 1 else np.zeros_like(sample)
    part = [size[a] for a in axes]
    unit = _unit(role, part)
    area = np.zeros(len(sample), object if unit * whole >= 2**62 else np.int64)
    for s in np.unique(which):
        mine = np.flatnonzero(which == s)
        for group in _groups(role, flat, mine, part):
            area[group] = _area(role, int(s), flat[group], part)
    return area * factor, unit * math.prod(size[a] for a in missing)


def read_region(image: Image, sample: int, window: Sequence[tuple[int, int]]) -> npt.NDArray[Any]:
    """Pixels of one sample, all channels, in a spatial window: [channels, *space]."""
    axes = image.axes
    start, stop = [0] * image.ndim, list(image.shape)
    index = np.unravel_index(sample, image.layout.samples.shape) if axes.sample else ()
    for letter, i in zip(axes.sample, index, strict=True):
        at = axes.names.index(letter)
        start[at], stop[at] = int(i), int(i) + 1
    for letter, (a, b) in zip(axes.spatial, window, strict=True):
        at = axes.names.index(letter)
        start[at], stop[at] = a, b
    pixels = image.read(start, stop).transpose(axes.order)
    return pixels.reshape(image.layout.n_channels, *(b - a for a, b in window))


def _unit(role: Role, size: Sequence[int]) -> int:
    none = np.zeros((0, len(size)), np.int64)
    return coverage(
        np.zeros((1,) * len(size), np.bool_), [0] * len(size), role.alignment, none, size
    )[1]


def _groups(role: Role, corner: Ints, members: Ints, size: Sequence[int]) -> list[Ints]:
    """Cut patches into groups whose window of the mask is small enough."""
    window = _window(role, corner[members], size)
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
    return _groups(role, corner, members[low], size) + _groups(role, corner, members[~low], size)


def _window(role: Role, corner: Ints, size: Sequence[int]) -> tuple[tuple[int, int], ...]:
    start = corner.min(0).tolist()
    stop = (corner.max(0) + np.asarray(size)).tolist()
    return role.alignment.window(start, stop, role.image.layout.space.shape)


def _area(role: Role, sample: int, corner: Ints, size: Sequence[int]) -> npt.NDArray[Any]:
    window = _window(role, corner, size)
    block = read_region(role.image, sample, window)[0] != 0
    return coverage(block, [a for a, _ in window], role.alignment, corner, size)[0]
