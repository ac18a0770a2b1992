"""open_images: anything chunked, by path, glob, list, URL or array."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from patchloom.axes import Axes
from patchloom.errors import (
    AxesError,
    IdentityError,
    NotAnArrayError,
    SourceError,
    SourceMissingError,
)
from patchloom.image import Image, Role
from patchloom.location import Location
from patchloom.sources.arrays import ArraySource, check_numeric, is_array, regular_chunks
from patchloom.sources.axis_selection import is_resampled, narrowed, of_channels, part_of
from patchloom.sources.context import with_context
from patchloom.sources.handles import axes_of, image_of, image_of_node, letters
from patchloom.sources.masks import MaskMaker
from patchloom.sources.nodata import told_nodata, with_nodata
from patchloom.sources.ome_zarr import Level, label_names, levels_of
from patchloom.sources.pyramids import ZarrPyramid
from patchloom.sources.roles import align, further, join, named_for, per_image, role_axes
from patchloom.sources.selected import resampled
from patchloom.sources.windows import windowed
from patchloom.sources.zarrs import Node, ZarrSource, open_node

__all__ = ["open_images"]

_MAGIC = set("*?[")


def open_images(
    urls: Any,
    *,
    mask: Any = None,
    labels: Any = None,
    target: Any = None,
    axes: str | None = None,
    level: int | str = 0,
    sample: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    ids: Sequence[str] | None = None,
    nodata: Any = None,
    channels: Any = None,
    isel: Any = None,
    sel: Any = None,
    targets: Mapping[str, Any] | None = None,
    weights: Any = None,
    context: Sequence[int] = (),
    time: Any = None,
) -> list[Image]:
    """Open images lazily: their metadata are read, no pixel is.

    Parameters
    ----------
    urls
        A path or URL (``file://``, ``s3://``, ``gs://``, ``http(s)://``, ``memory://``, any
        fsspec protocol), a glob of them, a NumPy, Dask or xarray array, or a list of these.
        What stands at a URL is a Zarr array (v2 or v3, sharded or not) or an OME-Zarr image.
    mask, labels, target
        Arrays over the same field: an array, a URL, a pattern with ``{stem}``, the name of an
        OME-Zarr label group, one of these per image in a list, or per image id in a mapping, or a
        glob: then the text that ``*`` stands for is the id of the image.
        A mask may have any lower resolution; nonzero means covered. It may also be made of
        something else: ``{"labels": ..., "classes": [1, 2]}``, ``{"polygons": "{stem}.geojson"}``,
        ``{"boxes": table}``, ``{"auto": "otsu"}`` or ``{"nodata": 0}``; docs/masks.md shows them.
        ``{"from": ..., "channels": [...], "isel": {...}}`` is part of an array, and with
        ``"resample": "nearest"`` one of other pixels that is cut along; docs/roles.md shows it.
    axes
        The dimensions as stored, one letter each in either case, for example ``"CZYX"``; by
        default what the metadata say, else X, YX, ZYX, CZYX, TCZYX by their number.
    level
        The one pyramid level to open: its number (0 is the finest) or its path.
    sample
        What a sample is. A string names axes whose every index is a sample of its own
        (for example ``"z"`` to patch a stack plane by plane); a mapping gives metadata columns
        for all images; a list of mappings, or a mapping from image id to a mapping, for each.
    storage_options
        For fsspec, for example credentials; never shown, saved or written to a store.
    ids
        One name an image; by default its stem: the last part of the path without its suffix, and
        without ``.ome`` before that.
    nodata
        The value of pixels that tell nothing, a number or ``"nan"``, which statistics count apart
        and leave out; one for each image in a list, or per image id in a mapping. By default what
        an array's attributes tell (``_FillValue``, ``missing_value``), which is mostly nothing.
    channels
        The channels to take, by number or name, in this order; by default all.
    isel
        What is taken along other axes, by name and in pixels: an index (the axis goes), a slice
        or a list of indices (the axis stays), as NumPy takes them. One mapping for all images, one
        for each in a list, or per image id in a mapping. Roles follow; docs/axes.md has the rules.
    sel
        The same in physical units, by spacing and origin: ``{"z": (10.0, 50.0)}`` takes the
        pixels whose centres lie between, both included; one number the pixel that it lies in.
    targets
        Further targets by name, each given like `target`: ``targets_NAME`` in a store.
    weights
        What each pixel counts in a loss, given like `target` and cut along.
    context
        Numbers of coarser levels of which as many pixels are cut around the same centre:
        ``context_N`` in a store. docs/context.md shows it.
    time
        ``{"window": 2, "step": 1}`` makes samples of several frames: those at ``t``, ``t + step``
        and so on are channels of one; docs/axes.md shows it.

    Returns
    -------
    list of Image

    Raises
    ------
    SourceMissingError
        If nothing readable is there.
    NotAnArrayError
        If what is there is no array of numbers, or several.
    AxesError, CoverageError, IdentityError, SourceError
        If axes, masks, ids or levels do not fit.
    ConfigError
        If a mask has a wrong key or value, or `nodata` is none that a pixel can have.

    Examples
    --------
    >>> import numpy as np, patchloom
    >>> [image] = patchloom.open_images(np.zeros((3, 512, 512), "uint16"), axes="CYX")
    >>> image.shape, str(image.axes), image.data.dims
    ((3, 512, 512), 'CYX', ('c', 'y', 'x'))
    """
    options = dict(storage_options or {})
    items = _expand(urls, options)
    if ids is not None and (isinstance(ids, str) or len(ids) != len(items)):
        raise IdentityError(f"ids= has one name an image, got {ids!r} for {len(items)} images")
    images = []
    for position, item in enumerate(items):
        name = None if ids is None else str(ids[position])
        images.append(_open(item, axes, level, options, name, position))
    _check_ids(images)
    images = of_channels(with_nodata(nodata, _with_samples(images, sample)), channels)

    def open_role(item: Any, image: Image) -> Image:
        return part_of(
            item, lambda inner: _open_role(named_for(inner, image), image, level, options)
        )

    def glob(pattern: str) -> list[str]:
        return [str(path) for path in _expand(pattern, options)]

    maker = MaskMaker(open_role, options, glob)
    over, of_pixels = maker.items(mask, images)
    images = join(over, images, "mask", maker.role)
    others = {"labels": labels, "target": target, **further(targets, weights)}
    for name, given in others.items():

        def role(item: Any, image: Image, name: str = name) -> Role:
            found = align(image, open_role(item, image), name)
            return resampled(image, found) if is_resampled(item) else found

        images = join(per_image(given, images, name, glob), images, name, role)
    images = [with_context(image, context) for image in images]
    # Roles are joined to whole images and follow; what is made of pixels, of those that stay.
    images = [windowed(image, time) for image in narrowed(images, isel, sel)]
    return join(of_pixels, images, "mask", maker.role)


def _expand(urls: Any, options: Mapping[str, Any]) -> list[Any]:
    if is_array(urls):
        return [urls]
    if isinstance(urls, str | os.PathLike):
        text = os.fspath(urls)
        if not text:
            raise SourceMissingError("open_images takes paths, URLs or arrays, got an empty one")
        web = text.startswith(("http://", "https://"))
        magic = _MAGIC - {"?"} if web else _MAGIC
        if not magic & set(text.partition("://")[2] or text) or os.path.exists(text):
            return [text]
        location = Location.of(text, options)
        fs, path = location.open()
        try:
            found = sorted(str(p).rstrip("/") for p in location.ask(lambda: fs.glob(path)))
        except Exception as error:
            raise SourceMissingError(
                f"the folder of {location.shown!r} must be readable, but it is not: "
                f"{location.describe(error)}; check the path and the credentials"
            ) from error
        if not found:
            raise SourceMissingError(
                f"a pattern matches at least one image, but nothing matches {location.shown!r}; "
                "check the path"
            )
        if location.scheme == "file" and "://" not in text:
            return found
        return [fs.unstrip_protocol(p) for p in found]
    if isinstance(urls, Sequence):
        found = [entry for item in urls for entry in _expand(item, options)]
        if found:
            return found
    raise SourceMissingError(
        f"open_images takes paths, URLs or arrays, at least one, got {type(urls).__name__}"
        + ("" if isinstance(urls, Sequence) else f" {urls!r}")
    )


def _open(
    item: Any,
    axes: str | None,
    level: int | str,
    options: Mapping[str, Any],
    name: str | None,
    position: int,
) -> Image:
    if is_array(item):
        if level != 0:
            raise SourceError(
                f"only an OME-Zarr image has levels, got level={level!r} for an array"
            )
        # A Dask array's name is a hash; an xarray's is its user's.
        own = getattr(item, "name", None) if hasattr(item, "dims") else None
        return _from_array(item, axes, name or str(own or f"image-{position}"))
    location = Location.of(item, options)
    return _from_node(open_node(location), axes, level, name or location.stem)


def _from_array(array: Any, axes: str | None, name: str) -> Image:
    dims = tuple(str(d) for d in getattr(array, "dims", ()))
    if dims and not getattr(array.variable, "_in_memory", True) and array.chunks is None:
        array = array.chunk()  # a lazy xarray would be read whole by asking for its data
    data = array.data if dims else array
    if not (isinstance(data, np.ndarray) or hasattr(data, "dask")):
        data = _lazy(data)
    if any(n != n for sizes in getattr(data, "chunks", None) or () for n in sizes):
        raise SourceError(
            f"the extents of a Dask array are known, got chunks {data.chunks} in {name!r}; "
            "call compute_chunk_sizes() first"
        )
    named = letters(dims)
    parsed = axes_of(axes, named if len(named) == len(dims) else "", data.ndim, name)
    dtype = check_numeric(data.dtype, f"image {name!r}")
    chunks = regular_chunks(data, parsed.pick("c" if parsed.has_channel else ""))
    return image_of(
        name=name,
        uri="",
        axes=parsed,
        shape=data.shape,
        dtype=dtype,
        chunks=chunks,
        source=ArraySource(data.rechunk(chunks) if hasattr(data, "dask") else data),
        nodata=told_nodata(getattr(array, "attrs", {}) if dims else {}, dtype),
    )


def _lazy(array: Any) -> Any:
    """A Dask array over something else that can be sliced, for example an open zarr.Array."""
    import dask.array as da

    return da.from_array(array, chunks=getattr(array, "chunks", None) or "auto")


def _from_node(node: Node, axes: str | None, level: int | str, name: str) -> Image:
    levels = levels_of(node) if node.array is None else []
    if levels:
        index = _pick_level(levels, level, node)
        chosen = levels[index]
        inner = open_node(node.location / chosen.path)
        if inner.array is None:
            raise NotAnArrayError(
                f"level {chosen.path!r} of {node.location.shown!r} is listed in its metadata but "
                "is no array; restore it, or open another level"
            )
        image = image_of_node(inner, axes, name, chosen, index)
        coarser = ZarrPyramid(node.location) if index + 1 < len(levels) else None
        return replace(image, pyramid=coarser)
    if level != 0:
        raise SourceError(
            f"only an OME-Zarr image has levels, but {node.location.shown!r} is none, got "
            f"level={level!r}; leave level out, or name the array itself"
        )
    if node.array is not None:
        return image_of_node(node, axes, name, None, 0)
    inside = _arrays_inside(node)
    if len(inside) == 1:
        return image_of_node(open_node(node.location / inside[0]), axes, name, None, 0)
    raise NotAnArrayError(
        f"an image is one array, but {node.location.shown!r} is a group without OME-Zarr metadata"
        + (f" that holds {inside[:20]}" if inside else " and without arrays")
        + "; name the array: its path below the group"
    )


def _pick_level(levels: Sequence[Level], level: int | str, node: Node) -> int:
    paths = [lv.path for lv in levels]
    if isinstance(level, str) and level in paths:
        return paths.index(level)
    if isinstance(level, int) and not isinstance(level, bool) and 0 <= level < len(levels):
        return level
    raise SourceError(
        f"level= is a number from 0 (finest) to {len(levels) - 1}, or a path out of {paths}, got "
        f"{level!r} for {node.location.shown!r}"
    )


def _arrays_inside(node: Node) -> list[str]:
    fs, root = node.location.open()
    try:
        found = node.location.ask(lambda: fs.ls(root, detail=True))
        names = sorted(str(e["name"]).rstrip("/").rsplit("/", 1)[-1] for e in found)
    except (OSError, ValueError):
        return []
    return [
        name
        for name in names
        if any(
            node.location.ask(partial(fs.exists, f"{root}/{name}/{document}"))
            for document in ("zarr.json", ".zarray")
        )
        if open_node(node.location / name).array is not None
    ]


def _check_ids(images: Sequence[Image]) -> None:
    equal = sorted(name for name, n in Counter(image.id for image in images).items() if n > 1)
    if equal:
        raise IdentityError(
            f"every image has an id of its own, but several are called {equal}; "
            f"name them: ids=[...] with {len(images)} different names"
        )


def _with_samples(images: Sequence[Image], sample: Any) -> list[Image]:
    if sample is None:
        return list(images)
    if isinstance(sample, str):
        return [_as_samples(image, sample.lower()) for image in images]
    if isinstance(sample, Mapping):
        nested = sample and all(isinstance(v, Mapping) for v in sample.values())
        rows = [sample.get(i.id) for i in images] if nested else [sample] * len(images)
    elif isinstance(sample, Sequence):
        rows = list(sample)
    else:
        rows = []
    good = [row for row in rows if isinstance(row, Mapping)]
    if len(rows) != len(images) or len(good) != len(rows):
        raise IdentityError(
            "sample= names axes (a string), or gives metadata: a mapping of columns, one for each "
            f"image, or one for each image id; the images are {[i.id for i in images]}"
        )
    return [
        replace(
            image,
            metadata={str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()},
        )
        for image, row in zip(images, good, strict=True)
    ]


def _as_samples(image: Image, letters: str) -> Image:
    """The same image with some of its axes counted as samples."""
    names = image.axes.names
    free = [a for a in "st" if a not in names]
    for letter in letters:
        if letter not in names:
            raise AxesError(
                f"sample= names axes of the image, got {letter!r} for {image.id!r} with axes "
                f"{names!r}"
            )
        if letter in "st":
            continue
        if not free:
            raise AxesError(
                f"an image has at most two sample axes (s, t), got sample={letters!r} for {names!r}"
            )
        names = names.replace(letter, free.pop(0))
    axes = Axes(names)
    # Planes keep their distance: points in physical units lie in one of them.
    keep = {a: v for a, v in image.spacing.items() if a in axes.spatial or a in letters}
    return replace(
        image,
        axes=axes,
        spacing=keep,
        origin={a: v for a, v in image.origin.items() if a in keep},
        unit={a: v for a, v in image.unit.items() if a in keep},
        channels=image.channels if axes.has_channel else (),
    )


def _open_role(item: Any, image: Image, level: int | str, options: Mapping[str, Any]) -> Image:
    if isinstance(item, Image):
        return item
    if is_array(item):
        dims = getattr(item, "dims", None)
        return _from_array(item, None if dims else role_axes(image, item.ndim).names, image.id)
    if not isinstance(item, str):
        raise SourceError(
            f"a role is an array, a URL, a pattern with {{stem}} or a label group's name, got "
            f"{type(item).__name__}"
        )
    group = _label_group(item, image)
    if group is not None:
        return _matching_level(group, image, level)
    node = open_node(Location.of(item, options))
    if node.array is None and levels_of(node):
        return _matching_level(node, image, level)
    if node.array is not None and not node.array.document.get("dimension_names"):
        guessed = role_axes(image, len(node.array.document["shape"])).names
        return _from_node(node, guessed, 0, image.id)
    return _from_node(node, None, 0, image.id)


def _label_group(name: str, image: Image) -> Node | None:
    """The label image of an OME-Zarr, if `name` is the name of one."""
    source = getattr(image.source, "image", image).source  # of the whole, if channels were chosen
    if "://" in name or "/" in name.strip("/") or not isinstance(source, ZarrSource):
        return None
    location = source.location
    # The image array lies one or more names below the group that holds "labels".
    for depth in range(1, 4):
        parent = Location(location.url.rsplit("/", depth)[0], location.options)
        try:
            labels = open_node(parent / "labels")
        except SourceError:
            continue
        listed = label_names(labels.attributes)
        if name in listed:
            return open_node(labels.location / name)
        if not os.path.exists(name):
            raise SourceMissingError(
                f"{image.id!r} has the label groups {listed}, got {name!r}; name one of them, "
                "or give a path"
            )
    return None


def _matching_level(group: Node, image: Image, level: int | str) -> Image:
    """The level of a label image on the image's own pixels, else the finest."""
    levels = levels_of(group)
    if not levels:
        return _from_node(group, None, 0, image.id)
    chosen = None
    order = list(range(len(levels)))
    if isinstance(level, int) and level < len(levels):
        order = [level, *(k for k in order if k != level)]
    for index in order:
        candidate = _from_node(group, None, index, image.id)
        same = all(
            candidate.shape[candidate.axes.names.index(a)] == image.shape[image.axes.names.index(a)]
            for a in candidate.axes.spatial
            if a in image.axes.names
        )
        if same:
            return candidate
        chosen = chosen or candidate
    assert chosen is not None
    return chosen
