"""Wake: what the bands that a reader goes along have left behind, so that it is held no longer.

Nobody tells a reader which way a band is gone along: it sees that by the stretches that are asked
for, so it holds for any order, and for a worker that sees some of the batches. Where it is wrong,
a chunk is decoded once more; what is read is never another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from patchloom.image import Image, Ints
from patchloom.live.stretches import Bands
from patchloom.planning.incidence import Cut
from patchloom.planning.lenses import around

__all__ = ["Stretch", "Wake"]

Name = tuple[int, str, int]
"""Position of an image, role of the array, block."""
_NEAR = 2
"""Stretches that a read may come too late by: it began before others that were done first."""
_LONG = 2
"""Windows after the last stretch of a band until it is over."""


@dataclass(frozen=True)
class Stretch:
    """One stretch of a band."""

    band: int
    """Number of its band."""
    number: int
    """Its own."""
    image: int
    """Position in the plan."""
    sample: int
    """Flat sample of its first patch."""
    chunk: tuple[int, ...]
    """The chunk that owns its first patch."""
    is_first: bool
    """Of its band."""
    is_last: bool
    """Of its band."""


@dataclass
class _Front:
    """How far a band was gone along."""

    ends: tuple[Stretch, Stretch]
    """The first and the last stretch that was read, by number."""
    way: int
    """1 or -1; 0 while it is not known."""
    window: int
    """In which it was last read."""
    back: Stretch
    """What lies behind this one was let go."""
    reads: dict[int, Stretch] = field(default_factory=dict)
    """Of each read that goes on, the stretch that is furthest behind."""

    @property
    def far(self) -> Stretch:
        """The furthest stretch."""
        return self.ends[self.way > 0]

    @property
    def is_through(self) -> bool:
        """Whether no more of its band comes."""
        return bool(self.way) and (self.far.is_last if self.way > 0 else self.far.is_first)


class Wake:
    """Which blocks no later stretch of their band needs; for several threads.

    Parameters
    ----------
    images
        Of the plan.
    bands
        How each is cut into bands.
    cut
        What is cut around a corner.
    """

    def __init__(self, images: Sequence[Image], bands: Sequence[Bands], cut: Cut) -> None:
        self._images, self._bands, self._cut = images, bands, cut
        self._lock = threading.Lock()
        self._fronts: dict[int, _Front] = {}
        self._moved: set[int] = set()
        self._window = self._read = 0
        self._known: dict[int, dict[str, list[_Span]]] = {}

    def enter(self, stretches: Iterable[Stretch]) -> tuple[int, list[Name]]:
        """A read of some stretches begins.

        Returns
        -------
        int
            The read's number, for `leave`.
        list
            Blocks that are let go.
        """
        touched: dict[int, list[Stretch]] = {}
        for stretch in stretches:
            touched.setdefault(stretch.band, []).append(stretch)
        gone: list[Name] = []
        with self._lock:
            self._read += 1
            for band, some in touched.items():
                some.sort(key=lambda one: one.number)
                front = self._touch(band, some[0], some[-1])
                front.reads[self._read] = some[0 if front.way >= 0 else -1]
                gone += self._advance(front)
            for band, front in [*self._fronts.items()]:
                if front.is_through and not front.reads and self._window - front.window >= _LONG:
                    gone += self._rest(front)
                    del self._fronts[band]
            return self._read, gone

    def leave(self, read: int) -> list[Name]:
        """A read has ended.

        Returns
        -------
        list
            Blocks that are let go.
        """
        gone: list[Name] = []
        with self._lock:
            for front in self._fronts.values():
                late = front.reads.pop(read, None)
                if late is None or not front.way:
                    continue
                if front.way * (front.back.number - late.number) > 0:
                    # It took up again what had been let go.
                    gone += self._between(late, front.back, front.way)
                gone += self._advance(front)
        return gone

    # -- where bands are --------------------------------------------------------------

    def _touch(self, band: int, first: Stretch, last: Stretch) -> _Front:
        """Note that some stretches of a band are read."""
        front = self._fronts.get(band)
        if front is not None and front.way and not front.reads:
            ahead = (last if front.way > 0 else first).number - front.far.number
            if front.way * ahead < -_NEAR:
                # Gone along anew: another epoch.
                front = None
        if front is None:
            way = 1 if first.is_first else -1 if last.is_last else 0
            front = _Front((first, last), way, self._window, last if way < 0 else first)
            self._fronts[band] = front
            self._move(band)
            return front
        low, high = front.ends
        before, after = first.number < low.number, last.number > high.number
        if not front.way and before != after:
            front.way = 1 if after else -1
            front.back = low if after else high
        if (after and front.way >= 0) or (before and front.way <= 0):
            self._move(band)
        front.ends = (first if before else low, last if after else high)
        front.window = self._window
        return front

    def _move(self, band: int) -> None:
        """A band went on; where it did before, all did: another window has begun."""
        if band in self._moved:
            self._window += 1
            self._moved.clear()
        self._moved.add(band)

    def _advance(self, front: _Front) -> list[Name]:
        """What lies behind all that is read of a band."""
        if not front.way:
            return []
        now = min([front.far, *front.reads.values()], key=lambda one: front.way * one.number)
        if front.way * (now.number - front.back.number) <= 0:
            return []
        found = self._between(front.back, now, front.way)
        front.back = now
        return found

    # -- what is let go ---------------------------------------------------------------

    def _between(self, back: Stretch, now: Stretch, way: int) -> list[Name]:
        """What a band needed last in a stretch from one up to another one, without this."""
        (slab, row), (end, stop) = self._step(back), self._step(now)
        low, high = self._rows(back)
        if way < 0:
            # The same, seen from the other end: what is left is what comes after.
            slab, row, end, stop = end, stop + 1, slab, row + 1
        if slab == end:
            parts = [((slab, slab + 1), (row, stop))]
        else:
            parts = [((slab, slab + 1), (row, high)), ((end, end + 1), (low, stop))]
            parts += [((slab + 1, end), (low, high))] if end > slab + 1 else []
        some = [(slabs, rows) for slabs, rows in parts if rows[0] < rows[1]]
        return [name for slabs, rows in some for name in self._gone(back, slabs, rows, way)]

    def _gone(
        self, stretch: Stretch, slabs: tuple[int, int], rows: tuple[int, int], way: int
    ) -> Iterator[Name]:
        """What the band of a stretch needs last in some rows of some slabs, both half-open."""
        bands, counts = self._bands[stretch.image], self._counts(stretch)
        for role, spans in self._grids(stretch.image).items():
            found = []
            for axis, (g, n, span) in enumerate(zip(bands.side, counts, spans, strict=True)):
                low, high = _ends(stretch.chunk[axis], g, n)
                some = slabs if not g else rows if axis == bands.row else (low, high)
                found.append(span.last_needed(low, high, some, way))
            yield from self._named(stretch, role, found)

    def _rest(self, front: _Front) -> Iterator[Name]:
        """What else was needed of a band that is over."""
        stretch = front.back
        bands, counts = self._bands[stretch.image], self._counts(stretch)
        for role, spans in self._grids(stretch.image).items():
            found = []
            for axis, (g, n, span) in enumerate(zip(bands.side, counts, spans, strict=True)):
                at = stretch.chunk[axis]
                found.append(span.needed(*(_ends(at, g, n) if g else (at, at + 1))))
            yield from self._named(stretch, role, found)

    def _named(self, stretch: Stretch, role: str, found: Sequence[range]) -> Iterator[Name]:
        layout = self._images[stretch.image].cut_arrays[role].layout
        index = np.array([*product(*found)], np.int64).reshape(-1, len(found))
        sample = layout.own_samples(np.full(len(index), stretch.sample, np.int64))
        blocks = layout.blocks_of(sample, index).tolist()
        return ((stretch.image, role, block) for block in blocks)

    def _counts(self, stretch: Stretch) -> tuple[int, ...]:
        return self._images[stretch.image].layout.space.counts

    def _step(self, stretch: Stretch) -> tuple[int, int]:
        """Its slab and its row, as chunks along their axes."""
        bands = self._bands[stretch.image]
        row = 0 if bands.row is None else stretch.chunk[bands.row]
        return stretch.chunk[bands.side.index(0)], row

    def _rows(self, stretch: Stretch) -> tuple[int, int]:
        """The rows of its band, half-open."""
        row, counts = self._bands[stretch.image].row, self._counts(stretch)
        if row is None:
            return 0, 1
        return _ends(stretch.chunk[row], self._bands[stretch.image].side[row], counts[row])

    def _grids(self, image: int) -> dict[str, list[_Span]]:
        """Of each array that is cut, which chunks need its blocks, by axis."""
        if image not in self._known:
            of = self._images[image]
            self._known[image] = {role: _spans(of, role, self._cut) for role in of.cut_arrays}
        return self._known[image]


@dataclass(frozen=True, eq=False)
class _Span:
    """Which chunks of an image need the blocks of an array, along one axis."""

    first: Ints
    """Of each block, the first chunk whose patches may need it: int64[n], ascending."""
    last: Ints
    """And the last one."""

    def needed(self, low: int, high: int) -> range:
        """The blocks that some chunks need, half-open."""
        return range(_at(self.last, low), _at(self.first, high))

    def last_needed(self, low: int, high: int, some: tuple[int, int], way: int) -> range:
        """The blocks that chunks [low, high) of a band need, and last in some of them."""
        table, every = self.last if way > 0 else self.first, self.needed(low, high)
        begin = max(every.start, _at(table, some[0])) if some[0] > low else every.start
        end = min(every.stop, _at(table, some[1])) if some[1] < high else every.stop
        return range(begin, max(begin, end))


def _spans(image: Image, role: str, cut: Cut) -> list[_Span]:
    """Those of one array."""
    own, space = image.layout.space, image.cut_arrays[role].layout.space
    context, extent = np.asarray(cut.context), np.asarray(space.shape, np.int64)
    chunk = np.arange(max(own.counts))[:, None]
    # The patches of a chunk begin between its first and its last pixel.
    ends = [chunk * own.chunks, (chunk + 1) * np.asarray(own.chunks) - 1]
    lows, highs = [], []
    for end in ends:
        corner = np.minimum(end, np.asarray(own.shape) - 1) - context
        first, there = around(image, role, corner.astype(np.int64), cut)
        low, high = there.span(first, extent)
        lows.append(low)
        highs.append(high)
    # Padding that mirrors reaches back at the end of the image.
    low = np.minimum.accumulate(np.minimum(*lows)[::-1])[::-1]
    high = np.maximum.accumulate(np.maximum(*highs))
    found = []
    for axis, (n, c, blocks) in enumerate(zip(own.counts, space.chunks, space.counts, strict=True)):
        begin = np.arange(blocks, dtype=np.int64) * c
        first = np.searchsorted(high[:n, axis], begin, side="right")
        last = np.searchsorted(low[:n, axis], begin + c, side="left") - 1
        found.append(_Span(first.astype(np.int64), last.astype(np.int64)))
    return found


def _ends(chunk: int, side: int, n: int) -> tuple[int, int]:
    """The chunks of a band along an axis, half-open; of a side of 0 all."""
    if not side:
        return 0, n
    low = chunk // side * side
    return low, min(low + side, n)


def _at(table: Ints, value: int) -> int:
    return int(np.searchsorted(table, value))
