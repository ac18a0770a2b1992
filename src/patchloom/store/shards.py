"""Shards: many encoded patches as one object, after the Zarr v3 sharding codec (ZEP 2)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from patchloom.store.schema import ArraySpec

__all__ = [
    "ABSENT",
    "Bytes",
    "ShardBuilder",
    "decoder",
    "decoder_into",
    "encoder",
    "index_of",
    "seal",
]

Bytes = bytes | memoryview
"""What an object is put together from."""
Encode = Callable[[npt.NDArray[Any]], Bytes]
_SMALL = 128 * 2**10
"""Bytes of a patch that is decoded more quickly into memory just used than into that of a batch."""
ABSENT = 2**64 - 1
"""Where the index of a shard says that a row begins that is not stored."""


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


def decoder(spec: ArraySpec) -> Callable[[bytes], npt.NDArray[Any]]:
    """A function from the bytes of one patch, its checksum included, to its pixels."""
    config, stored = spec.codec.config, spec.dtype.newbyteorder("<")
    decompress = bytes if config is None else numcodecs.get_codec(config).decode

    def decode(data: bytes) -> npt.NDArray[Any]:
        body = data[:-4]
        if google_crc32c.value(body) != int.from_bytes(data[-4:], "little"):
            raise ValueError("its checksum does not match")
        return np.frombuffer(decompress(body), stored).reshape(spec.patch_shape)

    return decode


def decoder_into(spec: ArraySpec) -> Callable[[npt.NDArray[np.uint8], memoryview], None]:
    """A function from the bytes of one patch, its checksum included, into memory of its size."""
    config, stored = spec.codec.config, spec.dtype.newbyteorder("<")
    decode, nbytes = decoder(spec), spec.patch_bytes
    direct = stored.isnative and config is not None and config["id"] == "blosc"
    plain = stored.isnative and config is None
    small = direct and nbytes <= _SMALL
    word: Callable[[Any, int], tuple[int]] = struct.Struct("<I").unpack_from
    checksum, decompress = google_crc32c.value, blosc.decompress

    def decode_into(data: npt.NDArray[np.uint8], place: memoryview) -> None:
        # Blosc fills less than all of the memory without a word: its header tells how much.
        n = len(data) - 4
        told = word(data, 4)[0] if direct and n >= 8 else n if plain else None
        if told != nbytes:
            place[:] = decode(data.tobytes()).astype(spec.dtype).tobytes()
            return
        body = data[:n]
        if checksum(body) != word(data, n)[0]:
            raise ValueError("its checksum does not match")
        if plain:
            place[:] = body.data
        elif small:
            place[:] = decompress(body)
        else:
            decompress(body, place)

    return decode_into


def index_of(tail: Bytes | npt.NDArray[np.uint8], rows_per_shard: int) -> npt.NDArray[np.uint64]:
    """Offset and length of each row of a shard: uint64[rows_per_shard, 2].

    Parameters
    ----------
    tail
        The last ``16 * rows_per_shard + 4`` bytes of the object.
    rows_per_shard
        Rows of its index.

    Raises
    ------
    ValueError
        If they are not such an index.
    """
    body = bytes(tail[:-4])
    checksum = int.from_bytes(tail[-4:], "little")
    if len(body) != 16 * rows_per_shard or google_crc32c.value(body) != checksum:
        raise ValueError("its index does not match its checksum")
    return np.frombuffer(body, "<u8").reshape(rows_per_shard, 2)


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
    ends = index[index[:, 0] != ABSENT].sum(1).astype(np.int64)
    return _seal(np.frombuffer(data, np.uint8), ends, bytes(tail))


def _seal(data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], tail: bytes) -> int:
    """Of patches that end somewhere in some bytes, each with its checksum, and of an index."""
    checksums = data[ends[:, None] + np.arange(-4, 0)]
    value: int = google_crc32c.value(checksums.tobytes() + tail)
    return value


class ShardBuilder:
    """Collects the patches of one shard and makes the object.

    Every row is stored, blank ones too, except those that could not be read.

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
        self.seal = 0
        """Once it is finished: see `seal`."""
        self._index = np.full((spec.rows_per_shard, 2), ABSENT, "<u8")

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

    def finish(self, absent: npt.NDArray[np.int64] | None = None) -> list[Bytes]:
        """The whole object, rows in order, in parts that belong one after another.

        They are views of the buffer: write them before it is used again.

        Parameters
        ----------
        absent
            Slots of rows that are left out; readers see the fill value there: int64[n].
        """
        slots = np.setdiff1d(np.arange(self._n_rows), [] if absent is None else absent)
        begin, length = self._index[slots].T.astype(np.int64)
        missing = int((self._index[slots, 0] == ABSENT).sum())
        if missing:
            raise ValueError(f"a shard is written whole: {len(slots)} rows, {missing} are missing")
        index = np.full_like(self._index, ABSENT)
        index[slots, 0] = np.cumsum(length) - length
        index[slots, 1] = length
        tail = index.tobytes()
        self.seal = _seal(self.buffer, begin + length, tail)
        if not len(slots):
            return [tail + google_crc32c.value(tail).to_bytes(4, "little")]
        # Rows that came one after another lie so already.
        cuts = np.flatnonzero(begin[1:] != begin[:-1] + length[:-1]) + 1
        first = begin[np.append(0, cuts)].tolist()
        last = (begin + length)[np.append(cuts, len(begin)) - 1].tolist()
        parts: list[Bytes] = [self._view[a:b] for a, b in zip(first, last, strict=True)]
        return [*parts, tail + google_crc32c.value(tail).to_bytes(4, "little")]
