"""Handles: what is known of an array, put together as an Image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from patchloom.axes import Axes
from patchloom.errors import AxesError, NotAnArrayError, SourceError
from patchloom.grid import ChunkGrid
from patchloom.image import Image
from patchloom.sources.arrays import check_numeric
from patchloom.sources.nodata import told_nodata
from patchloom.sources.ome_zarr import Level
from patchloom.sources.zarrs import Node, ZarrSource

__all__ = ["axes_of", "image_of", "image_of_node", "letters"]

_DIM_NAMES = {"time": "t", "channel": "c", "band": "c", "sample": "s"}


def letters(dims: Iterable[Any]) -> str:
    """Names of dimensions as axes: one letter each where they have a known one."""
    return "".join(_DIM_NAMES.get(str(d).lower(), str(d).lower()) for d in dims)


def image_of_node(
    node: Node, axes: str | None, name: str, level: Level | None, index: int
) -> Image:
    """The image that stands at a Zarr array, or is one level of an OME-Zarr image."""
    metadata = node.array
    assert metadata is not None
    document = metadata.document
    shape = tuple(int(n) for n in document["shape"])
    try:
        dtype = metadata.parsed().dtype.to_native_dtype()
    except Exception as error:
        raise NotAnArrayError(
            f"the data type of {node.location.shown!r} cannot be used: {error}"
        ) from error
    dims = document.get("dimension_names") or node.attributes.get("_ARRAY_DIMENSIONS") or ()
    named = letters(dims)
    if level is not None:
        named = level.axes
    elif len(named) != len(shape):
        named = ""
    parsed = axes_of(axes, named, len(shape), node.location.shown)
    spatial = parsed.spatial
    places = dict(zip(parsed.names, range(len(shape)), strict=True))
    described = level is not None and len(level.scale) == len(shape)
    image = image_of(
        name=name,
        uri=node.location.shown,
        axes=parsed,
        shape=shape,
        dtype=check_numeric(dtype, repr(node.location.shown)),
        chunks=metadata.chunks,
        source=ZarrSource(node.location, metadata),
        shards=metadata.shards,
        level=index,
        channels=level.channels if level is not None else (),
        nodata=told_nodata(node.attributes, dtype),
    )
    if not described or level is None:
        return image
    return replace(
        image,
        spacing={a: level.scale[places[a]] for a in spatial},
        origin={a: level.translation[places[a]] for a in spatial},
        unit={a: level.units[places[a]] for a in spatial if level.units[places[a]]},
    )


def image_of(
    *,
    name: str,
    uri: str,
    axes: Axes,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    chunks: Sequence[int],
    source: Any,
    shards: tuple[int, ...] | None = None,
    level: int = 0,
    channels: tuple[str, ...] = (),
    nodata: float | None = None,
) -> Image:
    """An image, if its shape is one."""
    shape = tuple(int(n) for n in shape)
    if any(n < 1 for n in shape):
        raise SourceError(
            f"every axis of an image has at least one pixel, got shape {shape} ({axes}) in "
            f"{uri or name!r}; leave it out"
        )
    n_channels = shape[axes.names.index("c")] if axes.has_channel else 1
    return Image(
        id=name,
        uri=uri,
        axes=axes,
        shape=shape,
        dtype=dtype,
        grid=ChunkGrid(shape, tuple(int(c) for c in chunks)),
        source=source,
        shards=shards,
        level=level,
        channels=channels if len(channels) == n_channels else (),
        nodata=nodata,
    )


def axes_of(given: str | None, named: str, ndim: int, what: str) -> Axes:
    """The axes that were given, else those that are named, else what the number of them says."""
    if given is not None:
        axes = Axes.parse(given)
    elif named:
        axes = Axes.parse(named)
    else:
        axes = Axes.guess(ndim)
    if len(axes) != ndim:
        raise AxesError(
            f"axes name each dimension once, got {str(axes)!r} for {ndim} dimensions in {what}; "
            "give one letter a dimension, in stored order"
        )
    return axes
