"""Elements: points, shapes and annotated tables of a SpatialData store, as tables of places.

After the format of SpatialData (https://spatialdata.scverse.org), read without it: points are
Parquet, shapes are GeoParquet, tables are AnnData in Zarr whose rows name instances of an element.
Places are in the coordinate system ``global``, which that of its images is too.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import ConfigError, SourceError, SourceMissingError
from patchloom.image import Image
from patchloom.location import Location
from patchloom.retrying import RETRYING
from patchloom.sources.levels import image_at
from patchloom.sources.ome_zarr import SPATIALDATA, ome_of
from patchloom.sources.tables import Table, located, parquet_table, stored_frame
from patchloom.sources.transforms import Transform, compose
from patchloom.sources.zarrs import Node, open_node, open_nodes

__all__ = ["open_element"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_INDEX = "instance_id"
"""The column with the names of shapes."""
_BATCH = 16
"""Chunks of labels that are read together."""
_FEW = 2**22
"""Labels below it are counted in a table, others sorted."""
_FILES = (".csv", ".tsv", ".gz", ".parquet", ".pq", ".npy", ".h5ad", ".h5", ".hdf5")


def open_element(
    table: Any,
    positions: str | None,
    axes: Any,
    image: str | None,
    options: Mapping[str, Any] | None,
) -> Table | None:
    """What a path or URL names, if it is an element of SpatialData that has places; else None.

    Parameters
    ----------
    table, positions, axes, image
        As in `read_points`.
    options
        For fsspec.

    Raises
    ------
    SourceError
        If it is one and cannot be used.
    """
    if not isinstance(table, str | os.PathLike):
        return None
    location = located(table, options)
    if location.shown.lower().endswith(_FILES):
        return None
    try:
        node = open_node(location)
    except SourceError:  # what it is instead is told by who opens other tables
        return None
    kind = node.attributes.get("encoding-type")
    if kind == "ngff:points":
        return _points(node, image)
    if kind == "ngff:shapes":
        return _shapes(node)
    if kind == "anndata" and node.attributes.get("instance_key") and positions is None:
        obs = stored_frame(open_node(location / "obs"))
        if isinstance(axes, Mapping) or "x" in obs.names:
            return None  # its columns have the places
        return Table(obs.what, obs.names, obs.fetch, _annotated(node, obs), unit="physical")
    is_marked = kind is None and node.array is None and SPATIALDATA in node.attributes
    if is_marked and not ome_of(node.attributes).get("multiscales"):
        raise ConfigError(
            f"read_points takes one table, got the store {location.shown!r}; name an element of "
            f"it: {location.shown}::tables/NAME, ::points/NAME or ::shapes/NAME"
        )
    return None


def _points(node: Node, image: str | None) -> Table:
    """Parquet with a column an axis, moved to where they lie."""
    axes, transform = _placed(node)
    stored = parquet_table(node.location / "points.parquet", image)

    def fetch(names: Sequence[str]) -> dict[str, Any]:
        found = dict(stored.fetch(names))
        for axis, scale, shift in zip(axes, transform.scale, transform.translation, strict=True):
            if axis in found:
                values = pc.cast(found[axis], pa.float64())
                found[axis] = pc.add(pc.multiply(values, scale), shift)
        return found

    return Table(stored.what, stored.names, fetch, unit="physical")


def _shapes(node: Node) -> Table:
    """The centres of shapes, with their other columns."""
    data, ids = _geometries(node)
    columns = {name: data.column(name) for name in data.column_names if name != "geometry"}
    columns[_INDEX] = ids
    what = repr(node.location.shown)
    centres = _centres(node, data)
    places = {a: pa.chunked_array([centres[:, k]]) for k, a in enumerate("yx")}
    return Table(
        what,
        tuple(columns),
        lambda names: {name: columns[name] for name in names},
        Table(what, ("y", "x"), lambda names: {name: places[name] for name in names}),
        unit="physical",
    )


def _annotated(node: Node, obs: Table) -> Table:
    """Where the instances lie that the rows of a table are about; read when they are asked for."""
    shown = node.location.shown
    keys = [str(node.attributes.get(name)) for name in ("region_key", "instance_key")]
    missing = [key for key in keys if key not in obs.names]
    told = node.attributes.get("region")
    regions = [told] if isinstance(told, str) else list(told or ())
    if missing or not regions or not all(isinstance(r, str) and _is_name(r) for r in regions):
        raise SourceError(
            "a table of SpatialData tells the elements that it is about, and has a column each "
            f"for the element and the instance of a row, got region={told!r} and no columns "
            f"{missing} in {shown!r}; name the positions: axes={{'y': ..., 'x': ...}} or positions="
        )
    root = node.location.parent.parent
    elements = [_element(root, name, node.format, shown) for name in regions]
    axes = "".join(a for a in "zyx" if any(a in names for names, _, _ in elements))
    if any(names != axes for names, _, _ in elements):
        raise SourceError(
            f"the elements of one table have the same axes, got {[n for n, _, _ in elements]} for "
            f"{regions} in {shown!r}; read them one by one, with positions of their own"
        )

    def fetch(names: Sequence[str]) -> dict[str, Any]:
        data = obs.read(keys)
        of = np.array(data[keys[0]].cast(pa.string()).to_pylist(), object)
        places = np.full((len(of), len(axes)), np.nan)
        for name, (_, part, read) in zip(regions, elements, strict=True):
            mine = np.flatnonzero(of == name)
            places[mine] = _matched(data[keys[1]].take(pa.array(mine)), *read(part))
        found = {a: pa.chunked_array([places[:, k]]) for k, a in enumerate(axes)}
        return {name: found[name] for name in names}

    return Table(obs.what, tuple(axes), fetch)


def _element(root: Location, name: str, version: int, shown: str) -> tuple[str, Any, Any]:
    """The labels or shapes of a name: their axes, themselves, and what reads ids and centres."""
    labels, shapes = open_nodes(root, [f"labels/{name}", f"shapes/{name}"], version)
    if labels is not None:
        image = image_at(labels, None, 0, name)
        if image is None or image.layout.n_samples * image.layout.n_channels != 1:
            raise SourceError(
                f"labels of SpatialData have spatial axes only, got {labels.location.shown!r}; "
                "name the positions of the table otherwise"
            )
        return image.axes.spatial, image, _centroids
    if shapes is not None:
        return "yx", shapes, _named_centres
    raise SourceMissingError(
        f"a table of SpatialData is about labels or shapes of its store, but {root.shown!r} has "
        f"none called {name!r}, which {shown!r} names; restore them, or name the positions: axes= "
        "or positions="
    )


def _matched(wanted: Any, ids: Any, centres: Floats) -> Floats:
    """The centres of instances by their ids; NaN of those that are not there."""
    have = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if pa.types.is_integer(have.type) and not pa.types.is_integer(wanted.type):
        have = have.cast(pa.string())
    if not pa.types.is_integer(have.type):
        wanted = wanted.cast(pa.string())
    else:
        wanted, have = wanted.cast(pa.int64()), have.cast(pa.int64())
    index = pc.index_in(wanted, value_set=have)
    found = np.full((len(wanted), centres.shape[1]), np.nan)
    known = pc.is_valid(index).to_numpy(zero_copy_only=False) if len(index) else np.zeros(0, bool)
    found[known] = centres[pc.drop_null(index).to_numpy()]
    return found


def _centroids(image: Image) -> tuple[Any, Floats]:
    """The values of labels but 0, and the mean place of the pixels of each, in physical units."""
    axes = image.axes.spatial
    reader = image.source.reader()
    chunks = np.stack(np.unravel_index(np.arange(image.grid.n_chunks), image.grid.counts), -1)
    values, counts, sums = [], [], []
    for first in range(0, len(chunks), _BATCH):
        batch = chunks[first : first + _BATCH]
        for chunk, pixels in zip(batch, reader.read(batch), strict=True):
            start, _ = image.grid.box(chunk.tolist())
            where = np.nonzero(pixels)
            own = pixels[where].astype(np.int64)
            if own.size and own.min() >= 0 and own.max() < _FEW:
                n = np.bincount(own)
                found, inverse = np.flatnonzero(n), own
                pick = found
            else:
                found, inverse, n = np.unique(own, return_inverse=True, return_counts=True)
                pick = np.arange(len(found))
            values.append(found)
            counts.append(n[pick])
            places = [w + s for w, s in zip(where, start, strict=True)]
            sums.append(np.stack([np.bincount(inverse, p, len(n))[pick] for p in places], -1))
    ids, inverse = np.unique(np.concatenate(values), return_inverse=True)
    n = np.bincount(inverse, np.concatenate(counts), len(ids))
    total = np.concatenate(sums)
    stored = [image.axes.names.index(a) for a in axes]
    centres = np.stack([np.bincount(inverse, total[:, k], len(ids)) / n for k in stored], -1)
    step = np.array([image.spacing.get(a, 1.0) for a in axes])
    first_pixel = np.array([image.origin.get(a, 0.0) for a in axes])
    return pa.array(ids.astype(np.int64)), centres * step + first_pixel


def _named_centres(node: Node) -> tuple[Any, Floats]:
    data, ids = _geometries(node)
    return ids, _centres(node, data)


def _centres(node: Node, data: Any) -> Floats:
    """float64[n, 2]: y and x of the centre of each geometry; NaN of those that are missing."""
    axes, transform = _placed(node)
    if axes[:2] != ["x", "y"]:
        raise SourceError(
            f"shapes have the axes x and y, got {axes} in {node.location.shown!r}; read their "
            "centres from a table"
        )
    try:
        centres = _of_wkb(data.column("geometry").to_pylist())
    except (struct.error, ValueError, IndexError, RecursionError) as error:
        raise SourceError(
            f"shapes are points and polygons in well-known binary, but {node.location.shown!r} "
            f"has others: {error}; write them again"
        ) from None
    moved = centres * transform.scale[:2] + transform.translation[:2]
    return np.ascontiguousarray(moved[:, ::-1])


def _placed(node: Node) -> tuple[list[str], Transform]:
    """The axes of points or shapes, and where they lie in the coordinate system of the images."""
    axes = [str(axis) for axis in node.attributes.get("axes") or ()]
    shown = repr(node.location.shown)
    try:
        transform = compose(node.attributes.get("coordinateTransformations"), axes, shown)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{shown} has coordinateTransformations that cannot be read: {error}; write it again"
        ) from None
    if "x" not in axes or "y" not in axes or len(set(axes)) < len(axes):
        raise SourceError(f"an element of SpatialData has the axes x and y, got {axes} in {shown}")
    return axes, transform


def _geometries(node: Node) -> tuple[Any, Any]:
    """The columns of shapes, and their names."""
    import pyarrow.dataset as ds

    location = node.location / "shapes.parquet"
    fs, path = location.open()
    try:
        data = RETRYING.call(lambda: ds.dataset(path, filesystem=fs, format="parquet").to_table())
        told = (data.schema.pandas_metadata or {}).get("index_columns") or [{}]
        [index] = told if len(told) == 1 else [{}]
        if isinstance(index, str):
            ids = data.column(index)
            data = data.drop_columns([index])
        else:
            start, step = int(index.get("start", 0)), int(index.get("step", 1))
            ids = pa.chunked_array([start + step * np.arange(len(data))])
        data.column("geometry")
    except Exception as error:  # each file system has errors of its own
        raise SourceError(
            f"shapes of SpatialData are GeoParquet, but {location.shown!r} cannot be read: "
            f"{location.describe(error)}; write them again"
        ) from error
    return data, ids


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and not {"/", "\\"} & {*name} and "::" not in name


# --- Well-known binary ----------------------------------------------------------------------

_POINT, _POLYGON, _MANY_POLYGONS = 1, 3, 6


def _of_wkb(geometries: Sequence[bytes | None]) -> Floats:
    """float64[n, 2]: x and y of the centre of each."""
    joined = b"".join(g for g in geometries if g is not None)
    plain = b"\x01\x01\0\0\0"
    if all(g is not None and len(g) == 21 and g[:5] == plain for g in geometries):
        told = np.frombuffer(joined, np.dtype([("head", "V5"), ("place", "<f8", 2)]))
        return np.array(told["place"], np.float64).reshape(-1, 2)
    found = np.full((len(geometries), 2), np.nan)
    for k, data in enumerate(geometries):
        if data is not None:
            area, moment, _ = _part(data, 0)
            found[k] = moment / area if area else np.nan
    return found


def _part(data: bytes, at: int) -> tuple[float, Floats, int]:
    """Weight, weighted centre and end of the geometry that begins at a byte."""
    order = "<" if data[at] == 1 else ">"
    (kind,) = struct.unpack_from(f"{order}I", data, at + 1)
    at += 5 + 4 * bool(kind & 0x20000000)
    iso = (kind & 0x0FFFFFFF) // 1000  # 1000 more with z, 2000 with m, 3000 with both
    width = 2 + (bool(kind >> 31) or iso in (1, 3)) + (bool(kind >> 30 & 1) or iso in (2, 3))
    kind = (kind & 0x0FFFFFFF) % 1000
    if kind == _POINT:
        return 1.0, np.array(struct.unpack_from(f"{order}2d", data, at)), at + 8 * width
    (n,) = struct.unpack_from(f"{order}I", data, at)
    at += 4
    area, moment = 0.0, np.zeros(2)
    for ring in range(n):
        if kind == _MANY_POLYGONS:
            one, its, at = _part(data, at)
        elif kind == _POLYGON:
            (size,) = struct.unpack_from(f"{order}I", data, at)
            points = np.frombuffer(data, f"{order}f8", size * width, at + 4).reshape(size, width)
            one, its = _ring(points[:, :2])
            if ring:  # a hole
                one, its = -one, -its
            at += 4 + 8 * size * width
        else:
            raise ValueError(f"a geometry of kind {kind}")
        area, moment = area + one, moment + its
    return area, moment, at


def _ring(points: Floats) -> tuple[float, Floats]:
    """Area of a closed ring, and its centre times that; whichever way it turns."""
    # About its first point: far from 0 the products would lose what makes the area.
    a = points - points[0]
    b = np.roll(a, -1, 0)
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    area = cross.sum() / 2
    moment = ((a + b) * cross[:, None]).sum(0) / 6 + area * points[0]
    sign = -1.0 if area < 0 else 1.0
    return float(sign * area), sign * moment
