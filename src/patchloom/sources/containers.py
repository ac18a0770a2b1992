"""Containers: Zarr groups that hold several arrays, and archives with Zarr in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from patchloom.errors import NotAnArrayError, PatchloomError, SourceError, SourceMissingError
from patchloom.image import Image
from patchloom.location import Location
from patchloom.retrying import RETRYING
from patchloom.sources.ome_zarr import SPATIALDATA, ome_of
from patchloom.sources.zarrs import Node, ZarrSource, open_node, open_nodes

__all__ = ["candidates", "inside_of", "node_inside", "only_inside", "unzipped"]

_DEPTH = 6
"""So many names below a group are looked at."""
_MANY = 1000
"""So many folders are looked at of each depth: links in a circle and chunks in folders end."""
_SHOWN = 20


def node_inside(location: Location, inside: str | None) -> Node:
    """The Zarr node at a location, or at a path inside the container there.

    Raises
    ------
    SourceMissingError
        If nothing is there; what is there instead is listed.
    NotAnArrayError
        If what is there is no Zarr node.
    """
    if inside is None:
        return open_node(location)
    [found] = open_nodes(location, [inside])
    if found is None:
        there = candidates(open_node(location))
        raise SourceMissingError(
            f"a path after '::' is one of what the container holds, got {inside!r} in "
            f"{location.shown!r}; {_told(there)}"
        )
    return found


def inside_of(image: Image, inside: str | None) -> Image:
    """An image that knows by which path it was opened, if by one inside a container.

    It is called like its container, and so are the others there: a plan tells them apart by this.
    """
    if inside is None or not isinstance(image.source, ZarrSource):
        return image
    return replace(image, source=replace(image.source, inside=inside))


def only_inside(node: Node) -> Node:
    """The one array or OME-Zarr image below a group.

    Raises
    ------
    NotAnArrayError
        If there is none, or several: then they are listed.
    """
    there = candidates(node)
    if SPATIALDATA in node.attributes and len(only := [p for p in there if _is_main(p)]) == 1:
        there = only  # of SpatialData: not the labels
    if len(there) == 1:
        return open_node(node.location / there[0])
    raise NotAnArrayError(
        f"an image is one array, but {node.location.shown!r} is a group without OME-Zarr metadata; "
        f"{_told(there)}" + (f": {node.location.shown}::{there[0]}" if there else "")
    )


def _is_main(path: str) -> bool:
    return path.startswith("images/")


def _told(there: Sequence[str]) -> str:
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    if not there:
        return "no array was found in it; name it by its path"
    return f"it holds {list(there[:_SHOWN])}{more}; name one by its path after '::' or with array="


def candidates(node: Node) -> list[str]:
    """The paths of the arrays and OME-Zarr images below a group, sorted.

    Where a store cannot list its folders, as most web servers, they are those that consolidated
    metadata name and that are really there.
    """
    found: list[str] = []
    groups = [""]
    for _ in range(_DEPTH):
        names = [name for group in groups for name in _folders(node.location, group)][:_MANY]
        if not names or len(found) > _MANY:
            break
        groups = []
        for name, child in zip(names, _nodes(node, names), strict=True):
            if child is not None and _is_image(child):
                found.append(name)
            elif child is None or child.attributes.get("encoding-type") != "anndata":
                groups.append(name)
    return sorted(found or _consolidated(node))


def _is_image(node: Node) -> bool:
    return node.array is not None or bool(ome_of(node.attributes).get("multiscales"))


def _nodes(node: Node, names: Sequence[str]) -> list[Node | None]:
    try:
        return open_nodes(node.location, names, node.format)
    except PatchloomError:  # one of them is broken: each by itself then
        found: list[Node | None] = []
        for name in names:
            try:
                found += open_nodes(node.location, [name], node.format)
            except PatchloomError:
                found.append(None)
        return found


def _folders(location: Location, group: str) -> list[str]:
    """The folders in a folder, by their paths below a location; none where it cannot be listed."""
    inner = location / group if group else location
    fs, path = inner.open()
    try:
        entries: list[Any] = inner.ask(lambda: fs.ls(path, detail=True))
    except (OSError, ValueError, NotImplementedError):
        return []
    names = {
        PurePosixPath(str(entry["name"]).rstrip("/")).name
        for entry in entries
        if entry.get("type") == "directory" or str(entry["name"]).endswith("/")
    }
    return [f"{group}/{name}".strip("/") for name in sorted(names) if not name.startswith(".")]


def _consolidated(node: Node) -> list[str]:
    document = "zarr.json" if node.format == 3 else ".zmetadata"
    try:
        told = json.loads(node.location.read(document) or b"{}")
        listed = told["consolidated_metadata"]["metadata"] if node.format == 3 else told["metadata"]
        ends = ("/.zarray",) if node.format == 2 else ("",)
        names = [str(key) for key in listed if str(key).endswith(ends)]
    except (PatchloomError, KeyError, TypeError, ValueError):
        return []
    paths = sorted(name.removesuffix("/.zarray") for name in names)[:_MANY]
    safe = [path for path in paths if not {"..", "."} & {*path.split("/")}]
    return [
        path
        for path, child in zip(safe, _nodes(node, safe), strict=True)
        if child is not None and child.array is not None
    ]


def unzipped(location: Location) -> Location:
    """Where Zarr lies in an archive, if a location is one by its name; else the location itself.

    Raises
    ------
    SourceError
        If the archive cannot be read, or holds several stores.
    """
    if not location.shown.lower().endswith(".zip") or location.scheme == "zip":
        return location
    archive = Location(f"zip://::{location.url}", location.options)
    try:
        RETRYING.call(archive.open)
    except FileNotFoundError as error:  # our own are this too
        raise SourceMissingError(
            f"what a URL names must exist and be readable, but {location.shown!r} is not: "
            f"{location.describe(error)}; check the path, the credentials and the bucket"
        ) from error
    except Exception as error:  # each file system has errors of its own
        raise SourceError(
            f"what ends with .zip is an archive that can be read, but {location.shown!r} is not: "
            f"{location.describe(error)}; check the access, or write it again"
        ) from error
    [root] = open_nodes(archive, [""])
    names = [] if root is not None else _folders(archive, "")
    pairs = zip(names, open_nodes(archive, names), strict=True)
    stores = [name for name, child in pairs if child is not None]
    if root is not None:
        return archive
    if len(stores) == 1:
        return archive / stores[0]
    raise NotAnArrayError(
        f"an archive holds one Zarr store, but {location.shown!r} holds {stores}; name one: "
        f"zip://{stores[0] if stores else 'NAME'}::{location.shown}"
    )
