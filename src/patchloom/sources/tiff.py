"""TIFF and its kin: OME-TIFF, ImageJ stacks, whole-slide pyramids (SVS, NDPI, ...), GeoTIFF.

tifffile says what a file holds: series of pages, with levels. One of them is an image; its chunks
are tiles, strips joined to a handy size, or runs of rows where pixels are stored as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

import numpy as np

from patchloom.axes import Axes
from patchloom.errors import AxesError, NotAnArrayError, SourceError
from patchloom.image import ChunkReader, Image, Reads, Role
from patchloom.location import Location
from patchloom.sources.arrays import check_numeric
from patchloom.sources.fetching import Fetching
from patchloom.sources.files import FileSource, Wanted
from patchloom.sources.handles import image_of
from patchloom.sources.nodata import told_nodata
from patchloom.sources.npy import RawReader, rows_of
from patchloom.sources.roles import align
from patchloom.sources.tiff_pages import PageReader, dimensions_of, opened, shelf_of
from patchloom.sources.tiff_space import Space, space_of

__all__ = ["TiffPyramid", "open_file", "reader"]

_BESIDE = {"thumbnail", "label", "macro", "map", "overview"}
"""What pictures are called that slide scanners store beside the slide, maybe with "image"."""


def open_file(location: Location, wanted: Wanted) -> Image:
    """The image in a file, or one of its levels; its tables are read, no pixel is.

    Raises
    ------
    NotAnArrayError
        If it is no TIFF, is broken, or holds several images and none is named.
    AxesError
        If what its dimensions mean cannot be told.
    SourceError
        If it lacks the level or the image that is named.
    """
    with _opened(location) as (tif, size):
        number = _number(tif.series, wanted.inside, location.shown)
        levels = tif.series[number].levels
        index = wanted.level_of(len(levels), location.shown)
        image = _image(tif, size, location, wanted, number, index)
    pyramid = TiffPyramid(location, number) if index + 1 < len(levels) else None
    return replace(image, pyramid=pyramid)


def reader(source: FileSource) -> ChunkReader:
    """Reads runs of rows as ranges of bytes, or decodes tiles and strips."""
    return RawReader(source) if "offset" in source.layout else PageReader(source)


@dataclass(frozen=True)
class TiffPyramid:
    """Where the levels of an image in a TIFF file are; nothing is read before they are asked."""

    location: Location
    series: int
    """Number of the image in the file."""

    def levels(self, image: Image) -> tuple[Role, ...]:
        """The levels coarser than an opened one, fine to coarse.

        Those that cannot be read, or show another field than their image, are left out.
        """
        found = []
        with _opened(self.location) as (tif, size):
            for index in range(image.level + 1, len(tif.series[self.series].levels)):
                wanted = Wanted(image.id, image.axes.names, index)
                try:
                    other = _image(tif, size, self.location, wanted, self.series, index)
                    found.append(align(image, other, "level"))
                except SourceError:
                    continue
        return tuple(found)

    def to_document(self) -> dict[str, Any]:
        """The shown URL and the number of the image."""
        return {"kind": "tiff", "url": self.location.shown, "series": self.series}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], options: Mapping[str, Any]) -> TiffPyramid:
        """Inverse of `to_document`."""
        return cls(Location.of(document["url"], options), int(document["series"]))


@contextmanager
def _opened(location: Location) -> Iterator[tuple[Any, int]]:
    size = location.size()
    fetching = Fetching(location, Reads(), None, in_parts=True)
    with opened(fetching, size) as tif:
        _check_files(tif, location)
        yield tif, size


def _check_files(tif: Any, location: Location) -> None:
    """Refuse an OME-TIFF whose planes lie in other files: they would be read as zeros."""
    if not tif.is_ome:
        return
    root = ElementTree.fromstring(tif.ome_metadata)
    own = root.get("UUID")
    parts = [e for e in root.iter() if e.tag.rpartition("}")[2] == "UUID"]
    names = sorted({str(e.get("FileName")) for e in parts if own is None or e.text != own})
    if own is None and [name.lower() for name in names] == [tif.filename.lower()]:
        return
    if names:
        raise NotAnArrayError(
            f"an image lies in one file, but the OME-XML of {location.shown!r} says that planes of "
            f"it are in {names[:5]}; open these files one by one (without their OME-XML), or "
            "convert them to one OME-TIFF or OME-Zarr"
        )


def _number(series: Sequence[Any], inside: str | None, shown: str) -> int:
    """Which of the images in a file is opened."""
    if not series:
        raise NotAnArrayError(f"{shown!r} is a TIFF file without an image; copy it again")
    if inside is not None:
        name = inside.strip("/")
        chosen = [k for k, one in enumerate(series) if name in (str(k), one.name)]
        if len(chosen) == 1:
            return chosen[0]
        raise SourceError(
            f"an image in a TIFF file is named by its number or its name, got {inside!r}; "
            f"{shown!r} holds {_listed(series)}"
        )
    chosen = [k for k, one in enumerate(series) if not _is_beside(one)]
    chosen = chosen or list(range(len(series)))
    if len(chosen) == 1:
        return chosen[0]
    raise NotAnArrayError(
        f"an image is one array, but {shown!r} holds several images: {_listed(series)}; name one "
        f"of them by its number: {shown}::{chosen[0] if chosen else 0}"
    )


def _is_beside(series: Any) -> bool:
    """Whether pages belong to another image: a mask, a thumbnail, a label."""
    page = series.keyframe
    name = series.name.lower().removesuffix(" image")
    return bool(page.is_mask or page.is_reduced or page.is_subifd or name in _BESIDE)


def _listed(series: Sequence[Any]) -> str:
    shown = [
        f"{k}: {one.name or one.kind or 'pages'} {one.axes} {one.shape} {one.dtype}"
        for k, one in enumerate(series[:20])
    ]
    return "; ".join(shown) + ("; ..." if len(series) > 20 else "") or "none"


def _image(
    tif: Any, size: int, location: Location, wanted: Wanted, number: int, index: int
) -> Image:
    """The image that one level of a series is."""
    shown = location.shown
    whole = tif.series[number]
    series = whole.levels[index]
    if series.is_multifile:
        raise NotAnArrayError(
            f"an image lies in one file, but planes of that in {shown!r} are in several; convert "
            "them to one OME-TIFF or OME-Zarr"
        )
    if series.keyframe.dtype is None:
        raise NotAnArrayError(
            f"pixels are integers or floats of usual sizes, but {shown!r} has "
            f"{series.keyframe.bitspersample} bits of sample format {series.keyframe.sampleformat}"
            "; convert it first"
        )
    dtype = check_numeric(series.dtype, repr(shown))
    letters, layout = _raw(tif, series, number, size, shown) or _tiled(series, number, index, shown)
    axes = _axes(letters, len(layout["shape"]), wanted, shown)
    space = space_of(tif, whole, number)
    image = image_of(
        name=wanted.name,
        uri=shown if wanted.inside is None else f"{shown}::{wanted.inside}",
        axes=axes,
        shape=layout["shape"],
        dtype=dtype,
        chunks=layout["chunks"],
        source=FileSource(location, "tiff", layout),
        level=index,
        channels=space.channels,
        nodata=told_nodata({"_FillValue": _declared(series.keyframe)}, dtype),
    )
    return _placed(image, space, letters, whole)


def _raw(
    tif: Any, series: Any, number: int, size: int, shown: str
) -> tuple[str, dict[str, Any]] | None:
    """Axes and layout of pixels that are stored as they are, one after another; else None."""
    offset = series.dataoffset
    if not offset or series.transform is not None or not series.keyframe.databytecounts[0]:
        return None
    pairs = [(letter, n) for letter, n in dimensions_of(series) if n != 1 or letter in "YX"]
    shape = tuple(n for _, n in pairs)
    dtype = np.dtype(series.dtype).newbyteorder(tif.byteorder)
    if size < offset + math.prod(shape) * dtype.itemsize:
        raise NotAnArrayError(
            f"a TIFF file holds all of its pixels, but {shown!r} has {size:,} bytes for shape "
            f"{shape} of {dtype.name} from byte {offset:,} on; copy it again"
        )
    return "".join(letter for letter, _ in pairs), {
        "series": number,
        "offset": int(offset),
        "dtype": dtype.str,
        "shape": list(shape),
        "order": "C",
        "chunks": list(rows_of(shape, dtype.itemsize)),
    }


def _tiled(series: Any, number: int, index: int, shown: str) -> tuple[str, dict[str, Any]]:
    """Axes and layout of pixels in tiles or strips."""
    shelf = shelf_of(series, repr(shown))
    return shelf.axes, {
        "series": number,
        "level": index,
        "shape": list(shelf.shape),
        "chunks": list(shelf.chunks),
        "dtype": shelf.dtype.str,
    }


def _axes(letters: str, ndim: int, wanted: Wanted, shown: str) -> Axes:
    """The axes of an image: as given, else by tifffile's letters.

    Samples of a pixel (S) are channels. Pages that nobody says the meaning of (I, Q) are z, as
    the first dimension of a NumPy array is.
    """
    named = letters.lower()
    if "c" in named and "s" in named and wanted.axes is None:
        swapped = letters.translate({ord("C"): "S", ord("S"): "C"})
        raise AxesError(
            f"an image has one channel axis, but {shown!r} has channels (C) and colours of each "
            f"pixel (S): {letters}; take one of them for samples, axes={swapped!r}"
        )
    named = named.replace("s", "c")
    unknown = [a for a in named if a in "iq"]
    if len(unknown) == ndim - 2 and named.endswith("yx"):
        named = ""  # as an array that does not name them
    elif len(unknown) == 1 and "z" not in named and wanted.role_of is None:
        named = named.replace(unknown[0], "z")
    elif not set(named) <= set("tczyx") and wanted.axes is None:
        raise AxesError(
            f"axes are t, c, z, y, x, but {shown!r} has the dimensions {letters}; name each of "
            "them yourself, s for samples: axes='SZYX'"
        )
    return wanted.axes_for(named, ndim, shown)


def _declared(page: Any) -> Any:
    """The nodata value that GDAL wrote, as a number or ``"nan"``; None if there is none."""
    text = str(page.tags.valueof(42113) or "").strip().rstrip("\0").replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return None
    return "nan" if math.isnan(value) else value


def _placed(image: Image, space: Space, letters: str, whole: Any) -> Image:
    """An image with its physical scale: that of the finest level, by the ratio of the shapes."""
    base = dict(dimensions_of(whole))
    ratio = {
        a: base.get(letter, n) / n
        for a, letter, n in zip(image.axes.names, letters, image.shape, strict=True)
    }
    spacing, origin = {}, {}
    for a in image.axes.spatial:
        if a in space.spacing:
            spacing[a] = space.spacing[a] * ratio[a]
        if a in space.origin:
            origin[a] = space.origin[a] + (spacing[a] - space.spacing[a]) / 2
    return replace(
        image,
        spacing=spacing,
        origin=origin,
        unit={a: unit for a, unit in space.unit.items() if a in spacing},
    )
