"""Reading chunks of a Zarr array without the overhead of reading arrays.

`DirectReader` fetches the bytes of the asked chunks in one batch and calls the codecs
itself; `ZarrReader` asks zarr-python chunk by chunk and serves whatever codec it knows.
`reader_for` takes the first where every codec is one that it understands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Any

import google_crc32c
import numcodecs
import numcodecs.blosc
import numpy as np
import numpy.typing as npt
from fsspec.implementations.local import LocalFileSystem

from patchloom.errors import ChunkError, SourceChangedError
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Ints, Reads
from patchloom.location import Location
from patchloom.retrying import RETRYING
from patchloom.sources.fetching import Fetching

__all__ = ["ArrayMetadata", "DirectReader", "bare", "reader_for"]

Pixels = npt.NDArray[Any]
Bytes = bytes | memoryview
_ABSENT = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class ArrayMetadata:
    """The metadata document of one Zarr array, as stored."""

    format: int
    document: dict[str, Any] = field(compare=False)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Extent of the smallest separately decodable unit."""
        if self.format == 2:
            return tuple(self.document["chunks"])
        codecs = _described(self.document["codecs"])
        if len(codecs) == 1 and codecs[0][0] == "sharding_indexed":
            return tuple(codecs[0][1]["chunk_shape"])
        return self.outer

    @property
    def is_sharded(self) -> bool:
        """Whether an object holds chunks behind an index, be it one."""
        if self.format == 2:
            return False
        codecs = _described(self.document["codecs"])
        return len(codecs) == 1 and codecs[0][0] == "sharding_indexed"

    @property
    def shards(self) -> tuple[int, ...] | None:
        """Extent of a stored object that holds several chunks, if that is how it is stored."""
        return self.outer if self.format == 3 and self.outer != self.chunks else None

    @property
    def outer(self) -> tuple[int, ...]:
        """Extent of what one object holds."""
        if self.format == 2:
            return tuple(self.document["chunks"])
        return tuple(self.document["chunk_grid"]["configuration"]["chunk_shape"])

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index; 0 without shards."""
        if not self.is_sharded:
            return 0
        config = _described(self.document["codecs"])[0][1]
        names = [name for name, _ in _described(config["index_codecs"])]
        n = math.prod(o // c for o, c in zip(self.outer, self.chunks, strict=True))
        return 16 * n + 4 * ("crc32c" in names)

    def parsed(self) -> Any:
        """zarr-python's own metadata object."""
        return _parsed(self.format, self.text)

    @cached_property
    def text(self) -> str:
        """The document, written in one way only."""
        return json.dumps(self.document, sort_keys=True)

    def __getstate__(self) -> dict[str, Any]:
        # What is derived is derived again: it need not travel.
        return {f.name: getattr(self, f.name) for f in fields(self)}


@lru_cache(maxsize=64)
def _parsed(version: int, text: str) -> Any:
    # Parsing is dear, and the arrays of one collection often have equal documents.
    import warnings

    from zarr.core.metadata.v2 import ArrayV2Metadata
    from zarr.core.metadata.v3 import ArrayV3Metadata

    kind = ArrayV2Metadata if version == 2 else ArrayV3Metadata
    with warnings.catch_warnings():
        # Codecs outside the v3 specification are read as far as zarr-python can.
        warnings.simplefilter("ignore")
        return kind.from_dict(json.loads(text))


def bare(document: dict[str, Any]) -> dict[str, Any]:
    """An array's metadata without what only people read: the rest travels to the workers."""
    return {**document, "attributes": {}} if document.get("zarr_format") == 3 else document


def reader_for(
    location: Location, metadata: ArrayMetadata, since: float | None = None
) -> ChunkReader:
    """The fastest reader that understands every codec of an array.

    Parameters
    ----------
    location, metadata
        Where it is, and its document.
    since
        When the run began, in seconds since 1970: what is written later is refused, where the
        store tells it.
    """
    parsed, inner = metadata.parsed(), metadata.chunks
    decoder = _decoder(metadata.format, metadata.text)
    if decoder is None:
        return ZarrReader(location, parsed, inner)
    return DirectReader(location, metadata, parsed, inner, *decoder, since)


Decode = Callable[[Bytes, Pixels | None], Pixels]
"""From stored bytes to pixels: where they are to go, if that can be without a copy."""


@dataclass(frozen=True)
class _Sharding:
    """How inner chunks lie in a shard."""

    inner: tuple[int, ...]
    counts: tuple[int, ...]
    at_end: bool
    checked: bool

    @property
    def n(self) -> int:
        return math.prod(self.counts)

    @property
    def nbytes(self) -> int:
        return 16 * self.n + (4 if self.checked else 0)

    def index(self, data: Bytes) -> npt.NDArray[np.uint64]:
        """Offset and length of each inner chunk: uint64[n, 2]."""
        if len(data) != self.nbytes:
            raise ValueError(f"a shard's index has {self.nbytes} bytes, got {len(data)}")
        body = bytes(data[: 16 * self.n])
        if self.checked:
            _check_crc32c(body, bytes(data[16 * self.n :]))
        return np.frombuffer(body, "<u8").reshape(self.n, 2)


class DirectReader:
    """Fetch a batch of chunks, then call the codecs."""

    def __init__(
        self,
        location: Location,
        metadata: ArrayMetadata,
        parsed: Any,
        inner: tuple[int, ...],
        decode: Decode,
        sharding: _Sharding | None,
        since: float | None = None,
    ) -> None:
        self.reads = Reads(codecs="direct")
        self._shown = location.shown
        # A shard is read bit by bit: its index and all its chunks are of one object.
        in_parts = sharding is not None
        self._fetching = Fetching(location, self.reads, since, in_parts=in_parts)
        self._parsed = parsed
        self._decode = decode
        self._sharding = sharding
        self._grid = ChunkGrid(tuple(parsed.shape), inner)
        self._dtype = parsed.dtype.to_native_dtype().newbyteorder("=")
        fill = parsed.fill_value
        self._fill = np.zeros((), self._dtype) if fill is None else np.asarray(fill, self._dtype)
        self._indices: dict[tuple[int, ...], npt.NDArray[np.uint64] | None] = {}
        self._location, self._metadata = location, metadata
        self._verified = False

    def read(self, chunks: Ints) -> list[Pixels]:
        """Decode chunks: int64[n, ndim] indices -> clipped arrays in stored axis order."""
        return [*self.each(chunks)]

    def each(self, chunks: Ints) -> Iterator[Pixels]:
        """Decode chunks like `read`, each when it is asked for: its user finds it in the cache."""
        rows, fetched = self._fetch(chunks)
        for row in rows:
            # What is decoded is forgotten as stored: a batch is never held twice.
            yield self._finish(row, *fetched.pop())

    def read_into(self, chunks: Ints, places: Iterable[Pixels]) -> None:
        """Decode chunks like `read`, each into its place, without a copy where that can be."""
        rows, fetched = self._fetch(chunks)
        for row, place in zip(rows, places, strict=True):
            pixels = self._finish(row, *fetched.pop(), place)
            if pixels is not place:
                place[...] = pixels

    def _fetch(self, chunks: Ints) -> tuple[list[tuple[int, ...]], list[tuple[Bytes | None, str]]]:
        """The indices, and what is stored of each with its key, the last one first."""
        rows = [tuple(row) for row in np.asarray(chunks).tolist()]
        fetched = self._fetch_shards(rows) if self._sharding else self._fetch_plain(rows)
        fetched.reverse()
        return rows, fetched

    def stored(self, chunks: Ints) -> Ints:
        """Stored bytes of chunks, -1 where the store does not tell: int64[n].

        Asks for sizes of objects, and reads the index of a shard, but no chunk.
        """
        rows = [tuple(row) for row in np.asarray(chunks).tolist()]
        if self._sharding is None:
            paths = [self._fetching.path(self._parsed.encode_chunk_key(row)) for row in rows]
            with ThreadPoolExecutor(8) as pool:
                return np.array(list(pool.map(self._size, paths)), np.int64)
        shards, slots = self._split(rows)
        self._load_indices({s: self._parsed.encode_chunk_key(s) for s in shards})
        found = []
        for shard, slot in zip(shards, slots, strict=True):
            index = self._indices[shard]
            absent = index is None or index[slot, 0] == _ABSENT
            found.append(0 if index is None or absent else int(index[slot, 1]))
        return np.array(found, np.int64)

    def _size(self, path: str) -> int:
        try:
            size = self._fetching.fs.info(path).get("size")
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except Exception:  # each file system has errors of its own
            return -1
        return -1 if size is None else int(size)

    def _split(self, rows: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
        """The shard of each chunk, and its place in it."""
        assert self._sharding is not None
        counts = self._sharding.counts
        split = [tuple(divmod(i, n) for i, n in zip(row, counts, strict=True)) for row in rows]
        shards = [tuple(q for q, _ in pair) for pair in split]
        return shards, [int(np.ravel_multi_index([r for _, r in pair], counts)) for pair in split]

    def _finish(
        self, row: tuple[int, ...], data: Bytes | None, key: str, place: Pixels | None = None
    ) -> Pixels:
        start, stop = self._grid.box(row)
        extent = tuple(b - a for a, b in zip(start, stop, strict=True))
        self.reads.chunks += 1
        if data is None:
            self._verify()
            return np.full(extent, self._fill)
        try:
            pixels = self._decode(data, place)
        except Exception:
            # Broken on the way, or in the store? Only a second transfer tells.
            pixels = self._decoded_again(row)
        if pixels.dtype != self._dtype:
            pixels = pixels.astype(self._dtype)
        if pixels.shape != extent:
            pixels = pixels[tuple(slice(n) for n in extent)]
        return pixels

    def _decoded_again(self, row: tuple[int, ...]) -> Pixels:
        if self._sharding is None:
            [(data, key)] = self._fetch_plain([row])
        else:
            # Its place in the shard may be what was broken.
            self._indices.pop(self._split([row])[0][0])
            [(data, key)] = self._fetch_shards([row])
        self.reads.chunks += 1
        try:
            return self._decode(b"" if data is None else data, None)
        except Exception as error:
            nbytes = 0 if data is None else len(data)
            raise ChunkError(
                f"every chunk that a patch needs must decode, but chunk {row} of {self._shown} "
                f"(object {key}, {nbytes:,} bytes, fetched twice) does not: "
                f"{self._location.describe(error)}; "
                "restore that object from its source"
            ) from error

    def _verify(self) -> None:
        """An absent chunk is blank only if its array is still there, as it was planned."""
        if self._verified:
            return
        name = "zarr.json" if self._metadata.format == 3 else ".zarray"
        [data] = self._fetching.get([(name, None, None)], same=False)
        found = None if data is None else bare(json.loads(bytes(data)))
        # As text: a fill value of NaN equals itself.
        if json.dumps(found, sort_keys=True) != json.dumps(self._metadata.document, sort_keys=True):
            raise SourceChangedError(
                f"an image stays as it was when it was opened, but {self._shown!r} "
                + ("is not there any more" if data is None else "has other metadata now")
                + " (seen from the process that reads it); restore it, mount it on every worker, "
                "or open and plan anew"
            )
        self._verified = True

    def _fetch_plain(self, rows: Sequence[tuple[int, ...]]) -> list[tuple[Bytes | None, str]]:
        keys = [self._parsed.encode_chunk_key(row) for row in rows]
        return list(zip(self._fetching.get([(key, None, None) for key in keys]), keys, strict=True))

    def _fetch_shards(self, rows: Sequence[tuple[int, ...]]) -> list[tuple[Bytes | None, str]]:
        shards, inner = self._split(rows)
        keys = [self._parsed.encode_chunk_key(shard) for shard in shards]
        self._load_indices(dict(zip(shards, keys, strict=True)))
        spans, positions = [], []
        for position, (shard, slot, key) in enumerate(zip(shards, inner, keys, strict=True)):
            index = self._indices[shard]
            if index is not None and index[slot, 0] != _ABSENT:
                offset, length = int(index[slot, 0]), int(index[slot, 1])
                spans.append((key, offset, offset + length))
                positions.append(position)
        found: list[Bytes | None] = [None] * len(rows)
        for position, data in zip(positions, self._fetching.spans(spans), strict=True):
            found[position] = data
        return list(zip(found, keys, strict=True))

    def indices_of(self, shards: Sequence[tuple[int, ...]]) -> list[npt.NDArray[np.uint64] | None]:
        """Where chunks lie in some shards, in one batch: (offset, length) of each, or None.

        Absent chunks have the offset 2**64 - 1, and absent shards are None.
        """
        self._load_indices({shard: self._parsed.encode_chunk_key(shard) for shard in shards})
        return [self._indices[shard] for shard in shards]

    def _load_indices(self, shards: dict[tuple[int, ...], str]) -> None:
        sharding = self._sharding
        assert sharding is not None
        new = {s: k for s, k in shards.items() if s not in self._indices}
        n = sharding.nbytes
        span = (-n, None) if sharding.at_end else (0, n)
        for (shard, key), data in zip(
            new.items(), self._fetching.get([(key, *span) for key in new.values()]), strict=True
        ):
            self._indices[shard] = self._index(key, data, span)

    def _index(
        self, key: str, data: Bytes | None, span: tuple[int, int | None]
    ) -> npt.NDArray[np.uint64] | None:
        """Where chunks lie in a shard; fetched once more if it was broken on the way."""
        assert self._sharding is not None
        for again in (True, False):
            if data is None:
                return None
            try:
                return self._sharding.index(data)
            except ValueError as error:
                if not again:
                    raise ChunkError(
                        f"every shard that a patch needs must be whole, but {key} of {self._shown} "
                        f"is not: {error}; restore that object from its source"
                    ) from error
            [data] = self._fetching.get([(key, *span)])
        return None


class ZarrReader:
    """Ask zarr-python, one chunk a call: slower, but it knows every codec it can load."""

    def __init__(self, location: Location, parsed: Any, inner: tuple[int, ...]) -> None:
        import zarr
        from zarr.core.array import AsyncArray
        from zarr.storage import StorePath

        self.reads = Reads(codecs="zarr")
        self._location, self._shown = location, location.shown
        store = _counting(location, self.reads)
        self._array = zarr.Array(AsyncArray(parsed, StorePath(store)))
        self._grid = ChunkGrid(tuple(parsed.shape), inner)

    def read(self, chunks: Ints) -> list[Pixels]:
        """Decode chunks: int64[n, ndim] indices -> clipped arrays in stored axis order."""
        found = []
        for row in np.asarray(chunks).tolist():
            start, stop = self._grid.box(row)
            where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            self.reads.chunks += 1
            try:
                pixels = RETRYING.call(lambda where=where: np.asarray(self._array[where]))  # type: ignore[misc]
            except Exception as error:
                raise ChunkError(
                    f"every chunk that a patch needs must decode, but chunk {tuple(row)} of "
                    f"{self._shown} does not: {self._location.describe(error)}; restore that "
                    "object from its source"
                ) from error
            if pixels.dtype.kind in "biufc":  # text has no byte order
                pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
            found.append(pixels)
        return found


def _counting(location: Location, reads: Reads) -> Any:
    from zarr.storage import FsspecStore, LocalStore, WrapperStore

    class Counting(WrapperStore[Any]):
        async def get(self, *args: Any, **kwargs: Any) -> Any:
            reads.requests += 1
            found = await self._store.get(*args, **kwargs)
            reads.nbytes += 0 if found is None else len(found)
            return found

    fs, root = location.open()
    if isinstance(fs, LocalFileSystem):
        return Counting(LocalStore(root, read_only=True))
    store = FsspecStore.from_url(location.url, storage_options=location.tried_once, read_only=True)
    location.leave_retries(store.fs)
    return Counting(store)


@lru_cache(maxsize=64)
def _decoder(version: int, text: str) -> tuple[Decode, _Sharding | None] | None:
    """What reads the chunks of all arrays of one document; None if zarr-python has to."""
    make = _decoder_v2 if version == 2 else _decoder_v3
    return make(json.loads(text), _parsed(version, text))


def _decoder_v2(document: Mapping[str, Any], parsed: Any) -> tuple[Decode, None]:
    stored = parsed.dtype.to_native_dtype()
    described = [document.get("compressor"), *reversed(document.get("filters") or ())]
    codecs = [numcodecs.get_codec(dict(item)) for item in described if item is not None]
    shape, order = tuple(document["chunks"]), document.get("order", "C")

    def decode(data: Bytes, _: Pixels | None) -> Pixels:
        value: Any = data
        for codec in codecs:
            value = codec.decode(value)
        return _as_pixels(value, stored).reshape(shape, order=order)

    return decode, None


def _decoder_v3(document: Mapping[str, Any], parsed: Any) -> tuple[Decode, _Sharding | None] | None:
    if document["chunk_grid"]["name"] != "regular":
        return None
    outer = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    codecs = _described(document["codecs"])
    native = parsed.dtype.to_native_dtype().newbyteorder("=")
    if len(codecs) == 1 and codecs[0][0] == "sharding_indexed":
        config = codecs[0][1]
        checked = _plain_index(_described(config["index_codecs"]))
        if checked is None:
            return None
        inner = tuple(config["chunk_shape"])
        counts = tuple(o // i for o, i in zip(outer, inner, strict=True))
        at_end = config.get("index_location", "end") == "end"
        decode = _chain_v3(_described(config["codecs"]), inner, native)
        return None if decode is None else (decode, _Sharding(inner, counts, at_end, checked))
    decode = _chain_v3(codecs, outer, native)
    return None if decode is None else (decode, None)


_Described = list[tuple[str, Mapping[str, Any]]]


def _described(codecs: Sequence[Any]) -> _Described:
    """Name and configuration of each codec; the short form is a name alone."""
    return [
        (item, {}) if isinstance(item, str) else (item["name"], item.get("configuration") or {})
        for item in codecs
    ]


def _plain_index(codecs: _Described) -> bool | None:
    """Whether a shard's index carries a checksum; None if it is stored in another way."""
    names = [name for name, _ in codecs]
    if names[:1] != ["bytes"] or codecs[0][1].get("endian") == "big":
        return None
    return {(): False, ("crc32c",): True}.get(tuple(names[1:]))


def _chain_v3(codecs: _Described, shape: tuple[int, ...], native: np.dtype[Any]) -> Decode | None:
    """The inverse of a codec chain, or None if one of them is not known here."""
    order = list(range(len(shape)))
    stored = native
    unpack: list[Callable[[Any], Any]] = []
    last: _Into | None = None
    stage = "array"
    for name, config in codecs:
        if name == "transpose" and stage == "array" and isinstance(config["order"], list):
            order = [order[int(i)] for i in config["order"]]
        elif name == "bytes" and stage == "array":
            stage = "bytes"
            if native.itemsize > 1 and config.get("endian") == "big":
                stored = native.newbyteorder(">")
        elif stage == "bytes" and name in _UNPACK:
            # The first to pack is the last to unpack.
            last = last if unpack else _UNPACK_INTO.get(name)
            unpack.append(_UNPACK[name])
        else:
            return None
    if stage != "bytes":
        return None
    stored_shape = tuple(shape[i] for i in order)
    inverse = tuple(int(i) for i in np.argsort(order))

    plain = stored == native and inverse == tuple(range(len(shape)))

    def decode(data: Bytes, place: Pixels | None) -> Pixels:
        value: Any = data
        for step in reversed(unpack[1:]):
            value = step(value)
        whole = place is not None and place.shape == shape and place.flags.c_contiguous
        if last is not None and plain and whole:
            assert place is not None
            # Codecs fill less than all of it without a word.
            if last.tells(memoryview(value)) == place.nbytes:
                last.decode(value, place)
                return place
        for step in unpack[:1]:
            value = step(value)
        return _as_pixels(value, stored).reshape(stored_shape).transpose(inverse)

    return decode


def _as_pixels(value: Any, stored: np.dtype[Any]) -> Pixels:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).view(stored).ravel()
    return np.frombuffer(value, stored)


def _check_crc32c(body: bytes, stored: bytes) -> None:
    if google_crc32c.value(body) != int.from_bytes(stored, "little"):
        raise ValueError("its checksum (crc32c) does not match")


def _strip_crc32c(data: Any) -> Bytes:
    whole = bytes(data)
    _check_crc32c(whole[:-4], whole[-4:])
    return memoryview(whole)[:-4]


def _blosc_bytes(data: memoryview) -> int | None:
    """Bytes that a Blosc buffer tells it decodes to."""
    return int.from_bytes(data[4:8], "little")


def _zstd_bytes(data: memoryview) -> int | None:
    """Bytes that a Zstandard frame tells it decodes to, if it does (RFC 8878, 3.1.1.1)."""
    flags = data[4] if len(data) > 4 else 0
    is_single = flags >> 5 & 1
    n = (is_single, 2, 4, 8)[flags >> 6]
    start = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(data[start : start + n], "little") + 256 * (n == 2) if n else None


@dataclass(frozen=True)
class _Into:
    """A codec that fills memory which it is given."""

    decode: Callable[[Any, Any], Any]
    tells: Callable[[memoryview], int | None]
    """How many bytes; it refuses memory that holds fewer, not more."""


_UNPACK_INTO = {
    "blosc": _Into(numcodecs.blosc.decompress, _blosc_bytes),
    "zstd": _Into(numcodecs.Zstd().decode, _zstd_bytes),
}
_UNPACK: dict[str, Callable[[Any], Any]] = {
    "blosc": numcodecs.Blosc().decode,
    "crc32c": _strip_crc32c,
    "gzip": numcodecs.GZip().decode,
    "zstd": numcodecs.Zstd().decode,
}
