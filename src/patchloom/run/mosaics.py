"""Mosaics: what a worker does to put tiles together, box by box, and write whole objects."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numcodecs.blosc
import numpy as np
import numpy.typing as npt

from patchloom.blending import Blend, window
from patchloom.grid import ChunkGrid
from patchloom.image import Ints
from patchloom.planning.incidence import Cut
from patchloom.run.allocating import keep_pages
from patchloom.run.blocks import Supplied
from patchloom.run.predicting import Answers, Visit
from patchloom.run.stitch_report import StitchedTask
from patchloom.run.tilings import PlanTiling, Tiles
from patchloom.store.ome_target import OmeTarget

__all__ = ["Job", "Mosaic", "Region", "as_type", "box_of", "put_together", "sum_type"]

Pixels = npt.NDArray[Any]
_BOXES, _ASKED = 64, 16
"""An image is cut into about so many boxes, where they are neither small nor large then: fewer
where a function is asked, for what lies at their borders is asked twice."""
_SMALL, _LARGE = 8 * 2**20, 128 * 2**20
"""Bytes that the sums of a box take, at least and at most; where a function is asked, half of the
memory at most."""


@dataclass(frozen=True)
class Mosaic:
    """One image that is put together."""

    image: int
    """Position of its source in the plan or store."""
    target: OmeTarget
    box: tuple[int, ...]
    """Extent of what is put together at once, in whole objects: pixels on each spatial axis."""

    @cached_property
    def boxes(self) -> ChunkGrid:
        """The boxes of one sample."""
        return ChunkGrid(self.target.boxes.shape, self.box)

    def parts(self, number: int) -> Ints:
        """The parts of the target inside a box, by their numbers in a sample."""
        start, stop = self.boxes.box(self.boxes.unflat(number).tolist())
        grid = self.target.boxes
        low, high = grid.chunk_of(start), grid.chunk_of(np.asarray(stop) - 1)
        return grid.flat(low + np.argwhere(np.ones(high - low + 1, np.bool_)))


@dataclass(frozen=True, eq=False)
class Region:
    """One box of one sample, of which some parts are made."""

    mosaic: int
    sample: int
    number: int
    """Of the box."""
    parts: Ints | None = None
    """Those that are made, by their numbers in the sample; None is all of the box."""
    tiles: Tiles | None = None
    """Those that reach into it, where no plan tells."""


@dataclass(frozen=True, eq=False)
class Job:
    """What every task needs."""

    mosaics: tuple[Mosaic, ...]
    answers: Answers
    cut: Cut
    """Of the tiles."""
    blend: Blend | None
    tiling: PlanTiling | None = None
    gone: Ints | None = None
    """Shards of predictions that are missing: their tiles are left out."""
    rows_per_shard: int = 1

    @property
    def inset(self) -> Ints:
        """Pixels of a tile before the first one of its prediction, on each axis."""
        same = self.answers.shape[1:] == self.cut.size
        return np.zeros(len(self.cut.size), np.int64) if same else np.array(self.cut.context)

    def tiles(self, region: Region) -> Tiles:
        """The tiles that have a say in a region, as far as they are predicted."""
        mosaic = self.mosaics[region.mosaic]
        found = region.tiles
        if found is None:
            assert self.tiling is not None
            start, stop = mosaic.boxes.box(mosaic.boxes.unflat(region.number).tolist())
            found = self.tiling.of_box(mosaic.image, region.sample, start, stop)
        if region.parts is not None:
            found = found.within(*_around(mosaic.target.boxes, region.parts))
        if self.gone is not None:
            found = found.take(~np.isin(found.row // self.rows_per_shard, self.gone))
        return found


def sum_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What blended predictions are added up in: float32, of wide types float64."""
    wide = dtype.itemsize > (2 if dtype.kind in "iu" else 4)
    return np.dtype(np.float64 if wide else np.float32)


def box_of(
    target: OmeTarget, answers: Answers, cut: Cut, blend: Blend | None, memory: int
) -> tuple[tuple[int, ...], int]:
    """Extent of what is put together at once, and the bytes that a task then holds at most.

    As many objects as a bounded share of the image is, longest along the axis of the largest tiles:
    so the tiles at borders, which are read on both sides, are few.

    Parameters
    ----------
    target, answers, cut, blend
        What is put together of what, and how.
    memory
        Bytes that a task may hold.
    """
    shape, unit = target.boxes.shape, target.boxes.chunks
    kind = target.dtype if blend is None else sum_type(answers.dtype)
    each = (target.n_channels + (blend is not None)) * kind.itemsize
    # Of an object: its pixels, those in the output's type, and twice what is encoded of them.
    fixed = 5 * target.object_bytes
    if blend is not None:
        # The window of a tile, and what is added of one.
        fixed += (1 + 2 * answers.shape[0]) * math.prod(cut.size) * kind.itemsize

    def needed(box: Sequence[int]) -> int:
        clipped = [min(b, n) for b, n in zip(box, shape, strict=True)]
        return math.prod(clipped) * each + fixed + answers.held(clipped)

    total = math.prod(shape) * each
    asked = answers.ask is not None
    most = max(_LARGE, memory // 2) if asked else _LARGE
    limit = min(most, max(_SMALL, total // (_ASKED if asked else _BOXES)))
    box = [*unit]
    while True:
        short = [k for k, n in enumerate(shape) if box[k] < n]
        if not short:
            break
        axis = min(short, key=lambda k: (box[k] / cut.size[k], k))
        more = [2 * n if k == axis else n for k, n in enumerate(box)]
        if math.prod(more) * each > limit or needed(more) > memory:
            break
        box = more
    return tuple(box), needed(box)


def put_together(
    job: Job, regions: Sequence[Region], given: Sequence[Mapping[int, Supplied]]
) -> StitchedTask:
    """Make and write some regions. Doing it twice is doing it once.

    Parameters
    ----------
    job
        The same value in every task.
    regions
        One after another.
    given
        Chunks that only Dask can read, for each region.

    Raises
    ------
    ChunkError, StoreError, ConfigError
        If predictions or chunks of the source cannot be read, or are not what they should be.
    WriteError
        If the target refuses an object.
    """
    begun = time.perf_counter()
    # As in `write_run`: else bytes would differ from run to run.
    numcodecs.blosc.use_threads = False
    keep_pages()
    visit, written, n_parts, n_empty = Visit(), 0, 0, 0
    for region, handed in zip(regions, given, strict=True):
        visit.given = handed
        mosaic = job.mosaics[region.mosaic]
        grid = mosaic.target.boxes
        parts = mosaic.parts(region.number) if region.parts is None else region.parts
        start, stop = _around(grid, parts)
        pixels, empty = _made(job, region, start, stop, visit)
        n_empty += empty
        for part in parts.tolist():
            low, high = grid.box(grid.unflat(part).tolist())
            edges = zip(low, high, start, strict=True)
            inside = tuple(slice(a - s, b - s) for a, b, s in edges)
            whole = as_type(pixels[(slice(None), *inside)], mosaic.target.dtype)
            written += mosaic.target.write_part(region.sample, part, whole)
        n_parts += len(parts)
        visit.meter.give(pixels.nbytes)
        del pixels
    return StitchedTask(
        n_patches=visit.n_tiles,
        n_shards=n_parts,
        chunk_reads=visit.reads.chunks,
        bytes_read=visit.reads.nbytes,
        requests=visit.reads.requests,
        bytes_written=written,
        seconds=time.perf_counter() - begun,
        peak_memory=visit.meter.peak,
        n_empty=n_empty,
    )


def _around(grid: ChunkGrid, parts: Ints) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The box around some parts."""
    index = grid.unflat(parts)
    return grid.box(index.min(0).tolist())[0], grid.box(index.max(0).tolist())[1]


def _corners(
    grid: ChunkGrid, region: Region, start: Sequence[int], stop: Sequence[int]
) -> tuple[Ints, Ints]:
    """What is made of a box, from its corner on: boxes from int64[k, ndim] to int64[k, ndim]."""
    if region.parts is None:
        return np.zeros((1, len(start)), np.int64), np.subtract([stop], [start])
    low = grid.unflat(region.parts) * grid.chunks
    return low - start, np.minimum(low + grid.chunks, grid.shape) - start


def _extent(low: Ints, high: Ints) -> int:
    """Pixels of some boxes, all together."""
    return int(np.prod(np.maximum(high - low, 0), axis=1).sum())


def _made(
    job: Job, region: Region, start: Sequence[int], stop: Sequence[int], visit: Visit
) -> tuple[Pixels, int]:
    """A box put together: [channels, *space]; and pixels made over which no tile lies."""
    mosaic, tiles = job.mosaics[region.mosaic], job.tiles(region)
    target, blend = mosaic.target, job.blend
    extent = [b - a for a, b in zip(start, stop, strict=True)]
    kind = target.dtype if blend is None else sum_type(job.answers.dtype)
    out = np.zeros((target.n_channels, *extent), kind)
    visit.meter.take(out.nbytes)
    low, high = _corners(target.boxes, region, start, stop)
    if blend is None:
        left = _extent(low, high)
        for into, of, _, pixels in _pieces(job, region, tiles, start, stop, visit):
            out[(slice(None), *into)] = as_type(pixels[(slice(None), *of)], kind)
            first, last = [s.start for s in into], [s.stop for s in into]
            left -= _extent(np.maximum(low, first), np.minimum(high, last))
        return out, left
    weights, weight = np.zeros(extent, kind), window(job.cut.proper, blend, kind)
    visit.meter.take(weights.nbytes + weight.nbytes)
    for into, of, at, pixels in _pieces(job, region, tiles, start, stop, visit):
        counts = weight[at]
        out[(slice(None), *into)] += counts * pixels[(slice(None), *of)]
        weights[into] += counts
    empty = weights == 0
    weights[empty] = 1
    boxes = zip(low.tolist(), high.tolist(), strict=True)
    n_empty = sum(int(empty[tuple(map(slice, *box))].sum()) for box in boxes)
    out /= weights
    visit.meter.give(weights.nbytes + weight.nbytes)
    return out, n_empty


_Slices = tuple[slice, ...]


def _pieces(
    job: Job,
    region: Region,
    tiles: Tiles,
    start: Sequence[int],
    stop: Sequence[int],
    visit: Visit,
) -> Iterator[tuple[_Slices, _Slices, _Slices, Pixels]]:
    """Of each tile: where in the box it has a say, where that is in its prediction, and in its
    window, and the prediction.
    """
    if not len(tiles):
        return
    low, high = np.maximum(tiles.start, start), np.minimum(tiles.stop, stop)
    first = tiles.corner + job.inset
    proper = tiles.corner + np.array(job.cut.context)
    columns = [
        [edge.tolist() for edge in (low - origin, high - origin)]
        for origin in (np.asarray(start), first, proper)
    ]
    image = job.mosaics[region.mosaic].image
    for some, pixels in job.answers.pieces(image, region.sample, tiles, visit):
        for k, one in zip(range(some.start, some.stop), pixels, strict=True):
            into, of, at = (tuple(map(slice, a[k], b[k])) for a, b in columns)
            yield into, of, at, one


def as_type(pixels: Pixels, dtype: np.dtype[Any]) -> Pixels:
    """Pixels in another type: to whole numbers rounded and clipped, NaN as 0."""
    if pixels.dtype == dtype:
        return pixels
    if dtype.kind == "b":
        return np.asarray(pixels >= 0.5)
    if dtype.kind not in "iu" or pixels.dtype.kind == "b":
        return pixels.astype(dtype)
    span = np.iinfo(dtype)
    if pixels.dtype.kind in "iu":
        own = np.iinfo(pixels.dtype)
        return pixels.clip(max(span.min, own.min), min(span.max, own.max)).astype(dtype)
    whole = np.rint(pixels, dtype=np.result_type(pixels, np.float32))
    # The greatest number of a type may lie between two floats: the lower one is in it.
    top = np.array(span.max, whole.dtype)
    top = np.nextafter(top, 0, dtype=whole.dtype) if int(top) > span.max else top
    found: Pixels = np.nan_to_num(whole.clip(span.min, top), nan=0.0).astype(dtype)
    return found
