"""How often chunks are decoded along courses of windows, the one of live patches last, counted.

A cube of chunks, whose patches reach into the next chunk on each axis, is visited step by step;
chunks are held up to some number, and those that were used least recently go first. Nothing is
read: ``python -m benchmarks live --courses`` prints the table of docs/design/028-live-bands.md.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice, product

__all__ = ["tell"]

Chunk = tuple[int, int, int]
Step = tuple[list[Chunk], list[Chunk]]
"""Chunks that a step touches, and those of them that no later step of its band does."""

SIDE = 32
"""Chunks of the cube along each axis."""
ROOM = 384
"""Chunks that are held."""
BANDS = (1, 2, 4, 8)
"""Bands that are visited together."""
WIDTHS = (3, 4, 5, 6, 7, 8, 11, 16)
"""Chunks that a band may be wide: the best is told."""


def tell() -> None:
    """Print decodes for each chunk of the cube, course by course."""
    curve: list[Step] = [([*_box(at, (1, 1, 1))], []) for at in _hilbert(SIDE.bit_length() - 1)]
    print(f"a Hilbert curve, one chunk at a time: {_decodes(curve, False):.2f}", flush=True)
    for name, by_row, told in (
        ("slabs", False, False),
        ("slabs, told what is done with", False, True),
        ("rows of slabs, told", True, True),
    ):
        found = [
            min(_decodes(_mixed(_bands(width, by_row), n), told) for width in WIDTHS) for n in BANDS
        ]
        print(f"| {name} | {' | '.join(f'{one:.2f}' for one in found)} |", flush=True)


def _decodes(steps: Iterable[Step], told: bool) -> float:
    held: OrderedDict[Chunk, None] = OrderedDict()
    n = 0
    for touched, done in steps:
        for chunk in touched:
            if chunk not in held:
                n += 1
            held[chunk] = None
            held.move_to_end(chunk)
            if len(held) > ROOM:
                held.popitem(last=False)
        for chunk in done if told else ():
            if chunk in held:
                held.move_to_end(chunk, last=False)
    return n / SIDE**3


def _box(start: Iterable[int], extent: Iterable[int]) -> Iterator[Chunk]:
    """The chunks that patches need which begin in some: one more on each axis."""
    rows = (range(a, min(a + n + 1, SIDE)) for a, n in zip(start, extent, strict=True))
    return ((z, y, x) for z, y, x in product(*rows))


def _bands(width: int, by_row: bool) -> list[list[Step]]:
    """The steps of each band: slabs one chunk thick, or rows of these."""
    side = -(-SIDE // -(-SIDE // width))
    found = []
    for y, x in product(range(0, SIDE, side), repeat=2):
        high, wide = min(side, SIDE - y), min(side, SIDE - x)
        band: list[Step] = []
        for z in range(SIDE):
            if not by_row:
                touched = [*_box((z, y, x), (1, high, wide))]
                band.append((touched, [c for c in touched if c[0] == z]))
                continue
            for row in range(y, y + high):
                touched = [*_box((z, row, x), (1, 1, wide))]
                last = row == y + high - 1
                band.append((touched, [c for c in touched if c[0] == z and (c[1] == row or last)]))
        found.append(band)
    return found


def _mixed(bands: list[list[Step]], n: int) -> Iterator[Step]:
    """Steps of so many bands at a time, in random order."""
    chance = random.Random(0)
    chance.shuffle(bands)
    waiting = iter(bands)
    going = [iter(band) for band in islice(waiting, n)]
    while going:
        touched: list[Chunk] = []
        done: list[Chunk] = []
        for k, band in enumerate(going):
            step = next(band, None)
            if step is None:
                going[k] = band = iter(next(waiting, []))
                step = next(band, ([], []))
            touched += step[0]
            done += step[1]
        if not touched:
            return
        chance.shuffle(touched)
        yield touched, done


def _hilbert(bits: int) -> Iterator[Chunk]:
    """Cells of a cube along a Hilbert curve (Skilling, 2004)."""
    for h in range(8**bits):
        at = [0, 0, 0]
        for b in range(3 * bits):
            at[b % 3] = at[b % 3] << 1 | h >> (3 * bits - 1 - b) & 1
        last = at[2] >> 1
        at[2] ^= at[1]
        at[1] ^= at[0]
        at[0] ^= last
        bit = 2
        while bit < 2 << (bits - 1):
            for i in (2, 1, 0):
                if at[i] & bit:
                    at[0] ^= bit - 1
                else:
                    other = (at[0] ^ at[i]) & (bit - 1)
                    at[0] ^= other
                    at[i] ^= other
            bit <<= 1
        yield at[0], at[1], at[2]
