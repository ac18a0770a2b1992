"""Predicting: what a model says of tiles, read from an array or asked of a function."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from patchloom.arrays.rows import TOGETHER, Chunked, Read, Rows
from patchloom.errors import ConfigError
from patchloom.image import Image, Reads
from patchloom.planning.incidence import touches
from patchloom.planning.plans import Plan
from patchloom.planning.runs import fetch_bytes
from patchloom.run.blocks import BlockCache, Meter, Supplied, stored_chunks
from patchloom.run.tilings import Tiles

__all__ = ["Answers", "Asking", "Inputs", "LiveInputs", "Needs", "RowInputs", "Visit", "as_answer"]

Pixels = npt.NDArray[Any]
Needs = tuple[int, Image, tuple[tuple[int, ...], ...]]
"""Chunks that Dask hands over: by a number, of an image, which ones."""
_BATCH = 16 * 2**20
"""Bytes of rows that are read together, about."""
_ROWS = -1
"""The number of an array of rows in `Needs`; other numbers are those of images."""

_loaded: dict[str, Any] = {}
_loading = threading.Lock()
_asking = threading.Lock()


@dataclass
class Visit:
    """What a task holds and has read, and what Dask handed to it for the tiles at hand."""

    meter: Meter = field(default_factory=Meter)
    reads: Reads = field(default_factory=Reads)
    n_tiles: int = 0
    given: Mapping[int, Supplied] = field(default_factory=dict)
    """Chunks by the number in `Needs`."""
    read: Read | None = None
    """What reads rows, once it is opened."""


class Inputs(Protocol):
    """What gives pixels [n, c, (z,) y, x] of tiles on a worker; a small value."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one tile, its channels first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""

    def pieces(
        self, image: int, sample: int, tiles: Tiles, visit: Visit
    ) -> Iterator[tuple[slice, Pixels]]:
        """The pixels of some tiles, a bounded number at a time, in their order."""

    def held(self, box: Sequence[int]) -> int:
        """Bytes that are held at most for the tiles of a box of some extent."""

    def needs(self, image: int, sample: int, tiles: Tiles) -> Needs | None:
        """The chunks that have to be handed over for some tiles, if any have."""


@dataclass(frozen=True, eq=False)
class RowInputs:
    """Rows of an array, each a tile."""

    rows: Rows
    flat: bool = False
    """Whether it has no channel axis."""
    lazy: Image | None = None
    """The array as an image, if only Dask can read it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row, its channels first."""
        shape = self.rows.shape[1:]
        return (1, *shape) if self.flat else shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return self.rows.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def _together(self) -> int:
        """Chunks of rows that are read together."""
        return max(1, _BATCH // (self.row_bytes * self.rows.step))

    def pieces(
        self, image: int, sample: int, tiles: Tiles, visit: Visit
    ) -> Iterator[tuple[slice, Pixels]]:
        """Rows of whole chunks, so that of one task none is decoded twice."""
        read = self._open(visit)
        rest = [range(n) for n in self.rows.shape[1:]]
        chunk = np.cumsum(np.diff(tiles.row // self.rows.step, prepend=-1) > 0) - 1
        group = chunk // self._together
        cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(tiles)]
        for a, b in pairwise(cuts):
            pixels = read(tiles.row[a:b], rest)
            visit.n_tiles += b - a
            visit.reads.nbytes += pixels.nbytes
            visit.meter.take(pixels.nbytes)
            yield slice(a, b), pixels.reshape(b - a, *self.shape)
            visit.meter.give(pixels.nbytes)

    def _open(self, visit: Visit) -> Read:
        if self.lazy is None:
            visit.read = visit.read or self.rows.open()
            return visit.read
        return Chunked(visit.given[_ROWS].reader, self.lazy.grid, self.dtype).open()

    def held(self, box: Sequence[int]) -> int:
        """The rows that are read together, and the chunks that they are decoded from."""
        rows = max(_BATCH, self.row_bytes * self.rows.step)
        # What was fetched, and what is decoded of it.
        return rows + 2 * max(min(rows, TOGETHER), self.row_bytes * self.rows.step)

    def needs(self, image: int, sample: int, tiles: Tiles) -> Needs | None:
        """Chunks of rows of a Dask array."""
        if self.lazy is None:
            return None
        chunks = np.unique(tiles.row // self.lazy.grid.chunks[0]).tolist()
        rest = (0,) * (self.lazy.ndim - 1)
        return _ROWS, self.lazy, tuple((k, *rest) for k in chunks)


@dataclass(frozen=True, eq=False)
class LiveInputs:
    """Tiles of a plan, cut from its images; a block is decoded once a task."""

    plan: Plan
    batch: int
    """Tiles that are cut together."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one tile, its channels first."""
        return self.plan.patch_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return self.plan.dtype

    def pieces(
        self, image: int, sample: int, tiles: Tiles, visit: Visit
    ) -> Iterator[tuple[slice, Pixels]]:
        """Tiles cut from decoded blocks."""
        source, cut = self.plan.images[image], self.plan.cut
        layout = source.layout
        samples = np.full(len(tiles), sample)
        patch, block = touches(layout, samples, tiles.corner, cut)
        supplied = visit.given.get(image)
        reader = source.source.reader() if supplied is None else supplied.reader()
        steps = np.arange(len(tiles)) // self.batch
        fetch = fetch_bytes(self.plan.memory)
        cache = BlockCache(source, steps[patch], block, reader, visit.meter, fetch=fetch)
        for k, low in enumerate(range(0, len(tiles), self.batch)):
            some = slice(low, min(low + self.batch, len(tiles)))
            cache.enter(k)
            pixels = cache.windows(sample, tiles.corner[some], cut)
            visit.n_tiles += len(pixels)
            visit.meter.take(pixels.nbytes)
            yield some, pixels
            visit.meter.give(pixels.nbytes)
            cache.leave(k)
        visit.reads += cache.reads

    def held(self, box: Sequence[int]) -> int:
        """All blocks under the tiles of a box, and a batch of tiles."""
        plan, most = self.plan, 0
        for image in plan.images:
            layout = image.layout
            whole = math.prod(layout.block_shape()) * image.dtype.itemsize
            spans = zip(box, plan.cut.size, layout.space.chunks, layout.space.counts, strict=True)
            n = math.prod(min(-(-(b + 2 * p) // c) + 1, k) for b, p, c, k in spans)
            inner = int(getattr(image.source, "held_bytes", 0))
            most = max(most, n * whole + inner)
        tiles = self.batch * math.prod(self.shape) * self.dtype.itemsize
        return most + fetch_bytes(plan.memory) + 2 * tiles

    def needs(self, image: int, sample: int, tiles: Tiles) -> Needs | None:
        """Chunks of an image that only Dask can read."""
        source = self.plan.images[image]
        if source.source.addressable:
            return None
        samples = np.full(len(tiles), sample)
        _, blocks = touches(source.layout, samples, tiles.corner, self.plan.cut)
        rows = stored_chunks(source, np.unique(blocks)).tolist()
        return image, source, tuple(tuple(row) for row in rows)


@dataclass(frozen=True, eq=False)
class Asking:
    """A function that is asked, a batch of tiles at a time."""

    predict: Callable[..., Any]
    load: Callable[[], Any] | None
    token: str
    """Of the run: a process loads the model once for it."""
    batch: int

    def __call__(self, pixels: Pixels) -> Pixels:
        """Predictions [n, c, (z,) y, x] of tiles [n, c, (z,) y, x]."""
        if self.load is None:
            return np.asarray(self.predict(pixels))
        with _asking:
            # One model in a process takes one batch after another.
            return np.asarray(self.predict(pixels, self._model()))

    def _model(self) -> Any:
        with _loading:
            if self.token not in _loaded:
                # That of an earlier run is let go of.
                _loaded.clear()
                assert self.load is not None
                _loaded[self.token] = self.load()
            return _loaded[self.token]


@dataclass(frozen=True, eq=False)
class Answers:
    """Predictions of tiles: the inputs as they are, or what a function makes of them."""

    inputs: Inputs
    shape: tuple[int, ...]
    """Of one prediction, its channels first."""
    dtype: np.dtype[Any]
    ask: Asking | None = None

    def pieces(
        self, image: int, sample: int, tiles: Tiles, visit: Visit
    ) -> Iterator[tuple[slice, Pixels]]:
        """The predictions of some tiles, a bounded number at a time, in their order."""
        for some, pixels in self.inputs.pieces(image, sample, tiles, visit):
            if self.ask is None:
                yield some, pixels
                continue
            for low in range(0, len(pixels), self.ask.batch):
                batch = pixels[low : low + self.ask.batch]
                made = as_answer(self.ask(batch), len(batch), self.shape, self.dtype)
                visit.meter.take(made.nbytes)
                yield slice(some.start + low, some.start + low + len(batch)), made
                visit.meter.give(made.nbytes)

    def held(self, box: Sequence[int]) -> int:
        """Bytes that are held at most for the tiles of a box; a function's own are not known."""
        made = 0
        if self.ask is not None:
            made = 2 * self.ask.batch * math.prod(self.shape) * self.dtype.itemsize
        return self.inputs.held(box) + made


def as_answer(given: Pixels, n: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Pixels:
    """What a function gave for n tiles, if it is what it should be.

    Raises
    ------
    ConfigError
        If it is of another shape or type.
    """
    if given.shape != (n, *shape) or given.dtype.newbyteorder("=") != dtype:
        raise ConfigError(
            f"predict gives the same for every batch, here {(n, *shape)} of {dtype} for {n} "
            f"tiles, got {given.shape} of {given.dtype}"
        )
    return given
