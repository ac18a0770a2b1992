"""Reading masks: the exact coverage of patches, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.coverage import coverage
from patchloom.image import Image, Role
from patchloom.patching.protocol import Edge
from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan

__all__ = ["covered_area", "covered_share", "read_region", "volumes"]

Ints = npt.NDArray[np.int64]
_LIMIT = 2**23
"""Mask pixels that are looked at together."""


def covered_area(
    image: Image, sample: Ints, corner: Ints, size: Sequence[int]
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
    which = sample if role.image.layout.n_samples > 1 else np.zeros_like(sample)
    pixel = _pixel(role)
    area = np.zeros(len(sample), object if pixel * math.prod(size) >= 2**62 else np.int64)
    for s in np.unique(which):
        mine = np.flatnonzero(which == s)
        for group in _groups(role, low, high, mine):
            area[group] = _area(role, int(s), low[group], high[group])
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


def _pixel(role: Role) -> int:
    ndim = len(role.axes)
    none = np.zeros((0, ndim), np.int64)
    return coverage(np.zeros((1,) * ndim, np.bool_), [0] * ndim, role.alignment, none, none)[1]


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


def _area(role: Role, sample: int, low: Ints, high: Ints) -> npt.NDArray[Any]:
    window = _window(role, low, high)
    block = read_region(role.image, sample, window)[0] != 0
    return coverage(block, [a for a, _ in window], role.alignment, low, high)[0]
