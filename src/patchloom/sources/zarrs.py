"""Zarr arrays and groups, v2 and v3, read from their metadata documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError, NotAnArrayError, SourceMissingError
from patchloom.image import ChunkReader, Image
from patchloom.location import Location
from patchloom.sources.chunks import ArrayMetadata, bare, reader_for

__all__ = ["Node", "Sliceable", "ZarrSource", "open_node", "reading_since"]

_UNSAFE = ('"pickle"', '"numcodecs.pickle"')
"""Codecs whose data are programs; older versions of numcodecs run them."""


@dataclass(frozen=True)
class Node:
    """A Zarr array or group: where it is and what its metadata say."""

    location: Location
    attributes: Mapping[str, Any] = field(compare=False)
    array: ArrayMetadata | None
    """None for a group."""


@dataclass(frozen=True)
class ZarrSource:
    """An array in a Zarr store. Small: a location and the metadata document."""

    location: Location
    metadata: ArrayMetadata
    since: float | None = field(default=None, compare=False)
    """When the run began that reads it, in seconds since 1970; see `reading_since`."""

    @property
    def addressable(self) -> bool:
        """Always: a worker opens it by itself."""
        return True

    def reader(self) -> ChunkReader:
        """A fresh reader; opening it sends no request."""
        return reader_for(self.location, self.metadata, self.since)

    def without_pixels(self) -> ZarrSource:
        """Itself: it holds none."""
        return self

    def to_document(self) -> dict[str, Any]:
        """The shown URL and the metadata document."""
        return {
            "kind": "zarr",
            "url": self.location.shown,
            "format": self.metadata.format,
            "metadata": self.metadata.document,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], options: Mapping[str, Any]) -> ZarrSource:
        """Inverse of `to_document`."""
        return cls(
            Location.of(document["url"], options),
            ArrayMetadata(int(document["format"]), dict(document["metadata"])),
        )

    def lazy(self, image: Image) -> Any:
        """A Dask array whose chunks are whole stored objects; each task opens by itself."""
        import dask.array as da

        return da.from_array(
            Sliceable(image),
            chunks=image.shards or image.grid.chunks,
            inline_array=True,
            fancy=False,
        )


def reading_since(image: Image, moment: float) -> Image:
    """An image whose objects are refused if they are written after a moment.

    Parameters
    ----------
    image
        With what is cut along with it.
    moment
        In seconds since 1970.
    """
    for name, role in image.roles.items():
        if name != "mask":
            image = image.with_role(name, replace(role, image=reading_since(role.image, moment)))
    if isinstance(image.source, ZarrSource):
        return replace(image, source=replace(image.source, since=moment))
    filled = getattr(image.source, "filled", None)
    if filled is None:
        return image
    # It is made of another image's pixels.
    inner: Image = image.source.image  # type: ignore[attr-defined]
    return replace(image, source=filled(reading_since(inner, moment).source))


@dataclass(frozen=True)
class Sliceable:
    """What Dask needs of an array, answered by `Image.read`."""

    image: Image

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, in stored order."""
        return self.image.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type."""
        return self.image.dtype

    @property
    def ndim(self) -> int:
        """Stored dimensions."""
        return self.image.ndim

    def __dask_tokenize__(self) -> tuple[object, ...]:
        image = self.image
        identity = getattr(image.source, "identity", None)
        made = "" if identity is None else json.dumps(identity(), sort_keys=True)
        return ("patchloom", image.uri, image.id, image.level, image.shape, str(image.dtype), made)

    def __getitem__(self, where: Any) -> npt.NDArray[Any]:
        # Dask merges a user's slices and integers into its own: basic indexing, all axes.
        start: list[int] = []
        stop: list[int] = []
        rest: list[Any] = []
        for item, n in zip(where, self.shape, strict=True):
            inside = range(n)[item]
            if isinstance(inside, int):
                start.append(inside)
                stop.append(inside + 1)
                rest.append(0)
                continue
            low, high = (min(inside), max(inside) + 1) if inside else (0, 0)
            start.append(low)
            stop.append(high)
            rest.append(slice(None, None, inside.step) if inside else slice(0, 0))
        pixels: npt.NDArray[Any] = self.image.read(start, stop)[tuple(rest)]
        return pixels


def open_node(location: Location) -> Node:
    """The Zarr array or group at a location.

    Raises
    ------
    SourceMissingError
        If nothing is there or it may not be read.
    NotAnArrayError
        If what is there is no Zarr node.
    """
    v3 = _document(location, "zarr.json")
    if v3 is not None:
        attributes = v3.get("attributes") or {}
        if v3.get("node_type") == "array":
            return Node(location, attributes, _checked(location, ArrayMetadata(3, bare(v3))))
        return Node(location, attributes, None)
    v2 = _document(location, ".zarray")
    attributes = _document(location, ".zattrs") or {}
    if v2 is not None:
        return Node(location, attributes, _checked(location, ArrayMetadata(2, v2)))
    if attributes or _document(location, ".zgroup") is not None:
        return Node(location, attributes, None)
    fs, path = location.open()
    if not _exists(location, fs, path):
        raise SourceMissingError(
            "what a URL names must exist and be readable, but nothing was found at "
            f"{location.shown!r}; check the path, the credentials and the bucket"
        )
    raise NotAnArrayError(
        f"an image is a Zarr array or OME-Zarr group, but {location.shown!r} has neither zarr.json "
        "nor .zarray nor .zgroup; name the array inside it, or convert it to Zarr"
    )


def _exists(location: Location, fs: Any, path: str) -> bool:
    try:
        return location.ask(lambda: bool(fs.exists(path)))
    except OSError:
        return False


def _document(location: Location, name: str) -> dict[str, Any] | None:
    try:
        data = location.read(name)
    except Exception as error:
        raise SourceMissingError(
            f"what a URL names must exist and be readable, but {location.shown}/{name} is not: "
            f"{location.describe(error)}; check the path, the credentials and the network"
        ) from error
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError as error:
        raise NotAnArrayError(
            f"Zarr metadata are JSON, but {location.shown}/{name} is not ({error})"
        ) from error
    if not isinstance(document, dict):
        raise NotAnArrayError(
            f"Zarr metadata are a JSON object, but {location.shown}/{name} is not"
        )
    return document


def _checked(location: Location, metadata: ArrayMetadata) -> ArrayMetadata:
    if any(name in json.dumps(metadata.document) for name in _UNSAFE):
        raise NotAnArrayError(
            f"reading never runs what is stored, but {location.shown!r} is written with pickle; "
            "write it again with another codec"
        )
    try:
        metadata.parsed()
        chunks = metadata.chunks
    except Exception as error:
        raise NotAnArrayError(
            f"{location.shown!r} is a Zarr array whose metadata cannot be used: "
            f"{location.describe(error)}"
        ) from error
    if any(int(c) < 1 for c in chunks):
        raise ChunkError(f"a chunk extends at least 1 pixel, got {chunks} in {location.shown!r}")
    return metadata
