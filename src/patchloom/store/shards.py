"""Shards: many encoded patches as one object, after the Zarr v3 sharding codec (ZEP 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt

from patchloom.store.schema import ArraySpec

__all__ = ["ShardBuilder", "encoder", "seal"]

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


def seal(data: bytes, rows_per_shard: int) -> int:
    """A checksum that two objects of pixels share only if they hold the same patches.

    crc32c of the checksums of all patches and of where they lie. (That of the whole object would
    not do: whatever bytes are followed by their own crc32c leave the same remainder.)

    Parameters
    ----------
    data
        The whole object, whose index is sound.
    rows_per_shard
        Rows of its index.
    """
    tail = data[-(16 * rows_per_shard + 4) : -4]
    index = np.frombuffer(tail, "<u8").reshape(-1, 2)
    ends = index[index[:, 0] != _ABSENT].sum(1).astype(np.int64)
    checksums = np.frombuffer(data, np.uint8)[ends[:, None] + np.arange(-4, 0)]
    value: int = google_crc32c.value(checksums.tobytes() + bytes(tail))
    return value


class ShardBuilder:
    """Collects the patches of one shard and makes the object.

    Every row is stored, blank ones too, except those that could not be read.
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

    def finish(self, absent: npt.NDArray[np.int64] | None = None) -> bytes:
        """The whole object.

        Parameters
        ----------
        absent
            Slots of rows that are left out; readers see the fill value there: int64[n].
        """
        slots = np.setdiff1d(np.arange(self._n_rows), [] if absent is None else absent)
        missing = len(slots) - sum(map(self._bodies.__contains__, slots.tolist()))
        if missing:
            raise ValueError(f"a shard is written whole: {len(slots)} rows, {missing} are missing")
        index = np.full((self._spec.rows_per_shard, 2), _ABSENT, "<u8")
        bodies = [self._bodies[slot] for slot in slots.tolist()]
        lengths = np.array([len(body) for body in bodies], "<u8")
        index[slots, 0] = np.cumsum(lengths) - lengths
        index[slots, 1] = lengths
        tail = index.tobytes()
        return b"".join([*bodies, tail, google_crc32c.value(tail).to_bytes(4, "little")])
