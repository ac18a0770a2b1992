"""Distance: how far patches of different splits are apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["split_distance"]

Ints = npt.NDArray[np.int64]
_PROBES = 1000
"""Boxes that a first guess is made with."""
_TOGETHER = 2**18
"""Boxes that are looked up together."""


def split_distance(low: Ints, high: Ints, split: npt.NDArray[np.int8]) -> int | None:
    """The smallest gap between two boxes of different splits, in pixels; exact.

    The gap of two boxes is the largest of the gaps along their axes, where one ends before the
    other begins; 0 if they touch or overlap. Boxes whose split is below 0 are left out.

    For each two sizes of boxes a k-d tree (Bentley, 1975) finds the nearest neighbours, each
    axis divided by what may lie between centres at the smallest gap so far; their exact gap
    takes its place, until none is smaller (the iteration of Dinkelbach, 1967, for quotients).
    Work grows with the square of the number of different sizes: one for all plans whose edge is
    not ``"shrink"``.

    Parameters
    ----------
    low, high
        Half-open boxes of one image, int64[n, ndim], below 2**40.
    split
        Of each box: int8[n].

    Returns
    -------
    int or None
        None if there are not two splits.

    Examples
    --------
    >>> low = np.array([[0, 0], [0, 7], [9, 0]])
    >>> split_distance(low, low + 4, np.array([0, 1, 1], np.int8))
    3
    """
    best: int | None = None
    parts = list(_parts(low, high, split))
    for (kind, centers, size), (other, others, extent) in combinations(parts, 2):
        if kind != other:
            best = _nearest(centers, others, size + extent, best)
        if best == 0:
            break
    return best


def _parts(low: Ints, high: Ints, split: npt.NDArray[np.int8]) -> Iterator[tuple[int, Ints, Ints]]:
    """Split, twice the centres, and size of the boxes that agree in split and size."""
    sizes, which = np.unique(high - low, axis=0, return_inverse=True)
    which = which.ravel()
    for kind, k in product(np.unique(split[split >= 0]).tolist(), range(len(sizes))):
        some = (split == kind) & (which == k)
        if some.any():
            # Boxes that stand at one place are one.
            yield kind, np.unique(low[some] + high[some], axis=0), sizes[k]


def _nearest(one: Ints, two: Ints, reach: Ints, best: int | None) -> int:
    """The smallest gap between boxes around doubled centres, at most `best`.

    Doubled centres of boxes with a gap g are at most ``reach + 2 * g`` apart on each axis, where
    reach is the sum of both sizes.
    """
    few, many = (one, two) if len(one) <= len(two) else (two, one)
    scale = np.maximum(reach, 1)
    tree = _tree(many / scale)
    probes = few[:: -(-len(few) // _PROBES)]
    _, at = tree.query(probes / scale, p=np.inf)
    gap = int(_gaps(probes, many[at], reach).min())
    best = gap if best is None else min(best, gap)
    while best > 0:
        # Of two boxes with a smaller gap this quotient is below 1 by more than floats err.
        scale = reach + 2 * best
        tree = _tree(many / scale)
        found = best
        for begin in range(0, len(few), _TOGETHER):
            some = few[begin : begin + _TOGETHER]
            _, at = tree.query(some / scale, p=np.inf, distance_upper_bound=1.0)
            near = at < len(many)
            if near.any():
                found = min(found, int(_gaps(some[near], many[at[near]], reach).min()))
        if found == best:
            break
        best = found
    return best


def _tree(points: npt.NDArray[np.float64]) -> Any:
    # SciPy is slow to load, and few plans need it.
    from scipy.spatial import cKDTree

    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def _gaps(one: Ints, two: Ints, reach: Ints) -> Ints:
    found: Ints = np.maximum((np.abs(one - two) - reach) // 2, 0).max(-1)
    return found
