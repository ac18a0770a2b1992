"""open_images: anything chunked, by path, glob, list, URL or array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from patchloom.axes import Axes
from patchloom.errors import AxesError, IdentityError, NotAnArrayError, SourceError
from patchloom.image import ROLES, Image, Role
from patchloom.location import Location
from patchloom.sources.arrays import ArraySource, check_numeric, is_array, regular_chunks
from patchloom.sources.axis_selection import is_resampled, narrowed, of_channels, part_of
from patchloom.sources.collections import images_of_collection
from patchloom.sources.containers import inside_of, node_inside, only_inside, unzipped
from patchloom.sources.context import with_context
from patchloom.sources.datasets import described
from patchloom.sources.files import Wanted, format_of, open_file, sniffed
from patchloom.sources.functions import reading_of
from patchloom.sources.handles import axes_of, image_of, letters
from patchloom.sources.image_tables import ImageTable, image_table
from patchloom.sources.inside import split_inside
from patchloom.sources.items import expanded, with_array
from patchloom.sources.levels import image_at, label_group, matching_level
from patchloom.sources.masks import MaskMaker
from patchloom.sources.nodata import told_nodata, with_nodata
from patchloom.sources.roles import align, further, join, named_for, per_image, role_axes
from patchloom.sources.selected import resampled
from patchloom.sources.stacks import Stack, opened_stack, stacks
from patchloom.sources.windows import windowed
from patchloom.sources.zarrs import Node

__all__ = ["open_images"]


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
    stack: str | None = None,
    read: Any = None,
    read_kwargs: Mapping[str, Any] | None = None,
    extension: str = "",
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
        fsspec protocol), a glob of them, a NumPy, Dask or xarray array, an xarray Dataset, or a
        list of these. What stands at a URL is a Zarr array (v2 or v3, sharded or not), an
        OME-Zarr image, a file of a known format (docs/formats), a container that holds one of
        these or several (then ``URL::path/inside`` says which), a plate, a well or a collection of
        bioformats2raw (one image a field or series), or a folder of all these. What a glob or
        folder gives is in the order in which people count: plane2 before plane10.
        Or a table with a row an image: a DataFrame, a pyarrow Table or the URL of a ``.csv``,
        ``.tsv`` or ``.parquet`` file, with the column ``image`` (or ``url``), if wanted ``mask``,
        ``labels``, ``target`` and ``id``, and metadata in all others. Paths in a file are relative
        to it.
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
    stack
        Makes one image of files that are its planes: the axis along which they lie in order
        (``"z"``, ``"c"``, ``"t"`` or ``"sample"``), or a pattern of their names with several,
        ``"img_z{z}_c{c}.png"``. Each folder is an image of its own, and so are all files that are
        given one by one or by a glob. `axes` names those of a plane. By default each file is an
        image.
    read
        A function that reads a file: ``read(path, **read_kwargs)`` gives its array, and `axes`
        names the dimensions. It is called on the workers, and here once a file for the shape. Or
        CAREamics' ``ReadFuncLoading`` or ``ImageStackLoading``.
    read_kwargs
        Further arguments of the function.
    extension
        Which files `read` gets, of folders and lists: ``".xyz"`` or ``"*_raw.xyz"``.
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
    table = image_table(urls, options)
    if table is not None:
        given = {"mask": mask, "labels": labels, "target": target, "ids": ids}
        rest = {"axes": axes, "level": level, "sample": sample, "nodata": nodata, "stack": stack}
        rest |= {"array": array, "read": read, "read_kwargs": read_kwargs, "extension": extension}
        rest |= {"channels": channels, "isel": isel, "sel": sel, "targets": targets}
        rest |= {"weights": weights, "context": context, "time": time}
        return _of_table(table, given, {**rest, "storage_options": options})
    reading = reading_of(read, read_kwargs, extension)
    if reading is not None and (level != 0 or stack is not None or array is not None):
        raise SourceError(
            "what a function reads has neither level=, stack= nor array=; leave them out"
        )
    if reading is not None and reading.is_loader:
        images = reading.stacks(urls, axes, ids)
    else:
        items = expanded(urls, options, folders=stack is None and reading is None)
        if reading is not None:
            files = reading.files(items, options)
            images = [reading.image(one, axes, one.stem) for one in files]
        else:
            items = [with_array(item, array) for item in items]
            found = items if stack is None else stacks(items, stack, options)
            opening = partial(_open, axes=axes, level=level, options=options, alone=len(found) == 1)
            images = [
                image
                for position, item in enumerate(found)
                for image in opening(item, position=position)
            ]
    images = _named(images, ids)
    images = of_channels(with_nodata(nodata, _with_samples(images, sample)), channels)

    def open_role(item: Any, image: Image) -> Image:
        return part_of(
            item, lambda inner: _open_role(named_for(inner, image), image, level, options)
        )

    def glob(pattern: str) -> list[str]:
        return [str(path) for path in expanded(pattern, options, folders=False)]

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


def _of_table(table: ImageTable, given: Mapping[str, Any], rest: Mapping[str, Any]) -> list[Image]:
    """The images of a table, one a row."""
    named = {"ids": table.ids} | {name: table.roles.get(name) for name in ROLES}
    twice = [n for n in given if given[n] is not None and named[n] is not None]
    if twice:
        raise SourceError(
            f"a role or name is given once, but {twice} stand in {table.what} and are given "
            "besides; leave one of both out"
        )
    roles: dict[str, Any] = {n: named[n] if given[n] is None else given[n] for n in given}
    opened = open_images(table.urls, **roles, **rest)
    if len(opened) != len(table.urls):
        raise IdentityError(
            f"a row of a table is one image, but {len(table.urls)} rows of {table.what} name "
            f"{len(opened)} images; name each one, or open folders with stack="
        )
    return [
        replace(image, metadata={**row, **image.metadata})
        for image, row in zip(opened, table.metadata, strict=True)
    ]


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
    if isinstance(item, Stack):

        def plane(location: Location) -> Image:
            wanted = Wanted(location.stem, axes, level, item.inside)
            return _only(_from_url(location, wanted, alone=True))

        return [opened_stack(item, None, plane)]
    url, inside = split_inside(item)
    location = Location.of(url, options)
    return _from_url(location, Wanted(location.stem, axes, level, inside), alone)


def _from_url(location: Location, wanted: Wanted, alone: bool) -> list[Image]:
    """What stands at a URL: a file of a known format, or Zarr: an image, or a collection."""
    kind = format_of(location)
    if kind is None:
        try:
            node = node_inside(unzipped(location), wanted.inside)
        except NotAnArrayError:
            kind = sniffed(location)
            if kind is None:
                raise
        else:
            axes, level = wanted.axes, wanted.level
            found = images_of_collection(node, axes, level, wanted.name, alone)
            found = [_from_node(node, axes, level, wanted.name)] if found is None else found
            return [inside_of(image, wanted.inside) for image in found]
    return [open_file(kind, location, wanted)]


def _only(images: Sequence[Image]) -> Image:
    if len(images) != 1:
        raise NotAnArrayError(
            f"a plane of a stack is one image, but {images[0].uri!r} is one of {len(images)} of a "
            "collection; name the one that is meant"
        )
    return images[0]


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
        source=ArraySource(data.rechunk(chunks) if hasattr(data, "dask") else data, chunks),
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
    inside: str | None = item
    if group is None:
        url, inside = split_inside(item)
        location = Location.of(url, options)
        kind = format_of(location)
        if kind is not None:
            return open_file(kind, location, Wanted(image.id, inside=inside, role_of=image))
        group = node_inside(unzipped(location), inside)
    found = matching_level(group, image, level)
    if found is not None:
        return inside_of(found, inside)
    guessed = None
    if group.array is not None and not group.array.document.get("dimension_names"):
        guessed = role_axes(image, len(group.array.document["shape"])).names
    return inside_of(_from_node(group, guessed, 0, image.id), inside)
