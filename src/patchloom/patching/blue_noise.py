"""BlueNoisePatching: random positions, none too close to another, put together from tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError
from patchloom.patching.poisson import Metric, copies, scatter
from patchloom.patching.protocol import Edge, GridPatching, Ints, turns
from patchloom.randomness import below, key_of, philox

__all__ = ["BlueNoisePatching"]

_RADII = {1: 32, 2: 8, 3: 6}
"""Extent of a tile in radii, at least, by the number of axes: larger ones repeat less of their
neighbours (what lies at their faces), but take longer to make."""
_RADII_REPEATED = {1: 128, 2: 32, 3: 6}
"""The same where all tiles are equal, so that only one is made."""
_MOST_VARIANTS = 32
_BUDGET = {False: 8192, True: 2048}
"""Patches of all variants of a kind of tile, about, by whether the metric is Euclidean."""
_ROWS = 2**18
"""Counts in the table of one kind of tile, at most (or one variant)."""
_PIECES = 2**20
"""Pieces counted at once: bounds the memory."""


@dataclass(frozen=True)
class _Noise:
    """What fixes the tiles."""

    seed: int
    epoch: int
    metric: Metric
    fresh: bool
    """Whether tiles have variants."""

    def key(self, *parts: object) -> int:
        """A 64-bit key: the address of a stream."""
        metric = self.metric
        said = (self.seed, self.epoch, metric.radius, metric.euclidean)
        return key_of("blue noise", *said, *parts)


@dataclass(frozen=True)
class _Side:
    """One axis of a kind of tile."""

    width: int
    """Extent, in pixels."""
    left: bool
    """Whether another tile follows to the left; else it is the border of the image."""
    right: bool
    offset: int
    """Where its first pixel lies in the frame."""
    period: int
    """Extent of the frame, in pixels."""
    cuts: tuple[int, ...]
    """Where borders of chunks cut the tile, in its pixels."""


class _Axis(NamedTuple):
    """One axis of an image, cut into tiles, and these into pieces at the borders of chunks."""

    sides: tuple[_Side, ...]
    pieces: Ints
    """Pieces of each of `sides`."""
    start: Ints
    """First pixel of each tile."""
    side: Ints
    """Which of `sides` each tile is."""
    tile: Ints
    """The tile of each piece."""
    piece: Ints
    """Which piece of its tile each piece is."""
    chunk: Ints
    """The chunk that holds each piece."""


def _axis(room: int, chunk: int, radius: int, axis: int, ndim: int, noise: _Noise) -> _Axis:
    """Cut the valid first pixels of an axis."""
    width, cut, face = _faces(room, chunk, radius, axis, ndim, noise)
    if len(face):
        first, last = int(face[0]), int(face[-1])
        sides = [_Side(first, False, True, -first % width, width, _cuts(0, first, chunk))]
        if len(face) > 1:
            sides.append(_Side(width, True, True, 0, width, _cuts(-cut, width, chunk)))
        sides.append(_Side(room - last, True, False, 0, width, _cuts(last, room - last, chunk)))
    else:
        sides = [_Side(room, False, False, 0, room + 4 * radius, _cuts(0, room, chunk))]
    start = np.concatenate([[0], face])
    side = np.ones(len(start), np.int64)
    side[0], side[-1] = 0, len(sides) - 1
    pieces = np.array([len(s.cuts) + 1 for s in sides], np.int64)
    tile, turn = turns(pieces[side][:, None])
    piece = turn[:, 0]
    begin = np.concatenate([[0, *s.cuts] for s in sides])
    begin_of = (np.cumsum(pieces) - pieces)[side[tile]] + piece
    owner = (start[tile] + begin[begin_of]) // chunk
    return _Axis(tuple(sides), pieces, start, side, tile, piece, owner)


def _faces(
    room: int, chunk: int, radius: int, axis: int, ndim: int, noise: _Noise
) -> tuple[int, int, Ints]:
    """Where tiles meet along an axis.

    Tiles and chunks have a common period: some chunks are a tile, or a chunk is some tiles,
    with a pixel between two of them here and there where it is no multiple. Where a period
    begins is drawn, so that no position is always at a face.

    Returns
    -------
    int, int, int64[n]
        Width of a tile, where the border of a chunk cuts one, and the first pixel of each tile
        but the first.
    """
    least = _RADII[ndim] * radius
    if chunk < least:
        n_tiles, period = 1, -(-least // chunk) * chunk
    else:
        wanted = least if noise.fresh else _RADII_REPEATED[ndim] * radius
        n_tiles, period = max(1, chunk // wanted), chunk
    width = period // n_tiles
    upto = np.arange(n_tiles) * period // n_tiles
    words, _, _, _ = philox(noise.key("axis", axis), 0)
    shift = int(below(period, words))
    turn = np.arange(room // period + 3)[:, None]
    face = (turn * period + upto - shift).ravel()
    # Tiles at the border of the image are up to 1.5 tiles wide, and never a sliver.
    face = face[(2 * face >= width) & (2 * (room - face) >= width)]
    return width, shift - int(upto[upto <= shift][-1]), face


def _cuts(start: int, width: int, chunk: int) -> tuple[int, ...]:
    """Where borders of chunks cut a tile that begins at `start`."""
    return tuple(range(chunk - start % chunk, width, chunk))


class _Tiles(NamedTuple):
    """All variants of a kind of tile."""

    variants: int
    counts: Ints
    """Points of each piece, variant after variant."""
    points: Ints
    """In pixels of the tile, piece after piece: int64[n, ndim]."""


@lru_cache(maxsize=256)
def _tiles(noise: _Noise, sides: tuple[_Side, ...]) -> _Tiles:
    """Fill a kind of tile.

    Points within half a radius of a face are those of the frame, the same in every tile, so
    that any two fit together. The others are thrown anew for each variant, between them.
    """
    metric = noise.metric
    near = [((r // 2), (r - 1) // 2) for r in metric.radius]
    pairs = list(zip(sides, near, strict=True))
    frame = np.zeros((0, len(sides)), np.int64)
    if any(s.left or s.right for s in sides):
        low = [-after if s.left else 0 for s, (_, after) in pairs]
        high = [s.width + before if s.right else s.width for s, (before, _) in pairs]
        points = _frame(noise, tuple((s.period, s.left or s.right) for s in sides))
        period = [s.period for s in sides]
        offset = np.array([s.offset for s in sides])
        _, frame = copies((points - offset) % np.array(period), period, low, high)
        at_face = np.zeros(len(frame), bool)
        for a, (s, (before, after)) in enumerate(pairs):
            at_face |= s.left & (frame[:, a] < before)
            at_face |= s.right & (frame[:, a] >= s.width - after)
        frame = frame[at_face]
    width = np.array([s.width for s in sides])
    n_pieces = np.array([len(s.cuts) + 1 for s in sides])
    total = math.prod(n_pieces.tolist())
    variants = _n_variants(noise, sides, total) if noise.fresh else 1
    variant, thrown = scatter(
        noise.key("tile", [(s.width, s.left, s.right, s.offset) for s in sides]),
        metric,
        [before if s.left else 0 for s, (before, _) in pairs],
        [s.width - after if s.right else s.width for s, (_, after) in pairs],
        variants=variants,
        fixed=frame,
    )
    own = frame[((frame >= 0) & (frame < width)).all(-1)]
    variant = np.concatenate([variant, np.repeat(np.arange(variants), len(own))])
    points = np.concatenate([thrown, np.tile(own, (variants, 1))])
    row = variant
    for a, s in enumerate(sides):
        row = row * (len(s.cuts) + 1) + np.searchsorted(np.array(s.cuts), points[:, a], "right")
    order = np.argsort(row, kind="stable")
    return _Tiles(variants, np.bincount(row, minlength=variants * total), points[order])


def _n_variants(noise: _Noise, sides: tuple[_Side, ...], n_pieces: int) -> int:
    """How many variants of a kind of tile: fewer of large ones, and of those at borders."""
    size = math.prod(-(-s.width // r) for s, r in zip(sides, noise.metric.radius, strict=True))
    at_border = sum(s.left != s.right for s in sides)
    budget = _BUDGET[noise.metric.euclidean] >> (2 * at_border)
    return max(1, min(_MOST_VARIANTS, budget // size, _ROWS // n_pieces))


@lru_cache(maxsize=64)
def _frame(noise: _Noise, axes: tuple[tuple[int, bool], ...]) -> Ints:
    """Points that fit together with their own copies, from which the faces of tiles are taken.

    Axes without faces end with four empty radii, so that copies along them do not matter.
    """
    radius = noise.metric.radius
    period = [p for p, _ in axes]
    stop = [p if faces else p - 4 * r for (p, faces), r in zip(axes, radius, strict=True)]
    start = [0] * len(axes)
    _, points = scatter(noise.key("frame", axes), noise.metric, start, stop, period=period)
    words = philox(noise.key("shift", axes), 0)
    shift = [int(below(p, words[a])) if faces else 0 for a, (p, faces) in enumerate(axes)]
    moved: Ints = (points + np.array(shift)) % np.array(period)
    return moved


@dataclass(frozen=True, eq=False)
class _Layout:
    """The axes of an image, and the tables of all kinds of tiles that it needs."""

    axes: tuple[_Axis, ...]
    variants: Ints
    """Of each kind of tile; kinds in C order over the sides of the axes."""
    row: Ints
    """First row of each kind."""
    n_rows: Ints
    """Rows (pieces) of one variant of each kind."""
    counts: Ints
    """Points of each row."""
    first: Ints
    """First point of each row."""
    points: Ints

    def rows(self, key: int, sample: Ints | int, tiles: Sequence[Ints]) -> Ints:
        """Row of the first piece of tiles, given on each axis; any shapes that broadcast."""
        kind = number = np.zeros((), np.int64)
        for axis, tile in zip(self.axes, tiles, strict=True):
            kind = kind * len(axis.sides) + axis.side[tile]
            number = number * len(axis.start) + tile
        first: Ints = self.row[kind]
        if self.variants.max() > 1:
            words, _, _, _ = philox(key, number, number >> 32, sample, np.asarray(sample) >> 32)
            first = first + below(self.variants[kind], words) * self.n_rows[kind]
        return first

    def inside(self, pieces: Sequence[Ints]) -> Ints:
        """Which piece of its tile (in C order) each is, given on each axis."""
        flat = np.zeros((), np.int64)
        for axis, piece in zip(self.axes, pieces, strict=True):
            flat = flat * axis.pieces[axis.side[axis.tile[piece]]] + axis.piece[piece]
        return flat

    def count(self, key: int, sample: int, chunks: Sequence[int]) -> Ints:
        """Points of each chunk of a sample: int64[*chunks]."""
        found = np.zeros(chunks, np.int64)
        rest = self.axes[1:]
        others = [np.arange(len(axis.tile)) for axis in rest]
        starts = [np.flatnonzero(np.diff(axis.chunk, prepend=-1)) for axis in rest]
        reached = tuple(slice(len(s)) for s in starts)
        head = self.axes[0]
        ends = np.searchsorted(head.tile, np.arange(len(head.start) + 1))
        per_tile = int(np.diff(ends).max()) * math.prod(len(o) for o in others)
        step = max(1, _PIECES // per_tile)
        for low in range(0, len(head.start), step):
            high = min(low + step, len(head.start))
            some = np.ix_(np.arange(low, high), *(np.arange(len(axis.start)) for axis in rest))
            rows = self.rows(key, sample, some)
            pieces = np.ix_(np.arange(ends[low], ends[high]), *others)
            tiles = [axis.tile[p] for axis, p in zip(self.axes, pieces, strict=True)]
            n = self.counts[rows[tiles[0] - low, *tiles[1:]] + self.inside(pieces)]
            for a, where in enumerate(starts, 1):
                n = np.add.reduceat(n, where, axis=a)
            chunk = head.chunk[ends[low] : ends[high]]
            n = np.add.reduceat(n, np.flatnonzero(np.diff(chunk, prepend=-1)), axis=0)
            found[int(chunk[0]) : int(chunk[-1]) + 1, *reached] += n
        return found


@lru_cache(maxsize=16)
def _layout(noise: _Noise, room: tuple[int, ...], chunks: tuple[int, ...]) -> _Layout:
    """Tiles over the valid first pixels of an image; images of one geometry share it."""
    ndim = len(room)
    axes = tuple(
        _axis(*row, axis, ndim, noise)
        for axis, row in enumerate(zip(room, chunks, noise.metric.radius, strict=True))
    )
    kinds = [_tiles(noise, sides) for sides in itertools.product(*(a.sides for a in axes))]
    variants = np.array([kind.variants for kind in kinds], np.int64)
    sizes = np.array([len(kind.counts) for kind in kinds], np.int64)
    counts = np.concatenate([kind.counts for kind in kinds])
    return _Layout(
        axes,
        variants,
        np.cumsum(sizes) - sizes,
        sizes // variants,
        counts,
        np.cumsum(counts) - counts,
        np.concatenate([kind.points for kind in kinds]),
    )


class BlueNoisePatching(GridPatching):
    """Patches at random positions, none too close to another, and hardly any room left.

    Blue noise (a Poisson disc): random as uniform positions are, but even. The minimum
    distance holds over the whole image, across the borders of chunks. The image is put together
    from tiles that fit together; how many patches each chunk owns is known from tables of these
    tiles, and only the patches of chunks that are asked for are ever produced.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels.
    seed
        Fixes every position; None is 0.
    radius
        Minimum distance along each axis, in pixels; by default the patch.
    allow_overlap
        False: the first pixels of two patches are at least a radius apart on one axis or
        more, so that no two patches share a pixel. True: the distance is Euclidean, each axis
        in units of its radius, and patches may share pixels: they are at least
        ``radius / sqrt(ndim)`` apart on one axis or more.
    resample_positions
        False: the same positions tile after tile, up to the borders of the image. True: those
        inside a tile are drawn for each tile out of up to 32 variants; those within half a
        radius of its faces repeat.
    epoch
        Another epoch, other positions.
    edge, chunks, keys
        See `GridPatching`. Positions never stick out of an image, except that ``"pad"``
        admits an image smaller than a patch.

    Raises
    ------
    PatchSizeError
        If sizes do not fit the axes, or patches could overlap and must not.

    Examples
    --------
    >>> patching = BlueNoisePatching([(1, 1, 1000, 1000)], (32, 32), seed=7, chunks=[(100, 100)])
    >>> patching.n_patches
    526
    >>> corners, n = patching.corners(0, [42, 43])
    >>> len(corners) == int(n.sum())
    True
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        seed: int | None = None,
        *,
        radius: Sequence[int] | None = None,
        allow_overlap: bool = False,
        resample_positions: bool = False,
        epoch: int = 0,
        edge: Edge = "drop",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        super().__init__(data_shapes, patch_size, edge=edge, chunks=chunks, keys=keys)
        self.seed = 0 if seed is None else int(seed)
        self.epoch = epoch
        self._last: tuple[int, npt.NDArray[Any]] | None = None
        self.radius = self.patch_size if radius is None else tuple(int(r) for r in radius)
        self.allow_overlap = allow_overlap
        self.resample_positions = resample_positions
        if len(self.radius) != len(self.patch_size) or min(self.radius) < 1:
            raise PatchSizeError(
                f"a radius is at least 1 on each spatial axis, got radius={list(self.radius)} for "
                f"patch_size={list(self.patch_size)}"
            )
        if not allow_overlap and any(r < p for r, p in zip(self.radius, patch_size, strict=True)):
            raise PatchSizeError(
                "patches that must not overlap are at least a patch apart, got radius="
                f"{list(self.radius)} for patch_size={list(self.patch_size)}; take a larger "
                "radius, or allow_overlap=True"
            )

    def __getstate__(self) -> dict[str, object]:
        derived = ("_first", "_first_of_cell")
        return {k: v for k, v in self.__dict__.items() if k not in derived} | {"_last": None}

    def with_epoch(self, epoch: int) -> Self:
        """The same strategy in another epoch."""
        other = copy(self)  # Without what was derived.
        other.epoch = epoch
        return other

    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""
        grid, n_samples = self.grids[image], self.n_samples(image)
        layout, key = self._layout(image), self._key(image)
        if layout is None:
            return np.zeros(n_samples * grid.n_chunks, np.int64)
        if not self.resample_positions:
            return np.tile(layout.count(key, 0, grid.counts).ravel(), n_samples)
        found = np.empty((n_samples, grid.n_chunks), np.int64)
        for sample, row in enumerate(found):
            row[:] = layout.count(key, sample, grid.counts).ravel()
        return found.ravel()

    def counts_of(self, image: int, cells: npt.ArrayLike) -> npt.NDArray[Any]:
        """Patches that some cells own: unsigned[k], of a narrow type."""
        last = self._last  # Read once: other threads may ask for other images.
        if last is None or last[0] != image:
            counts = self.counts(image)
            narrow = np.min_scalar_type(int(counts.max(initial=0)))
            last = self._last = image, counts.astype(narrow)
        return last[1][np.asarray(cells, np.int64)]

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""
        cells = np.asarray(cells, np.int64)
        layout, ndim = self._layout(image), len(self.patch_size)
        if layout is None:
            return np.zeros((0, ndim), np.int64), np.zeros(len(cells), np.int64)
        cell, tiles, row = self._pieces(image, layout, cells)
        n = layout.counts[row]
        owner = np.repeat(np.arange(len(row)), n)
        at = np.arange(len(owner)) + np.repeat(layout.first[row] - np.cumsum(n) + n, n)
        corners = layout.points[at]
        for a, (axis, tile) in enumerate(zip(layout.axes, tiles, strict=True)):
            corners[:, a] += axis.start[tile[owner]]
        return corners, np.bincount(cell, n, len(cells)).astype(np.int64)

    def _pieces(self, image: int, layout: _Layout, cells: Ints) -> tuple[Ints, list[Ints], Ints]:
        """The pieces of tiles that some cells hold: cell, tile on each axis, row of the table."""
        index = self._split(image, cells)
        low, high = (
            np.stack(
                [
                    np.searchsorted(a.chunk, i, side)
                    for a, i in zip(layout.axes, index.T, strict=True)
                ],
                -1,
            )
            for side in ("left", "right")
        )
        cell, turn = turns(high - low)
        piece = list((low[cell] + turn).T)
        tiles = [axis.tile[p] for axis, p in zip(layout.axes, piece, strict=True)]
        sample = cells[cell] // self.grids[image].n_chunks
        row = layout.rows(self._key(image), sample, tiles) + layout.inside(piece)
        return cell, tiles, row

    def _key(self, image: int) -> int:
        return key_of("blue noise", self.seed, self.epoch, self.keys[image])

    def _layout(self, image: int) -> _Layout | None:
        grid = self.grids[image]
        room = [s - p + 1 for s, p in zip(grid.shape, self.patch_size, strict=True)]
        if self.may_stick_out:
            # An image smaller than a patch has the one that sticks out.
            room = [max(1, r) if s else 0 for r, s in zip(room, grid.shape, strict=True)]
        if min(room) < 1:
            return None
        metric = Metric(self.radius, self.allow_overlap)
        noise = _Noise(self.seed, self.epoch, metric, self.resample_positions)
        return _layout(noise, tuple(room), grid.chunks)
