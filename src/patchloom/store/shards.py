"""Shards: many encoded patches as one object, after the Zarr v3 sharding codec (ZEP 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt

from patchloom.store.schema import ArraySpec

__all__ = ["ShardBuilder", "encoder"]

Encode = Callable[[npt.NDArray[Any]], bytes]
_ABSENT = 2**64 - 1


def encoder(spec: ArraySpec) -> Encode:
    """A function from the pixels of one patch to its bytes."""
    config = spec.codec.config
    stored = spec.dtype.newbyteorder("<")
    compress = None if config is None else numcodecs.get_codec(config).encode

    def encode(patch: npt.NDArray[Any]) -> bytes:
        pixels = np.ascontiguousarray(patch, stored)
        body = pixels.tobytes() if compress is None else bytes(compress(pixels))
        checksum: int = google_crc32c.value(body)
        return body + checksum.to_bytes(4, "little")

    return encode


class ShardBuilder:
    """Collects the patches of one shard and makes the object.

    Every row is stored, blank ones too: an object that is too short is damaged, never sparse.
    """

    def __init__(self, spec: ArraySpec, n_rows: int) -> None:
        self._spec = spec
        self._n_rows = n_rows
        self._encode = encoder(spec)
        self._bodies: dict[int, bytes] = {}
        self.nbytes = 0

    def put(self, slots: npt.NDArray[np.int64], patches: Iterable[npt.NDArray[Any]]) -> None:
        """Set some rows of the shard, in any order: int64[n], n of [channels, *space]."""
        for slot, patch in zip(slots.tolist(), patches, strict=True):
            # Each patch is one chunk of the output: one call of the codec, as the format has it.
            body = self._encode(patch)
            self._bodies[slot] = body
            self.nbytes += len(body)

    def finish(self) -> bytes:
        """The whole object."""
        if len(self._bodies) != self._n_rows:
            raise ValueError(
                f"a shard is written whole: {self._n_rows} rows, got {len(self._bodies)}"
            )
        index = np.full((self._spec.rows_per_shard, 2), _ABSENT, "<u8")
        bodies = [self._bodies[slot] for slot in range(self._n_rows)]
        lengths = np.array([len(body) for body in bodies], "<u8")
        index[: self._n_rows, 0] = np.cumsum(lengths) - lengths
        index[: self._n_rows, 1] = lengths
        tail = index.tobytes()
        return b"".join([*bodies, tail, google_crc32c.value(tail).to_bytes(4, "little")])
