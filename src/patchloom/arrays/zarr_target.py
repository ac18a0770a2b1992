"""ZarrTarget: rows of a Zarr array, which is as long as its metadata say.

Objects beyond that end are written first, and a commit replaces the one metadata document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.arrays.targets import Wanted
from patchloom.errors import ConfigError, ExistsError, StoreError
from patchloom.location import Location

__all__ = ["ZarrTarget"]

Pixels = npt.NDArray[Any]


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
            elif (found := _document(data, at)).get("node_type", "group") != "group":
                raise ExistsError(f"an array stands in a group, but {at.shown!r} is an array")
            elif found.get("consolidated_metadata") or at.read(".zmetadata") is not None:
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


def _document(data: bytes, location: Location) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StoreError(
            f"Zarr metadata are a JSON object, but those of {location.shown!r} are not; restore "
            "them, or write to another container"
        )
    return found


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
