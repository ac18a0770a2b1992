"""The survey of masks that planning makes: many images as tasks, resumable, in bounded memory."""

from __future__ import annotations

import math
import pickle
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import dask
import numpy as np
from dask.highlevelgraph import HighLevelGraph

from patchloom.image import Image, Reads
from patchloom.location import Location
from patchloom.planning.cells import Cells
from patchloom.randomness import digest
from patchloom.run.executing import execute
from patchloom.run.graph import Graph
from patchloom.run.parts import Found, load_parts, piece_digest, save_parts, settings_digest
from patchloom.run.selecting import Selection
from patchloom.sources.arrays import ArraySource

__all__ = ["survey_masks"]

_PIECE_BYTES = 256 * 2**20
"""Decoded bytes of masks that a piece of a large image reads, about."""
_PIECE_CANDIDATES = 2**22
"""Candidates of a piece of a large image, about."""
_PIECE_BLOCKS = 64
"""Blocks of a mask that a piece reads at least: its neighbours read those at its border too."""
_SMALL_BLOCK = 64 * 2**20
"""Bytes of a block that costs little beside the candidates of a piece."""
_PROBES = 64
"""Cells that tell about how many candidates an image has."""
_TASK_SECONDS = 0.15
"""About what a task takes: many small images go together."""
_SECONDS_PIECE, _SECONDS_BLOCK, _SECONDS_CANDIDATE, _SECONDS_BYTE = 2e-3, 1e-4, 5e-7, 4e-9
"""About what each costs."""
_IN_PROCESS = ("sync", "synchronous", "single-threaded", "threads", "threading")


@dataclass(frozen=True)
class _Piece:
    """A stretch [low, high) of one image's cells along the curve."""

    index: int
    low: int
    high: int
    seconds: float
    """About what it costs."""
    name: str = ""
    """Its digest, where it is saved."""


@dataclass(frozen=True)
class _Batch:
    """Pieces of one task, and their images: opaque, so that Dask does not look inside."""

    pieces: tuple[_Piece, ...]
    images: dict[int, Image]
    folder: Location | None

    def __reduce__(self) -> tuple[Callable[..., _Batch], tuple[bytes]]:
        # Images of one kind differ in little more than a name: together they travel light.
        state = pickle.dumps((self.pieces, self.images, self.folder))
        return _arrived, (zlib.compress(state, 1),)


def _arrived(data: bytes) -> _Batch:
    return _Batch(*pickle.loads(zlib.decompress(data)))


def survey_masks(
    selection: Selection,
    images: Sequence[Image],
    *,
    progress: bool = False,
    folder: Location | None = None,
) -> tuple[list[Cells], Counter[str], Reads]:
    """The cells of some images that keep patches; what masks and labels say is read in tasks.

    Parameters
    ----------
    selection
        What is asked of each patch.
    images
        Those of its strategy, in order.
    progress
        Whether to show it.
    folder
        Where finished pieces are saved and looked for; a survey that was interrupted reads only
        what is missing. Masks in memory are read anew.

    Returns
    -------
    list of Cells
        One part an image.
    Counter
        Candidates that were left out, by reason.
    Reads
        What was read of masks and labels by this call.
    """
    read = [index for index, image in enumerate(images) if selection.reads(image)]
    asked = set(read)
    parts: dict[int, list[Cells]] = {}
    rejected, reads = Counter[str](), Reads()
    for index, image in enumerate(images):
        if index not in asked:
            cells, out, _ = selection.survey(index, image)
            parts[index] = [cells]
            rejected.update(out)
    sent = [i for i in read if _travels(selection, images[i])]
    pieces = [piece for i in sent for piece in _pieces(selection, i, images[i])]
    here = [piece for i in sorted(asked - set(sent)) for piece in _pieces(selection, i, images[i])]
    saved: dict[str, Found] = {}
    if folder is not None and pieces:
        folder = folder / settings_digest(selection)
        pieces = _named(selection, images, pieces)
        saved = load_parts(folder)
    missing = [piece for piece in pieces if piece.name not in saved]
    found = dict(zip(missing, _run(selection, images, missing, progress, folder), strict=True))
    with _in_process() if here else nullcontext():
        found |= zip(here, _run(selection, images, here, progress, None), strict=True)
    for piece in [*pieces, *here]:
        fresh = found.get(piece)
        cells, out, counted = saved[piece.name] if fresh is None else fresh
        parts.setdefault(piece.index, []).append(cells)
        rejected.update(out)
        if fresh is not None:
            reads += counted
    return [_whole(image, parts[index]) for index, image in enumerate(images)], rejected, reads


def _whole(image: Image, parts: Sequence[Cells]) -> Cells:
    if len(parts) == 1:
        return parts[0]
    return Cells.collect(parts, image.layout.n_samples * image.layout.space.n_chunks)


def _travels(selection: Selection, image: Image) -> bool:
    """Whether a worker can read by itself all that is asked of an image."""
    roles = (getattr(image, name) for name in selection.reads(image))
    return all(role.image.source.addressable for role in roles)


def _in_process() -> AbstractContextManager[Any]:
    """A scheduler that sees the arrays of this process."""
    if dask.config.get("scheduler", None) in _IN_PROCESS:
        return nullcontext()
    setting: AbstractContextManager[Any] = dask.config.set(scheduler="threads")
    return setting


def _pieces(selection: Selection, index: int, image: Image) -> list[_Piece]:
    """An image in stretches of the curve that cost about the same; most are one."""
    layout, strategy = image.layout, selection.strategy
    n_cells = layout.n_samples * layout.space.n_chunks
    step = max(1, n_cells // _PROBES)
    probes = strategy.counts_of(index, np.arange(0, n_cells, step)[:_PROBES])
    candidates = int(probes.sum(dtype=np.int64)) * step
    nbytes = blocks = largest = 0
    for name in selection.reads(image):
        array = getattr(image, name).image
        size = math.prod(array.shape) * array.dtype.itemsize
        turns = 1
        if size > _PIECE_BYTES and array.layout.n_samples < layout.n_samples:
            # Too large to be held while the curve goes through one sample after another.
            turns = layout.samples.n_chunks
        blocks += turns * array.layout.samples.n_chunks * array.layout.space.n_chunks
        nbytes += turns * size
        largest = max(largest, math.prod(array.layout.block_shape()) * array.dtype.itemsize)
    seconds = (
        _SECONDS_PIECE
        + _SECONDS_BLOCK * blocks
        + _SECONDS_CANDIDATE * candidates
        + _SECONDS_BYTE * nbytes
    )
    most = max(1, blocks // _PIECE_BLOCKS)
    n = min(nbytes // _PIECE_BYTES, most)
    by_candidates = candidates // _PIECE_CANDIDATES
    n = max(1, n, by_candidates if largest <= _SMALL_BLOCK else min(by_candidates, most))
    if n == 1 or selection.is_whole:
        return [_Piece(index, 0, n_cells, seconds)]
    # On a curve that turns at powers of two, such stretches are boxes.
    length = 1 << max(0, (n_cells // n).bit_length() - 1)
    lows = range(0, n_cells, length)
    return [_Piece(index, k, min(k + length, n_cells), seconds / len(lows)) for k in lows]


def _named(selection: Selection, images: Sequence[Image], pieces: Sequence[_Piece]) -> list[_Piece]:
    names: dict[int, str] = {}
    found = []
    for piece in pieces:
        if piece.index not in names:
            names[piece.index] = piece_digest(selection, piece.index, images[piece.index])
        name = digest(names[piece.index], piece.low, piece.high).hex()
        found.append(replace(piece, name=name))
    return found


def _run(
    selection: Selection,
    images: Sequence[Image],
    pieces: Sequence[_Piece],
    progress: bool,
    folder: Location | None,
) -> list[Found]:
    """What some pieces find, computed as tasks of several."""
    token = uuid.uuid4().hex
    name, shared = f"patchloom-masks-{token}", f"patchloom-selection-{token}"
    layer: dict[Any, Any] = {shared: selection}
    keys: list[tuple[str, int]] = []
    for some in _batches(pieces):
        slim = {p.index: _slim(selection, images[p.index]) for p in some}
        key = (name, len(keys))
        layer[key] = (_survey, shared, _Batch(tuple(some), slim, folder))
        keys.append(key)
    graph = Graph(HighLevelGraph.from_collections(name, layer, dependencies=[]), keys)
    done = execute(graph, progress=progress, label="survey of masks")
    return [found for several in done for found in several]


def _batches(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Consecutive pieces that together are worth a task."""
    found: list[list[_Piece]] = []
    seconds = math.inf
    for piece in pieces:
        if seconds + piece.seconds > _TASK_SECONDS:
            found.append([])
            seconds = 0.0
        found[-1].append(piece)
        seconds += piece.seconds
    return found


def _slim(selection: Selection, image: Image) -> Image:
    """The image without what its survey does not read."""
    asked = selection.reads(image)
    kept = {name: getattr(image, name) if name in asked else None for name in ("mask", "labels")}
    return Image(
        image.id,
        "",
        image.axes,
        image.shape,
        image.dtype,
        image.grid,
        ArraySource(None),
        mask=kept["mask"],
        labels=kept["labels"],
    )


def _survey(selection: Selection, batch: _Batch) -> list[Found]:
    found = [
        selection.survey(piece.index, batch.images[piece.index], (piece.low, piece.high))
        for piece in batch.pieces
    ]
    if batch.folder is not None:
        save_parts(batch.folder, {p.name: f for p, f in zip(batch.pieces, found, strict=True)})
    return found
