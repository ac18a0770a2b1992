"""Patch ids: 128 bits fixed by the content of a patch, never by its place in a plan."""

from __future__ import annotations

import binascii
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from patchloom.planning.incidence import Patches
from patchloom.planning.plans import Plan
from patchloom.randomness import digest, philox

__all__ = ["box_ids", "patch_ids"]

Ints = npt.NDArray[np.int64]
_ODD = np.uint64(0x9E3779B97F4A7C15)


def patch_ids(plan: Plan, patches: Patches) -> list[str]:
    """Ids of some patches of one image: 32 hexadecimal digits each.

    An id is a function of image id, level, sample, corner and size; within an image distinct
    boxes have distinct ids by construction (Philox is a bijection), between images they
    differ like 128 random bits. A box that a random strategy drew twice gets a second id.
    """
    image = plan.images[patches.image]
    occurrence = _occurrence(plan, patches) if plan.patching.repeats else None
    size = plan.patch_size
    return box_ids(image.id, image.level, size, patches.sample, patches.corner, occurrence)


def box_ids(
    image_id: str,
    level: int,
    size: Sequence[int],
    sample: Ints,
    corner: Ints,
    occurrence: Ints | None = None,
) -> list[str]:
    """Ids of boxes of one image.

    Parameters
    ----------
    image_id, level
        The image.
    size
        Extent of a box.
    sample, corner
        Flat sample int64[n] and first pixel int64[n, ndim] of each.
    occurrence
        How often each box was drawn before: int64[n]; by default never.
    """
    seed = digest("patch", image_id, level, tuple(size), size=24)
    key = np.uint64(int.from_bytes(seed[:8], "little"))
    mask = np.frombuffer(seed[8:], "<u4")
    # The key of a first occurrence is the image's own, so its ids never collide.
    keys = key if occurrence is None else key + occurrence.astype(np.uint64) * _ODD
    words = philox(keys, sample, *corner.T)
    table = np.stack(words, -1).astype("<u4") ^ mask
    text = binascii.hexlify(table.tobytes()).decode("ascii")
    return [text[k : k + 32] for k in range(0, len(text), 32)]


def _occurrence(plan: Plan, patches: Patches) -> Ints:
    """How often the same box was drawn before, along the curve: in every order of rows the same."""
    # Equal boxes have the same owner, so looking at whole cells is enough.
    [full] = plan.along(np.unique(patches.cell))
    keys = (full.rank, *full.corner.T, full.cell)
    order = np.lexsort(keys)
    same = np.ones(len(order), np.bool_)
    for column in keys[1:]:
        same[1:] &= column[order[1:]] == column[order[:-1]]
    same[:1] = False
    begin = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - begin
    return rank[np.searchsorted(full.rank, patches.rank)]
