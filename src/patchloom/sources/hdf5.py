"""HDF5 files: one dataset, its chunks fetched side by side and decoded by our own calls.

h5py reads what the file says of itself, and where chunks lie: it has one lock for the whole
process. What most files are stored with (deflate, shuffle, fletcher32, or nothing) is decoded here,
without that lock; other filters and unusual number types are h5py's work.

A name in a file never leads out of it: external links, external storage and virtual datasets are
refused.
"""

from __future__ import annotations

import json
import math
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt

from patchloom.axes import Axes
from patchloom.errors import ChunkError, NotAnArrayError, PatchloomError, SourceError
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Image, Ints, Reads
from patchloom.location import Location
from patchloom.sources.arrays import check_numeric
from patchloom.sources.block_file import BlockFile
from patchloom.sources.fetching import Fetching
from patchloom.sources.files import FileSource, Wanted, package
from patchloom.sources.handles import image_of, letters
from patchloom.sources.npy import RawReader, rows_of

__all__ = ["open_file", "reader"]

Pixels = npt.NDArray[Any]
_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
"""Numbers of filters in the HDF5 specification."""
_LOOKED_AT = 10_000
"""Links that are followed to find the datasets of a file."""
_SOFT = 16
"""Soft links in a row."""
_INDEX_BYTES = 128 * 2**20
"""Bytes of chunk indices that a process keeps."""


def open_file(location: Location, wanted: Wanted) -> Image:
    """A dataset of a file: the one that is asked for, else the only one that is an image."""
    if wanted.level != 0:
        raise SourceError(
            f"{location.shown!r} has no levels, got level={wanted.level!r}; leave it out, and name "
            "the dataset of the level"
        )
    with _opened(location, Fetching(location, Reads(), None, in_parts=True)) as file:
        inside = _chosen(file, location, wanted.inside)
        dataset = _at(file, inside, location)
        what = f"{location.shown}::{inside.lstrip('/')}"
        stored = check_numeric(_dtype(dataset), repr(what))
        axes = wanted.axes_for(_named_axes(dataset), dataset.ndim, what)
        layout = _layout(dataset, inside, what, location.size())
        image = image_of(
            name=wanted.name,
            uri=what if wanted.inside else location.shown,
            axes=axes,
            shape=dataset.shape,
            dtype=stored,
            chunks=layout["chunks"],
            source=FileSource(location, "hdf5", layout),
        )
        return replace(image, **_physical(dataset, axes))


def reader(source: FileSource) -> ChunkReader:
    """The fastest reader that understands how a dataset is stored."""
    how = source.layout["how"]
    if how == "contiguous":
        return RawReader(source)
    return _ChunkReader(source) if how == "chunks" else _H5pyReader(source)


# --- What a file says of itself -------------------------------------------------------------


@contextmanager
def _opened(location: Location, fetching: Fetching) -> Iterator[Any]:
    h5py = package("h5py", "hdf5", location)
    try:
        with h5py.File(BlockFile(fetching, location.size()), "r") as file:
            yield file
    except PatchloomError:
        raise
    except Exception as error:  # h5py raises most kinds there are
        raise NotAnArrayError(
            f"a file is read as HDF5 if it is whole, but {location.shown!r} cannot be: "
            f"{location.describe(error)}; copy it again, or name it by what it is"
        ) from error


def _chosen(file: Any, location: Location, asked: str | None) -> str:
    """The path of the dataset that is meant."""
    import h5py

    node = file if asked is None else _at(file, asked, location)
    if isinstance(node, h5py.Dataset):
        return str(node.name)
    found = [f"{node.name.rstrip('/')}/{path}" for path in _datasets(node, location)]
    if len(found) == 1:
        return found[0]
    held = f"holds {[path.lstrip('/') for path in found[:20]]}" if found else "holds none"
    raise NotAnArrayError(
        f"an image is one dataset of numbers, but {location.shown!r} {held}"
        + (f" and {len(found) - 20} more" if len(found) > 20 else "")
        + "; name one: container::path/inside"
    )


def _datasets(group: Any, location: Location) -> list[str]:
    """Paths of the datasets below a group that can be images; no link out of it is followed."""
    import h5py

    found, seen, looked = [], {h5py.h5o.get_info(group.id).addr}, 0
    rest = [("", group)]
    while rest:
        prefix, node = rest.pop()
        for name in node:
            looked += 1
            if looked > _LOOKED_AT:
                raise NotAnArrayError(
                    f"the dataset of a large file is named, but {location.shown!r} has more than "
                    f"{_LOOKED_AT:,} names in it; name one: container::path/inside"
                )
            if not isinstance(node.get(name, getlink=True), h5py.HardLink):
                continue  # what a soft link stands for is found where it is
            one = node[name]
            address = h5py.h5o.get_info(one.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(one, h5py.Group):
                rest.append((f"{prefix}{name}/", one))
            elif isinstance(one, h5py.Dataset) and _is_image(one):
                found.append(prefix + name)
    return sorted(found)


def _is_image(dataset: Any) -> bool:
    try:
        dtype = dataset.dtype
    except TypeError:  # of a type that NumPy has no word for
        return False
    return bool(dataset.shape) and dtype.kind in "biuf" and not dataset.is_scale


def _at(file: Any, path: str, location: Location, depth: int = 0) -> Any:
    """What stands at a path, link by link: none of them may lead to another file."""
    import h5py

    node, walked = file, ""
    for name in filter(None, path.split("/")):
        link = node.get(name, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            held = [p.lstrip("/") for p in _datasets(file, location)[:20]]
            raise NotAnArrayError(
                f"a path inside a file leads to a dataset, but {location.shown!r} has no "
                f"{path.lstrip('/')!r}; it holds {held}"
            )
        if isinstance(link, h5py.ExternalLink):
            raise NotAnArrayError(
                f"a file is read without others, but {walked + name!r} of {location.shown!r} is a "
                "link to another file; open that file"
            )
        if isinstance(link, h5py.SoftLink):
            if depth == _SOFT:
                raise NotAnArrayError(
                    f"a link leads to a dataset, but {path!r} of {location.shown!r} goes on after "
                    f"{_SOFT} links; name the dataset itself"
                )
            target = link.path if link.path.startswith("/") else f"{node.name}/{link.path}"
            node = _at(file, target, location, depth + 1)
        else:
            node = node[name]
        walked += f"{name}/"
    return node


def _dtype(dataset: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = dataset.dtype
    except TypeError as error:
        raise NotAnArrayError(
            f"an image is an array of integers, floats or bools, but dataset {dataset.name!r} is "
            f"of a type of its own ({error}); convert it first, or name another array"
        ) from None
    # Without what h5py notes in it, such as the names of an enumeration.
    return np.dtype(dtype.str) if dtype.kind in "biuf" else dtype


def _layout(dataset: Any, inside: str, what: str, size: int) -> dict[str, Any]:
    import h5py

    creation = dataset.id.get_create_plist()
    if dataset.is_virtual or dataset.external:
        how = "a virtual dataset" if dataset.is_virtual else "stored in other files"
        raise NotAnArrayError(
            f"a file is read without others, but {what!r} is {how}; write it into one file "
            "(h5repack), or open the others"
        )
    dtype = _dtype(dataset)
    plain = _is_plain(dataset, dtype)
    layout = {
        "how": "h5py",
        "inside": inside,
        "dtype": dtype.str,
        "shape": list(dataset.shape),
        "chunks": list(dataset.chunks or rows_of(dataset.shape, dtype.itemsize)),
    }
    kind = creation.get_layout()
    if kind == h5py.h5d.CONTIGUOUS and plain and dataset.id.get_offset() is not None:
        offset = dataset.id.get_offset()
        if 0 <= size < offset + math.prod(dataset.shape) * dtype.itemsize:
            raise NotAnArrayError(
                f"a file holds all of its array, but {what!r} ends before its last byte; copy it "
                "again"
            )
        return {**layout, "how": "contiguous", "offset": offset, "order": "C"}
    filters = [creation.get_filter(k)[0] for k in range(creation.get_nfilters())]
    if kind == h5py.h5d.CHUNKED and plain and set(filters) <= {_DEFLATE, _SHUFFLE, _FLETCHER}:
        fill = np.asarray(dataset.fillvalue).astype(dtype)
        return {**layout, "how": "chunks", "filters": filters, "fill": fill.tobytes().hex()}
    return layout


def _is_plain(dataset: Any, dtype: np.dtype[Any]) -> bool:
    """Whether stored bytes are NumPy's own of this type: no odd widths, no bits left out."""
    import h5py

    kind = dataset.id.get_type()
    if isinstance(kind, h5py.h5t.TypeEnumID):  # a bool is an enumeration of bytes
        kind = kind.get_super()
    return bool(kind == h5py.h5t.py_create(np.dtype("i1") if dtype.kind == "b" else dtype))


# --- What its attributes say of axes and pixel sizes ----------------------------------------


def _named_axes(dataset: Any) -> str:
    """The axes by vigra's ``axistags`` or HDF5's ``DIMENSION_LABELS``; ``""`` if unknown."""
    tags = _attribute(dataset, "axistags")
    if isinstance(tags, str):
        try:
            found = letters(axis["key"] for axis in json.loads(tags)["axes"])
        except (ValueError, KeyError, TypeError, RecursionError):
            found = ""
        if len(found) == dataset.ndim:
            return found
    labels = _attribute(dataset, "DIMENSION_LABELS")
    if labels is None:
        return ""
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in labels]
    named = letters(texts)
    return named if all(texts) and len(named) == dataset.ndim else ""


def _physical(dataset: Any, axes: Axes) -> dict[str, Any]:
    """Spacing, origin and unit on the spatial axes, in stored order, where they are told."""
    spatial = "".join(a for a in axes.names if a in axes.spatial)
    size = _numbers(dataset, "element_size_um", axes, spatial)
    if size:
        return {"spacing": size, "unit": dict.fromkeys(size, "micrometer")}
    size = _numbers(dataset, "resolution", axes, spatial)
    if not size:
        return {}
    offset = _numbers(dataset, "offset", axes, spatial, positive=False)
    unit = _attribute(dataset, "unit")
    named = dict.fromkeys(size, unit) if isinstance(unit, str) and unit else {}
    return {"spacing": size, "origin": offset, "unit": named}


def _numbers(
    dataset: Any, name: str, axes: Axes, spatial: str, positive: bool = True
) -> dict[str, float]:
    """One number a spatial axis; none if they are not finite, or not above 0 where they must."""
    try:
        values = np.asarray(_attribute(dataset, name), np.float64).reshape(-1)
    except (TypeError, ValueError):
        return {}
    if len(values) == len(axes):
        values = values[[axes.names.index(a) for a in spatial]]
    if len(values) != len(spatial) or not np.isfinite(values).all():
        return {}
    if positive and not (values > 0).all():
        return {}
    return dict(zip(spatial, values.tolist(), strict=True))


def _attribute(dataset: Any, name: str) -> Any:
    try:
        value = dataset.attrs.get(name)
    except (OSError, TypeError, ValueError, KeyError):  # of a type that h5py cannot read
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


# --- Reading --------------------------------------------------------------------------------


class _Index:
    """Where the chunks of a dataset lie: 24 bytes each."""

    def __init__(self, dataset: Any, grid: ChunkGrid) -> None:
        found: list[tuple[int, int, int]] = []
        places: list[tuple[int, ...]] = []

        def take(info: Any) -> None:
            places.append(info.chunk_offset)
            found.append((info.byte_offset, info.size, info.filter_mask))

        dataset.id.chunk_iter(take)
        rows = np.array(places, np.int64).reshape(-1, len(grid.shape)) // np.array(grid.chunks)
        inside = (rows < np.array(grid.counts)).all(-1)
        flat = grid.flat(rows[inside])
        order = np.argsort(flat)
        self.flat = flat[order]
        self.places = np.array(found, np.int64).reshape(-1, 3)[inside][order]
        self.nbytes = self.flat.nbytes + self.places.nbytes

    def find(self, flat: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """(first byte, bytes, filters that were left out) of chunks, and whether they are there."""
        if not len(self.flat):
            return np.zeros((len(flat), 3), np.int64), np.zeros(len(flat), np.bool_)
        at = np.minimum(np.searchsorted(self.flat, flat), len(self.flat) - 1)
        return self.places[at], self.flat[at] == flat


_indices: OrderedDict[tuple[str, str, str], _Index] = OrderedDict()
_lock = threading.Lock()


def _index_of(source: FileSource, fetching: Fetching, grid: ChunkGrid) -> _Index:
    """The index of a dataset, read once a process for each state of the file."""
    state = fetching.state("")
    key = (source.location.url, source.layout["inside"], state)
    with _lock:
        found = _indices.get(key) if state else None
        if found is None:
            with _opened(source.location, fetching) as file:
                dataset = _at(file, source.layout["inside"], source.location)
                _check_same(dataset, source)
                found = _Index(dataset, grid)
            if state:
                _indices[key] = found
        else:
            _indices.move_to_end(key)
        while len(_indices) > 1 and sum(i.nbytes for i in _indices.values()) > _INDEX_BYTES:
            _indices.popitem(last=False)
    return found


def _check_same(dataset: Any, source: FileSource) -> None:
    layout = source.layout
    now = (list(dataset.shape), list(dataset.chunks or layout["chunks"]), dataset.dtype.str)
    if now != (layout["shape"], layout["chunks"], layout["dtype"]):
        raise ChunkError(
            f"an image stays as it was when it was opened, but {layout['inside']!r} of "
            f"{source.location.shown!r} has now shape {tuple(dataset.shape)} of {dataset.dtype} in "
            f"chunks {dataset.chunks}; open it again"
        )


class _ChunkReader:
    """Fetches chunks as ranges of bytes in one batch, and decodes them without h5py."""

    def __init__(self, source: FileSource) -> None:
        self.reads = Reads(codecs="direct")
        layout = source.layout
        self._source = source
        self._fetching = source.fetching(self.reads)
        self._grid = ChunkGrid(tuple(layout["shape"]), tuple(layout["chunks"]))
        self._dtype = np.dtype(layout["dtype"])
        self._filters = tuple(layout["filters"])
        self._fill = np.frombuffer(bytes.fromhex(layout["fill"]), self._dtype)[0]
        self._index: _Index | None = None

    def read(self, chunks: Ints) -> list[Pixels]:
        """Decode chunks: int64[n, ndim] indices -> clipped arrays in stored axis order."""
        rows = np.asarray(chunks, np.int64)
        if self._index is None:
            self._index = _index_of(self._source, self._fetching, self._grid)
        places, there = self._index.find(self._grid.flat(rows))
        spans = [("", a, a + n) for a, n, _ in places[there].tolist()]
        data = iter(self._fetching.spans(spans))
        native = self._dtype.newbyteorder("=")
        found = []
        for row, (_, size, mask), stored in zip(
            rows.tolist(), places.tolist(), there.tolist(), strict=True
        ):
            self.reads.chunks += 1
            start, stop = self._grid.box(row)
            extent = [b - a for a, b in zip(start, stop, strict=True)]
            if not stored:
                found.append(np.full(extent, self._fill, native))
                continue
            pixels = self._decoded(next(data), size, mask, row)
            clipped = pixels[tuple(slice(n) for n in extent)]
            found.append(np.ascontiguousarray(clipped).astype(native, copy=False))
        return found

    def _decoded(self, data: Any, size: int, mask: int, row: Sequence[int]) -> Pixels:
        shape = self._grid.chunks
        dtype = np.dtype("u1") if self._dtype.kind == "b" else self._dtype
        try:
            if len(data) != size:
                raise ValueError(f"{len(data):,} bytes of {size:,}")
            nbytes = math.prod(shape) * dtype.itemsize
            plain = _unfiltered(data, self._filters, mask, dtype.itemsize, nbytes)
            pixels = np.frombuffer(plain, dtype).reshape(shape)
        except Exception as error:
            raise ChunkError(
                f"every chunk that a patch needs must decode, but chunk {tuple(row)} of "
                f"{self._source.layout['inside']!r} of {self._source.location.shown} does not: "
                f"{type(error).__name__}: {error}; restore the file from its source"
            ) from error
        return pixels != 0 if self._dtype.kind == "b" else pixels


def _unfiltered(data: Any, filters: Sequence[int], mask: int, itemsize: int, nbytes: int) -> Any:
    """The bytes of a chunk before its filters, the last of which is undone first."""
    most = nbytes + 4 * len(filters)
    for position in reversed(range(len(filters))):
        if mask >> position & 1:
            continue  # left out of this chunk by its writer
        if filters[position] == _FLETCHER:
            data = numcodecs.Fletcher32().decode(data)
        elif filters[position] == _DEFLATE:
            # No more than a chunk has: what inflates to more is broken, or an attack.
            data = zlib.decompressobj().decompress(data, most + 1)
        else:
            data = _unshuffled(data, itemsize)
    if len(data) != nbytes:
        raise ValueError(f"{len(data):,} bytes for a chunk of {nbytes:,}")
    return data


def _unshuffled(data: Any, itemsize: int) -> Any:
    if itemsize == 1:
        return data
    raw = np.frombuffer(data, np.uint8)
    n = len(raw) // itemsize
    out = np.empty(len(raw), np.uint8)
    whole = out[: n * itemsize].reshape(n, itemsize)
    for k in range(itemsize):  # byte by byte of all numbers: three times as fast as transposing
        whole[:, k] = raw[k * n : (k + 1) * n]
    out[n * itemsize :] = raw[n * itemsize :]
    return out


class _H5pyReader:
    """Asks h5py chunk by chunk: for filters and types that are not ours."""

    def __init__(self, source: FileSource) -> None:
        self.reads = Reads(codecs="file")
        layout = source.layout
        self._source = source
        self._fetching = source.fetching(self.reads)
        self._grid = ChunkGrid(tuple(layout["shape"]), tuple(layout["chunks"]))
        self._dtype = np.dtype(layout["dtype"]).newbyteorder("=")

    def read(self, chunks: Ints) -> list[Pixels]:
        """Decode chunks: int64[n, ndim] indices -> clipped arrays in stored axis order."""
        found = []
        inside, location = self._source.layout["inside"], self._source.location
        with _opened(location, self._fetching) as file:
            dataset = _at(file, inside, location)
            _check_same(dataset, self._source)
            for row in np.asarray(chunks).tolist():
                self.reads.chunks += 1
                start, stop = self._grid.box(row)
                where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
                try:
                    pixels = dataset[where]
                except PatchloomError:
                    raise
                except Exception as error:  # h5py raises most kinds there are
                    raise ChunkError(
                        f"every chunk that a patch needs must decode, but chunk {tuple(row)} of "
                        f"{inside!r} of {location.shown} does not: {location.describe(error)}; "
                        "install what its filter needs (for example hdf5plugin, imported before), "
                        "or restore the file"
                    ) from error
                found.append(pixels.astype(self._dtype, copy=False))
        return found
