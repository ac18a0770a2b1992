"""Indexing: what of each axis an index of NumPy's kind needs, and how it is picked from that.

The index keeps its structure: an integer stays one, an array an array of the same shape. So what
NumPy makes of it (broadcasting, where new axes go) need not be written a second time.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Asked", "Need"]

Ints = npt.NDArray[np.int64]
Need = range | Ints
"""Positions on one axis: a range that ascends, or a column."""


@dataclass(frozen=True, eq=False)
class Asked:
    """An index into an array that is not read yet.

    ``array[index]`` equals ``block[pick]``, where the block holds the product of what is needed.

    >>> asked = Asked.of((slice(None, None, -2), [7, 7, 3]), (5, 9))
    >>> list(asked.needed[0]), asked.needed[1].tolist()
    ([0, 2, 4], [3, 7])
    >>> asked.pick[0], asked.pick[1].tolist()
    (slice(None, None, -1), [1, 1, 0])
    """

    needed: tuple[Need, ...]
    """Of each axis. Columns ascend without repeats; that of axis 0 may be in any order."""
    pick: tuple[Any, ...]
    """The index into the block."""

    @classmethod
    def of(cls, index: Any, shape: Sequence[int]) -> Asked:
        """Take an index apart.

        Parameters
        ----------
        index
            Integers, slices, Ellipsis, None, arrays of integers or bools, and tuples of these.
        shape
            Of the array.

        Raises
        ------
        IndexError
            If it does not fit.
        """
        items = [_item(one) for one in (index if isinstance(index, tuple) else (index,))]
        if sum(one is Ellipsis for one in items) > 1:
            raise IndexError("an index has at most one Ellipsis ('...')")
        open_axes = len(shape) - sum(map(_n_axes, items))
        if open_axes < 0:
            raise IndexError(
                f"an index has at most one item an axis, got {len(shape) - open_axes} for the "
                f"{len(shape)} axes of shape {tuple(shape)}"
            )
        told = any(one is Ellipsis for one in items)
        if not told:
            items.append(Ellipsis)
        first, *others = items
        if _is_column(first) and all(one is Ellipsis or isinstance(one, slice) for one in others):
            # The common case: rows are read in the order asked for, and not copied once more.
            [rows] = _columns(first, shape)
            rest = cls.of((slice(None), *others), shape)
            return cls((rows, *rest.needed[1:]), rest.pick)
        needed: list[Need] = []
        pick: list[Any] = []
        for one in items:
            extents = shape[len(needed) :]
            if one is Ellipsis:
                needed += map(range, extents[:open_axes])
                pick.append(one)
            elif isinstance(one, slice):
                found = range(extents[0])[one]
                needed.append(found if found.step > 0 else found[::-1])
                pick.append(slice(None, None, 1 if found.step > 0 else -1))
            elif isinstance(one, int):
                needed.append(_inside(np.array([one], np.int64), extents[0]))
                pick.append(0)
            elif one is None or not one.ndim:
                pick.append(one)
            else:
                for column in _columns(one, extents):
                    values, inverse = np.unique(column, return_inverse=True)
                    needed.append(values)
                    pick.append(inverse.reshape(column.shape))
        _check_broadcast([one for one in pick if isinstance(one, np.ndarray)])
        # With an Ellipsis, NumPy gives an array where it gives a number without.
        return cls(tuple(needed), tuple(pick if told else pick[:-1]))

    def points(self) -> tuple[tuple[int, ...], list[Ints | slice]] | None:
        """Of arrays that speak of rows and other axes together: their shape, and what they say.

        Returns
        -------
        tuple
            The shape that they broadcast to, and for each axis the int64[n] positions of these n
            points, or the slice into what is needed. None for any other index.

        >>> shape, (rows, _, x) = Asked.of(([[0, 1]], slice(None), [2]), (3, 4, 5)).points()
        >>> shape, rows.tolist(), x.tolist()
        ((1, 2), [0, 1], [2, 2])
        """
        if any(one is not Ellipsis and _n_axes(one) == 0 for one in self.pick):
            return None
        told = any(one is Ellipsis for one in self.pick)
        pick = self.pick if told else (*self.pick, ...)
        each: list[Any] = []
        for one in pick:
            open_axes = len(self.needed) - len(pick) + 1
            each += [slice(None)] * open_axes if one is Ellipsis else [one]
        if not isinstance(each[0], np.ndarray):
            return None
        if not any(isinstance(one, np.ndarray) for one in each[1:]):
            return None
        found = [
            one if isinstance(one, slice) else np.asarray(need, np.int64)[one]
            for one, need in zip(each, self.needed, strict=True)
        ]
        shape = np.broadcast_shapes(*(one.shape for one in found if not isinstance(one, slice)))
        return shape, [
            one if isinstance(one, slice) else np.broadcast_to(one, shape).ravel() for one in found
        ]

    def at(self, axes: Sequence[Ints | slice], some: Ints) -> Asked:
        """The part of this index that speaks of some of its `points`: int64[m] of them."""
        needed, pick = list(self.needed), list[Any](axes)
        for k, one in enumerate(axes):
            if not isinstance(one, slice):
                needed[k], pick[k] = np.unique(one[some], return_inverse=True)
        return Asked(tuple(needed), tuple(pick))


def _item(one: Any) -> Any:
    """One item as None, Ellipsis, slice, int, or an array of int64 or bool."""
    if one is None or one is Ellipsis or isinstance(one, slice):
        return one
    if not isinstance(one, bool | np.bool_ | np.ndarray):
        try:
            return operator.index(one)
        except TypeError:
            pass
    array = np.asarray(one)
    if not array.size and isinstance(one, list | tuple):
        array = array.astype(np.int64)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iu":
        raise IndexError(
            "an index is made of integers, slices, '...', None and arrays of integers or bools, "
            f"got {type(one).__name__} of {array.dtype}"
        )
    return array.astype(np.int64) if array.ndim else int(array)


def _is_column(one: Any) -> bool:
    return isinstance(one, np.ndarray) and one.ndim == 1


def _n_axes(one: Any) -> int:
    """Axes that an item speaks of."""
    if one is None or one is Ellipsis:
        return 0
    return one.ndim if isinstance(one, np.ndarray) and one.dtype == np.bool_ else 1


def _columns(array: npt.NDArray[Any], extents: Sequence[int]) -> list[Ints]:
    """An array of integers or bools as positions, one array an axis that it speaks of."""
    if array.dtype != np.bool_:
        return [_inside(array, extents[0])]
    # NumPy lets an axis of a mask pass that has no extent at all.
    if any(n not in (0, extent) for n, extent in zip(array.shape, extents, strict=False)):
        raise IndexError(
            f"a boolean index has the extents of its axes, got {array.shape} for "
            f"{tuple(extents[: array.ndim])}"
        )
    return [column.astype(np.int64) for column in np.nonzero(array)]


def _inside(positions: Ints, extent: int) -> Ints:
    """Positions counted from the front, each inside its axis."""
    wrong = (positions < -extent) | (positions >= extent)
    if wrong.any():
        raise IndexError(
            f"an index lies inside its axis of extent {extent}, got {positions[wrong].flat[0]}"
        )
    return np.where(positions < 0, positions + extent, positions)


def _check_broadcast(arrays: Sequence[npt.NDArray[Any]]) -> None:
    """Before anything is read for them."""
    try:
        np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise IndexError(f"arrays of one index broadcast together, got shapes {shapes}") from None
