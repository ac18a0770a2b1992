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

Bytes = bytes | memoryview
Encode = Callable[[npt.NDArray[Any]], Bytes]
_ABSENT = 2**64 - 1


def encoder(spec: ArraySpec) -> Encode:
    """A function from the pixels of one patch to its bytes, without their checksum."""
    config = spec.codec.config
    stored = spec.dtype.newbyteorder("<")
    compress = None if config is None else numcodecs.get_codec(config).encode

    def encode(patch: npt.NDArray[Any]) -> Bytes:
        pixels = np.ascontiguousarray(patch, stored)
        body: Bytes = pixels.tobytes() if compress is None else compress(pixels)
        return body

    return encode


class ShardBuilder:
    """Collects the patches of one shard and makes the object.

    Every row is stored, blank ones too: an object that is too short is damaged, never sparse.

    Parameters
    ----------
    spec
        The array.
    n_rows
        Rows of this shard.
    buffer
        What `buffer` of the builder of an earlier shard was: its memory is used again. What
        that builder finished is overwritten.
    """

    def __init__(
        self, spec: ArraySpec, n_rows: int, buffer: npt.NDArray[np.uint8] | None = None
    ) -> None:
        self._spec = spec
        self._n_rows = n_rows
        self._encode = encoder(spec)
        # Room for patches that do not compress: known beforehand, and touched only where used.
        room = n_rows * (spec.patch_bytes + spec.patch_bytes // 4096 + 64)
        self.buffer = np.empty(room, np.uint8) if buffer is None or len(buffer) < room else buffer
        self._view = self.buffer.data
        self._end = 0
        self._index = np.full((spec.rows_per_shard, 2), _ABSENT, "<u8")

    def put(self, slots: npt.NDArray[np.int64], patches: Iterable[npt.NDArray[Any]]) -> None:
        """Set some rows, each once, in any order: int64[n] and n of [channels, *space]."""
        view, at = self._view, self._end
        begin, length = [], []
        for patch in patches:
            # Each patch is one chunk of the output: one call of the codec, as the format has it.
            body = self._encode(patch)
            stop = at + len(body)
            view[at:stop] = body
            checksum: int = google_crc32c.value(body)
            view[stop : stop + 4] = checksum.to_bytes(4, "little")
            begin.append(at)
            length.append(stop + 4 - at)
            at = stop + 4
        self._end = at
        self._index[slots, 0] = begin
        self._index[slots, 1] = length

    def finish(self) -> list[Bytes]:
        """The whole object, rows in order, in parts that belong one after another.

        They are views of the buffer: write them before it is used again.
        """
        index = self._index.copy()
        begin, length = index[: self._n_rows].T.astype(np.int64)
        n = int((index[:, 1] != _ABSENT).sum())
        if n != self._n_rows:
            raise ValueError(f"a shard is written whole: {self._n_rows} rows, got {n}")
        index[: self._n_rows, 0] = np.cumsum(length) - length
        tail = index.tobytes()
        # Rows that came one after another lie so already.
        cuts = np.flatnonzero(begin[1:] != begin[:-1] + length[:-1]) + 1
        first = begin[np.append(0, cuts)].tolist()
        last = (begin + length)[np.append(cuts, len(begin)) - 1].tolist()
        parts: list[Bytes] = [self._view[a:b] for a, b in zip(first, last, strict=True)]
        return [*parts, tail + google_crc32c.value(tail).to_bytes(4, "little")]
