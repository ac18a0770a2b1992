"""Opened: readers of the chunks of some arrays, a few at a time, one for each thread that reads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.image import ChunkReader, Image, Ints, Reads

__all__ = ["Opened", "is_in_memory"]

Key = tuple[int, str]
"""Position of an image, and the role of the array."""
_MOST = 64
"""Readers that stay open while nobody reads: they may hold files."""


class Opened:
    """Readers by array: opened when they are first needed, and kept for the next time.

    Parameters
    ----------
    memory
        Bytes of pixels that readers may hold while nobody reads.
    """

    def __init__(self, memory: int) -> None:
        self._memory, self._weights = memory, dict[Key, int]()
        self._lock = threading.Lock()
        self._idle: OrderedDict[tuple[Key, int], ChunkReader] = OrderedDict()
        self._used: list[tuple[Key, ChunkReader]] = []
        self._closed: dict[str, Reads] = {}
        self._number = 0

    @contextmanager
    def reading(self, key: Key, array: Image) -> Iterator[ChunkReader]:
        """A reader of an array that no other thread uses."""
        with self._lock:
            known = next((one for one in self._idle if one[0] == key), None)
            reader = self._idle.pop(known) if known is not None else None
        if reader is None:
            reader = _reader(array)
            self._weights[key] = int(getattr(array.source, "held_bytes", 0))
        entry = key, reader
        with self._lock:
            self._used.append(entry)
        try:
            yield reader
        finally:
            with self._lock:
                self._used.remove(entry)
                self._number += 1
                self._idle[key, self._number] = reader
                while len(self._idle) > _MOST or self._idle_bytes() > self._memory:
                    (gone, _), closed = self._idle.popitem(last=False)
                    self._count(self._closed, gone[1], closed.reads)

    def _idle_bytes(self) -> int:
        return (
            sum(self._weights[key] for key, _ in self._idle) if any(self._weights.values()) else 0
        )

    def reads(self) -> dict[str, Reads]:
        """What was read so far, by role."""
        with self._lock:
            found = {role: reads + Reads() for role, reads in self._closed.items()}
            for key, reader in [*((k, r) for (k, _), r in self._idle.items()), *self._used]:
                self._count(found, key[1], reader.reads)
            return found

    @staticmethod
    def _count(found: dict[str, Reads], role: str, reads: Reads) -> None:
        found[role] = found[role] + reads if role in found else reads + Reads()


def is_in_memory(array: Image) -> bool:
    """Whether its pixels lie in this process already: to hold them costs nothing."""
    return isinstance(getattr(array.source, "array", None), np.ndarray)


def _reader(array: Image) -> ChunkReader:
    if array.source.addressable:
        return array.source.reader()
    return _Blocks(array)


class _Blocks:
    """Chunks of an array in memory, or of one that only Dask can make."""

    def __init__(self, image: Image) -> None:
        here = is_in_memory(image)
        self.reads = Reads(codecs="none" if here else "dask")
        self._grid = image.grid
        self._array: Any = image.source.array if here else image.source.lazy(image)  # type: ignore[attr-defined]

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        """Chunks: int64[n, ndim] indices -> clipped arrays in stored axis order."""
        found = []
        for row in np.asarray(chunks).tolist():
            start, stop = self._grid.box(row)
            part = self._array[tuple(map(slice, start, stop))]
            if hasattr(part, "compute"):
                part = part.compute(scheduler="synchronous")
            pixels = np.asarray(part)
            self.reads.chunks += 1
            self.reads.nbytes += pixels.nbytes
            found.append(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))
        return found
