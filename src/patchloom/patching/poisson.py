"""Poisson discs: points at random, as many as find room, none too close to another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from patchloom.randomness import below, philox

__all__ = ["Metric", "copies", "scatter"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_FAR = -(2**40)
"""Where the point of an empty cell lies: far from all others."""
_THROWS = (4, 3, 2)
"""Darts into each box, level by level; boxes are halved on each axis between levels."""
_AT_ONCE = 27
"""Cells looked at together: most darts are found too close to a point in the nearest ones."""


@dataclass(frozen=True)
class Metric:
    """When two points are too close, each axis in units of its radius.

    >>> chebyshev, disc = Metric((10, 10), False), Metric((10, 10), True)
    >>> apart = [np.array([7]), np.array([8])]
    >>> chebyshev.close(apart).tolist(), disc.close(apart).tolist()
    ([True], [False])
    """

    radius: tuple[int, ...]
    """Pixels on each axis; at least 1."""

    euclidean: bool
    """Whether the distance is the root of the sum of squares, else the largest on any axis."""

    @cached_property
    def cell(self) -> tuple[int, ...]:
        """Extent of the largest cell that never holds two points, in pixels."""
        if not self.euclidean:
            return self.radius
        # isqrt rounds down, so that opposite corners of a cell are less than 1 apart.
        return tuple(max(1, math.isqrt(r * r // len(self.radius))) for r in self.radius)

    @cached_property
    def reach(self) -> tuple[int, ...]:
        """How many cells further a point may be too close, on each axis."""
        pairs = zip(self.radius, self.cell, strict=True)
        return tuple(max(1, (r - 2) // c + 1) for r, c in pairs)

    @cached_property
    def _squares(self) -> tuple[int, list[Ints]]:
        """One, and the square of each distance along an axis in its units: exact, or too small."""
        one = math.lcm(*self.radius) ** 2
        if one > 2**60:
            one = 2**60
        return one, [
            np.array([d * d * one // (r * r) for d in range(r + 1)], np.int64) for r in self.radius
        ]

    def close(self, apart: Sequence[Ints]) -> Bools:
        """Whether points are less than 1 apart.

        Parameters
        ----------
        apart
            Their distance along each axis, in pixels: int[...], at least 0.
        """
        pairs = list(zip(apart, self.radius, strict=True))
        if self.euclidean:
            one, squares = self._squares
            total = sum(s[np.minimum(d, r)] for s, (d, r) in zip(squares, pairs, strict=True))
            return np.asarray(total < one)
        found = pairs[0][0] < pairs[0][1]
        for d, r in pairs[1:]:
            found &= d < r
        return found


def copies(
    points: Ints, period: Sequence[int], start: Sequence[int], stop: Sequence[int]
) -> tuple[Ints, Ints]:
    """All copies of points, repeated with a period on each axis, that lie in a box.

    The points themselves lie from 0 to the period on each axis.

    Returns
    -------
    int64[m], int64[m, ndim]
        Whose copy it is, and where it lies.

    >>> copies(np.array([[1], [3]]), (5,), (-5,), (8,))[1].ravel().tolist()
    [-4, -2, 1, 3, 6]
    """
    turns = [
        range((a - p + 1) // p, (b - 1) // p + 1)
        for a, b, p in zip(start, stop, period, strict=True)
    ]
    steps = np.array(list(itertools.product(*turns)), np.int64).reshape(-1, len(turns))
    moved = points[None] + (steps * np.asarray(period, np.int64))[:, None]
    inside = ((moved >= np.asarray(start)) & (moved < np.asarray(stop))).all(-1)
    return np.nonzero(inside)[1], moved[inside]


class _Cells:
    """Cells over a box and its surroundings, for many variants; each holds at most one point."""

    def __init__(
        self, metric: Metric, start: Sequence[int], stop: Sequence[int], variants: int
    ) -> None:
        self.metric = metric
        self.start, self.stop, self.side = np.array(start), np.array(stop), np.array(metric.cell)
        reach = np.array(metric.reach)
        self.inner = -(-(self.stop - self.start) // self.side)
        self.origin = self.start - reach * self.side
        shape = self.inner + 2 * reach
        self.end = self.origin + shape * self.side
        self.size = int(shape.prod())
        self.strides = np.array([int(shape[a + 1 :].prod()) for a in range(len(shape))])
        steps = itertools.product(*(range(-m, m + 1) for m in metric.reach))
        self.near = np.array(sorted(steps, key=lambda s: sum(map(abs, s)))) @ self.strides
        self.points = np.full((len(shape), variants * self.size), _FAR, np.int64)

    def of(self, points: Ints) -> Ints:
        """The cell of each point in the first variant."""
        found: Ints = ((points - self.origin) // self.side) @ self.strides
        return found

    def boxes(self, variants: int) -> _Boxes:
        """The cells of the box, variant after variant."""
        index = np.stack(np.unravel_index(np.arange(int(self.inner.prod())), self.inner), -1)
        low = self.start + index * self.side
        cell = self.of(low) + np.arange(variants)[:, None] * self.size
        end = np.minimum(low + self.side, self.stop)
        return _Boxes(
            cell.ravel(),
            np.tile(low, (variants, 1)),
            np.tile(end, (variants, 1)),
            np.zeros(cell.size, np.int64),
        )

    def free(self, cell: Ints, low: Ints, high: Ints) -> Bools:
        """Whether no single point is too close to all pixels from `low` to `high`, inclusive."""
        left = np.arange(len(cell))
        for near in np.split(self.near, range(_AT_ONCE, len(self.near), _AT_ONCE)):
            around = cell[left, None] + near
            apart = [
                np.maximum(q - low[left, a, None], high[left, a, None] - q)
                for a, q in enumerate(column[around] for column in self.points)
            ]
            left = left[~self.metric.close(apart).any(-1)]
        found = np.zeros(len(cell), bool)
        found[left] = True
        return found


class _Boxes(NamedTuple):
    """Parts of cells that may still have room."""

    cell: Ints
    low: Ints
    """First pixel: int64[n, ndim]."""
    end: Ints
    """Last pixel and one more on each axis: int64[n, ndim]."""
    part: Ints
    """Which part of the cell."""

    def pick(self, which: Bools) -> _Boxes:
        return _Boxes(*(column[which] for column in self))

    def halved(self) -> _Boxes:
        """The parts of boxes that are halved on each axis."""
        ndim = self.low.shape[1]
        upper = np.array(list(itertools.product((False, True), repeat=ndim)))
        middle = ((self.low + self.end) // 2)[:, None]
        low = np.where(upper, middle, self.low[:, None]).reshape(-1, ndim)
        end = np.where(upper, self.end[:, None], middle).reshape(-1, ndim)
        part = (self.part[:, None] * len(upper) + np.arange(len(upper))).ravel()
        boxes = _Boxes(np.repeat(self.cell, len(upper)), low, end, part)
        return boxes.pick(np.asarray((low < end).all(-1)))


def scatter(
    key: int,
    metric: Metric,
    start: Sequence[int],
    stop: Sequence[int],
    *,
    variants: int = 1,
    fixed: Ints | None = None,
    period: Sequence[int] | None = None,
) -> tuple[Ints, Ints]:
    """Points in a box, until hardly any finds room, for many variants at once.

    Darts are thrown into all empty cells in parallel; of darts too close to each other the one
    of the highest rank stays. What is left of a cell is halved again and again, and parts that
    are covered are forgotten (White, Cline and Egbert, "Poisson disk point sets by hierarchical
    dart throwing", 2007). Where a dart falls is a function of key, variant, cell and turn.

    Parameters
    ----------
    key
        The address of the darts.
    metric
        When points are too close.
    start, stop
        The box, in pixels.
    variants
        How many times, each time otherwise.
    fixed
        Points that are there already, in every variant: int64[n, ndim].
    period
        Repeat the points with this period on each axis, at least that of the box and four
        radii, and keep the copies apart too.

    Returns
    -------
    int64[m], int64[m, ndim]
        The variant and the position of each new point.

    Examples
    --------
    >>> variant, points = scatter(7, Metric((10,), False), (0,), (100,), variants=2)
    >>> bool((np.diff(np.sort(points[variant == 0].ravel())) >= 10).all())
    True
    """
    cells = _Cells(metric, start, stop, variants)
    if fixed is not None:
        near = fixed[((fixed >= cells.origin) & (fixed < cells.end)).all(-1)]
        at = cells.of(near) + np.arange(variants)[:, None] * cells.size
        cells.points[:, at] = near.T[:, None]
    boxes, turn = cells.boxes(variants), itertools.count()
    variant, points = [np.zeros(0, np.int64)], [np.zeros((0, len(start)), np.int64)]
    for level, throws in enumerate(_THROWS):
        boxes = boxes.halved() if level else boxes
        boxes = boxes.pick(cells.free(boxes.cell, boxes.low, boxes.end - 1))
        for _ in range(throws):
            cell, spot = _throw(key, cells, boxes, next(turn), period)
            variant.append(cell // cells.size)
            points.append(spot)
            boxes = boxes.pick(cells.points[0, boxes.cell] == _FAR)
    return np.concatenate(variant), np.concatenate(points)


def _throw(
    key: int, cells: _Cells, boxes: _Boxes, turn: int, period: Sequence[int] | None
) -> tuple[Ints, Ints]:
    """One dart into each box: the cells and positions of those that stay."""
    which, cell = np.divmod(boxes.cell, cells.size)
    words = philox(key, which, cell, boxes.part, turn)
    # As wide everywhere: a dart at a narrow box may miss it, or borders would get more.
    wide = (boxes.end - boxes.low).max(0, initial=1)
    spot = boxes.low + np.stack([below(w, words[a]) for a, w in enumerate(wide)], -1)
    free: Bools = np.asarray((spot < boxes.end).all(-1))
    free[free] = cells.free(boxes.cell[free], spot[free], spot[free])
    cell, spot, rank = boxes.cell[free], spot[free], words[3][free]
    mine = np.arange(len(cell))
    whose, where, at = mine, spot, cell
    if period is not None:
        whose, where = copies(spot, period, cells.origin, cells.end)
        at = cells.of(where)
    dart = np.full(cells.points.shape[1], -1, np.int64)
    dart[at] = np.arange(len(at))
    # Where two darts fall into one cell only one can be seen: the other is out.
    hidden = np.bincount(whose, dart[at] != np.arange(len(at)), len(cell)) > 0
    other = dart[cell[:, None] + cells.near]
    row, column = np.nonzero(other >= 0)
    other = other[row, column]
    rival = whose[other]
    apart = [np.abs(spot[row, a] - where[other, a]) for a in range(spot.shape[1])]
    before = (rank[rival] > rank[row]) | ((rank[rival] == rank[row]) & (rival > row))
    lost = np.bincount(row, cells.metric.close(apart) & before, len(cell)) > 0
    won = ~(hidden | lost)
    cells.points[:, at[won[whose]]] = where[won[whose]].T
    return cell[won], spot[won]
