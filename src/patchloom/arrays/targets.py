"""Targets: where rows are written, so that readers see what is committed and nothing else.

A Zarr array is as long as its metadata say. Objects beyond that end are written first, and a
commit replaces the one metadata document. An HDF5 file has no such order of its own: a commit puts
a changed copy in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError, ExistsError, PatchloomError, StoreError, WriteError
from patchloom.location import Location

__all__ = ["Hdf5Target", "Target", "Wanted", "ZarrTarget"]

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Wanted:
    """An array as its writer asked for it."""

    name: str
    """Path inside the container."""
    element_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unit: int
    """Rows that are written together."""
    chunk: int
    """Rows that are decoded together."""
    length: int | None
    append: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the library that makes the array."""

    def check(self, where: str, shape: Sequence[int], dtype: np.dtype[Any], unit: int) -> None:
        """Whether rows can be appended to what stands somewhere.

        Raises
        ------
        ExistsError
            If they are not to be.
        StoreError
            If they do not fit.
        """
        if not self.append:
            raise ExistsError(
                f"an array is made once, but {where} has {shape[0]:,} rows; append=True goes on "
                "with it, another name leaves it alone"
            )
        found = (tuple(shape[1:]), dtype.newbyteorder("="))
        if len(shape) < 1 or found != (self.element_shape, self.dtype):
            raise StoreError(
                f"appended rows are like those that are there, got {self.element_shape} of "
                f"{self.dtype} for {where}, which has {found[0]} of {found[1]}"
            )
        if unit != self.unit:
            raise StoreError(
                f"rows are appended in the array's own pieces, got batch_size={self.unit} for "
                f"{where}, which is stored {unit} rows a piece; give batch_size={unit}"
            )


class Target(Protocol):
    """One array that rows are written to."""

    n_committed: int
    """Rows that a reader sees."""

    def tail(self, start: int) -> Pixels:
        """The committed rows from one on."""

    def put(self, start: int, rows: Pixels) -> None:
        """Store one piece, whole or the last one; no reader sees it yet."""

    def commit(self, n: int) -> None:
        """Make the first n rows what a reader sees, at once."""

    def close(self) -> None:
        """Let go of what is not committed."""


class ZarrTarget:
    """A Zarr array, v2 or v3, at any URL that objects can be written to.

    Parameters
    ----------
    location
        Of the container: a Zarr group, made if it is missing.
    wanted
        The array in it.
    zarr_format
        2 or 3.
    """

    def __init__(self, location: Location, wanted: Wanted, zarr_format: int) -> None:
        self._container, self._wanted, self._format = location, wanted, zarr_format
        self._location = location / wanted.name
        self._key = "zarr.json" if zarr_format == 3 else ".zarray"
        self._missing = self._missing_groups()
        self._stored = self._location.read(self._key)
        self.n_committed = 0
        if self._stored is None:
            if zarr_format == 2 and self._location.read(".zgroup") is not None:
                raise ExistsError(f"a group stands at {self._location.shown!r}; give another name")
            self._new, document = self._made()
        else:
            self._new = {}
            document = self._found(self._stored)
            self.n_committed = int(document["shape"][0])
        self._document = document

    def _missing_groups(self) -> list[Location]:
        """The groups above the array that are to be made; those that stand are checked."""
        other = {3: (".zgroup", ".zarray"), 2: ("zarr.json",)}[self._format]
        missing, at = [], self._container
        for part in (*PurePosixPath(self._wanted.name).parts, None):
            if any(at.read(name) is not None for name in other):
                raise StoreError(
                    f"a container has one format, got zarr_format={self._format} for "
                    f"{at.shown!r}, which has another; give zarr_format={5 - self._format}"
                )
            if part is None:
                break
            if at.read(".zarray") is not None:
                raise ExistsError(f"an array stands in a group, but {at.shown!r} is an array")
            data = at.read("zarr.json" if self._format == 3 else ".zgroup")
            if data is None:
                missing.append(at)
            elif json.loads(data).get("node_type", "group") != "group":
                raise ExistsError(f"an array stands in a group, but {at.shown!r} is an array")
            elif json.loads(data).get("consolidated_metadata") or at.read(".zmetadata") is not None:
                raise StoreError(
                    f"rows are seen when an array's metadata say so, but those of {at.shown!r} "
                    "are consolidated, and readers would go on seeing what is there now; write to "
                    "another container, or remove the consolidated metadata and make them anew at "
                    "the end"
                )
            at = at / part
        return missing

    def _made(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The documents of a new array without rows."""
        import zarr
        from zarr.core.buffer import default_buffer_prototype

        wanted = self._wanted
        shards = None if wanted.unit == wanted.chunk else (wanted.unit, *wanted.element_shape)
        try:
            array = zarr.create_array(
                zarr.storage.MemoryStore(),
                shape=(0, *wanted.element_shape),
                dtype=wanted.dtype,
                chunks=(wanted.chunk, *wanted.element_shape),
                shards=shards,
                zarr_format=self._format,  # type: ignore[arg-type]
                **wanted.options,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"kwargs= are for zarr.create_array, which says: {error}") from None
        found = array.metadata.to_buffer_dict(default_buffer_prototype())
        made = {name: bytes(buffer.to_bytes()) for name, buffer in found.items()}
        return made, json.loads(made[self._key])

    def _found(self, data: bytes) -> dict[str, Any]:
        from patchloom.sources.zarrs import open_node

        metadata = open_node(self._location).array
        if metadata is None or metadata.format != self._format:
            raise ExistsError(f"a group stands at {self._location.shown!r}; give another name")
        document: dict[str, Any] = json.loads(data)
        dtype = metadata.parsed().dtype.to_native_dtype()
        unit = metadata.outer[0] if metadata.outer else 1
        self._wanted.check(repr(self._location.shown), document["shape"], dtype, unit)
        return document

    def tail(self, start: int) -> Pixels:
        """The committed rows from one on."""
        from patchloom.arrays.rows import Chunked
        from patchloom.grid import ChunkGrid
        from patchloom.sources.chunks import ArrayMetadata, bare, reader_for

        metadata = ArrayMetadata(self._format, bare(self._document))
        shape = tuple(self._document["shape"])
        rows = Chunked(
            lambda: reader_for(self._location, metadata),
            ChunkGrid(shape, metadata.chunks),
            self._wanted.dtype,
        )
        rest = [range(n) for n in shape[1:]]
        return rows.open()(np.arange(start, self.n_committed), rest)

    def put(self, start: int, rows: Pixels) -> None:
        """Encode a piece in memory, then write each of its objects whole."""
        import zarr
        from zarr.core.array import AsyncArray
        from zarr.storage import MemoryStore, StorePath

        from patchloom.sources.chunks import ArrayMetadata

        # The last object may hold rows that another writer has committed since.
        self._check_alone()
        unit = self._wanted.unit
        shape = [start + unit, *self._wanted.element_shape]
        parsed = ArrayMetadata(self._format, {**self._document, "shape": shape}).parsed()
        if len(rows) < unit:
            fill = 0 if parsed.fill_value is None else parsed.fill_value
            whole = np.full((unit, *rows.shape[1:]), fill, rows.dtype)
            whole[: len(rows)] = rows
            rows = whole
        objects: dict[str, Any] = {}
        # Pieces of nothing but fill value are written too: what a killed writer left is replaced.
        config: Any = {"write_empty_chunks": True}
        array = AsyncArray(parsed, StorePath(MemoryStore(objects)), config)
        zarr.Array(array)[start : start + unit] = rows
        for name, buffer in objects.items():
            self._location.write(name, buffer.to_bytes())

    def commit(self, n: int) -> None:
        """Replace the metadata document."""
        self._check_alone()
        for group in self._missing:
            document = {"zarr_format": self._format}
            if self._format == 3:
                document |= {"node_type": "group", "attributes": {}}  # type: ignore[dict-item]
            group.write("zarr.json" if self._format == 3 else ".zgroup", _json(document))
        for name, data in self._new.items():
            if name != self._key:
                self._location.write(name, data)
        self._missing, self._new = [], {}
        self._document = {**self._document, "shape": [n, *self._document["shape"][1:]]}
        data = _json(self._document)
        self._location.write(self._key, data)
        self._stored, self.n_committed = data, n

    def _check_alone(self) -> None:
        if self._location.read(self._key) != self._stored:
            raise StoreError(
                f"an array has one writer at a time, but {self._location.shown!r} was changed by "
                "another one; open it anew with append=True"
            )

    def close(self) -> None:
        """Objects beyond the end stay where they are: no reader sees them."""


class Hdf5Target:
    """A dataset in an HDF5 file on a local disk.

    Parameters
    ----------
    location
        Of the file, which may hold other things: they stay.
    wanted
        The dataset.
    """

    def __init__(self, location: Location, wanted: Wanted) -> None:
        if not location.is_local:
            raise ConfigError(
                f"an HDF5 file is written on a local disk, got {location.shown!r}; write it there "
                "and upload it, or take format='zarr', which any store can hold"
            )
        self._path, self._wanted = location.open()[1], wanted
        self._part: str | None = None
        self._file: Any = None
        self._state = self._state_now()
        self.n_committed = 0
        self._broken = False
        if self._state is not None:
            try:
                with _h5py().File(self._path, "r") as file:
                    self._check(file)
            except PatchloomError:
                raise
            except OSError as error:
                raise StoreError(
                    f"rows are appended to an HDF5 file, but {self._path!r} cannot be read as one: "
                    f"{location.describe(error)}"
                ) from None
        else:
            _h5py()

    def _check(self, file: Any) -> None:
        where = f"{self._wanted.name!r} in {self._path!r}"
        if self._wanted.name not in file:
            return
        found = file[self._wanted.name]
        if not isinstance(found, _h5py().Dataset) or found.file != file or found.is_virtual:
            raise ExistsError(f"a dataset stands where nothing else does, but {where} is there")
        chunks = found.chunks or found.shape or (1,)
        self._wanted.check(where, found.shape, found.dtype, int(chunks[0]))
        if found.chunks is None or (most := found.maxshape[0]) not in (None, self._wanted.length):
            raise StoreError(
                f"rows are appended to a dataset that can grow, but {where} has room for "
                f"{found.shape[0] if found.chunks is None else most:,} rows; give length= as it "
                "was made, or write another dataset"
            )
        self.n_committed = int(found.shape[0])

    def tail(self, start: int) -> Pixels:
        """The committed rows from one on."""
        with _h5py().File(self._path, "r") as file:
            found: Pixels = file[self._wanted.name][start : self.n_committed]
            return found

    def put(self, start: int, rows: Pixels) -> None:
        """Write a piece into the copy."""
        dataset = self._opened()
        try:
            dataset.resize(start + len(rows), axis=0)
            dataset[start : start + len(rows)] = rows
        except (OSError, RuntimeError) as error:
            raise self._refused(error) from error

    def commit(self, n: int) -> None:
        """Put the copy in the place of the file."""
        dataset = self._opened()
        self._check_alone()
        assert self._part is not None
        try:
            dataset.resize(n, axis=0)
            self._file.close()
            os.replace(self._part, self._path)
        except (OSError, RuntimeError) as error:
            raise self._refused(error) from error
        self._file = self._part = None
        self._state, self.n_committed = self._state_now(), n

    def close(self) -> None:
        """Remove the copy."""
        # What cannot be written cannot be closed, either: it is given up.
        with contextlib.suppress(OSError, RuntimeError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            if self._part is not None:
                os.remove(self._part)
        self._file = self._part = None

    def _check_alone(self) -> None:
        if self._state_now() != self._state:
            raise StoreError(
                f"a file has one writer at a time, but {self._path!r} was changed by another one; "
                "open it anew with append=True"
            )

    def _opened(self) -> Any:
        """The dataset in the copy, which is made when it is first needed."""
        wanted = self._wanted
        if self._broken:
            raise StoreError(
                f"rows stay in order, but some after the {self.n_committed:,} committed ones of "
                f"{self._path!r} could not be written; open it anew with append=True and write "
                "them again"
            )
        if self._file is None:
            self._check_alone()
            self._part = f"{self._path}.{uuid.uuid4().hex}.part"
            try:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                if self._state is not None:
                    shutil.copyfile(self._path, self._part)
                self._file = _h5py().File(self._part, "a")
            except OSError as error:
                raise self._refused(error) from error
        if wanted.name not in self._file:
            try:
                self._file.create_dataset(
                    wanted.name,
                    (0, *wanted.element_shape),
                    wanted.dtype,
                    maxshape=(wanted.length, *wanted.element_shape),
                    chunks=(wanted.unit, *wanted.element_shape),
                    **{"compression": "lzf", **wanted.options},
                )
            except (TypeError, ValueError) as error:
                raise ConfigError(f"kwargs= are for create_dataset, which says: {error}") from None
        return self._file[wanted.name]

    def _state_now(self) -> tuple[int, int, int] | None:
        if not os.path.exists(self._path):
            return None
        told = os.stat(self._path)
        return told.st_ino, told.st_mtime_ns, told.st_size

    def _refused(self, error: Exception) -> WriteError:
        self._broken = True
        self.close()
        return WriteError(
            f"rows must be writable, but a copy of {self._path!r} was refused ({error}); free "
            f"space or mend the permission: the {self.n_committed:,} rows that are committed stay"
        )


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ConfigError(
            "HDF5 needs h5py, which is not installed; pip install 'patchloom[hdf5]'"
        ) from None
    return h5py


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
