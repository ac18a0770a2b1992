"""open_images: anything chunked, by path, glob, list, URL or array."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from patchloom.axes import Axes
from patchloom.errors import AxesError, IdentityError, SourceError, SourceMissingError
from patchloom.image import Image, Role
from patchloom.location import Location
from patchloom.sources.arrays import ArraySource, check_numeric, is_array, regular_chunks
from patchloom.sources.collections import images_of_collection
from patchloom.sources.containers import node_inside, only_inside, unzipped
from patchloom.sources.datasets import described, is_dataset, variable_of
from patchloom.sources.handles import axes_of, image_of, letters
from patchloom.sources.inside import split_inside
from patchloom.sources.levels import image_at, label_group, matching_level
from patchloom.sources.masks import MaskMaker
from patchloom.sources.nodata import told_nodata, with_nodata
from patchloom.sources.roles import align, join, named_for, per_image, role_axes
from patchloom.sources.zarrs import Node

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
    array: str | None = None,
    sample: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    ids: Sequence[str] | None = None,
    nodata: Any = None,
) -> list[Image]:
    """Open images lazily: their metadata are read, no pixel is.

    Parameters
    ----------
    urls
        A path or URL (``file://``, ``s3://``, ``gs://``, ``http(s)://``, ``memory://``, any
        fsspec protocol), a glob of them, a NumPy, Dask or xarray array, an xarray Dataset, or a
        list of these. What stands at a URL is a Zarr array (v2 or v3, sharded or not), an
        OME-Zarr image, a group that holds one of these or several (then ``URL::path/inside`` says
        which), or a plate, a well or a collection of bioformats2raw: one image a field or series.
    mask, labels, target
        Arrays over the same field: an array, a URL, a pattern with ``{stem}``, the name of an
        OME-Zarr label group, one of these per image in a list, or per image id in a mapping.
        A mask may have any lower resolution; nonzero means covered. It may also be made of
        something else: ``{"labels": ..., "classes": [1, 2]}``, ``{"polygons": "{stem}.geojson"}``,
        ``{"boxes": table}``, ``{"auto": "otsu"}`` or ``{"nodata": 0}``; docs/masks.md shows them.
    axes
        The dimensions as stored, one letter each in either case, for example ``"CZYX"``; by
        default what the metadata say, else X, YX, ZYX, CZYX, TCZYX by their number.
    level
        The one pyramid level to open: its number (0 is the finest) or its path.
    array
        The path of the array or image inside each container, as after ``::``; of a Dataset the
        name of the variable.
    sample
        What a sample is. A string names axes whose every index is a sample of its own
        (for example ``"z"`` to patch a stack plane by plane); a mapping gives metadata columns
        for all images; a list of mappings, or a mapping from image id to a mapping, for each.
        Fields of a plate keep the columns that they have besides.
    storage_options
        For fsspec, for example credentials; never shown, saved or written to a store.
    ids
        One name an image; by default its stem: the last part of the path without its suffix, and
        without ``.ome`` before that. Fields of a plate are called ``ROW/COLUMN/FIELD``, with the
        plate's name before that where other things are opened with it; series of bioformats2raw
        ``NAME/SERIES``.
    nodata
        The value of pixels that tell nothing, a number or ``"nan"``, which statistics count apart
        and leave out; one for each image in a list, or per image id in a mapping. By default what
        an array's attributes tell (``_FillValue``, ``missing_value``), which is mostly nothing.

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
    images = []
    for position, item in enumerate(items):
        chosen = _chosen(item, array)
        images += _open(chosen, axes, level, options, position, alone=len(items) == 1)
    images = _named(images, ids)
    images = with_nodata(nodata, _with_samples(images, sample))

    def open_role(item: Any, image: Image) -> Image:
        return _open_role(named_for(item, image), image, level, options)

    maker = MaskMaker(open_role, options)
    images = join(maker.items(mask, images), images, "mask", maker.role)
    for name, given in (("labels", labels), ("target", target)):

        def role(item: Any, image: Image, name: str = name) -> Role:
            return align(image, open_role(item, image), name)

        images = join(per_image(given, images, name), images, name, role)
    return images


def _expand(urls: Any, options: Mapping[str, Any]) -> list[Any]:
    if is_array(urls) or is_dataset(urls):
        return [urls]
    if isinstance(urls, str | os.PathLike):
        text = os.fspath(urls)
        if not text:
            raise SourceMissingError("open_images takes paths, URLs or arrays, got an empty one")
        text, inside = split_inside(text)
        web = text.startswith(("http://", "https://"))
        magic = _MAGIC - {"?"} if web else _MAGIC
        if not magic & set(text.partition("://")[2] or text) or os.path.exists(text):
            return [_joined(text, inside)]
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
        if location.scheme != "file" or "://" in text:
            found = [fs.unstrip_protocol(p) for p in found]
        return [_joined(p, inside) for p in found]
    if isinstance(urls, Sequence):
        found = [entry for item in urls for entry in _expand(item, options)]
        if found:
            return found
    raise SourceMissingError(
        f"open_images takes paths, URLs or arrays, at least one, got {type(urls).__name__}"
        + ("" if isinstance(urls, Sequence) else f" {urls!r}")
    )


def _joined(url: str, inside: str | None) -> str:
    return url if inside is None else f"{url}::{inside}"


def _chosen(item: Any, array: str | None) -> Any:
    """An item with the array that ``array=`` names inside it."""
    if is_dataset(item):
        return variable_of(item, array)
    if array is None:
        return item
    if is_array(item) or split_inside(item)[1] is not None:
        what = "an array" if is_array(item) else repr(Location.of(item).shown)
        raise SourceError(
            f"array= names what is opened inside a container, got {array!r} for {what}, which is "
            "no container or says it already; leave array out, or open them apart"
        )
    return f"{item}::{array}"


def _open(
    item: Any,
    axes: str | None,
    level: int | str,
    options: Mapping[str, Any],
    position: int,
    alone: bool,
) -> list[Image]:
    """The images of one item: several if it is a collection."""
    if is_array(item):
        if level != 0:
            raise SourceError(
                f"only an OME-Zarr image has levels, got level={level!r} for an array"
            )
        # A Dask array's name is a hash; an xarray's is its user's.
        own = getattr(item, "name", None) if hasattr(item, "dims") else None
        return [_from_array(item, axes, str(own or f"image-{position}"))]
    url, inside = split_inside(item)
    location = Location.of(url, options)
    node = node_inside(unzipped(location), inside)
    found = images_of_collection(node, axes, level, location.stem, alone)
    return [_from_node(node, axes, level, location.stem)] if found is None else found


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
    image = image_of(
        name=name,
        uri="",
        axes=parsed,
        shape=data.shape,
        dtype=dtype,
        chunks=chunks,
        source=ArraySource(data.rechunk(chunks) if hasattr(data, "dask") else data),
        nodata=told_nodata(getattr(array, "attrs", {}) if dims else {}, dtype),
    )
    return described(image, array) if dims else image


def _lazy(array: Any) -> Any:
    """A Dask array over something else that can be sliced, for example an open zarr.Array."""
    import dask.array as da

    return da.from_array(array, chunks=getattr(array, "chunks", None) or "auto")


def _from_node(node: Node, axes: str | None, level: int | str, name: str) -> Image:
    found = image_at(node, axes, level, name)
    if found is None:
        found = image_at(only_inside(node), axes, level, name)
    assert found is not None
    return found


def _named(images: Sequence[Image], ids: Sequence[str] | None) -> list[Image]:
    """The images with the ids that are given, if they are."""
    if ids is not None:
        if isinstance(ids, str) or len(ids) != len(images):
            raise IdentityError(f"ids= has one name an image, got {ids!r} for {len(images)} images")
        images = [replace(image, id=str(name)) for image, name in zip(images, ids, strict=True)]
    _check_ids(images)
    return list(images)


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
            metadata={**image.metadata, **_plain(row)},
        )
        for image, row in zip(images, good, strict=True)
    ]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}


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
    group = label_group(item, image)
    if group is None:
        url, inside = split_inside(item)
        group = node_inside(unzipped(Location.of(url, options)), inside)
    found = matching_level(group, image, level)
    if found is not None:
        return found
    if group.array is not None and not group.array.document.get("dimension_names"):
        guessed = role_axes(image, len(group.array.document["shape"])).names
        return _from_node(group, guessed, 0, image.id)
    return _from_node(group, None, 0, image.id)
