"""The floor: the least work that does the whole job, written without patchloom.

:func:`run_floor` does, with two threads and nothing but NumPy, numcodecs, google-crc32c, pyarrow
(the manifest) and zarr (metadata only, never pixels):

1. **select**: reads the mask and computes, in exact integers, the share of mask under *every*
   position of the patch grid; positions with enough are kept.
2. **cut**: reads and decodes each storage chunk that a kept patch touches exactly once, whole;
   counts in an exact histogram, one a channel, each pixel of the union of the kept patches once
   (a pixel that two overlapping patches share counts once); copies the chunk's piece of
   every patch into place; **encodes** a patch (little-endian bytes, blosc zstd level 1 with bit
   shuffle, crc32c) as soon as its last piece has come, and takes its memory for another one;
   joins patches into Zarr v3 shards with a checksummed index at the end and writes one file a
   shard.
3. **finish**: writes a Parquet manifest with one row a patch, and each channel's count and
   percentiles from the histograms among the attributes.

This is all the job does: what comes out is a store that plain zarr opens, with the same pixels
in the same chunks, shards and codecs as patchloom's.  :mod:`benchmarks.verification` compares
the two once per workload.

What it spares itself is what a library must pay for: it knows only ``uint8`` and ``uint16``, one
codec chain, a local disk and one image; it plans no memory (it holds what the rows of chunks
at hand ask for, and shards in the making, encoded), cannot resume, spread over machines or report
progress, and writes shards in place.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.metadata import ArrayV3Metadata

Box = tuple[tuple[int, int], ...]
"""Half-open ``(start, stop)`` along each spatial axis."""

MISSING = np.iinfo(np.uint64).max
"""Offset and length of an inner chunk that a shard does not hold."""


@dataclass(frozen=True)
class FloorReport:
    """What one run of the floor did.

    Parameters
    ----------
    n_patches, n_shards
        Patches kept and shard files written.
    chunks_needed, chunk_reads
        Distinct chunks that kept patches touch, and chunks decoded: equal, or it is no floor.
    bytes_read, bytes_written
        Bytes of chunk files read and of shard files written.
    seconds, phases
        Wall time, whole and by phase.
    histograms
        Exact counts of each grey level, one row a channel.
    """

    n_patches: int
    n_shards: int
    chunks_needed: int
    chunk_reads: int
    bytes_read: int
    bytes_written: int
    seconds: float
    phases: dict[str, float]
    histograms: npt.NDArray[np.int64] = field(repr=False)


def run_floor(
    image: Path,
    mask: Path | None,
    out: Path,
    *,
    axes: str,
    patch_size: Sequence[int],
    overlaps: Sequence[int],
    min_coverage: float,
    rows_per_shard: int,
    percentiles: Sequence[float] = (1, 99),
    n_threads: int = 2,
) -> FloorReport:
    """Do the job once.

    Parameters
    ----------
    image, mask
        Zarr v3 arrays; without a mask every patch is kept.
    out
        Where the store goes; must not exist.
    axes
        The image's axes, spatial but for a leading ``c``.
    patch_size, overlaps
        Along the spatial axes; patches lie `patch_size - overlaps` apart, those that stick out
        of the image are dropped.
    min_coverage
        Least share of mask under a patch.
    rows_per_shard
        Patches a shard.
    percentiles
        Percentiles to take of the pixels.
    n_threads
        Threads that decode and encode.

    Returns
    -------
    FloorReport
        Counts and times.
    """
    clock = [time.perf_counter()]
    source = Source.open(image, axes)
    if source.dtype not in (np.dtype("u1"), np.dtype("<u2")):
        raise ValueError(f"the floor counts uint8 and uint16; {image} is {source.dtype}")
    starts, coverage = select(mask, source.shape[1:], patch_size, overlaps, min_coverage)
    clock.append(time.perf_counter())
    patch_shape = (source.shape[0], *patch_size)
    group = create(out, len(starts), patch_shape, source.dtype, axes, rows_per_shard)
    shards = Shards(out / "images", len(starts), patch_shape, source.dtype, rows_per_shard)
    with ThreadPoolExecutor(n_threads) as pool:
        cut = cut_once(source, starts, patch_size, pool, shards)
    clock.append(time.perf_counter())
    finish(out, group, cut.histograms, starts, coverage, axes, percentiles)
    clock.append(time.perf_counter())
    names = ("select", "cut and encode", "finish")
    return FloorReport(
        n_patches=len(starts),
        n_shards=len(shards),
        chunks_needed=cut.chunks_needed,
        chunk_reads=cut.chunk_reads,
        bytes_read=cut.bytes_read,
        bytes_written=shards.bytes_written,
        seconds=clock[-1] - clock[0],
        phases={
            name: stop - start
            for name, (start, stop) in zip(names, itertools.pairwise(clock), strict=True)
        },
        histograms=cut.histograms,
    )


def run_cut(
    image: Path,
    mask: Path | None,
    *,
    axes: str,
    patch_size: Sequence[int],
    overlaps: Sequence[int],
    min_coverage: float,
    n_threads: int = 2,
) -> tuple[float, npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Select and cut once: no histogram, nothing written. Parameters as for :func:`run_floor`.

    Returns
    -------
    float, numpy.ndarray, numpy.ndarray
        Wall seconds, first corner of each patch, and all pixels.
    """
    begun = time.perf_counter()
    source = Source.open(image, axes)
    starts, _ = select(mask, source.shape[1:], patch_size, overlaps, min_coverage)
    with ThreadPoolExecutor(n_threads) as pool:
        patches = _All(np.empty((len(starts), source.shape[0], *patch_size), source.dtype))
        cut_once(source, starts, patch_size, pool, patches, count=False)
    return time.perf_counter() - begun, starts, patches.patches


def select(
    mask: Path | None,
    shape: Sequence[int],
    patch_size: Sequence[int],
    overlaps: Sequence[int],
    min_coverage: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Look at every position of the patch grid and keep those with enough mask under them.

    Along each axis a matrix says how many pixels of each position lie in each cell of the mask;
    multiplied together with the mask they count, exactly, the pixels under the mask.

    Parameters
    ----------
    mask
        Zarr array of any whole-number coarseness, non-zero inside.
    shape
        The image along its spatial axes.
    patch_size, overlaps, min_coverage
        See :func:`run_floor`.

    Returns
    -------
    starts : numpy.ndarray
        First corner of each kept patch, one row a patch, last axis fastest.
    coverage : numpy.ndarray
        Share of mask under each kept patch.
    """
    along = [
        np.arange(0, n - size + 1, size - overlap)
        for n, size, overlap in zip(shape, patch_size, overlaps, strict=True)
    ]
    n_pixels = math.prod(patch_size)
    if mask is None:
        count = np.full([len(a) for a in along], n_pixels, dtype=np.float64)
    else:
        count = (np.asarray(zarr.open_array(store=mask, mode="r")[...]) != 0).astype(np.float64)
        for axis, (n, size, first) in enumerate(zip(shape, patch_size, along, strict=True)):
            n_cells = count.shape[axis]
            edges = np.arange(n_cells + 1) * -(-n // n_cells)
            low = np.maximum(first[:, np.newaxis], edges[:-1])
            high = np.minimum(first[:, np.newaxis] + size, edges[1:])
            pixels = np.clip(high - low, 0, None).astype(np.float64)
            count = np.moveaxis(np.tensordot(pixels, count, axes=(1, axis)), 0, axis)
    kept = np.nonzero(count >= min_coverage * n_pixels)
    starts = np.stack([a[k] for a, k in zip(along, kept, strict=True)], axis=1)
    return starts.astype(np.int64), count[kept] / n_pixels


@dataclass(frozen=True)
class Source:
    """An array whose chunk files are read and decoded by hand; its channels come first."""

    path: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    with_channel: bool
    key: Callable[[tuple[int, ...]], str]

    @classmethod
    def open(cls, path: Path, axes: str) -> Source:
        """Read the metadata and refuse what the floor does not know."""
        return cls.of(zarr.open_array(store=path, mode="r", zarr_format=3), path, axes)

    @classmethod
    def of(cls, array: zarr.Array[Any], path: Path, axes: str) -> Source:
        """The same of an array that is open."""
        metadata = array.metadata
        if not isinstance(metadata, ArrayV3Metadata):
            raise TypeError(f"the floor reads Zarr v3; {path} is older")
        if [type(codec) for codec in metadata.codecs] != [BytesCodec, BloscCodec]:
            raise ValueError(f"the floor reads the codecs bytes, blosc; {path}: {metadata.codecs}")
        with_channel = axes.startswith("c")
        return cls(
            path=path,
            shape=array.shape if with_channel else (1, *array.shape),
            chunks=array.chunks if with_channel else (1, *array.chunks),
            dtype=array.dtype,
            with_channel=with_channel,
            key=metadata.encode_chunk_key,
        )

    def decode(self, at: tuple[int, ...], scratch: Scratch) -> int:
        """Read and decode the chunk `at` (channel first) and return the bytes it took."""
        path = self.path / self.key(at if self.with_channel else at[1:])
        with path.open("rb", buffering=0) as file:
            n_bytes = file.readinto(scratch.encoded)
        numcodecs.blosc.decompress(scratch.encoded[:n_bytes], scratch.chunk)
        return n_bytes


class Scratch(threading.local):
    """One thread's buffers, used for every chunk it decodes, and its share of the counts."""

    def __init__(self, source: Source, totals: list[npt.NDArray[np.int64]]) -> None:
        self.chunk = np.empty(source.chunks, dtype=source.dtype)
        self.encoded = memoryview(bytearray(self.chunk.nbytes + numcodecs.blosc.MAX_OVERHEAD))
        n_levels = np.iinfo(source.dtype).max + 1 if source.dtype.kind == "u" else 0
        self.total = np.zeros((source.shape[0], n_levels), dtype=np.int64)
        totals.append(self.total)


@dataclass(frozen=True)
class _Cut:
    """What it took to have every kept patch."""

    histograms: npt.NDArray[np.int64]
    chunks_needed: int
    chunk_reads: int
    bytes_read: int


class _Patches(Protocol):
    """Where pieces of patches go."""

    def begin(self, row: int) -> npt.NDArray[Any]:
        """The pixels of a patch, to be filled."""

    def end(self, row: int) -> None:
        """Take a patch that is whole."""


@dataclass(frozen=True)
class _All:
    """Every patch in memory."""

    patches: npt.NDArray[Any]

    def begin(self, row: int) -> npt.NDArray[Any]:
        patch: npt.NDArray[Any] = self.patches[row]
        return patch

    def end(self, row: int) -> None:
        """Nothing is left to do."""


def cut_once(
    source: Source,
    starts: npt.NDArray[np.int64],
    patch_size: Sequence[int],
    pool: ThreadPoolExecutor,
    patches: _Patches,
    count: bool = True,
) -> _Cut:
    """Decode each needed chunk once, count its pixels, and copy its piece of every patch."""
    cell_shape = source.chunks[1:]
    rows_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
    first = starts // cell_shape
    last = (starts + np.array(patch_size) - 1) // cell_shape
    for row, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        spans = [range(a, b + 1) for a, b in zip(low, high, strict=True)]
        for cell in itertools.product(*spans):
            rows_of[cell].append(row)
    corners = starts.tolist()
    left = np.prod(last - first + 1, axis=1).tolist()
    lock = threading.Lock()
    totals: list[npt.NDArray[np.int64]] = []
    scratch = Scratch(source, totals)

    def cut_cell(cell: tuple[int, ...]) -> tuple[int, int]:
        """Cut the chunks of all channels over one cell of the spatial grid."""
        chunk, total = scratch.chunk, scratch.total
        pieces: list[tuple[npt.NDArray[Any], tuple[slice, ...], tuple[slice, ...]]] = []
        boxes: list[Box] = []
        for row in rows_of[cell]:
            to, of, box = [], [], []
            for i, n, start, size in zip(cell, cell_shape, corners[row], patch_size, strict=True):
                low, high = max(start, i * n), min(start + size, (i + 1) * n)
                to.append(slice(low - start, high - start))
                of.append(slice(low - i * n, high - i * n))
                box.append((low - i * n, high - i * n))
            pieces.append((patches.begin(row), tuple(to), tuple(of)))
            boxes.append(tuple(box))
        union = [tuple(slice(a, b) for a, b in box) for box in disjoint(boxes)] if count else []
        n_reads = n_bytes = 0
        for channel in range(-(-source.shape[0] // source.chunks[0])):
            n_bytes += source.decode((channel, *cell), scratch)
            n_reads += 1
            begin = channel * source.chunks[0]
            for i, plane in enumerate(chunk[: source.shape[0] - begin], start=begin):
                for patch, to_slices, of_slices in pieces:
                    patch[i][to_slices] = plane[of_slices]
                if not count:
                    continue
                if len(union) == 1:
                    pixels = plane[union[0]].ravel()
                else:
                    pixels = np.concatenate([plane[box].ravel() for box in union])
                counts = np.bincount(pixels)
                total[i, : counts.size] += counts
        whole = []
        with lock:
            for row in rows_of[cell]:
                left[row] -= 1
                if not left[row]:
                    whole.append(row)
        for row in whole:
            patches.end(row)
        return n_reads, n_bytes

    done = list(pool.map(cut_cell, rows_of))
    return _Cut(
        histograms=np.sum(totals, axis=0),
        chunks_needed=len(rows_of) * -(-source.shape[0] // source.chunks[0]),
        chunk_reads=sum(n_reads for n_reads, _ in done),
        bytes_read=sum(n_bytes for _, n_bytes in done),
    )


def disjoint(boxes: Iterable[Box]) -> list[Box]:
    """Cut the union of boxes into boxes that share no pixel.

    Parameters
    ----------
    boxes
        Half-open boxes, all of one dimension.

    Returns
    -------
    list of Box
        Few boxes, each pixel of the union in exactly one.
    """
    boxes = set(boxes)
    edges = sorted({edge for box in boxes for edge in box[0]})
    slabs: list[tuple[int, int, list[Box]]] = []
    for low, high in itertools.pairwise(edges):
        across = {box[1:] for box in boxes if box[0][0] <= low and high <= box[0][1]}
        if not across:
            continue
        rest: list[Box] = disjoint(across) if across != {()} else [()]
        if slabs and slabs[-1][1] == low and slabs[-1][2] == rest:
            slabs[-1] = (slabs[-1][0], high, rest)
        else:
            slabs.append((low, high, rest))
    return [((low, high), *box) for low, high, rest in slabs for box in rest]


class _Shard:
    """One shard being filled with encoded patches; whoever brings the last one writes it."""

    def __init__(self, path: Path, n_rows: int, rows_per_shard: int) -> None:
        self.path = path
        self.parts: list[bytes] = [b""] * n_rows
        self.rows_per_shard = rows_per_shard
        self._left = n_rows
        self._lock = threading.Lock()

    def put(self, row: int, part: bytes) -> int:
        """Take one encoded patch and return the bytes written to disk, mostly none."""
        self.parts[row] = part
        with self._lock:
            self._left -= 1
            if self._left:
                return 0
        return self._write()

    def _write(self) -> int:
        index = np.full((self.rows_per_shard, 2), MISSING, dtype="<u8")
        lengths = np.array([len(part) for part in self.parts], dtype=np.uint64)
        index[: lengths.size, 0] = np.cumsum(lengths) - lengths
        index[: lengths.size, 1] = lengths
        table = index.tobytes()
        self.parts += [table, _checksum(table)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb") as file:
            file.writelines(self.parts)
        self.parts = []
        return int(lengths.sum()) + len(table) + 4


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


class Shards:
    """Patches that are encoded as they become whole; their memory goes round."""

    def __init__(
        self,
        path: Path,
        n_patches: int,
        patch_shape: Sequence[int],
        dtype: np.dtype[Any],
        rows_per_shard: int,
    ) -> None:
        zeros = "/".join("0" * len(patch_shape))
        self._shards = [
            _Shard(
                path / "c" / str(first // rows_per_shard) / zeros,
                min(rows_per_shard, n_patches - first),
                rows_per_shard,
            )
            for first in range(0, n_patches, rows_per_shard)
        ]
        self._rows, self._shape, self._dtype = rows_per_shard, tuple(patch_shape), dtype
        self._codec = numcodecs.blosc.Blosc(
            cname="zstd", clevel=1, shuffle=numcodecs.blosc.BITSHUFFLE
        )
        self._begun: dict[int, npt.NDArray[Any]] = {}
        self._free: list[npt.NDArray[Any]] = []
        self._lock = threading.Lock()
        self.bytes_written = 0

    def __len__(self) -> int:
        return len(self._shards)

    def begin(self, row: int) -> npt.NDArray[Any]:
        """The pixels of a patch, to be filled."""
        with self._lock:
            patch = self._begun.get(row)
            if patch is None:
                patch = self._free.pop() if self._free else np.empty(self._shape, self._dtype)
                self._begun[row] = patch
            return patch

    def end(self, row: int) -> None:
        """Encode a patch that is whole."""
        patch = self._begun.pop(row)
        encoded = self._codec.encode(patch)
        self._free.append(patch)
        shard, within = divmod(row, self._rows)
        written = self._shards[shard].put(within, encoded + _checksum(encoded))
        with self._lock:
            self.bytes_written += written


def create(
    out: Path,
    n_patches: int,
    patch_shape: Sequence[int],
    dtype: np.dtype[Any],
    axes: str,
    rows_per_shard: int,
) -> zarr.Group:
    """Write the metadata of a store."""
    group = zarr.create_group(store=out)
    group.create_array(
        "images",
        shape=(n_patches, *patch_shape),
        chunks=(1, *patch_shape),
        shards=(rows_per_shard, *patch_shape),
        dtype=dtype,
        compressors=[BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=("patch", "c", *axes.removeprefix("c")),
        fill_value=0,
    )
    return group


def finish(
    out: Path,
    group: zarr.Group,
    histograms: npt.NDArray[np.int64] | None,
    starts: npt.NDArray[np.int64],
    coverage: npt.NDArray[np.float64],
    axes: str,
    percentiles: Sequence[float],
) -> None:
    """Write what is known only now: statistics and the manifest."""
    if histograms is not None:
        group.attrs.update(
            {
                "count": histograms.sum(axis=1).tolist(),
                "percentiles": _percentiles(histograms, percentiles),
            }
        )
    columns: dict[str, npt.NDArray[Any]] = {
        "row": np.arange(len(starts)),
        "image": np.zeros(len(starts), dtype=np.int32),
    }
    for name, column in zip(axes.removeprefix("c"), starts.T, strict=True):
        columns[f"start_{name}"] = column
    columns["coverage"] = coverage
    pq.write_table(pa.table(columns), out / "manifest.parquet")


def _percentiles(
    histograms: npt.NDArray[np.int64], percentiles: Sequence[float]
) -> list[list[float]]:
    """Interpolate linearly between ranks, one list a channel, as `numpy.percentile` does."""
    answer: list[list[float]] = []
    for counts in histograms:
        below = np.cumsum(counts)
        ranks = np.asarray(percentiles) / 100 * (below[-1] - 1)
        low = np.searchsorted(below, np.floor(ranks), side="right")
        high = np.searchsorted(below, np.ceil(ranks), side="right")
        answer.append((low + (high - low) * (ranks - np.floor(ranks))).tolist())
    return answer
