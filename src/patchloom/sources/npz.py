"""NumPy's archives (``.npz``): one array of several, stored as it is or deflated as a whole."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError, NotAnArrayError, PatchloomError, SourceError
from patchloom.image import ChunkReader, Image, Reads
from patchloom.location import Location
from patchloom.sources.arrays import check_numeric
from patchloom.sources.block_file import BlockFile
from patchloom.sources.fetching import Fetching
from patchloom.sources.files import FileSource, Wanted
from patchloom.sources.handles import image_of
from patchloom.sources.npy import RawReader, header_of, rows_of
from patchloom.sources.whole_files import WholeReader

__all__ = ["open_file", "reader"]

_LOCAL = struct.Struct("<4s22xHH")
"""Mark, length of the name and of what follows it, in front of a member's bytes."""


def open_file(location: Location, wanted: Wanted) -> Image:
    """The array that is asked for, else the only one; its header is read."""
    if wanted.level != 0:
        raise SourceError(f"{location.shown!r} has no levels, got level={wanted.level!r}")
    file = BlockFile(Fetching(location, Reads(), None, in_parts=True), location.size())
    try:
        with zipfile.ZipFile(file) as archive:
            member = _chosen(archive, location, wanted.inside)
            what = f"{location.shown}::{member.filename.removesuffix('.npy')}"
            if member.flag_bits & 1 or member.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise NotAnArrayError(
                    f"an array in an archive is stored or deflated, not encrypted, but {what!r} "
                    "is not; save it again with numpy.savez"
                )
            with archive.open(member) as opened:

                def first(n: int) -> bytes:
                    opened.seek(0)
                    return opened.read(n)

                header, begin = header_of(first, what)
            file.seek(member.header_offset)
            _, name, extra = _LOCAL.unpack(file.read(_LOCAL.size) or b"")
    except PatchloomError:
        raise
    except Exception as error:  # zipfile raises many kinds
        raise NotAnArrayError(
            f"a .npz file is a ZIP archive that can be read, but {location.shown!r} is not: "
            f"{location.describe(error)}; copy it again"
        ) from error
    start = member.header_offset + _LOCAL.size + name + extra
    stored = check_numeric(header["descr"], repr(what))
    shape = tuple(header["shape"])
    nbytes = begin + math.prod(shape) * stored.itemsize
    deflated = member.compress_type == zipfile.ZIP_DEFLATED
    held = member.compress_size * 1032 if deflated else member.compress_size
    size = location.size()
    if nbytes > member.file_size or nbytes > held or start + member.compress_size > size:
        raise NotAnArrayError(
            f"an archive holds all of its arrays, but {what!r} has {member.file_size:,} bytes for "
            f"shape {shape} of {stored}; copy it again"
        )
    order = "F" if header["fortran_order"] else "C"
    layout = {
        "inside": member.filename,
        "dtype": header["descr"].str,
        "shape": list(shape),
        "order": order,
        "offset": begin if deflated else start + begin,
        "chunks": list(shape if deflated else rows_of(shape, stored.itemsize, order)),
        "deflated": [start, start + member.compress_size, member.CRC] if deflated else None,
        # What is inflated, and what it inflates to.
        "held": member.compress_size + nbytes if deflated else 0,
    }
    return image_of(
        name=wanted.name,
        uri=what if wanted.inside else location.shown,
        axes=wanted.axes_for("", len(shape), what),
        shape=shape,
        dtype=stored,
        chunks=layout["chunks"],
        source=FileSource(location, "npz", layout),
    )


def reader(source: FileSource) -> ChunkReader:
    """Reads runs of rows, or inflates the whole array."""
    deflated = source.layout["deflated"]
    if deflated is None:
        return RawReader(source)
    return WholeReader(source, _inflated, (deflated[0], deflated[1]))


def _chosen(archive: zipfile.ZipFile, location: Location, inside: str | None) -> zipfile.ZipInfo:
    """The member that is meant, with or without ``.npy``."""
    members = {
        info.filename.removesuffix(".npy"): info
        for info in archive.infolist()
        if info.filename.endswith(".npy")
    }
    name = None if inside is None else inside.strip("/").removesuffix(".npy")
    if name is None and len(members) == 1:
        [name] = members
    if name not in members:
        asked = "one array" if inside is None else f"the array {inside!r}"
        raise NotAnArrayError(
            f"an image is one array, but {location.shown!r} holds {sorted(members)[:20]}, asked "
            f"for {asked}; name one: container::path/inside"
        )
    return members[name]


def _inflated(source: FileSource, data: bytes | memoryview) -> npt.NDArray[Any]:
    layout = source.layout
    dtype = np.dtype(layout["dtype"])
    begin = layout["offset"]
    end = begin + math.prod(layout["shape"]) * dtype.itemsize
    try:
        plain = zlib.decompressobj(-15).decompress(data, end + 1)
        if len(plain) != end or zlib.crc32(plain) != layout["deflated"][2]:
            raise ValueError("its length or checksum is another one")
        pixels = np.frombuffer(plain, dtype, offset=begin)
        pixels = pixels.reshape(layout["shape"], order=layout["order"])
    except (zlib.error, ValueError) as error:
        raise ChunkError(
            f"an archive holds all of its arrays, but {layout['inside']!r} of "
            f"{source.location.shown} does not inflate to what it says: {error}; copy it again"
        ) from error
    return pixels.astype(dtype.newbyteorder("="), copy=False)
