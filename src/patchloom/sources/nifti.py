"""NIfTI-1 and NIfTI-2 in one file: ``.nii`` read in runs of rows, ``.nii.gz`` as one chunk.

After the headers that the NIfTI working group defines (348 and 540 bytes), in either byte order.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError, NotAnArrayError
from patchloom.image import ChunkReader, Image, Ints
from patchloom.location import Location
from patchloom.sources.files import FileSource, Wanted, without_levels
from patchloom.sources.handles import image_of
from patchloom.sources.npy import RawReader, rows_of
from patchloom.sources.whole_files import WholeReader

__all__ = ["open_file", "reader"]

_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
    128: "u1",
    2304: "u1",
}
_COLOURS = {128: 3, 2304: 4}
"""Types that are several bytes a voxel: red, green, blue, and alpha."""
_UNITS = {1: "meter", 2: "millimeter", 3: "micrometer"}
_RATIO = 1032
"""The most that deflate can shrink anything by."""
_HEAD = 64 * 1024
"""Bytes that hold a header, zipped or not."""
_BEYOND = 2**20
"""Bytes behind the array that are inflated to reach the checksum."""


@dataclass(frozen=True)
class _Version:
    """Where a header has its fields."""

    size: int
    magic: tuple[int, bytes]
    dim: tuple[int, str]
    datatype: int
    pixdim: tuple[int, str]
    offset: tuple[int, str]
    scaling: tuple[int, str]
    units: tuple[int, str]
    sform: tuple[int, str]
    rows: tuple[int, str]


_VERSIONS = (
    _Version(
        size=348,
        magic=(344, b"n+1\0"),
        dim=(40, "8h"),
        datatype=70,
        pixdim=(76, "8f"),
        offset=(108, "f"),
        scaling=(112, "2f"),
        units=(123, "B"),
        sform=(254, "h"),
        rows=(280, "12f"),
    ),
    _Version(
        size=540,
        magic=(4, b"n+2\0"),
        dim=(16, "8q"),
        datatype=12,
        pixdim=(104, "8d"),
        offset=(168, "q"),
        scaling=(176, "2d"),
        units=(500, "i"),
        sform=(348, "i"),
        rows=(400, "12d"),
    ),
)


def open_file(location: Location, wanted: Wanted) -> Image:
    """The array of a file, in the order t, z, y, x, channel; its header is read."""
    without_levels(location, wanted)
    zipped = location.shown.lower().endswith(".gz")
    head = location.head(_HEAD)
    if zipped:
        head = _inflated_head(head, location)
    version, order = _version(head, location)

    def field(where: tuple[int, str]) -> tuple[Any, ...]:
        return struct.unpack_from(order + where[1], head, where[0])

    shape, names = _shape(field(version.dim), location)
    code = struct.unpack_from(order + "h", head, version.datatype)[0]
    if code not in _TYPES:
        raise NotAnArrayError(
            f"an image is an array of integers or floats, got NIfTI's data type {code} in "
            f"{location.shown!r}; convert it first"
        )
    if code in _COLOURS:
        if "c" in names:
            raise NotAnArrayError(
                f"an image has one channel axis, but {location.shown!r} has colours and a fifth "
                "dimension; convert it first"
            )
        shape, names = (*shape, _COLOURS[code]), names + "c"
    stored = np.dtype(_TYPES[code]).newbyteorder(">" if order == ">" else "<")
    scale = None if code in _COLOURS else _scale(field(version.scaling), location)
    [begin] = field(version.offset)
    size, offset = location.size(), int(begin) if math.isfinite(begin) else -1
    nbytes = math.prod(shape) * stored.itemsize
    most = size * _RATIO if zipped else size
    if offset < version.size + 4 or 0 <= most < offset + nbytes:
        raise NotAnArrayError(
            f"a NIfTI file holds its header and all of its array, but {location.shown!r} has "
            f"{size:,} bytes for shape {shape} of {stored} from byte {begin:g}; copy it again"
        )
    layout: dict[str, Any] = {
        "offset": offset,
        "dtype": stored.str,
        "shape": list(shape),
        "order": "C",
        "chunks": list(shape if zipped else rows_of(shape, stored.itemsize)),
        "zipped": zipped,
        "scale": scale,
        # The file, what inflates out of it, and that in double precision.
        "held": max(0, size) + nbytes + 8 * math.prod(shape) * (scale is not None) if zipped else 0,
    }
    axes = wanted.axes_for(names, len(shape), location.shown)
    image = image_of(
        name=wanted.name,
        uri=location.shown,
        axes=axes,
        shape=shape,
        dtype=_pixel_type(layout),
        chunks=layout["chunks"],
        source=FileSource(location, "nifti", layout),
    )
    sizes = _spacing(field(version.pixdim), field(version.sform)[0], field(version.rows))
    spacing = {a: sizes[a] for a in axes.spatial if a in sizes and a in names}
    unit = _UNITS.get(field(version.units)[0] & 7)
    return replace(image, spacing=spacing, unit=dict.fromkeys(spacing, unit) if unit else {})


def reader(source: FileSource) -> ChunkReader:
    """Reads runs of rows, or inflates the whole file; scales where the header says so."""
    return _Reader(source)


class _Reader:
    """Stored numbers, put to the line that the header gives."""

    def __init__(self, source: FileSource) -> None:
        layout = source.layout
        self._stored = WholeReader(source, _unzipped) if layout["zipped"] else RawReader(source)
        self._scale, self._dtype = layout["scale"], _pixel_type(layout)
        self.reads = self._stored.reads

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        """Read chunks: int64[n, ndim] indices -> arrays in stored axis order."""
        found = self._stored.read(chunks)
        if self._scale is None:
            return found
        slope, inter = self._scale
        # In double precision, as nibabel does; what one float holds of it is kept.
        return [self._scaled(pixels, slope, inter) for pixels in found]

    def _scaled(self, pixels: npt.NDArray[Any], slope: float, inter: float) -> npt.NDArray[Any]:
        wide = pixels.astype(np.float64)
        wide *= slope
        wide += inter
        return wide.astype(self._dtype, copy=False)


def _unzipped(source: FileSource, data: bytes | memoryview) -> npt.NDArray[Any]:
    layout = source.layout
    dtype = np.dtype(layout["dtype"])
    start = layout["offset"]
    stop = start + math.prod(layout["shape"]) * dtype.itemsize
    try:
        plain = _inflated(data, stop)
        pixels = np.frombuffer(memoryview(plain)[start:stop], dtype)
        pixels = pixels.reshape(layout["shape"])
    except (zlib.error, ValueError) as error:
        raise ChunkError(
            f"a file holds all of its array, but {source.location.shown!r} does not inflate to it: "
            f"{error}; copy it again"
        ) from error
    return pixels.astype(dtype.newbyteorder("="), copy=False)


def _inflated(data: Any, most: int, checked: bool = True) -> bytes:
    """So many bytes of a gzip stream of one or more members, or as many as there are.

    No more is kept. To compare checksums, what comes behind is inflated as far as `_BEYOND`.
    """
    parts: list[bytes] = []
    missing = most
    while missing and len(data):
        member = zlib.decompressobj(31)
        parts.append(member.decompress(data, missing))
        missing -= len(parts[-1])
        if not member.eof:
            # The checksum is behind the last byte.
            behind = member.decompress(member.unconsumed_tail, _BEYOND) if checked else b""
            if checked and not member.eof and len(behind) < _BEYOND:
                raise ValueError("it ends before its checksum")
            break
        data = member.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _inflated_head(head: bytes, location: Location) -> bytes:
    try:
        return _inflated(head, 544, checked=False)
    except zlib.error as error:
        raise NotAnArrayError(
            f"a file called .nii.gz is a gzip stream, but {location.shown!r} is not ({error}); "
            "name it by what it is"
        ) from None


def _version(head: bytes, location: Location) -> tuple[_Version, str]:
    """The version of a header and its byte order."""
    for version in _VERSIONS:
        at, magic = version.magic
        for order in "<>":
            sized = head[:4] == struct.pack(order + "i", version.size)
            if sized and head[at : at + 4] == magic and len(head) >= version.size:
                return version, order
    raise NotAnArrayError(
        f"a NIfTI file begins with a header of NIfTI-1 or NIfTI-2, but {location.shown!r} does "
        "not; of a pair of .hdr and .img, or ANALYZE, make one .nii file"
    )


def _shape(dim: tuple[int, ...], location: Location) -> tuple[tuple[int, ...], str]:
    """Extents and names of the dimensions, the last of which varies fastest."""
    n = dim[0]
    extents = list(dim[1 : n + 1]) if 1 <= n <= 7 else []
    while len(extents) > 3 and extents[-1] == 1:
        extents.pop()
    if not 1 <= len(extents) <= 5 or min(extents) < 1:
        raise NotAnArrayError(
            "a NIfTI image has 1 to 5 dimensions (x, y, z, time, channel) of at least one voxel, "
            f"got {dim[: min(max(n, 0), 7) + 1]} in {location.shown!r}"
        )
    return tuple(reversed(extents)), "xyztc"[: len(extents)][::-1]


def _scale(given: tuple[float, ...], location: Location) -> list[float] | None:
    """Slope and intercept; None if they change nothing or are not set."""
    slope, inter = given
    if slope == 0 or math.isnan(slope) or (slope, inter) == (1, 0):
        return None
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise NotAnArrayError(
            f"a scaling is two finite numbers, got slope {slope} and intercept {inter} in "
            f"{location.shown!r}; mend its header"
        )
    return [slope, inter]


def _pixel_type(layout: Mapping[str, Any]) -> np.dtype[Any]:
    """What is read: as stored, or floats if the header scales."""
    stored: np.dtype[Any] = np.dtype(layout["dtype"]).newbyteorder("=")
    if layout["scale"] is None:
        return stored
    return np.dtype("f8" if stored == np.float64 else "f4")


def _spacing(pixdim: tuple[float, ...], sform: int, rows: tuple[float, ...]) -> dict[str, float]:
    """Extent of a voxel on each axis: lengths of the affine's columns, else what pixdim says."""
    if sform > 0:
        sizes = np.linalg.norm(np.array(rows, np.float64).reshape(3, 4)[:, :3], axis=0)
    else:
        sizes = np.abs(np.array(pixdim[1:4], np.float64))
    good = np.isfinite(sizes) & (sizes > 0)
    return {a: float(v) for a, v, fine in zip("xyz", sizes, good, strict=True) if fine}
