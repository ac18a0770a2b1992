"""NumPy's own files (``.npy``): one array, uncompressed, read in runs of rows.

After the format description in NumPy's documentation (``numpy.lib.format``), versions 1 to 3.
Arrays of objects, which are pickles, are refused.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError, NotAnArrayError
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Image, Ints, Reads
from patchloom.location import Location
from patchloom.sources.arrays import check_numeric
from patchloom.sources.files import FileSource, Wanted, without_levels
from patchloom.sources.handles import image_of

__all__ = ["RawReader", "header_of", "open_file", "reader", "rows_of"]

_HEAD = 4096
"""Bytes that hold the header of nearly every file."""
_TARGET = 2**20
"""Bytes of a run of rows, about."""


def open_file(location: Location, wanted: Wanted) -> Image:
    """The array of a file; its header is read."""
    without_levels(location, wanted)
    header, offset = header_of(location.head, location.shown)
    stored = check_numeric(header["descr"], repr(location.shown))
    shape = tuple(header["shape"])
    order = "F" if header["fortran_order"] else "C"
    size = location.size()
    if 0 <= size < offset + math.prod(shape) * stored.itemsize:
        raise NotAnArrayError(
            f"a .npy file holds all of its array, but {location.shown!r} has {size:,} bytes for "
            f"shape {shape} of {stored}; copy it again"
        )
    layout = {
        "offset": offset,
        "dtype": np.dtype(header["descr"]).str,
        "shape": list(shape),
        "order": order,
        "chunks": list(rows_of(shape, stored.itemsize, order)),
    }
    return image_of(
        name=wanted.name,
        uri=location.shown,
        axes=wanted.axes_for("", len(shape), location.shown),
        shape=shape,
        dtype=stored,
        chunks=layout["chunks"],
        source=FileSource(location, "npy", layout),
    )


def reader(source: FileSource) -> ChunkReader:
    """Reads runs of rows as ranges of bytes."""
    return RawReader(source)


def rows_of(shape: Sequence[int], itemsize: int, order: str = "C") -> tuple[int, ...]:
    """Chunks of an array without any: about 1 MiB each, and each one range of bytes.

    Parameters
    ----------
    shape
        Extents, in stored axis order.
    itemsize
        Bytes of a pixel.
    order
        ``"C"`` if the last axis varies fastest, ``"F"`` if the first one does.
    """
    chunks = [1] * len(shape)
    room = max(1, _TARGET // itemsize)
    fastest = range(len(shape))
    for axis in reversed(fastest) if order == "C" else fastest:
        chunks[axis] = max(1, min(shape[axis], room))
        if chunks[axis] < shape[axis]:
            break
        room //= max(1, shape[axis])
    return tuple(chunks)


class RawReader:
    """Reads chunks of an uncompressed array in a file: each is one range of bytes.

    The source's layout has ``offset`` (first byte of the array), ``dtype``, ``shape``, ``order``
    and ``chunks``, which are those of `rows_of`.
    """

    def __init__(self, source: FileSource) -> None:
        self.reads = Reads(codecs="file")
        layout = source.layout
        self._fetching = source.fetching(self.reads)
        self._dtype = np.dtype(layout["dtype"])
        self._order = layout["order"]
        self._offset = int(layout["offset"])
        self._grid = ChunkGrid(tuple(layout["shape"]), tuple(layout["chunks"]))
        shape = layout["shape"]
        if self._order == "C":
            steps = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
        else:
            steps = [math.prod(shape[:k]) for k in range(len(shape))]
        self._steps = np.array(steps, np.int64) * self._dtype.itemsize

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        """Read chunks: int64[n, ndim] indices -> arrays in stored axis order."""
        boxes = [self._grid.box(row) for row in np.asarray(chunks).tolist()]
        spans, extents = [], []
        for start, stop in boxes:
            extent = tuple(b - a for a, b in zip(start, stop, strict=True))
            first = self._offset + int(np.dot(start, self._steps))
            spans.append(("", first, first + math.prod(extent) * self._dtype.itemsize))
            extents.append(extent)
        found = []
        for data, extent, span in zip(self._fetching.spans(spans), extents, spans, strict=True):
            self.reads.chunks += 1
            if len(data) != span[2] - span[1]:
                raise ChunkError(
                    f"a file holds all of its array, but {self._fetching.named('')} ends before "
                    f"byte {span[2]:,}; copy it again"
                )
            pixels = np.frombuffer(data, self._dtype).reshape(extent, order=self._order)
            found.append(pixels.astype(self._dtype.newbyteorder("="), copy=False))
        return found


def header_of(first: Callable[[int], bytes], shown: str) -> tuple[dict[str, Any], int]:
    """What a file says of its array, and where that begins.

    Parameters
    ----------
    first
        Gives so many first bytes of the file, or all that it has.
    shown
        What errors call it.

    Raises
    ------
    NotAnArrayError
        If it is no such file, or its header is broken.
    """
    head = first(_HEAD)
    if not head.startswith(b"\x93NUMPY") or len(head) < 12:
        raise NotAnArrayError(
            f"a .npy file begins with NumPy's mark, but {shown!r} does not; name it by what it is"
        )
    wide = 2 if head[6] == 1 else 4
    length = int.from_bytes(head[8 : 8 + wide], "little")
    offset = 8 + wide + length
    if offset > len(head):
        # NumPy itself refuses headers above 10,000 bytes: they are attacks on its parser.
        head = first(min(offset, 2 * _HEAD + 10_000))
    try:
        text = bytes(head[8 + wide : offset]).decode("utf-8" if head[6] > 2 else "latin1")
        header = ast.literal_eval(text)
        dtype = np.dtype(header["descr"])
        shape = [int(n) for n in header["shape"]]
        fortran = bool(header["fortran_order"])
        if len(text) != length or min(shape, default=0) < 0:
            raise ValueError("its header is not whole")
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise NotAnArrayError(
            f"the header of {shown!r} cannot be read: {type(error).__name__}: {error}; "
            "write the file again with numpy.save"
        ) from None
    return {"descr": dtype, "shape": shape, "fortran_order": fortran}, offset
