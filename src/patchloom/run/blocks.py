"""Blocks on a worker: decoded once, kept while a later step needs them, then forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError
from patchloom.image import ChunkReader, Image, Ints, Reads, overlap
from patchloom.planning.incidence import Cut
from patchloom.planning.runs import FETCH
from patchloom.run.sharing import Share

__all__ = [
    "BlockCache",
    "Meter",
    "Supplied",
    "arrivals",
    "batch_blocks",
    "decoded",
    "stored_chunks",
]

Pixels = npt.NDArray[Any]
_LARGE = 2**13
"""Bytes of a patch from which copying it costs more than the Python around it."""


class Meter:
    """Bytes held by a task: now and at most."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0

    def take(self, nbytes: int) -> None:
        """Hold so many bytes more."""
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    def give(self, nbytes: int) -> None:
        """Hold so many bytes less."""
        self.now -= nbytes


@dataclass(frozen=True)
class Supplied:
    """Chunks that Dask hands to a task, for arrays that only a graph can read."""

    chunks: dict[tuple[int, ...], Pixels]
    fresh: frozenset[tuple[int, ...]]
    """Those that this task counts as read; the others are counted by another task."""

    def reader(self) -> ChunkReader:
        """A reader over them."""
        return _SuppliedReader(self)


class _SuppliedReader:
    def __init__(self, supplied: Supplied) -> None:
        self._chunks = supplied.chunks
        fresh = [supplied.chunks[chunk].nbytes for chunk in supplied.fresh]
        self.reads = Reads(len(fresh), len(fresh), sum(fresh), "dask")

    def read(self, chunks: Ints) -> list[Pixels]:
        found = (np.asarray(self._chunks[tuple(row)]) for row in np.asarray(chunks).tolist())
        return [part.astype(part.dtype.newbyteorder("="), copy=False) for part in found]


def stored_chunks(image: Image, blocks: Ints) -> Ints:
    """The stored chunks of some blocks, block after block: int64[n * per_block, ndim]."""
    layout, axes = image.layout, image.axes
    group, flat = np.divmod(np.asarray(blocks, np.int64), layout.space.n_chunks)
    n = layout.chunks_per_block
    index = np.zeros((len(flat), n, image.ndim), np.int64)
    index[..., axes.pick(axes.sample)] = layout.samples.unflat(group)[:, None]
    index[..., axes.pick(axes.spatial)] = layout.space.unflat(flat)[:, None]
    if axes.has_channel:
        index[..., axes.names.index("c")] = np.arange(n)
    return index.reshape(-1, image.ndim)


def arrivals(steps: Ints, blocks: Ints) -> tuple[Ints, Ints]:
    """Distinct blocks in the order in which they are read, and the first step of each.

    Parameters
    ----------
    steps, blocks
        All pairs of a step and a block that it needs: int64[n] each.
    """
    ids, place = np.unique(blocks, return_inverse=True)
    first = np.full(len(ids), np.iinfo(np.int64).max)
    np.minimum.at(first, place, steps)
    order = np.argsort(first, kind="stable")
    return ids[order], first[order]


def batch_blocks(image: Image, fetch: int | None = None) -> int:
    """Blocks of an array that are asked for together, of so many bytes."""
    size = math.prod(image.layout.block_shape()) * image.dtype.itemsize
    return max(1, (FETCH if fetch is None else fetch) // max(1, size))


class BlockCache:
    """The blocks of one array over one task.

    Every block has a first and a last step that need it. It is read with the batch of its
    first step and forgotten after its last, so that nothing is decoded twice and nothing is
    held longer than needed.

    Parameters
    ----------
    image
        The array.
    steps, blocks
        All pairs of a step and a block that it needs: int64[n] each.
    reader
        Reads its chunks.
    meter
        Counts the bytes held.
    on_load
        Called once with each block when it arrives: (block, pixels).
    on_broken
        Called with each block that cannot be read, and why; without it that is an error.
    share
        Has the blocks that other legs need too; None reads all of them.
    fetch
        Bytes of decoded blocks that are asked for together.
    """

    def __init__(
        self,
        image: Image,
        steps: Ints,
        blocks: Ints,
        reader: ChunkReader,
        meter: Meter,
        on_load: Callable[[int, Pixels], None] | None = None,
        on_broken: Callable[[int, str], None] | None = None,
        share: Share | None = None,
        fetch: int | None = None,
    ) -> None:
        self._image = image
        self._reader = reader
        self._meter = meter
        self._on_load = on_load
        self._on_broken = on_broken
        self._share = share
        self._held: dict[int, Pixels] = {}
        self._queue, self._due = arrivals(steps, blocks)
        self._next = 0
        ids, place = np.unique(blocks, return_inverse=True)
        last = np.full(len(ids), -1)
        np.maximum.at(last, place, steps)
        ends = np.argsort(last, kind="stable")
        self._leaving, self._ends = ids[ends], last[ends]
        self._gone = 0
        self._batch = batch_blocks(image, fetch)

    @property
    def reads(self) -> Reads:
        """What the reader did so far."""
        return self._reader.reads

    def enter(self, step: int) -> None:
        """Have every block that a step needs."""
        while self._next < len(self._queue) and self._due[self._next] <= step:
            stop = self._next + self._batch
            self._load(self._queue[self._next : stop])
            self._next = min(stop, len(self._queue))

    def leave(self, step: int) -> None:
        """Forget the blocks that no later step needs."""
        while self._gone < len(self._leaving) and self._ends[self._gone] <= step:
            number = int(self._leaving[self._gone])
            block = self._held.pop(number, None)
            if block is not None:  # a broken one never came
                self._meter.give(block.nbytes)
                if self._share is not None:
                    self._share.leave(number)
            self._gone += 1

    def windows(self, sample: int, corner: Ints, cut: Cut) -> Pixels:
        """Pixels of patches of one sample: [n, channels, *space].

        Parameters
        ----------
        sample
            Flat sample.
        corner
            First pixel of what is cut for each: int64[n, ndim].
        cut
            What is cut, and what it shows beyond the image.
        """
        layout = self._image.layout
        shape = (len(corner), layout.n_channels, *cut.size)
        start, stop = corner.min(0), corner.max(0) + np.asarray(cut.size)
        within = (start >= 0).all() and (stop <= np.asarray(layout.space.shape)).all()
        if within and math.prod(shape[1:]) * self._image.dtype.itemsize >= _LARGE:
            copied = np.empty(shape, self._image.dtype)
            self._copy(sample, corner, copied)
            return copied
        region, origin = self._region(sample, corner, start, stop, cut)
        view = np.lib.stride_tricks.sliding_window_view(
            region, cut.size, axis=tuple(range(1, region.ndim))
        )
        view = np.moveaxis(view, 0, len(cut.size))
        pixels: Pixels = view[tuple((corner - np.asarray(origin)).T)]
        return pixels

    def _copy(self, sample: int, corner: Ints, out: Pixels) -> None:
        """Copy patches inside the image out of their blocks, piece by piece, and only once."""
        layout, chunks = self._image.layout, np.asarray(self._image.layout.space.chunks)
        inside = layout.sample_in_block(sample) if layout.samples.shape else 0
        end = corner + np.asarray(out.shape[2:])
        low, high = layout.space.chunk_of(corner), layout.space.chunk_of(end - 1)
        patch, at = np.arange(len(corner)), low
        if (low < high).any():
            # All pieces at once, patch after patch: how far each one's block is from the first.
            on = np.argwhere(np.ones((high - low).max(0) + 1, np.bool_))
            near = low[:, None] + on
            patch, step = np.nonzero((near <= high[:, None]).all(-1))
            at, corner = near[patch, step], corner[patch]
        first = at * chunks
        start, stop = np.maximum(corner, first), np.minimum(end[patch], first + chunks)
        numbers = layout.blocks_of(np.full(len(at), sample), at).tolist()
        edges = (start - corner, stop - corner, start - first, stop - first)
        ends, every = [edge.tolist() for edge in edges], slice(None)
        for k, number, *box in zip(patch.tolist(), numbers, *ends, strict=True):
            to, of = map(slice, box[0], box[1]), map(slice, box[2], box[3])
            out[(k, every, *to)] = self._held[number][inside][(every, *of)]

    def _region(
        self, sample: int, corner: Ints, start: Ints, stop: Ints, cut: Cut
    ) -> tuple[Pixels, Sequence[int]]:
        """Pixels that hold a spatial box of patches, and where they begin."""
        layout = self._image.layout
        extent = np.asarray(layout.space.shape, np.int64)
        if (start >= 0).all() and (stop <= extent).all():
            return self.box(sample, start, stop)
        spans = cut.span(corner, extent)
        low, high = spans[0].min(0), spans[1].max(0)
        held, first = self.box(sample, low, high)
        if cut.padding == "constant":
            region = np.zeros((layout.n_channels, *(stop - start)), self._image.dtype)
            into, of = overlap(first, held.shape[1:], start.tolist(), region.shape[1:])
            region[(slice(None), *into)] = held[(slice(None), *of)]
            return region, start.tolist()
        rows = zip(start.tolist(), stop.tolist(), extent.tolist(), first, strict=True)
        place = [cut.source(a, b, n) - f for a, b, n, f in rows]
        return held[np.ix_(np.arange(layout.n_channels), *place)], start.tolist()

    def box(self, sample: int, start: Ints, stop: Ints) -> tuple[Pixels, Sequence[int]]:
        """Pixels that hold a box inside the image, and where they begin.

        What lies in blocks that no step asked for is 0.
        """
        layout = self._image.layout
        inside = layout.sample_in_block(sample) if layout.samples.shape else 0
        low, high = layout.space.chunk_of(start), layout.space.chunk_of(stop - 1)
        if (low == high).all():
            block = self._held[int(layout.blocks_of(np.asarray([sample]), low[None])[0])]
            return block[inside], layout.space.box(low.tolist())[0]
        region = np.empty((layout.n_channels, *(stop - start)), self._image.dtype)
        origin = start.tolist()
        every = low + np.argwhere(np.ones(high - low + 1, np.bool_))
        numbers = layout.blocks_of(np.full(len(every), sample), every)
        for number, at in zip(numbers.tolist(), every.tolist(), strict=True):
            first, last = layout.space.box(at)
            extent = [b - a for a, b in zip(first, last, strict=True)]
            into, of = overlap(first, extent, origin, region.shape[1:])
            # Into one that is not held, no patch of this step reaches.
            found = self._held.get(number)
            region[(slice(None), *into)] = 0 if found is None else found[inside][(slice(None), *of)]
        return region, origin

    def _load(self, blocks: Ints) -> None:
        decode = (
            self._decode if self._share is None else partial(self._share.load, decode=self._decode)
        )
        try:
            found = decode(blocks)
        except ChunkError as error:
            if self._on_broken is None:
                raise
            if len(blocks) == 1:
                self._on_broken(int(blocks[0]), str(error))
                return
            # One at a time: only what is broken is missed.
            for k in range(len(blocks)):
                self._load(blocks[k : k + 1])
            return
        for block, pixels in zip(blocks.tolist(), found, strict=True):
            self._held[block] = pixels
            self._meter.take(pixels.nbytes)
            if self._on_load is not None:
                self._on_load(block, pixels)

    def _decode(self, blocks: Ints) -> list[Pixels]:
        return decoded(self._image, self._reader, blocks)


def decoded(image: Image, reader: ChunkReader, blocks: Ints) -> list[Pixels]:
    """Pixels of some blocks, each [samples, channels, *space], clipped to the image.

    Parameters
    ----------
    image, reader
        The array, and what reads its chunks.
    blocks
        Flat blocks of its layout: int64[n].
    """
    layout, axes = image.layout, image.axes
    chunks, alone = stored_chunks(image, blocks), layout.chunks_per_block == 1
    wholes, found = reader.read(chunks) if alone else _joined(image, reader, chunks), []
    wholes.reverse()
    while wholes:
        # What lies in another order is copied: one after another, and forgotten as it was.
        whole = wholes.pop()
        whole = whole.transpose(axes.order) if alone else whole
        space = whole.shape[whole.ndim - len(axes.spatial) :]
        found.append(whole.reshape(-1, layout.n_channels, *space))
    return found


def _joined(image: Image, reader: ChunkReader, chunks: Ints) -> list[Pixels]:
    """Blocks from their chunks, each of some channels: in canonical order of axes."""
    axes, grid = image.axes, image.grid
    found: list[Pixels] = []
    back = np.argsort(axes.order).tolist()
    channel = axes.order.index(axes.names.index("c"))

    def places() -> Iterator[Pixels]:
        """Where each chunk goes, made as they come."""
        for of_block in chunks.reshape(-1, image.layout.chunks_per_block, len(back)):
            edges = [grid.box(row) for row in of_block.tolist()]
            extents = np.array([np.subtract(b, a)[list(axes.order)] for a, b in edges])
            ends = np.cumsum(extents[:, channel])
            extents[0, channel] = ends[-1]
            found.append(whole := np.empty(extents[0], image.dtype))
            for begin, end in zip([0, *ends], ends, strict=False):
                where = (slice(None),) * channel + (slice(begin, end),)
                yield whole[where].transpose(back)

    fill = getattr(reader, "read_into", None)
    if fill is not None:
        fill(chunks, places())
        return found
    parts = reader.read(chunks)
    parts.reverse()
    for place in places():
        # A chunk that was joined to its block is forgotten before the next ones are joined.
        place[...] = parts.pop()
    return found
