"""Stored: what the chunks of one stored array cost to read, from the sizes of its objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from patchloom.grid import ChunkGrid, morton
from patchloom.image import Image, Ints
from patchloom.planning.traffic import Traffic
from patchloom.run.asked import Asked, Reading
from patchloom.run.blocks import stored_chunks
from patchloom.run.objects import Objects, object_sizes
from patchloom.sources.chunks import DirectReader
from patchloom.sources.fetching import GAP
from patchloom.sources.zarrs import ZarrSource

__all__ = ["Stored", "decoded_bytes", "joined", "n_shards", "stored"]

_ABSENT = np.uint64(2**64 - 1)


def n_shards(array: Asked) -> int:
    """Shards whose index is needed; 0 for an array without."""
    source = array.image.source
    if not isinstance(source, ZarrSource) or not source.metadata.is_sharded:
        return 0
    rows = stored_chunks(array.image, array.blocks())
    return len(np.unique(_outer(array.image, source).flat(rows // _counts(source))))


def _counts(source: ZarrSource) -> Ints:
    """Chunks of an object on each axis."""
    metadata = source.metadata
    return np.asarray(metadata.outer, np.int64) // np.asarray(metadata.chunks, np.int64)


def _outer(image: Image, source: ZarrSource) -> ChunkGrid:
    """The stored objects of an array."""
    return ChunkGrid(image.shape, source.metadata.outer)


def stored(array: Asked, source: ZarrSource, look: bool) -> tuple[Stored, list[str]]:
    """What the store tells about the needed objects of an array."""
    image, blocks = array.image, array.blocks()
    reader = source.reader()
    rows = stored_chunks(image, blocks)
    outer, counts = _outer(image, source), _counts(source)
    flat, place = np.unique(outer.flat(rows // counts), return_inverse=True)
    parsed = source.metadata.parsed()
    shards = [tuple(row) for row in outer.unflat(flat).tolist()]
    names = [parsed.encode_chunk_key(shard) for shard in shards]
    document = "zarr.json" if source.metadata.format == 3 else ".zarray"
    notes = []
    objects = None
    try:
        objects = object_sizes(source.location, names, document, outer.n_chunks)
        if objects is None:
            notes.append(f"{source.location.shown} tells no sizes: decoded bytes stand for them")
        elif objects.note:
            notes.append(objects.note)
    except Exception as error:  # each file system has errors of its own
        notes.append(
            f"{source.location.shown} cannot be listed ({source.location.describe(error)}): "
            "decoded bytes stand for its sizes"
        )
    direct = isinstance(reader, DirectReader)
    kinds = (_Indexed, _Sharded) if source.metadata.is_sharded else (Stored, _Direct)
    found = kinds[direct](
        image=image,
        blocks=blocks,
        place=place.reshape(-1),
        decoded=decoded_bytes(image, rows),
        objects=objects,
        slots=_slots(rows, counts),
        counts=tuple(counts.tolist()),
        inside=_inside(image, shards, source),
        index_bytes=source.metadata.index_bytes,
    )
    if not source.metadata.is_sharded or objects is None:
        return found, notes
    if isinstance(found, _Sharded) and objects.exact and look:
        try:
            assert isinstance(reader, DirectReader)
            there = np.flatnonzero(objects.nbytes >= 0).tolist()
            read = reader.indices_of([shards[k] for k in there])
            missing = np.full((int(np.prod(counts)), 2), _ABSENT)
            index = np.stack([missing] * len(shards))
            for k, found_index in zip(there, read, strict=True):
                index[k] = missing if found_index is None else found_index
            return replace(found, index=index), notes
        except Exception as error:
            notes.append(f"an index of {source.location.shown} cannot be read: {error}")
    notes.append(f"chunks of {source.location.shown} share their shards evenly")
    return found, notes


def _slots(rows: Ints, counts: Ints) -> Ints:
    """Position of chunks in their shards, in C order."""
    return ChunkGrid(tuple(counts.tolist()), (1,) * len(counts)).flat(rows % counts)


def _inside(image: Image, shards: Sequence[tuple[int, ...]], source: ZarrSource) -> Ints:
    """Chunks of each shard that lie inside the image."""
    at = np.asarray(shards, np.int64).reshape(-1, image.ndim) * _counts(source)
    left = np.asarray(image.grid.counts, np.int64) - at
    inside: Ints = np.minimum(left, _counts(source)).prod(-1, dtype=np.int64)
    return inside


def decoded_bytes(image: Image, rows: Ints) -> Ints:
    """Bytes of pixels of some chunks."""
    chunks, shape = np.asarray(image.grid.chunks), np.asarray(image.shape)
    extent = np.minimum((rows + 1) * chunks, shape) - rows * chunks
    pixels: Ints = extent.prod(-1, dtype=np.int64) * image.dtype.itemsize
    return pixels


@dataclass(frozen=True, eq=False)
class Stored:
    """Chunks in a store, one an object, read one request a chunk."""

    image: Image
    blocks: Ints
    """Needed blocks, ascending."""
    place: Ints
    """Object of each chunk of each block: int64[n_blocks * chunks_per_block]."""
    decoded: Ints
    """Bytes of pixels of each of these chunks."""
    objects: Objects | None
    """Sizes of the objects that hold them; None if the store does not tell."""
    slots: Ints
    """Position of each chunk in its shard."""
    counts: tuple[int, ...]
    """Chunks of a whole shard on each axis."""
    inside: Ints
    """Chunks of each shard that lie inside the image."""
    index_bytes: int
    """Of the index of a shard."""
    index: npt.NDArray[np.uint64] | None = None
    """Offset and length of each chunk of each shard, where they were read."""

    def traffic(self, reading: Reading) -> Traffic:
        """What some readers move."""
        total = Traffic()
        for queue in reading.queues:
            total += self.one(self._chunks(queue), reading.batch)
        return total

    def _chunks(self, queue: Ints) -> Ints:
        """Positions of the chunks of some blocks, in order."""
        n = self.image.layout.chunks_per_block
        at = np.searchsorted(self.blocks, queue)
        chunks: Ints = (at[:, None] * n + np.arange(n)).ravel()
        return chunks

    def one(self, chunks: Ints, batch: int) -> Traffic:
        """What one reader moves."""
        n, decoded = len(chunks), int(self.decoded[chunks].sum())
        if self.objects is None:
            return Traffic(n, n, decoded, 0, decoded, exact=False)
        sizes = self.objects.nbytes[self.place[chunks]]
        nbytes = int(np.maximum(sizes, 0).sum())
        more = self.verified(bool((sizes < 0).any()))
        return self._made(n, n + bool(more), nbytes + more, decoded, self.objects.exact)

    def verified(self, absent: bool) -> int:
        """Bytes of the metadata document, if a reader meets an absent chunk and asks for it."""
        return 0

    def _made(self, reads: int, requests: int, nbytes: int, decoded: int, exact: bool) -> Traffic:
        return Traffic(reads, requests, nbytes, nbytes if exact else 0, decoded, exact)


class _Direct(Stored):
    """The same by `DirectReader`."""

    def verified(self, absent: bool) -> int:
        """Once a reader."""
        return self.objects.metadata if absent and self.objects is not None else 0


class _Indexed(Stored):
    """Chunks in shards, read by zarr-python: an index and a range a chunk."""

    def one(self, chunks: Ints, batch: int) -> Traffic:
        """Estimated: as much as a chunk of its shard has on average."""
        n, decoded = len(chunks), int(self.decoded[chunks].sum())
        if self.objects is None:
            return Traffic(n, 2 * n, decoded, 0, decoded, exact=False)
        shard = self.place[chunks]
        there = self.objects.nbytes[shard] >= 0
        mean = np.maximum(self.objects.nbytes - self.index_bytes, 0) / self.inside
        nbytes = int(((mean[shard] + self.index_bytes) * there).sum())
        return self._made(n, n + int(there.sum()), nbytes, decoded, False)


class _Sharded(_Direct):
    """Chunks in shards, read by `DirectReader`: an index a shard, then ranges, batch by batch."""

    def one(self, chunks: Ints, batch: int) -> Traffic:
        """Exact where the indices are known."""
        n, decoded = len(chunks), int(self.decoded[chunks].sum())
        shard = self.place[chunks]
        if self.objects is None:
            n_met = len(np.unique(shard))
            return Traffic(
                n, n + n_met, decoded + n_met * self.index_bytes, 0, decoded, exact=False
            )
        met = np.unique(shard)
        start, stop, there = self._spans(shard, self.slots[chunks])
        group = (np.arange(n) // batch)[there] * len(self.inside) + shard[there]
        ranges, fetched = joined(group, start[there], stop[there])
        more = self.verified(not there.all())
        n_found = int((self.objects.nbytes[met] >= 0).sum())
        return self._made(
            n,
            len(met) + ranges + bool(more),
            n_found * self.index_bytes + fetched + more,
            decoded,
            self.objects.exact and self.index is not None,
        )

    def _spans(self, shard: Ints, slot: Ints) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
        """First byte, last byte + 1 and presence of some chunks in their shards."""
        if self.index is not None:
            entry = self.index[shard, slot]
            there = entry[:, 0] != _ABSENT
            first = np.where(there, entry[:, 0], 0).astype(np.int64)
            length = np.where(there, entry[:, 1], 0).astype(np.int64)
            return first, first + length, there
        assert self.objects is not None
        sizes = self.objects.nbytes
        mean = np.maximum(sizes - self.index_bytes, 0) // np.maximum(self.inside, 1)
        # Writers lay chunks along the Z curve, as zarr-python does.
        grid = ChunkGrid(self.counts, (1,) * len(self.counts))
        code = _curve(grid)
        first = code[slot] * mean[shard]
        return first, first + mean[shard], sizes[shard] >= 0


def _curve(grid: ChunkGrid) -> Ints:
    """Rank of each cell of a small grid along the Z curve."""
    cells = grid.unflat(np.arange(grid.n_chunks))
    wide = [axis for axis, n in enumerate(grid.counts) if n > 1][-3:]
    order = np.argsort(morton(cells[:, wide]), kind="stable") if wide else np.zeros(1, np.int64)
    rank = np.empty(grid.n_chunks, np.int64)
    rank[order] = np.arange(grid.n_chunks)
    return rank


def joined(group: Ints, start: Ints, stop: Ints) -> tuple[int, int]:
    """How many ranges are sent, and how many bytes they have, when near ones are joined.

    Parameters
    ----------
    group
        Which object of which batch each belongs to: only those of one are joined.
    start, stop
        First byte and last byte + 1 of each: int64[n].

    Examples
    --------
    >>> joined(np.array([0, 0, 1]), np.array([0, 30, 0]), np.array([20, 40, 5]))
    (2, 45)
    """
    if not len(group):
        return 0, 0
    order = np.lexsort((stop, start, group))
    start, stop = start[order], stop[order]
    rank = np.unique(group[order], return_inverse=True)[1].reshape(-1)
    # So far apart that the running end of one group is below every start of the next.
    apart = rank * (int(stop.max()) + GAP + 1)
    upto = np.maximum.accumulate(stop + apart) - apart
    first = np.ones(len(start), np.bool_)
    first[1:] = (np.diff(rank) != 0) | (start[1:] - upto[:-1] > GAP)
    begins = np.flatnonzero(first)
    ends = np.append(begins[1:], len(start)) - 1
    return len(begins), int((upto[ends] - start[begins]).sum())
