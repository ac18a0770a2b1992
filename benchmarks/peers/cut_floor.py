"""The floor: each needed chunk decoded once by hand, on two threads, into the listed patches."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numcodecs.blosc
import numpy as np
import zarr
from patches import Job, Take, Written, serve

from benchmarks.floor import Scratch, Shards, Source, create, cut_once, finish

AT_ONCE = 64
"""Requests to an object store under way at a time."""


@dataclass(frozen=True)
class _Away(Source):
    """An array in an object store, whose chunks are on their way before they are asked for."""

    coming: dict[str, Future[bytes]] = field(default_factory=dict)

    def decode(self, at: tuple[int, ...], scratch: Scratch) -> int:
        encoded = self.coming.pop(self.key(at if self.with_channel else at[1:])).result()
        numcodecs.blosc.decompress(encoded, scratch.chunk)
        return len(encoded)


@dataclass
class _Taken:
    """Patches handed out as soon as they are whole, each in memory of its own."""

    job: Job
    taker: Take
    numbers: list[int]
    begun: dict[int, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, row: int) -> Any:
        with self.lock:
            patch = self.begun.get(row)
            if patch is None:
                patch = self.begun[row] = np.empty(self.job.patch_shape, self.job.dtype)
            return patch

    def end(self, row: int) -> None:
        self.taker(self.numbers[row], self.begun.pop(row))


@dataclass(frozen=True)
class _From:
    """The rows of one image among those of all."""

    patches: Any
    first: int

    def begin(self, row: int) -> Any:
        return self.patches.begin(self.first + row)

    def end(self, row: int) -> None:
        self.patches.end(self.first + row)


class _Here:
    """A pool of the thread that asks."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)


def _sources(job: Job) -> Callable[[int], Source]:
    """The array of an image; all of them have the first one's metadata, to the byte."""
    if job.storage_options:
        return _away(job)
    first = Source.open(Path(job.arrays[0]), job.axes)
    told = Path(job.arrays[0], "zarr.json").read_bytes()

    def source(image: int) -> Source:
        path = Path(job.arrays[image])
        if (path / "zarr.json").read_bytes() != told:
            return Source.open(path, job.axes)
        return Source(path, first.shape, first.chunks, first.dtype, first.with_channel, first.key)

    return source


def _away(job: Job) -> Callable[[int], Source]:
    url = job.arrays[0]
    fs = fsspec.filesystem("s3", **job.storage_options)
    opened = zarr.open_array(url, mode="r", storage_options=job.storage_options)
    given = Source.of(opened, Path("."), job.axes)
    source = _Away(
        given.path, given.shape, given.chunks, given.dtype, given.with_channel, given.key
    )
    gate = asyncio.Semaphore(AT_ONCE)

    async def fetch(key: str) -> bytes:
        async with gate:
            return bytes(await fs._cat_file(f"{url}/{key}"))

    # In the order in which they are decoded: over each cell, the chunks of all channels.
    chunks = np.load(job.chunks_file)[:, 1:]
    if job.axes[0] == "c":
        chunks = chunks[np.lexsort((chunks[:, 0], *chunks[:, :0:-1].T))]
    for index in chunks.tolist():
        key = given.key(tuple(index))
        source.coming[key] = asyncio.run_coroutine_threadsafe(fetch(key), fs.loop)
    return lambda image: source


def _order(job: Job) -> Any:
    """Patches by image and by the chunk of their first corner."""
    corners = job.corners
    cells = corners[:, 1:] // np.array(job.chunks[len(job.chunks) - len(job.patch_size) :])
    return np.lexsort((*corners[:, :0:-1].T, *cells.T[::-1], corners[:, 0]))


def _cut_all(job: Job, corners: Any, patches: Any, count: bool) -> Any:
    """Cut ordered patches; the counts of the only image."""
    source = _sources(job)
    firsts = np.searchsorted(corners[:, 0], np.arange(len(job.arrays) + 1)).tolist()
    spans = [(k, a, b) for k, (a, b) in enumerate(itertools.pairwise(firsts)) if a < b]

    def image(span: tuple[int, int, int], pool: Any) -> Any:
        k, begin, end = span
        to, starts = _From(patches, begin), corners[begin:end, 1:]
        return cut_once(source(k), starts, job.patch_size, pool, to, count=count)

    with ThreadPoolExecutor(job.threads) as pool:
        if len(spans) == 1:
            return image(spans[0], pool)
        here: Any = _Here()
        return list(pool.map(lambda span: image(span, here), spans))[-1]


def cut(job: Job, wanted: Any, take: Take) -> None:
    order = _order(job)
    _cut_all(job, job.corners[order], _Taken(job, take, order.tolist()), count=False)


def write(job: Job, out: str) -> Written:
    order, dtype = _order(job), np.dtype(job.dtype)
    corners, count = job.corners[order], len(job.arrays) == 1 and dtype.kind == "u"
    to = Path(out)
    group = create(to, len(order), job.patch_shape, dtype, job.axes, job.rows_per_shard)
    shards = Shards(to / "images", len(order), job.patch_shape, dtype, job.rows_per_shard)
    done = _cut_all(job, corners, shards, count)
    histograms = done.histograms if count else None
    finish(to, group, histograms, corners[:, 1:], np.ones(len(order)), job.axes, (1, 99))
    counts = {"bytes_written": shards.bytes_written, "n_shards": len(shards)}
    return Written("images", counts, lambda: order)


def decode(job: Job) -> int:
    source = _sources(job)
    opened = {0: source(0)}
    scratch = Scratch(opened[0], [])

    def one(row: list[int]) -> int:
        image, *index = row
        if image not in opened:
            opened[image] = source(image)
        at = tuple(index) if job.axes[0] == "c" else (0, *index)
        opened[image].decode(at, scratch)
        return math.prod(scratch.chunk.shape)

    with ThreadPoolExecutor(job.threads) as pool:
        return sum(pool.map(one, np.load(job.chunks_file).tolist()))


if __name__ == "__main__":
    serve("floor", cut, write=write, decode=decode, package="numcodecs")
