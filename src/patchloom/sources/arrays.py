"""Images from arrays in memory: NumPy, Dask and xarray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchloom.errors import NotAnArrayError
from patchloom.image import ChunkReader, Image, Ints, Reads

__all__ = ["ArraySource", "is_array", "regular_chunks"]

_TARGET = 16 * 2**20
"""Bytes of a chunk of an array that has none of its own."""


@dataclass(frozen=True)
class ArraySource:
    """An array in memory or behind a Dask graph; Dask hands its chunks to the workers."""

    array: Any = field(repr=False, compare=False)
    chunks: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    """Of the image's grid; None for those that the array tells."""

    @property
    def addressable(self) -> bool:
        """Never: only the graph knows how to make a chunk."""
        return False

    def reader(self) -> ChunkReader:
        """A reader that slices (and computes) one chunk at a time."""
        return _ArrayReader(self.array, self.chunks)

    def without_pixels(self) -> ArraySource:
        """A source that only a graph's blocks can serve."""
        return ArraySource(None)

    def to_document(self) -> dict[str, Any]:
        """Only that it was in memory: pixels are not saved."""
        return {"kind": "array"}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], options: Mapping[str, Any]) -> ArraySource:
        """A source without pixels; a loaded plan needs the images themselves."""
        return cls(None)

    def lazy(self, image: Image) -> Any:
        """The array as Dask, in the image's chunks."""
        import dask.array as da

        if isinstance(self.array, np.ndarray):
            return da.from_array(self.array, chunks=image.grid.chunks)
        return self.array.rechunk(image.grid.chunks)


class _ArrayReader:
    def __init__(self, array: Any, chunks: tuple[int, ...] | None) -> None:
        self.reads = Reads()
        self._array = array
        self._chunks = chunks or regular_chunks(array, ())

    def read(self, chunks: Ints) -> list[Any]:
        found = []
        for row in np.asarray(chunks).tolist():
            where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(row, self._chunks, strict=True))
            part = self._array[where]
            self.reads.chunks += 1
            if hasattr(part, "compute"):
                part = part.compute(scheduler="synchronous")
            pixels = np.asarray(part)
            self.reads.nbytes += pixels.nbytes
            found.append(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))
        return found


def is_array(item: Any) -> bool:
    """Whether something is a NumPy, Dask or xarray array."""
    return all(hasattr(item, name) for name in ("shape", "dtype", "ndim")) and not isinstance(
        item, np.generic
    )


def regular_chunks(array: Any, cover: Sequence[int]) -> tuple[int, ...]:
    """The chunk extents of an array: its own if regular, else the largest on each axis.

    Parameters
    ----------
    array
        NumPy or Dask array.
    cover
        Axes that a chunk of an array without chunks covers wholly.
    """
    own = getattr(array, "chunks", None)
    if own:
        return tuple(max(max(sizes, default=1), 1) for sizes in own)
    shape = array.shape
    extents = [max(1, n) for n in shape]
    itemsize = max(1, np.dtype(array.dtype).itemsize)
    free = [axis for axis in range(len(shape)) if axis not in cover]
    while free and math.prod(extents) * itemsize > _TARGET:
        longest = max(free, key=lambda axis: extents[axis])
        if extents[longest] == 1:
            break
        extents[longest] = -(-extents[longest] // 2)
    return tuple(extents)


def check_numeric(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
    """The dtype in native byte order, if it is a real number or a bool.

    Raises
    ------
    NotAnArrayError
        For strings, objects, complex numbers, times and structures.
    """
    if np.dtype(dtype).kind not in "biuf" or np.dtype(dtype).itemsize > 8:
        raise NotAnArrayError(
            f"an image is an array of integers, floats or bools, got dtype {dtype} in {what}; "
            "convert it first, or name another array"
        )
    return np.dtype(dtype).newbyteorder("=")
