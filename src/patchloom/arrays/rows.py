"""Rows: the first axis of anything sliceable, read in few requests."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from patchloom.arrays.indexing import Need
from patchloom.errors import NotAnArrayError, PatchloomError, SourceChangedError
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Image

__all__ = ["TOGETHER", "Read", "Rows", "rows_of"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
Read = Callable[[Ints, Sequence[Need]], Pixels]
"""From rows that ascend without repeats, and what is needed of the other axes, to their product."""

TOGETHER = 64 * 2**20
"""Bytes of decoded chunks that are asked for together."""
_GAP = 64 * 2**10
"""Bytes between two rows that are rather read than asked for apart."""


class Rows(Protocol):
    """One source of rows. Holds no open file of its own."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, and the extents of one."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """In native byte order."""

    @property
    def step(self) -> int:
        """Rows that are decoded together."""

    @property
    def unit(self) -> int:
        """Rows of a stored object: a multiple of `step`."""

    def open(self) -> Read:
        """What reads; it may remember what it learned of the store, so it serves one call."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A NumPy array or a memory map."""

    array: Pixels = field(repr=False)
    step: int = 1
    unit: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return self.array.dtype.newbyteorder("=")

    def open(self) -> Read:
        """Rows are copied from where they are."""
        return lambda rows, rest: taken(self.array, (rows, *rest))


@dataclass(frozen=True, eq=False)
class Sliced:
    """Whatever answers ``source[start:stop]``: an HDF5 dataset, a Dask array, a class of yours."""

    source: Any = field(repr=False)
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    step: int = 1
    unit: int = 1
    gap: int = 0
    """Pieces of `step` rows between two others that are rather read than asked for apart."""

    def open(self) -> Read:
        """One slice for each stretch of rows that lie in one chunk, or close together."""
        return self._read

    def _read(self, rows: Ints, rest: Sequence[Need]) -> Pixels:
        out = np.empty((len(rows), *map(len, rest)), self.dtype)
        bounds = [slice(int(need[0]), int(need[-1]) + 1) for need in rest]
        inner = [_moved(need, -int(need[0])) for need in rest]
        whole = all(b == slice(0, n) for b, n in zip(bounds, self.shape[1:], strict=True))
        cuts = np.flatnonzero(np.diff(rows // self.step) > 1 + self.gap) + 1
        for a, b in pairwise([0, *cuts.tolist(), len(rows)]):
            first, last = int(rows[a]), int(rows[b - 1])
            where = slice(first, last + 1)
            found = np.asarray(self.source[where] if whole else self.source[(where, *bounds)])
            out[a:b] = taken(found, (rows[a:b] - first, *inner))
        return out


@dataclass(frozen=True, eq=False)
class Chunked:
    """Chunks that a reader of ours decodes: requests go together, ranges of a shard are joined."""

    reader: Callable[[], ChunkReader] = field(repr=False)
    grid: ChunkGrid
    dtype: np.dtype[Any]
    unit: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.grid.shape

    @property
    def step(self) -> int:
        """Rows of a chunk."""
        return self.grid.chunks[0]

    def open(self) -> Read:
        """A reader that remembers the indices of shards."""
        reader = self.reader()
        return lambda rows, rest: self._read(reader, rows, rest)

    def _read(self, reader: ChunkReader, rows: Ints, rest: Sequence[Need]) -> Pixels:
        columns = [rows, *(np.asarray(need, np.int64) for need in rest)]
        out = np.empty([len(c) for c in columns], self.dtype)
        # On each axis: which chunks, and of each the first of its positions.
        axes = [
            np.unique(c // k, return_index=True)
            for c, k in zip(columns, self.grid.chunks, strict=True)
        ]
        counts = [len(chunks) for chunks, _ in axes]
        ends = [[*first.tolist(), len(c)] for (_, first), c in zip(axes, columns, strict=True)]
        together = max(1, TOGETHER // (math.prod(self.grid.chunks) * self.dtype.itemsize))
        for begin in range(0, math.prod(counts), together):
            flat = np.arange(begin, min(begin + together, math.prod(counts)))
            places = np.stack(np.unravel_index(flat, counts), -1)
            chunks = np.stack([axes[k][0][places[:, k]] for k in range(len(axes))], -1)
            each: Callable[[Ints], Iterable[Pixels]] = getattr(reader, "each", reader.read)
            for place, chunk, pixels in zip(
                places.tolist(), chunks.tolist(), each(chunks), strict=True
            ):
                into = tuple(slice(e[i], e[i + 1]) for e, i in zip(ends, place, strict=True))
                inside = [
                    column[s] - i * k
                    for column, s, i, k in zip(columns, into, chunk, self.grid.chunks, strict=True)
                ]
                out[into] = taken(pixels, inside)
        return out


def rows_of(source: Any) -> Rows:
    """What reads the rows of a source.

    Parameters
    ----------
    source
        An `Image`, a zarr array, an HDF5 dataset, a NumPy array or memory map, or anything with
        ``shape``, ``dtype`` and slices. Its first axis are the rows.

    Raises
    ------
    NotAnArrayError
        If it is nothing of that kind.
    """
    if isinstance(source, Image):
        shards = source.shards or source.grid.chunks
        return Chunked(source.source.reader, source.grid, source.dtype, shards[0])
    shape = getattr(source, "shape", None)
    if (
        shape is None
        or getattr(source, "dtype", None) is None
        or not hasattr(source, "__getitem__")
    ):
        raise NotAnArrayError(
            "a view is over something with shape, dtype and slices, got "
            f"{type(source).__name__}; open a path first (zarr.open_array, "
            "patchloom.open_images), make an array of a list, and take store.view() of a PatchStore"
        )
    shape = tuple(int(n) for n in shape)
    if not shape:
        raise NotAnArrayError("a view has rows, but this array has no axes; reshape it to (1,)")
    if isinstance(source, np.ndarray):
        return InMemory(source)
    dtype = np.dtype(source.dtype).newbyteorder("=")
    if "zarr" in sys.modules and isinstance(source, sys.modules["zarr"].Array):
        unit = (source.shards or source.chunks)[0]
        if dtype.kind in "biuf" and dtype.itemsize <= 8 and (read := _direct(source)) is not None:
            return Chunked(read, ChunkGrid(shape, tuple(source.chunks)), dtype, unit)
        return Sliced(source, shape, dtype, source.chunks[0], unit)
    chunks = getattr(source, "chunks", None)
    # HDF5 says one number an axis, or None; Dask all of them.
    if chunks:
        step = int(np.max(chunks[0], initial=1))
        return Sliced(source, shape, dtype, step, step)
    row_bytes = max(1, math.prod(shape[1:]) * dtype.itemsize)
    return Sliced(source, shape, dtype, gap=_GAP // row_bytes)


def taken(pixels: Pixels, where: Sequence[Need]) -> Pixels:
    """The product of some positions on each axis, which ascend: a view where slices do.

    >>> taken(np.arange(12).reshape(3, 4), (range(0, 3, 2), np.array([0, 1, 3]))).tolist()
    [[0, 1, 3], [8, 9, 11]]
    """
    slices = [_as_slice(need) for need in where]
    found = pixels[tuple(slice(None) if s is None else s for s in slices)]
    for axis, (s, need) in enumerate(zip(slices, where, strict=True)):
        if s is None:
            found = found.take(np.asarray(need), axis)
    return found


def _as_slice(need: Need) -> slice | None:
    if isinstance(need, range):
        return slice(need.start, need.stop, need.step)
    if len(need) and int(need[-1]) - int(need[0]) + 1 == len(need):
        return slice(int(need[0]), int(need[-1]) + 1)
    return None


def _moved(need: Need, by: int) -> Need:
    if isinstance(need, range):
        return range(need.start + by, need.stop + by, need.step)
    return need + by


@dataclass(frozen=True, eq=False)
class _ZarrReader:
    """A fresh reader of a zarr array, by what its metadata say now: it may have grown."""

    location: Any
    grid: ChunkGrid

    def __call__(self) -> ChunkReader:
        from patchloom.sources.chunks import reader_for
        from patchloom.sources.zarrs import open_node

        metadata = open_node(self.location).array
        then, chunks = self.grid.shape, self.grid.chunks
        now = () if metadata is None else tuple(metadata.document["shape"])
        same = metadata is not None and metadata.chunks == chunks and now[1:] == then[1:]
        if metadata is None or not same or now[0] < then[0]:
            raise SourceChangedError(
                f"an array may grow while a view is over it, but {self.location.shown!r} was "
                f"of shape {then} in chunks of {chunks} and is of shape {now} now; make the view "
                "anew"
            )
        return reader_for(self.location, metadata)


def _direct(array: Any) -> Callable[[], ChunkReader] | None:
    """A reader of ours for a zarr array on a disk or behind fsspec; None for other stores."""
    from zarr.storage import FsspecStore, LocalStore

    from patchloom.location import Location

    store = array.store
    if isinstance(store, LocalStore):
        location = Location.of(str(store.root))
    elif isinstance(store, FsspecStore):
        fs = getattr(store.fs, "sync_fs", store.fs)
        options = {k: v for k, v in fs.storage_options.items() if k != "asynchronous"}
        location = Location.of(fs.unstrip_protocol(store.path), options)
    else:
        return None
    location = location / array.path if array.path else location
    reader = _ZarrReader(location, ChunkGrid(tuple(array.shape), tuple(array.chunks)))
    # Whatever it is that cannot be read so (a chain of file systems, a codec), zarr may know.
    with contextlib.suppress(PatchloomError):
        reader()
        return reader
    return None
