"""The union of patches inside a block: each pixel once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["union"]


def union(
    low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], extent: Sequence[int]
) -> npt.NDArray[np.bool_] | None:
    """Which pixels of a block lie in at least one box.

    The boxes' faces cut the block into few cells; a difference array counts the boxes over
    each cell, so the cost grows with faces and pixels, never with boxes times pixels.

    Parameters
    ----------
    low, high
        Half-open boxes in pixels of the block, clipped to it: int64[n, ndim].
    extent
        Shape of the block.

    Returns
    -------
    bool[*extent] or None
        None if every pixel is covered.
    """
    ndim = low.shape[1]
    whole = np.asarray(extent)
    if ((low == 0) & (high == whole)).all(-1).any():
        return None
    edges = [
        np.unique(np.concatenate([[0, extent[a]], low[:, a], high[:, a]])) for a in range(ndim)
    ]
    counts: npt.NDArray[Any] = np.zeros([len(e) for e in edges], np.int64)
    ends = [[np.searchsorted(edges[a], side[:, a]) for side in (low, high)] for a in range(ndim)]
    for pick in itertools.product((0, 1), repeat=ndim):
        np.add.at(counts, tuple(ends[a][pick[a]] for a in range(ndim)), (-1) ** sum(pick))
    for axis in range(ndim):
        counts = np.cumsum(counts, axis=axis)
    covered: npt.NDArray[np.bool_] = counts[(slice(0, -1),) * ndim] > 0
    if covered.all():
        return None
    for axis in range(ndim):
        covered = np.repeat(covered, np.diff(edges[axis]), axis=axis)
    return covered
