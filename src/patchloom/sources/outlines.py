"""Masks drawn from outlines when they are read: polygons in GeoJSON or tables, and boxes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.axes import Axes
from patchloom.errors import ConfigError, SourceChangedError, SourceError, SourceMissingError
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Image, Ints, Reads
from patchloom.location import Location
from patchloom.mask_config import BoxesMask, PolygonsMask
from patchloom.polygons import Polygons
from patchloom.sources.geojson import LARGEST, matches, polygons_of
from patchloom.sources.lazily import Sliceable
from patchloom.sources.points import read_points
from patchloom.sources.tables import open_table

__all__ = ["OutlineSource", "Outlines", "outlined", "read_outlines", "stored_outlines"]

_CHUNK = 1024
"""Extent of what is drawn at a time."""
_CORNERS = ("y0", "x0", "y1", "x1")


@dataclass(frozen=True)
class Stored:
    """A GeoJSON file and which of its polygons count; workers read it by themselves."""

    location: Location
    where: str
    """As JSON."""
    content: str
    """BLAKE2b of the file, in hex: it may not change."""

    def load(self) -> tuple[Polygons, int]:
        """Its polygons, and the bytes that were read."""
        data = _file(self.location)
        if _content(data) != self.content:
            raise SourceChangedError(
                f"polygons stay as they were when the mask was opened, but "
                f"{self.location.shown!r} was changed; open the images anew"
            )
        where = json.loads(self.where)
        return polygons_of(data, where, repr(self.location.shown)), len(data)


@dataclass(frozen=True)
class OutlineSource:
    """A mask that is covered inside outlines; drawn where and when it is read."""

    shape: tuple[int, int]
    """Extent of the image along y and x."""
    stored: Stored | None
    """Where the outlines are read from; None if they are held."""
    held: Polygons | None = field(repr=False, compare=False)
    content: str
    """Fixed by what is drawn."""
    spacing: tuple[float, float] | None = None
    origin: tuple[float, float] | None = None
    """Of the pixels, if the outlines are in physical units."""

    @property
    def addressable(self) -> bool:
        """Always: a worker draws it by itself."""
        return True

    def polygons(self) -> tuple[Polygons, int]:
        """The outlines in pixels, and the bytes that were read for them."""
        if self.stored is not None:
            found, nbytes = self.stored.load()
        else:
            assert self.held is not None
            found, nbytes = self.held, 0
        if self.spacing is not None and self.origin is not None:
            found = found.in_pixels(self.spacing, self.origin)
        return found, nbytes

    def reader(self) -> ChunkReader:
        """A reader that draws; it counts what it reads of a stored file."""
        return _OutlineReader(self)

    def without_pixels(self) -> OutlineSource:
        """Itself: it holds none."""
        return self

    def identity(self) -> dict[str, Any]:
        """What is drawn, and where."""
        return {"outlines": self.content, "spacing": self.spacing, "origin": self.origin}

    def to_document(self) -> dict[str, Any]:
        """The shown URL, or the outlines themselves."""
        stored, held = self.stored, self.held
        return {
            "kind": "outlines",
            "shape": list(self.shape),
            "content": self.content,
            "spacing": self.spacing,
            "origin": self.origin,
            "stored": None
            if stored is None
            else {"url": stored.location.shown, "where": stored.where, "content": stored.content},
            "held": None if held is None else held.to_document(),
        }

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], options: Mapping[str, Any]
    ) -> OutlineSource:
        """Inverse of `to_document`; it may have what is held as it is, shared by several."""
        stored, held = document["stored"], document["held"]
        return cls(
            shape=(document["shape"][0], document["shape"][1]),
            stored=None
            if stored is None
            else Stored(Location.of(stored["url"], options), stored["where"], stored["content"]),
            held=Polygons.from_document(held) if isinstance(held, Mapping) else held,
            content=document["content"],
            spacing=_pair(document["spacing"]),
            origin=_pair(document["origin"]),
        )

    def lazy(self, image: Image) -> Any:
        """The mask as Dask; each task draws its chunk."""
        import dask.array as da

        return da.from_array(
            Sliceable(image), chunks=image.grid.chunks, inline_array=True, fancy=False
        )


class _OutlineReader:
    def __init__(self, source: OutlineSource) -> None:
        self.reads = Reads()
        self._grid = _grid(source.shape)
        self._source = source

    def read(self, chunks: Ints) -> list[npt.NDArray[Any]]:
        known = _loaded.cache_info().misses
        polygons, nbytes = (
            self._source.polygons() if self._source.stored is None else _loaded(self._source)
        )
        if _loaded.cache_info().misses > known:
            self.reads.requests += 1
            self.reads.nbytes += nbytes
        return [polygons.rasterize(*self._grid.box(row)) for row in np.asarray(chunks).tolist()]


@lru_cache(maxsize=8)
def _loaded(source: OutlineSource) -> tuple[Polygons, int]:
    """What a worker has read: the chunks of a mask follow each other."""
    return source.polygons()


def outlined(image: Image, outlines: Outlines, units: str) -> Image:
    """A mask on an image's pixels that is covered inside outlines; it holds for every z.

    Raises
    ------
    SourceError
        If the image has no plane, or no physical scale where one is needed.
    """
    space = image.axes.spatial
    if space[-2:] != "yx":
        raise SourceError(
            f"outlines lie in a plane of y and x, but {image.id!r} has the spatial axes {space!r}"
        )
    extent = image.layout.space.shape
    spacing = origin = None
    if units == "physical":
        if not all(a in image.spacing for a in "yx"):
            raise SourceError(
                f"outlines in physical units lie on an image with a physical scale, but "
                f"{image.id!r} has none; give them in pixels"
            )
        spacing = (float(image.spacing["y"]), float(image.spacing["x"]))
        origin = (float(image.origin.get("y", 0.0)), float(image.origin.get("x", 0.0)))
    shape = (extent[-2], extent[-1])
    return Image(
        id=image.id,
        uri="" if outlines.stored is None else outlines.stored.location.shown,
        axes=Axes("yx"),
        shape=shape,
        dtype=np.dtype(np.bool_),
        grid=_grid(shape),
        source=OutlineSource(
            shape, outlines.stored, outlines.held, outlines.content, spacing, origin
        ),
        level=image.level,
    )


@dataclass(frozen=True)
class Outlines:
    """The outlines of one image: stored in a file of theirs, or held."""

    n: int
    stored: Stored | None
    held: Polygons | None
    content: str


def stored_outlines(location: Location, where: Mapping[str, Any] | None) -> Outlines:
    """The polygons of a GeoJSON file. It is read, and not kept.

    Raises
    ------
    SourceMissingError
        If there is no such file.
    SourceError, ConfigError
        If it is no GeoJSON, or its polygons have no such property.
    """
    data = _file(location)
    found = polygons_of(data, where, repr(location.shown))
    stored = Stored(location, json.dumps(where, sort_keys=True), _content(data))
    return Outlines(len(found), stored, None, found.digest())


def held_outlines(polygons: Polygons) -> Outlines:
    """Outlines that travel and are saved with the image.

    Raises
    ------
    SourceError
        If a coordinate is too large to be computed with.
    """
    if not (np.abs(polygons.vertex) < LARGEST).all():
        raise SourceError(f"coordinates of outlines are numbers below {LARGEST:g}, got larger ones")
    return Outlines(len(polygons), None, polygons, polygons.digest())


def read_outlines(
    table: Any, config: PolygonsMask | BoxesMask, options: Mapping[str, Any]
) -> Callable[[str], Outlines]:
    """The outlines of a table, by image id: read once.

    Returns
    -------
    callable
        Image id -> its outlines; those of a table without ``image_id`` hold for every image.

    Raises
    ------
    SourceError, ConfigError
        If columns are missing or hold something else.
    """
    boxes = isinstance(config, BoxesMask)
    names = open_table(table, None, "image_id", options).names
    needed = [*(_CORNERS if boxes else ("polygon_id", "y", "x")), *(config.where or {})]
    missing = [name for name in needed if name not in names]
    if missing:
        what = "boxes" if boxes else "polygons"
        raise ConfigError(
            f"a table of {what} has the columns {needed}, but {missing} are missing; there are "
            f"{list(names[:20])}; rename them"
        )
    points = read_points(
        table,
        image="image_id" if "image_id" in names else None,
        axes={"y": "y0", "x": "x0"} if boxes else "yx",
        columns=list(dict.fromkeys([*needed[2:], *needed[:1]])),
        storage_options=options,
    )
    keep = np.ones(len(points), np.bool_)
    for name, wanted in (config.where or {}).items():
        values = points.columns[name].to_pylist()
        keep &= np.array([matches(value, wanted) for value in values], np.bool_)
    position = points.position
    other = position
    owner = np.zeros(len(points), np.int64)
    if boxes:
        other = np.stack([_numbers(points.columns[name], name) for name in ("y1", "x1")], -1)
        if (other < position).any():
            raise SourceError(
                "a box ends where it begins or after it (y0 <= y1, x0 <= x1), got some that do not"
            )
    else:
        codes = points.columns["polygon_id"].combine_chunks().dictionary_encode()
        codes = codes.combine_chunks() if hasattr(codes, "chunks") else codes
        if codes.null_count:
            raise SourceError("every vertex has a polygon_id, got some without")
        owner = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    code = points.image
    ids = {name: k for k, name in enumerate(points.images)}
    order = np.argsort(code, kind="stable") if code is not None else np.arange(len(points))
    ends = None if code is None else np.searchsorted(code[order], np.arange(len(ids) + 1))

    def made(mine: Ints) -> Outlines:
        mine = mine[keep[mine]]
        if boxes:
            return held_outlines(Polygons.of_boxes(position[mine], other[mine]))
        return held_outlines(Polygons.of_vertices(position[mine], owner[mine]))

    if ends is None:
        # All images share them.
        shared = made(order)
        return lambda name: shared

    def of(name: str) -> Outlines:
        k = ids.get(name)
        return made(order[:0] if k is None else order[ends[k] : ends[k + 1]])

    return of


def _numbers(column: Any, name: str) -> npt.NDArray[np.float64]:
    try:
        values = column.to_numpy().astype(np.float64)
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if not np.isfinite(values).all():
        raise SourceError(f"corners of boxes are finite numbers, got others in {name!r}")
    return np.asarray(values, np.float64)


def _grid(shape: Sequence[int]) -> ChunkGrid:
    return ChunkGrid(tuple(shape), tuple(min(n, _CHUNK) for n in shape))


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _file(location: Location) -> bytes:
    try:
        data = location.read()
    except SourceError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise SourceMissingError(
            f"polygons must exist and be readable, but {location.shown!r} is not: "
            f"{location.describe(error)}; check the path, the credentials and the network"
        ) from error
    if data is None:
        raise SourceMissingError(
            f"polygons must exist and be readable, but no file was found at {location.shown!r}; "
            "check the path, the credentials and the bucket"
        )
    return data


def _content(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
