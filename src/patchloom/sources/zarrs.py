"""Zarr arrays and groups, v2 and v3, read from their metadata documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from patchloom.errors import ChunkError, NotAnArrayError, SourceMissingError
from patchloom.image import ChunkReader, Image
from patchloom.location import Location
from patchloom.sources.chunks import ArrayMetadata, bare, reader_for
from patchloom.sources.lazily import Sliceable

__all__ = ["Node", "ZarrSource", "open_node", "open_nodes"]

_UNSAFE = ('"pickle"', '"numcodecs.pickle"')
"""Codecs whose data are programs; older versions of numcodecs run them."""


@dataclass(frozen=True)
class Node:
    """A Zarr array or group: where it is and what its metadata say."""

    location: Location
    attributes: Mapping[str, Any] = field(compare=False)
    array: ArrayMetadata | None
    """None for a group."""
    format: int = 3
    """The version of the Zarr format: 2 or 3."""


@dataclass(frozen=True)
class ZarrSource:
    """An array in a Zarr store. Small: a location and the metadata document."""

    location: Location
    metadata: ArrayMetadata
    since: float | None = field(default=None, compare=False)
    """When the run began that reads it, in seconds since 1970; see `reading_since`."""
    inside: str | None = field(default=None, compare=False)
    """Path in its container, where the image is called like the container."""

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

    def identity(self) -> dict[str, Any]:
        """Which of the arrays of a container it is."""
        return {} if self.inside is None else {"inside": self.inside}

    def to_document(self) -> dict[str, Any]:
        """The shown URL and the metadata document."""
        return {
            "kind": "zarr",
            "url": self.location.shown,
            "format": self.metadata.format,
            "metadata": self.metadata.document,
            **self.identity(),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], options: Mapping[str, Any]) -> ZarrSource:
        """Inverse of `to_document`."""
        return cls(
            Location.of(document["url"], options),
            ArrayMetadata(int(document["format"]), dict(document["metadata"])),
            inside=document.get("inside"),
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


def open_node(location: Location) -> Node:
    """The Zarr array or group at a location.

    Raises
    ------
    SourceMissingError
        If nothing is there or it may not be read.
    NotAnArrayError
        If what is there is no Zarr node.
    """
    [found] = open_nodes(location, [""])
    if found is not None:
        return found
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


def open_nodes(root: Location, paths: Sequence[str], like: int = 3) -> list[Node | None]:
    """Several Zarr nodes below a location, asked for together; None where none is.

    What stands at each node counts; consolidated metadata, which may be old, are not asked.

    Parameters
    ----------
    root
        Where they lie.
    paths
        The path of each below it; ``""`` is the location itself.
    like
        The Zarr format that they probably have, which is asked for first.

    Raises
    ------
    SourceMissingError
        If one may not be read.
    NotAnArrayError
        If metadata cannot be used.
    """
    found: list[Node | None] = [None] * len(paths)
    for version in (3, 2) if like == 3 else (2, 3):
        left = [k for k, node in enumerate(found) if node is None]
        if not left:
            break
        make = _nodes_v3 if version == 3 else _nodes_v2
        for k, node in zip(left, make(root, [paths[k] for k in left]), strict=True):
            found[k] = node
    return found


def _nodes_v3(root: Location, paths: Sequence[str]) -> list[Node | None]:
    found: list[Node | None] = []
    for path, v3 in zip(paths, _documents(root, paths, "zarr.json"), strict=True):
        location = root / path if path else root
        array = None
        if v3 is not None and v3.get("node_type") == "array":
            array = _checked(location, ArrayMetadata(3, bare(v3)))
        attributes = _attributes(None if v3 is None else v3.get("attributes"))
        found.append(None if v3 is None else Node(location, attributes, array))
    return found


def _nodes_v2(root: Location, paths: Sequence[str]) -> list[Node | None]:
    arrays = _documents(root, paths, ".zarray")
    attributes = _documents(root, paths, ".zattrs")
    # A group without attributes is one by its .zgroup.
    pairs = enumerate(zip(arrays, attributes, strict=True))
    open_ones = [k for k, told in pairs if not any(told)]
    groups = _documents(root, [paths[k] for k in open_ones], ".zgroup")
    is_group = {k for k, group in zip(open_ones, groups, strict=True) if group is not None}
    found: list[Node | None] = []
    for k, (path, v2) in enumerate(zip(paths, arrays, strict=True)):
        location = root / path if path else root
        if v2 is not None:
            array = _checked(location, ArrayMetadata(2, v2))
            found.append(Node(location, attributes[k] or {}, array, 2))
        elif attributes[k] or k in is_group:
            found.append(Node(location, attributes[k] or {}, None, 2))
        else:
            found.append(None)
    return found


def _attributes(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _exists(location: Location, fs: Any, path: str) -> bool:
    try:
        return location.ask(lambda: bool(fs.exists(path)))
    except OSError:
        return False


def _documents(root: Location, paths: Sequence[str], name: str) -> list[dict[str, Any] | None]:
    """The metadata documents of one name of several nodes, asked for together."""
    names = [f"{path}/{name}" if path else name for path in paths]
    try:
        contents = root.read_all(names)
    except Exception as error:
        raise SourceMissingError(
            f"what a URL names must exist and be readable, but {_shown(root, names)} is not: "
            f"{root.describe(error)}; check the path, the credentials and the network"
        ) from error
    return [
        None if data is None else _document(data, f"{root.shown}/{name}")
        for name, data in zip(names, contents, strict=True)
    ]


def _shown(root: Location, names: Sequence[str]) -> str:
    return f"{root.shown}/{names[0]}" if len(names) == 1 else f"what lies below {root.shown}"


def _document(data: bytes, shown: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotAnArrayError(f"Zarr metadata are JSON, but {shown} is not ({error})") from error
    if not isinstance(document, dict):
        raise NotAnArrayError(f"Zarr metadata are a JSON object, but {shown} is not")
    return document


def _checked(location: Location, metadata: ArrayMetadata) -> ArrayMetadata:
    text = json.dumps(metadata.document)
    if any(name in text for name in _UNSAFE):
        raise NotAnArrayError(
            f"reading never runs what is stored, but {location.shown!r} is written with pickle; "
            "write it again with another codec"
        )
    metadata = _alike(metadata.format, text)
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


@lru_cache(maxsize=64)
def _alike(version: int, text: str) -> ArrayMetadata:
    """One value for all arrays whose documents are the same: many images share a few."""
    return ArrayMetadata(version, json.loads(text))
