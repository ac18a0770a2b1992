"""Counting: what a task of a survey does. It decodes some blocks once, and counts their pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ChunkError, ConfigError, SourceChangedError
from patchloom.grid import morton
from patchloom.image import ChunkReader, Image, Ints, Reads
from patchloom.planning.plans import Plan
from patchloom.planning.runs import FETCH
from patchloom.run.allocating import keep_pages
from patchloom.run.blocks import Supplied, stored_chunks
from patchloom.run.ground import Flags, Ground, Question, read_under
from patchloom.summaries import Summary, Tally
from patchloom.summaries.subjects import Cell

__all__ = [
    "CLASSES",
    "HISTOGRAMS",
    "Found",
    "Held",
    "Piece",
    "along_curve",
    "batch_chunks",
    "check_classes",
    "chunks_of",
    "count",
]

Pixels = npt.NDArray[Any]
Found = dict[Cell, Summary]

HISTOGRAMS = 512
"""Histograms that a task counts into at once, at most."""
_MOST = HISTOGRAMS * 2**16 * 8
"""Bytes of them, about, at most: as many as of so many histograms of 16 bits."""
CLASSES = 256
"""Values of the labels of one image, at most."""


@dataclass(frozen=True)
class Piece:
    """Some blocks of one image, and what is counted in them."""

    image: int
    """Position of the image."""
    blocks: Sequence[int]
    channels: tuple[int, int]
    """Those counted: [first, last + 1)."""
    planes: tuple[int, int] | None = None
    """The same of planes, where each is counted by itself."""


@dataclass(frozen=True)
class Held:
    """What several tasks are handed: an opaque value, so that Dask does not look inside."""

    question: Question
    images: Mapping[int, Image]
    """By position; none where they are those of a plan."""
    targets: Mapping[Cell, Any] | None = None
    """What a refining pass counts by which bits; the first pass counts all cells."""


@dataclass
class _Counts:
    """The histograms of one piece in the making."""

    question: Question
    piece: Piece
    image: Image
    targets: Mapping[Cell, Any] | None
    found: Found = field(default_factory=dict)
    tallies: dict[Cell, Tally] = field(default_factory=dict)
    classes: set[int] = field(default_factory=set)
    nbytes: int = 0
    """Of the histograms."""

    def add(
        self,
        channel: int,
        first: int,
        pixels: Pixels,
        where: Flags | None,
        times: int,
        labels: Any,
    ) -> None:
        """Count the pixels of one channel and sample of a block that begins at plane `first`."""
        if not self.question.planes:
            self._add(channel, None, pixels, where, times, labels)
            return
        assert self.piece.planes is not None
        low, high = self.piece.planes
        for k in range(max(0, low - first), min(len(pixels), high - first)):
            some = None if labels is None else tuple(None if a is None else a[k] for a in labels)
            mine = None if where is None else where[k]
            self._add(channel, first + k, pixels[k], mine, times, some)

    def _add(
        self,
        channel: int,
        plane: int | None,
        pixels: Pixels,
        where: Flags | None,
        times: int,
        labels: Any,
    ) -> None:
        if labels is not None:
            labels, known = labels
            if known is not None:
                where = known if where is None else where & known
        if where is not None:
            pixels = pixels[where]
            labels = None if labels is None else labels[where]
        if not pixels.size:
            return
        if labels is None:
            self._tally(Cell(self.piece.image, channel, plane, None), pixels, times)
            return
        for value, place in self._by_label(labels):
            cell = Cell(self.piece.image, channel, plane, value)
            self._tally(cell, pixels.ravel()[place], times)

    def _by_label(self, labels: Pixels) -> list[tuple[int, Any]]:
        """The values of some labels, and where each lies."""
        flat, found = labels.ravel(), list[tuple[int, Any]]()
        if flat.min() == flat.max():
            found.append((int(flat[0]), slice(None)))
        else:
            order = np.argsort(flat, kind="stable")
            values = flat[order]
            begins = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
            parts = np.split(order, begins[1:])
            found += zip(values[begins].tolist(), parts, strict=True)
        self.classes |= {int(value) for value, _ in found}
        check_classes(self.classes, self.image)
        return found

    def _tally(self, cell: Cell, pixels: Pixels, times: int) -> None:
        if self.targets is not None and cell not in self.targets:
            return
        if cell not in self.tallies:
            if len(self.tallies) >= HISTOGRAMS or self.nbytes >= _MOST:
                self.settle()
            targets = None if self.targets is None else self.targets[cell]
            self.tallies[cell] = Tally(self.image.dtype, self.image.nodata, targets)
        tally = self.tallies[cell]
        before = tally.nbytes
        tally.add(pixels, times)
        self.nbytes += tally.nbytes - before

    def settle(self) -> None:
        """Turn histograms into summaries, which hold no more than the values that occur."""
        for cell, tally in self.tallies.items():
            summary = tally.summary()
            before = self.found.get(cell)
            self.found[cell] = summary if before is None else before + summary
        self.tallies.clear()
        self.nbytes = 0


def check_classes(values: set[int], image: Image) -> None:
    """Refuse labels that are no classes.

    Raises
    ------
    ConfigError
        If there are more than `CLASSES`.
    """
    if len(values) > CLASSES:
        raise ConfigError(
            f"statistics under labels are of at most {CLASSES} classes an image, but the labels "
            f"of {image.id!r} have more values; give a map of classes as labels=, not of single "
            "objects, or labels=False"
        )


def count(
    held: Held,
    pieces: Sequence[Piece],
    plan: Plan | None,
    supplied: Mapping[tuple[int, str], Supplied],
) -> tuple[Found, Reads, Reads]:
    """Count the pixels of some pieces.

    Parameters
    ----------
    held
        What is asked, and the images.
    pieces
        One after another: when one is done, its histograms are let go.
    plan
        Whose patches they are, if it is over patches.
    supplied
        Chunks of the arrays that only Dask can read, by position of the piece and role.

    Returns
    -------
    dict, Reads, Reads
        The summary of each cell in which a pixel counts; what was read of masks and labels, and
        of images.
    """
    keep_pages()
    found: Found = {}
    under, reads = Reads(), Reads()
    images = held.images or (() if plan is None else plan.images)
    for number, piece in enumerate(pieces):
        counts = _Counts(held.question, piece, images[piece.image], held.targets, found)
        roles = ("image", *held.question.roles)
        handed = {name: supplied.get((number, name)) for name in roles}
        try:
            more, seen = _count_piece(counts, held.question, plan, handed)
        except (ChunkError, SourceChangedError) as error:
            raise type(error)(f"{error} (image {images[piece.image].id!r})") from error
        counts.settle()
        under, reads = under + more, reads + seen
    return found, under, reads


def _count_piece(
    counts: _Counts,
    question: Question,
    plan: Plan | None,
    handed: Mapping[str, Supplied | None],
) -> tuple[Reads, Reads]:
    piece, image = counts.piece, counts.image
    blocks = along_curve(image, np.asarray(piece.blocks, np.int64))
    roles = {name: read_under(getattr(image, name), handed[name]) for name in question.roles}
    ground = Ground(question, image, blocks, roles, plan, piece.image)
    given = handed["image"]
    reader = image.source.reader() if given is None else given.reader()
    first, last = _channel_chunks(image, piece)
    together = max(1, batch_chunks(image) // (last - first))
    at, waiting = 0, list[int]()
    while at < len(blocks):
        stop = ground.reach(at, min(at + together, len(blocks)))
        waiting += ground.find(at, stop)
        at = stop
        while len(waiting) >= together or (waiting and at == len(blocks)):
            steps, waiting = waiting[:together], waiting[together:]
            rows = chunks_of(image, piece, blocks[steps])
            decoded = _read(reader, rows, batch_chunks(image))
            for step in steps:
                parts = (next(decoded) for _ in range(first, last))
                _count_block(counts, question, ground, step, first, parts)
                ground.leave(step)
    return ground.reads, reader.reads


def _read(reader: ChunkReader, rows: Ints, together: int) -> Iterator[Pixels]:
    """Decoded chunks, so many fetched at a time."""
    each = getattr(reader, "each", None)
    for start in range(0, len(rows), together):
        some = rows[start : start + together]
        if each is not None:
            yield from each(some)
            continue
        parts = reader.read(some)
        parts.reverse()
        while parts:
            # One that was counted is forgotten before the next ones come.
            yield parts.pop()


def chunks_of(image: Image, piece: Piece, blocks: Ints) -> Ints:
    """The stored chunks of some blocks that hold the channels of a piece: int64[n, ndim]."""
    first, last = _channel_chunks(image, piece)
    n = image.layout.chunks_per_block
    rows = stored_chunks(image, blocks).reshape(len(blocks), n, image.ndim)
    return rows[:, first:last].reshape(-1, image.ndim)


def _channel_chunks(image: Image, piece: Piece) -> tuple[int, int]:
    """The chunks along the channel axis that hold the piece's channels: [first, last + 1)."""
    if not image.axes.has_channel:
        return 0, 1
    size = image.layout.channels.chunks[0]
    return piece.channels[0] // size, -(-piece.channels[1] // size)


def _count_block(
    counts: _Counts, question: Question, ground: Ground, step: int, first: int, parts: Any
) -> None:
    """Count a block, one chunk of its channels after another."""
    image, piece = counts.image, counts.piece
    if question.over == "image" and not question.labels and not question.planes:
        for number, part in enumerate(parts, first):
            for channel, samples in _channels(image, piece, number, part):
                counts.add(channel, 0, samples, None, 1, None)
        return
    flat = ground.samples(step).tolist()
    labels = ground.labels(step) if question.labels else [None] * len(flat)
    layers = [ground.layers(step, k, sample) for k, sample in enumerate(flat)]
    plane = int(ground.first(step)[0])
    for number, part in enumerate(parts, first):
        for channel, samples in _channels(image, piece, number, part):
            for k, pixels in enumerate(samples):
                known = _full(labels[k], pixels.shape)
                for where, times in layers[k]:
                    counts.add(channel, plane, pixels, _full(where, pixels.shape), times, known)


def _channels(
    image: Image, piece: Piece, number: int, part: Pixels
) -> Iterator[tuple[int, Pixels]]:
    """The piece's channels in a chunk, and their pixels: (samples, *space) each."""
    axes = image.axes
    moved = part.transpose(axes.order)
    n_samples = math.prod(moved.shape[: len(axes.sample)])
    moved = moved.reshape(n_samples, -1, *moved.shape[moved.ndim - len(axes.spatial) :])
    begin = number * (image.layout.channels.chunks[0] if axes.has_channel else 1)
    low, high = max(begin, piece.channels[0]), min(begin + moved.shape[1], piece.channels[1])
    for channel in range(low, high):
        yield channel, moved[:, channel - begin]


def _full(given: Any, shape: tuple[int, ...]) -> Any:
    """What is the same for all planes, on each of them; nothing is copied."""
    if isinstance(given, tuple):
        return tuple(_full(part, shape) for part in given)
    return None if given is None else np.broadcast_to(given, shape)


def along_curve(image: Image, blocks: Ints) -> Ints:
    """Blocks in the order of a survey: neighbours of a stored shard are fetched together."""
    space = image.layout.space
    ordered: Ints = blocks[np.argsort(morton(space.unflat(blocks % space.n_chunks)))]
    return ordered


def batch_chunks(image: Image) -> int:
    """Chunks that a survey asks for together."""
    size = int(np.prod(image.grid.chunks)) * image.dtype.itemsize
    return max(1, FETCH // max(1, size))
