"""Passes: from a question about images or a plan to tasks, and to what they find."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dask.highlevelgraph import HighLevelGraph

from patchloom.image import Image, Ints
from patchloom.planning.plans import Plan
from patchloom.run.blocks import Supplied, stored_chunks
from patchloom.run.counting import HISTOGRAMS, Held, Piece, chunks_of, count
from patchloom.run.executing import execute
from patchloom.run.graph import Graph, Key, light
from patchloom.run.ground import Question, walk_over
from patchloom.run.nearby import lying_under
from patchloom.run.reducing import ROOTS, Counted, added, tree
from patchloom.summaries.subjects import Cell

__all__ = ["look", "survey_tasks"]

_PER_TASK = 128 * 2**20
"""Bytes of decoded chunks that one task counts, about, at most."""
_LEAST = 16 * 2**20
"""The same at least, where there is as much: smaller images go together."""
_TASKS = 64
"""Tasks that a survey is cut into, about, where it is small."""


@dataclass(frozen=True)
class _Family:
    """Pieces that count the same cells."""

    pieces: tuple[Piece, ...]
    """One a task."""
    nbytes: int
    """Decoded, about."""

    @property
    def n_cells(self) -> int:
        """Cells without labels: those of one of its pieces."""
        piece = self.pieces[0]
        low, high = piece.planes or (0, 1)
        return (piece.channels[1] - piece.channels[0]) * (high - low)


def look(
    question: Question,
    images: Sequence[Image],
    plan: Plan | None = None,
    *,
    targets: Mapping[Cell, Any] | None = None,
    progress: bool = False,
    label: str = "survey",
) -> Counted:
    """Count what is asked, each needed chunk decoded once.

    Parameters
    ----------
    question
        What counts.
    images
        In their order; or their other arrays, if the question is of these.
    plan
        Whose patches, if the question is over patches.
    targets
        Of a refining pass: by what bits which cells are counted. Other cells are not read.
    progress, label
        Whether to show how far it is, and what to call it.
    """
    graph = survey_graph(question, images, plan, targets, uuid.uuid4().hex)
    return added(execute(graph, progress=progress, label=label))


def survey_graph(
    question: Question,
    images: Sequence[Image],
    plan: Plan | None,
    targets: Mapping[Cell, Any] | None,
    token: str,
) -> Graph:
    """The graph of one pass: O(chunks) tasks, and trees that add up what they find."""
    bundles = survey_tasks(question, images, plan, targets)
    planned = plan is not None and question.role == "image"
    name, plan_key = f"patchloom-survey-{token}", f"patchloom-plan-{token}"
    shared: dict[str, Any] = {}
    if plan is not None:
        shared[plan_key] = plan.with_images([_slim(i, question) for i in plan.images])
    lazies: dict[tuple[int, str], Any] = {}
    layer: dict[Any, Any] = {**shared}
    keys: list[Key] = []
    n = 0
    roots = max(1, ROOTS // max(1, len(bundles)))
    width = len(str(sum(len(tasks) for tasks in bundles)))
    for number, tasks in enumerate(bundles):
        held_key = f"patchloom-asked-{number}-{token}"
        layer[held_key] = _held(question, images, tasks, targets, planned)
        leaves: list[Key] = []
        for pieces in tasks:
            ids, needs = _needs(question, images, pieces, lazies)
            key: Key = (name, f"{n:0{width}}")
            n += 1
            layer[key] = (
                _count,
                held_key,
                _Pieces(pieces, ids),
                plan_key if plan is not None else None,
                needs,
            )
            leaves.append(key)
        sums, top = tree(leaves, roots, f"patchloom-sum-{token}", len(layer))
        layer |= sums
        keys += top
    graph = HighLevelGraph.from_collections(name, layer, dependencies=list(lazies.values()))
    return Graph(graph, keys, shared)


def survey_tasks(
    question: Question,
    images: Sequence[Image],
    plan: Plan | None = None,
    targets: Mapping[Cell, Any] | None = None,
) -> list[list[tuple[Piece, ...]]]:
    """The pieces of each task of a pass; the results of each inner list belong together."""
    asked = None if targets is None else {(c.image, c.channel, c.plane) for c in targets}
    blocks_of = {k: _blocks(image, k, plan) for k, image in enumerate(images)}
    total = sum(len(blocks) * _block_bytes(images[k]) for k, blocks in blocks_of.items())
    size = min(_PER_TASK, max(_LEAST, total // _TASKS))
    found: list[list[tuple[Piece, ...]]] = []
    some: list[Piece] = []
    nbytes = cells = 0
    for index, image in enumerate(images):
        for family in _families(question, index, image, blocks_of[index], size):
            if asked is not None:
                narrow = _narrowed(family, asked)
                if narrow is None:
                    continue
                family = narrow
            if len(family.pieces) > 1:
                found.append([(piece,) for piece in family.pieces])
                continue
            if some and (nbytes + family.nbytes > size or cells + family.n_cells > HISTOGRAMS):
                found.append([tuple(some)])
                some, nbytes, cells = [], 0, 0
            some.append(family.pieces[0])
            nbytes, cells = nbytes + family.nbytes, cells + family.n_cells
    return found + ([[tuple(some)]] if some else [])


def _block_bytes(image: Image) -> int:
    return math.prod(image.layout.block_shape()) * image.dtype.itemsize


def _blocks(image: Image, index: int, plan: Plan | None) -> Ints:
    """The blocks of an image in which pixels may count: all, or near cells that keep patches."""
    layout = image.layout if plan is None else plan.images[index].layout
    space, groups = layout.space, layout.samples
    if plan is None:
        return np.arange(groups.n_chunks * space.n_chunks)
    low, high = plan.cells.span(index)
    sample, chunk = np.divmod(plan.cells.cell[low:high].astype(np.int64), space.n_chunks)
    flags = np.zeros((groups.n_chunks, space.n_chunks), np.bool_)
    flags[layout.groups_of(sample), chunk] = True
    near = flags.reshape(groups.n_chunks, *space.counts)
    cut = plan.cut
    for axis, (c, p, back) in enumerate(zip(space.chunks, cut.size, cut.back, strict=True), 1):
        # As `Plan.touching`, the other way round.
        reached = np.zeros_like(near)
        n = near.shape[axis]
        for step in range(-back // c, (c + p - 2) // c + 1):
            into = [slice(None)] * near.ndim
            of = [slice(None)] * near.ndim
            into[axis] = slice(max(0, step), max(0, min(n, n + step)))
            of[axis] = slice(max(0, -step), max(0, min(n, n - step)))
            reached[tuple(into)] |= near[tuple(of)]
        near = reached
    return lying_under(image.layout, layout, np.flatnonzero(near), np.arange(layout.n_samples))


def _families(
    question: Question, index: int, image: Image, blocks: Ints, size: int
) -> Iterator[_Family]:
    """The blocks of one image in pieces, those that count the same cells together."""
    if not len(blocks):
        return
    layout = image.layout
    step = max(1, size // max(1, _block_bytes(image)))
    for some, planes in _layers(question, image, blocks):
        for channels, part in _cells(image, planes):
            cuts = range(0, len(some), step)
            pieces = tuple(
                Piece(index, _numbers(some[low : low + step]), channels, part) for low in cuts
            )
            share = (channels[1] - channels[0]) / max(1, layout.n_channels)
            yield _Family(pieces, int(len(some) * _block_bytes(image) * share))


def _layers(
    question: Question, image: Image, blocks: Ints
) -> Iterator[tuple[Ints, tuple[int, int] | None]]:
    """Blocks that hold the same planes, and these planes: [first, last + 1)."""
    if not question.planes:
        yield blocks, None
        return
    space = image.layout.space
    deep = space.unflat(blocks % space.n_chunks)[:, 0]
    order = np.argsort(deep, kind="stable")
    for some in np.split(order, np.flatnonzero(np.diff(deep[order])) + 1):
        low = int(deep[some[0]]) * space.chunks[0]
        yield blocks[some], (low, min(low + space.chunks[0], space.shape[0]))


def _cells(
    image: Image, planes: tuple[int, int] | None
) -> Iterator[tuple[tuple[int, int], tuple[int, int] | None]]:
    """Channels and planes in parts of at most `HISTOGRAMS`, of whole chunks where they fit."""
    n, chunk = image.layout.n_channels, 1
    if image.axes.has_channel:
        chunk = min(n, image.layout.channels.chunks[0])
    low, high = planes or (0, 1)
    deep = high - low
    width = min(n, max(1, HISTOGRAMS // deep))
    if width >= chunk:
        width = width // chunk * chunk
    for channel in range(0, n, width):
        channels = (channel, min(channel + width, n))
        for plane in range(low, high, HISTOGRAMS):
            yield channels, None if planes is None else (plane, min(plane + HISTOGRAMS, high))


def _narrowed(family: _Family, asked: set[tuple[int, int, int | None]]) -> _Family | None:
    """A family without the channels at either end of which no cell is asked; None if none is."""
    piece = family.pieces[0]
    planes: Sequence[int | None] = [None] if piece.planes is None else range(*piece.planes)
    wanted = [
        channel
        for channel in range(*piece.channels)
        if any((piece.image, channel, plane) in asked for plane in planes)
    ]
    if not wanted:
        return None
    channels = wanted[0], wanted[-1] + 1
    return replace(family, pieces=tuple(replace(p, channels=channels) for p in family.pieces))


def _numbers(blocks: Ints) -> Sequence[int]:
    """Numbers of blocks: a range, which is small, where they follow one another."""
    first, last = int(blocks[0]), int(blocks[-1])
    if last - first + 1 == len(blocks):
        return range(first, last + 1)
    return tuple(blocks.tolist())


def _held(
    question: Question,
    images: Sequence[Image],
    tasks: Sequence[Sequence[Piece]],
    targets: Mapping[Cell, Any] | None,
    planned: bool,
) -> Held:
    """What the tasks of one inner list are handed together."""
    mine = {piece.image for pieces in tasks for piece in pieces}
    asked = None
    if targets is not None:
        asked = {cell: t for cell, t in targets.items() if cell.image in mine}
    slim = {} if planned else {k: _slim(images[k], question) for k in sorted(mine)}
    return Held(question, slim, asked)


def _slim(image: Image, question: Question) -> Image:
    """The image with what is read of it alone; pixels that Dask hands over stay here."""
    slim = replace(image, pyramid=None)
    for name, known in image.roles.items():
        role = known if name in question.roles else None
        if role is not None and not role.image.source.addressable:
            bare = replace(role.image, source=role.image.source.without_pixels())
            role = replace(role, image=bare)
        slim = slim.with_role(name, role)
    return light(slim)


@dataclass(frozen=True)
class _Pieces:
    """What one task counts, and which chunks it is handed; opaque to Dask."""

    pieces: tuple[Piece, ...]
    handed: tuple[tuple[tuple[int, str], tuple[tuple[int, ...], ...]], ...]
    """By position of the piece and role."""


def _needs(
    question: Question,
    images: Sequence[Image],
    pieces: Sequence[Piece],
    lazies: dict[tuple[int, str], Any],
) -> tuple[Any, list[Any]]:
    """The chunks that a task needs of arrays that only Dask can read, and their keys."""
    handed, keys = [], []
    for number, piece in enumerate(pieces):
        image = images[piece.image]
        blocks = np.asarray(piece.blocks, np.int64)
        arrays = {"image": image, **{n: getattr(image, n).image for n in question.roles}}
        for name, array in arrays.items():
            if array.source.addressable:
                continue
            at = (piece.image, name)
            if at not in lazies:
                lazies[at] = array.source.lazy(array)
            chunks = chunks_of(image, piece, blocks)
            if name != "image":
                under = walk_over(image, getattr(image, name), blocks).blocks
                chunks = stored_chunks(array, under)
            rows = tuple(tuple(row) for row in chunks.tolist())
            handed.append(((number, name), rows))
            keys += [(lazies[at].name, *row) for row in rows]
    return tuple(handed), keys


def _count(held: Held, work: _Pieces, plan: Plan | None, given: Sequence[Any]) -> Counted:
    supplied: dict[tuple[int, str], Supplied] = {}
    start = 0
    for at, rows in work.handed:
        some = given[start : start + len(rows)]
        chunks = {row: np.asarray(block) for row, block in zip(rows, some, strict=True)}
        supplied[at] = Supplied(chunks, frozenset(chunks))
        start += len(rows)
    return count(held, work.pieces, plan, supplied)
