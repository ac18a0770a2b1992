"""Coarsening: a level of an image from the finer one that stands, part by part."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numcodecs.blosc
import numpy as np
import numpy.typing as npt

from patchloom.axes import Axes
from patchloom.grid import ChunkGrid
from patchloom.image import ChunkReader, Image
from patchloom.run.allocating import keep_pages
from patchloom.run.blocks import Meter
from patchloom.run.graph import Graph, Key
from patchloom.run.mosaics import as_type, sum_type
from patchloom.run.stitch_report import StitchedTask
from patchloom.sources.chunks import ArrayMetadata
from patchloom.sources.zarrs import ZarrSource
from patchloom.store.ome_target import OmeTarget

__all__ = ["coarsen_graph", "coarsening_bytes"]

Pixels = npt.NDArray[Any]
TASKS = 8192
"""Tasks of a level, at most."""
_TOGETHER = 16 * 2**20
"""Bytes of small parts that one task makes."""


@dataclass(frozen=True)
class _Parts:
    """Some parts of a level: an opaque value, so that Dask does not look inside."""

    fine: OmeTarget
    coarse: OmeTarget
    parts: tuple[int, ...]
    """Their numbers."""


def coarsening_bytes(target: OmeTarget) -> int:
    """Bytes that a task holds at most which makes a coarser level.

    Parameters
    ----------
    target
        The image.
    """
    if not target.halved:
        return 0
    times = 2 ** max(map(len, target.halved))
    part = math.prod(target.boxes.chunks) * target.n_channels
    # The finer pixels and their chunks with what these are decoded from, their sums, and what is
    # written.
    item, wide = target.dtype.itemsize, sum_type(target.dtype).itemsize
    held: int = part * (times * (3 * item + 2 * wide) + wide)
    return held + 5 * target.object_bytes


def coarsen_graph(levels: Sequence[tuple[OmeTarget, OmeTarget, npt.NDArray[np.bool_]]]) -> Graph:
    """The graph that makes a level of some images.

    Parameters
    ----------
    levels
        Of each image: the finer level, which is there, the one that is made, and which parts of
        that are there, bool[n_parts].
    """
    pieces = []
    for fine, coarse, there in levels:
        missing = np.flatnonzero(~there)
        size = math.prod(coarse.boxes.chunks) * coarse.n_channels * coarse.dtype.itemsize
        step = max(1, _TOGETHER // size, -(-len(missing) // TASKS))
        cuts = range(0, len(missing), step)
        pieces += [_Parts(fine, coarse, tuple(missing[k : k + step].tolist())) for k in cuts]
    name, width = f"patchloom-coarsen-{uuid.uuid4().hex}", len(str(len(pieces)))
    keys: list[Key] = [(name, f"{k:0{width}}") for k in range(len(pieces))]

    def make(some: Sequence[Key]) -> dict[Any, Any]:
        return {key: (_coarsen, pieces[int(key[1])], []) for key in some}

    return Graph({}, keys, make=make)


def _coarsen(work: _Parts, _: Any) -> StitchedTask:
    begun = time.perf_counter()
    # As in `write_run`: else bytes would differ from run to run.
    numcodecs.blosc.use_threads = False
    keep_pages()
    fine, coarse, meter = work.fine, work.coarse, Meter()
    image = _image(fine)
    reader, written = image.source.reader(), 0
    for part in work.parts:
        sample, number = divmod(part, coarse.boxes.n_chunks)
        low, high = coarse.boxes.box(coarse.boxes.unflat(number).tolist())
        pixels = _halved(fine, coarse, sample, low, high, image, reader, meter)
        written += coarse.write_part(sample, number, pixels)
    return StitchedTask(
        n_shards=len(work.parts),
        bytes_read=reader.reads.nbytes,
        bytes_written=written,
        peak_memory=meter.peak,
        seconds=time.perf_counter() - begun,
    )


def _halved(
    fine: OmeTarget,
    coarse: OmeTarget,
    sample: int,
    low: Sequence[int],
    high: Sequence[int],
    image: Image,
    reader: ChunkReader,
    meter: Meter,
) -> Pixels:
    """A box of the coarser level: [channels, *space]."""
    axes = coarse.halved[fine.level]
    times = [2 if a in axes else 1 for a in fine.space]
    start = [n * t for n, t in zip(low, times, strict=True)]
    stop = [min(n * t, m) for n, t, m in zip(high, times, fine.boxes.shape, strict=True)]
    found = image.read(*fine.box(sample, start, stop), reader)
    pixels = found.reshape(fine.n_channels, *(b - a for a, b in zip(start, stop, strict=True)))
    meter.take(pixels.nbytes)
    # The last pixel of an odd extent stands for itself.
    odd = [(0, -n % t) for n, t in zip(pixels.shape[1:], times, strict=True)]
    if any(after for _, after in odd):
        pixels = np.pad(pixels, [(0, 0), *odd], mode="edge")
    shape = [pixels.shape[0]]
    for n, t in zip(pixels.shape[1:], times, strict=True):
        shape += [n // t, t]
    over = tuple(range(2, len(shape), 2))
    mean = pixels.reshape(shape).mean(over, dtype=sum_type(coarse.dtype))
    meter.give(found.nbytes)
    return as_type(mean, coarse.dtype)


def _image(target: OmeTarget) -> Image:
    """A level as an image that is read."""
    metadata = ArrayMetadata(3, target.array_document())
    return Image(
        id=target.name,
        uri="",
        axes=Axes(target.axes),
        shape=target.shape,
        dtype=target.dtype,
        grid=ChunkGrid(target.shape, target.chunks),
        source=ZarrSource(target.location / target.path, metadata),
    )
