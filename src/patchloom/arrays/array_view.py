"""ArrayView: rows of one array or of many as one, in an order of their own, read when indexed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import index as whole
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from patchloom.arrays.indexing import Asked, Need
from patchloom.arrays.rows import TOGETHER, Read, Rows, rows_of
from patchloom.errors import ConfigError, SourceError
from patchloom.randomness import key_of, philox

__all__ = ["ArrayView"]

Ints = npt.NDArray[np.int64]
_BATCH = 16 * 2**20
"""Bytes that iteration reads at a time, if a stored object is not more."""
_DRAWN = 2**18
"""Addresses that are drawn for together."""
_LOW = 2**32 - 1


class ArrayView:
    """Rows of an array, seen without reading them: indexing reads, as NumPy indexes.

    It has ``shape``, ``dtype``, ``len`` and NumPy's indices: integers, slices with any step,
    arrays of integers or bools, ``...``, ``None`` and tuples of these. What is not asked for is
    not read beyond its chunk; rows of one chunk or shard are read together, then put in order.

    A view is a value: `shuffle` and the like give another one. It holds no open file, and can be
    pickled if its sources can.

    Parameters
    ----------
    source
        An `Image`, a zarr array, an HDF5 dataset, a NumPy array or memory map, another view, or
        anything with ``shape``, ``dtype`` and slices. Its first axis are the rows.
    idx_min, idx_max
        The view starts at this row of the source, and ends before this one. Negative ones count
        from the end, as in a slice; None is all.
    shuffle
        A seed: rows are in the order of `shuffle`. None: in that of the source.
    rows
        int[n] rows of the source that the view consists of, in this order, instead of a window.

    Raises
    ------
    NotAnArrayError
        If the source is nothing that can be sliced.
    ConfigError
        If an argument is none of these.

    Examples
    --------
    >>> view = ArrayView(np.arange(20).reshape(10, 2), idx_min=4)
    >>> view
    <ArrayView 6 x 2 int64>
    >>> view[[-1, 0], 1].tolist()
    [19, 9]
    >>> mixed = view.shuffle(7)
    >>> mixed[:].tolist() == view[mixed.order - 4].tolist()
    True
    """

    _pieces: tuple[_Piece, ...]
    _order: Need

    def __init__(
        self,
        source: Any,
        idx_min: int | None = None,
        idx_max: int | None = None,
        *,
        shuffle: int | None = None,
        rows: npt.ArrayLike | None = None,
    ) -> None:
        order: Need
        if isinstance(source, ArrayView):
            self._pieces, order = source._pieces, source._order
        else:
            self._pieces = (_Piece(rows_of(source)),)
            order = range(self._pieces[0].n)
        if rows is None:
            order = order[slice(idx_min, idx_max)]
        elif idx_min is None and idx_max is None:
            order = _picked(order, _rows_in(rows, len(order)))
        else:
            raise ConfigError("a view has a window or rows=, got both; take rows= of a window")
        self._set(order)
        if not (shuffle is None or shuffle is False):
            self._order = self.shuffle(shuffle)._order

    def _set(self, order: Need) -> None:
        self._order = order
        self._first = np.cumsum([0, *(piece.n for piece in self._pieces)])
        self.dtype: np.dtype[Any] = np.result_type(*(piece.rows.dtype for piece in self._pieces))
        """Of the pixels, in native byte order."""
        self.shape: tuple[int, ...] = (len(order), *self._pieces[0].rows.shape[1:])
        """Rows, and the extents of one."""

    def _with(self, order: Need) -> Self:
        made = object.__new__(type(self))
        made._pieces = self._pieces
        made._set(order)
        return made

    @classmethod
    def concatenate(
        cls,
        source_list: Sequence[Any],
        class_list: Sequence[Any] | None = None,
        *,
        shuffle: int | None = None,
        maxlen: int | None = None,
    ) -> ArrayView:
        """Many sources as one, one after another or mixed.

        Parameters
        ----------
        source_list
            Sources whose rows have the same shape. Of several dtypes the view has the one that
            `numpy.result_type` makes of them.
        class_list
            The class of each source, for `get_labels`; by default 0, 1, 2, ...
        shuffle
            A seed: all rows are mixed, in the order of `shuffle`.
        maxlen
            Rows that are taken of each source at most: the first ones, or with `shuffle` ones
            drawn by that seed and the place of the source in the list.

        Raises
        ------
        SourceError
            If there is none, or rows differ in shape, or their dtypes have none in common.
        ConfigError
            If there is not one class a source.

        Examples
        --------
        >>> both = ArrayView.concatenate([np.zeros((3, 2)), np.ones((4, 2))], maxlen=2)
        >>> both.get_labels().tolist(), both[:, 0].tolist()
        ([0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0])
        """
        views = [one if isinstance(one, ArrayView) else ArrayView(one) for one in source_list]
        seed = None if shuffle is None or shuffle is False else _seed(shuffle)
        classes = np.arange(len(views)) if class_list is None else np.asarray(class_list)
        if classes.shape != (len(views),):
            raise ConfigError(
                f"class_list= has one class a source, got {classes.shape} for {len(views)} sources"
            )
        if maxlen is not None and whole(maxlen) < 0:
            raise ConfigError(f"maxlen= is a number of rows, got {maxlen}")
        _check_alike(views)
        orders: list[Need] = []
        pieces: list[_Piece] = []
        offset = 0
        for k, (view, label) in enumerate(zip(views, classes, strict=True)):
            order = view._order
            if maxlen is not None and len(order) > maxlen:
                drawn = None if seed is None else _permutation(len(order), seed, k)[:maxlen]
                order = order[:maxlen] if drawn is None else _picked(order, drawn)
            orders.append(_moved(order, offset))
            pieces += (_Piece(piece.rows, label) for piece in view._pieces)
            offset += sum(piece.n for piece in view._pieces)
        made = object.__new__(cls)
        made._pieces = tuple(pieces)
        made._set(_joined(orders))
        return made if seed is None else made.shuffle(seed)

    @property
    def ndim(self) -> int:
        """Axes, the rows' with them."""
        return len(self.shape)

    @property
    def order(self) -> Ints:
        """Which row of the source stands where, int64[n]: of many, counted one after another."""
        return np.asarray(self._order, np.int64)

    def shuffle(self, seed: int) -> Self:
        """The same rows in the order that a seed fixes, whatever their order was before.

        Views of sources of the same lengths are in the same order after the same seed, on any
        machine: images and labels stay together.

        Parameters
        ----------
        seed
            A whole number.
        """
        rows = self._order if isinstance(self._order, range) else np.sort(self._order)
        return self._with(_picked(rows, _permutation(len(rows), _seed(seed))))

    def ordered_like(self, other: ArrayView) -> Self:
        """The rows that another view has of its sources, in its order, of the sources of this one.

        Raises
        ------
        SourceError
            If the sources of both do not have the same lengths.
        """
        if not np.array_equal(self._first, other._first):
            raise SourceError(
                "views share an order if their sources have the same lengths, got "
                f"{np.diff(self._first).tolist()} and {np.diff(other._first).tolist()} rows"
            )
        return self._with(other._order)

    def get_labels(self) -> npt.NDArray[Any]:
        """The class of each row, in the order of the view: [n] of what `class_list` holds."""
        classes = np.array([piece.label for piece in self._pieces])
        return classes[np.searchsorted(self._first, self.order, side="right") - 1]

    def batches(self, rows: int | None = None) -> Iterator[npt.NDArray[Any]]:
        """All rows in order, some at a time.

        Parameters
        ----------
        rows
            Of a batch. None: whole stored objects (chunks or shards), several if they are small,
            so that a view that is not shuffled decodes each chunk once.

        Yields
        ------
        array [k, ...]
        """
        if rows is not None and whole(rows) < 1:
            raise ConfigError(f"a batch has at least one row, got rows={rows}")
        opened = _Opened(self._pieces)
        rest = [range(n) for n in self.shape[1:]]
        begin = 0
        for end in self._ends() if rows is None else _steps(0, len(self), rows):
            # The end of a source that lies before the view is none of its own.
            if begin < end:
                yield self._block([range(begin, end), *rest], opened)
                begin = end

    def _ends(self) -> Iterator[int]:
        """Where batches of whole stored objects end."""
        row_bytes = max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)
        units = [piece.rows.unit for piece in self._pieces]
        units = [unit * max(1, _BATCH // (unit * row_bytes)) for unit in units]
        if not isinstance(self._order, range) or self._order.step != 1:
            yield from _steps(0, len(self), units[0])
            return
        start, stop = self._order.start, self._order.stop
        for first, piece, unit in zip(self._first.tolist(), self._pieces, units, strict=False):
            begin = first + max(0, start - first) // unit * unit
            for end in _steps(begin, min(stop, first + piece.n), unit):
                yield end - start

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches():
            yield from batch

    def __getitem__(self, index: Any) -> Any:
        asked = Asked.of(index, self.shape)
        opened = _Opened(self._pieces)
        if math.prod(map(len, asked.needed)) * self.dtype.itemsize > TOGETHER:
            # Points that lie apart are few of all that the product of their positions holds.
            points = asked.points()
            if points is not None:
                return self._at(asked, *points, opened)
        return self._block(asked.needed, opened)[asked.pick]

    def _at(
        self,
        asked: Asked,
        shape: tuple[int, ...],
        axes: Sequence[Ints | slice],
        opened: _Opened,
    ) -> npt.NDArray[Any]:
        """What an index of several arrays asks for, a group of rows at a time."""
        rest = [
            len(need)
            for one, need in zip(axes, asked.needed, strict=True)
            if isinstance(one, slice)
        ]
        out = np.empty((math.prod(shape), *rest), self.dtype)
        assert not isinstance(axes[0], slice)
        rows = np.asarray(_picked(self._order, axes[0]), np.int64)
        by = np.argsort(rows, kind="stable")
        first = np.flatnonzero(np.diff(rows[by], prepend=-1))
        row_bytes = math.prod(map(len, asked.needed[1:])) * self.dtype.itemsize
        for a, b in pairwise([*first[:: max(1, TOGETHER // row_bytes)].tolist(), len(by)]):
            part = asked.at(axes, by[a:b])
            out[by[a:b]] = self._block(part.needed, opened)[part.pick]
        return out.reshape(*shape, *rest)

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a view reads its rows into a new array, got copy=False")
        return np.asarray(self[...], dtype)

    def _block(self, needed: Sequence[Need], opened: _Opened) -> npt.NDArray[Any]:
        """The product of positions on each axis; those of axis 0 in the order they are given."""
        out = np.empty([len(need) for need in needed], self.dtype)
        if not out.size:
            return out
        asked = np.asarray(_picked(self._order, needed[0]), np.int64)
        # Sorted rows are read, each once, and put where they were asked for.
        by = None if (np.diff(asked) > 0).all() else np.argsort(asked, kind="stable")
        rows = asked if by is None else asked[by]
        ends = np.searchsorted(rows, self._first).tolist()
        # A source may read all that lies between what is asked for of a row.
        between = math.prod(int(need[-1]) - int(need[0]) + 1 for need in needed[1:])
        row_bytes = between * self.dtype.itemsize
        for k, (low, high) in enumerate(pairwise(ends)):
            if low == high:
                continue
            read, own = opened(k), rows[low:high] - self._first[k]
            step = self._pieces[k].rows.step
            chunk = np.cumsum(np.diff(own // step, prepend=-1) > 0) - 1
            group = chunk // max(1, TOGETHER // (step * row_bytes))
            cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(own)]
            for a, b in pairwise(cuts):
                some = own[a:b]
                alone = np.diff(some, prepend=-1) > 0
                found = read(some[alone], needed[1:])
                if not alone.all():
                    found = found[np.cumsum(alone) - 1]
                here = slice(low + a, low + b)
                out[here if by is None else by[here]] = found
        return out

    def __repr__(self) -> str:
        extents = " x ".join(map(str, self.shape))
        many = f", {len(self._pieces)} sources" if len(self._pieces) > 1 else ""
        return f"<ArrayView {extents} {self.dtype}{many}>"


@dataclass(frozen=True, eq=False)
class _Piece:
    """One source, and its class."""

    rows: Rows
    label: Any = 0

    @property
    def n(self) -> int:
        return self.rows.shape[0]


@dataclass(eq=False)
class _Opened:
    """Sources that are opened when they are first read, for one call."""

    pieces: Sequence[_Piece]
    readers: dict[int, Read] = field(default_factory=dict)

    def __call__(self, k: int) -> Read:
        if k not in self.readers:
            self.readers[k] = self.pieces[k].rows.open()
        return self.readers[k]


def _seed(given: Any) -> int:
    if isinstance(given, bool | np.bool_):
        raise ConfigError(
            f"a shuffled order has a seed, got shuffle={given}; give a number, and the same one "
            "for the same order"
        )
    try:
        return whole(given)
    except TypeError:
        raise ConfigError(f"a seed is a whole number, got {given!r}") from None


def _permutation(n: int, seed: int, *address: int) -> Ints:
    """An order of n things, a function of seed and address: int64[n]."""
    key, half = key_of(seed, "rows", *address), np.uint64(32)
    # Two of 64 bits from each address; equal ones, which hardly come up, stay in order.
    words = np.empty((-(-n // 2), 2), np.uint64)
    for low in range(0, len(words), _DRAWN):
        place = np.arange(low, min(low + _DRAWN, len(words)))
        a, b, c, d = philox(key, place & _LOW, place >> 32)
        words[low : low + _DRAWN] = np.stack([a << half | b, c << half | d], 1)
    return np.argsort(words.reshape(-1)[:n], kind="stable")


def _rows_in(rows: npt.ArrayLike, n: int) -> Ints:
    """Rows that were asked for by number, each checked."""
    given = np.asarray(rows)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ConfigError(
            f"rows= is one column of whole numbers, got {given.dtype} of shape {given.shape}"
        )
    return np.asarray(Asked.of(given.astype(np.int64), (n,)).needed[0], np.int64)


def _picked(order: Need, need: Need) -> Need:
    """What stands at some positions of an order."""
    if isinstance(need, range):
        return order[need.start : need.stop : need.step]
    if isinstance(order, range):
        return order.start + order.step * need
    return order[need]


def _moved(order: Need, by: int) -> Need:
    if isinstance(order, range):
        return range(order.start + by, order.stop + by, order.step)
    return order + by


def _steps(begin: int, stop: int, step: int) -> Iterator[int]:
    """The ends of stretches of so many, the last of which may be shorter."""
    for at in range(begin, stop, step):
        yield min(at + step, stop)


def _joined(orders: Sequence[Need]) -> Need:
    """One order after another; still a range if they follow on."""
    found = orders[0]
    for order in orders[1:]:
        if not (isinstance(found, range) and isinstance(order, range)):
            break
        if not found.step == order.step == 1 or found.stop != order.start:
            break
        found = range(found.start, order.stop)
    else:
        return found
    return np.concatenate([np.asarray(order, np.int64) for order in orders])


def _check_alike(views: Sequence[ArrayView]) -> None:
    if not views:
        raise SourceError("views are joined from at least one source, got none")
    for k, view in enumerate(views):
        if view.shape[1:] != views[0].shape[1:]:
            raise SourceError(
                f"rows of one view have one shape, got {views[0].shape[1:]} in source 0 and "
                f"{view.shape[1:]} in source {k}; crop or resize one of them"
            )
    try:
        np.result_type(*(view.dtype for view in views))
    except TypeError as error:
        raise SourceError(f"rows of one view have a common dtype, got {error}") from None
