"""Reading: whole shards of a store, and the patches in them, one batch after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchloom.arrow_files import arrow_file
from patchloom.errors import StoreError
from patchloom.location import Location
from patchloom.store.schema import ArraySpec, shard_name
from patchloom.store.shards import decoder

__all__ = ["ShardReader", "read_part"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
_WAY = "find it with `patchloom verify STORE --repair`, and run the job of the store again"


def read_part(location: Location, name: str) -> pa.Table:
    """One part of a store's manifest.

    Raises
    ------
    StoreError
        If it is gone or cannot be read.
    """
    data = location.read(name)
    try:
        return pq.read_table(arrow_file(data or b"")).replace_schema_metadata(None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(
            f"a part of a manifest can be read, but {name} of {location.shown!r} cannot "
            f"({type(error).__name__}); {_WAY}"
        ) from None


class ShardReader:
    """Reads rows of a store in ascending order; each object once, and one of each array held.

    Parameters
    ----------
    location, specs
        The store and its arrays.
    """

    def __init__(self, location: Location, specs: Mapping[str, ArraySpec]) -> None:
        self._location, self._specs = location, specs
        self._decode = {name: decoder(spec) for name, spec in specs.items()}
        self._held: dict[str, tuple[int, bytes, npt.NDArray[np.uint64]]] = {}
        self.nbytes = self.n_requests = 0

    def read(self, array: str, rows: Ints) -> Pixels:
        """The patches of some rows of an array: [n, c, (z,) y, x].

        Raises
        ------
        StoreError
            If one cannot be read.
        """
        spec, decode = self._specs[array], self._decode[array]
        out = np.empty((len(rows), *spec.patch_shape), spec.dtype)
        shards, slots = np.divmod(rows, spec.rows_per_shard)
        for shard in np.unique(shards).tolist():
            data, index = self._shard(array, shard)
            for k in np.flatnonzero(shards == shard).tolist():
                start, length = index[slots[k]].tolist()
                try:
                    out[k] = decode(data[start : start + length])
                except Exception as error:  # each codec has errors of its own
                    raise StoreError(
                        f"each patch of a store decodes, but row {rows[k]} of {array} of "
                        f"{self._location.shown!r} does not ({type(error).__name__}); {_WAY}"
                    ) from None
        return out

    def _shard(self, array: str, shard: int) -> tuple[bytes, npt.NDArray[np.uint64]]:
        held = self._held.get(array)
        if held is not None and held[0] == shard:
            return held[1], held[2]
        spec = self._specs[array]
        name, n = shard_name(spec, shard), spec.rows_per_shard
        data = self._location.read(name) or b""
        tail = data[-(16 * n + 4) :]
        if len(tail) < 16 * n + 4 or google_crc32c.value(tail[:-4]) != int.from_bytes(
            tail[-4:], "little"
        ):
            raise StoreError(
                f"a shard ends with an index that matches its checksum, but {name} of "
                f"{self._location.shown!r} ({len(data):,} bytes) does not; {_WAY}"
            )
        index = np.frombuffer(tail[:-4], "<u8").reshape(n, 2)
        self.nbytes, self.n_requests = self.nbytes + len(data), self.n_requests + 1
        self._held[array] = shard, data, index
        return data, index
