"""Strata: the cells of a grid that begins anew in each box, and what its first pixels weigh."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from patchloom.grid import ChunkGrid
from patchloom.patching.protocol import Edge, Ints, turns

__all__ = ["UNSAID", "Axis", "Said", "Weights", "axis_of", "draw", "weigh"]

Floats = npt.NDArray[np.float64]
Said = tuple[frozenset[int], frozenset[tuple[int, float]]]
"""Of a sample: strata that are excluded, and probabilities of strata (flat, in C order)."""
UNSAID: Said = (frozenset(), frozenset())
_NOTHING = 1e-9
UNIT = 2.0**-32


class Axis(NamedTuple):
    """One axis of an image, cut into pieces at the borders of strata, chunks and boxes.

    A first pixel weighs ``1 / size``; the first and the last one of a box weigh more by a
    border extra, which makes up for the patches that would stick out of the box.
    """

    begin: Ints
    """First pixel of each piece: int64[n]."""
    stop: Ints
    plain: Floats
    """Weight of each piece without border extras: float64[n]."""
    extra: Floats
    left: Floats
    """The part of `extra` that is the first pixel's."""
    edge: Floats
    """Weight of the first pixel of a stratum, plain and extra: float64[2, n]; else 0."""
    rest: Floats
    """Weight of the other first pixels, plain and extra: float64[2, n]."""
    start: Ints
    """First pixel of each stratum."""
    leads: npt.NDArray[np.bool_]
    """Whether a stratum is the first of its box: no patch reaches into it from before."""
    of_stratum: Ints
    """First piece of each stratum, and their number at the end."""
    of_chunk: Ints
    """First piece of each chunk, and their number at the end."""

    def strata(self) -> tuple[Floats, Floats]:
        """Plain and extra weight of each stratum."""
        return _sums(self.plain, self.of_stratum), _sums(self.extra, self.of_stratum)


def axis_of(extent: int, size: int, chunk: int, unit: int, edge: Edge) -> Axis:
    """The strata of one axis.

    Parameters
    ----------
    extent, size, chunk
        Of the image, a patch and a chunk, in pixels.
    unit
        Extent of the boxes that patches stay in, a multiple of chunks.
    edge
        ``"pad"`` and ``"shrink"`` admit one place in an image that is smaller than a patch.
    """
    small = edge in ("pad", "shrink") and 0 < extent < size
    size = extent if small else size
    first = np.arange(0, extent, unit, dtype=np.int64)
    valid = np.maximum(0, np.minimum(first + unit, extent) - first - size + 1)
    box, turn = turns(-(-valid // size)[:, None])
    start = first[box] + turn[:, 0] * size
    end = np.minimum(start + size, (first + valid)[box])
    chunks = np.arange(0, extent, chunk, dtype=np.int64)
    cuts = chunks[chunks % unit < valid[chunks // unit]]
    begin = np.union1d(start, cuts).astype(np.int64)
    stratum = np.searchsorted(start, begin, "right") - 1
    stop = np.minimum(np.append(begin[1:], extent), end[stratum])
    # A small image has one place, which is a whole cell.
    one, more = (1.0, 0.0) if small else (1 / size, (size - 1) / (2 * size))
    leads = turn[:, 0] == 0
    is_edge = begin == start[stratum]
    is_first = is_edge & leads[stratum]
    is_last = stop == (first + valid)[box][stratum]
    single = is_edge & is_last & (stop == begin + 1)
    return Axis(
        begin=begin,
        stop=stop,
        plain=np.asarray((stop - begin) * one, np.float64),
        extra=is_first * more + is_last * more,
        left=is_first * more,
        edge=np.stack([is_edge * one, is_first * more + single * more]),
        rest=np.stack([(stop - begin - is_edge) * one, (is_last & ~single) * more]),
        start=start,
        leads=leads,
        of_stratum=np.searchsorted(begin, np.append(start, extent)).astype(np.int64),
        of_chunk=np.searchsorted(begin, np.append(chunks, extent)).astype(np.int64),
    )


@dataclass(frozen=True, eq=False)
class Weights:
    """What one sample weighs: how many patches, and where their sum lies along the chunks."""

    n: int
    extra: float
    """Factor of the border extras that makes the weights add up to n."""
    upto: Floats
    """Weight of all chunks before each, and n at the end: float64[n_chunks + 1]."""
    of_chunk: Ints
    """First special piece of each chunk, and their number at the end: int64[n_chunks + 1].

    A piece is special if its weight is not the product of its axes'.
    """
    turn: Ints
    """Of special pieces: which piece of its chunk it is, in C order."""
    mass: Floats
    """Of special pieces: their weight."""
    blocked: Ints
    """Of special pieces: bit d says that the stratum at offset d is excluded."""

    def special(self, chunks: Ints) -> tuple[Ints, Ints]:
        """The special pieces of some chunks: (position in `chunks`, piece), int64[n] each."""
        begin = self.of_chunk[chunks]
        which, step = turns((self.of_chunk[chunks + 1] - begin)[:, None])
        return which, begin[which] + step[:, 0]


def weigh(axes: Sequence[Axis], grid: ChunkGrid, said: Said) -> Weights:
    """What a sample weighs of which something was said."""
    strata = [axis.strata() for axis in axes]
    special, blocked, share = _special(axes, said)
    own = _powers([(p[i], e[i]) for (p, e), i in zip(strata, special.T, strict=True)])
    whole = _powers([(p.sum(keepdims=True), e.sum(keepdims=True)) for p, e in strata])[:, 0]
    powers = (whole - (own * (1 - share)).sum(1)).tolist()
    found = _polynomial(powers, 1.0)
    # A half is rounded up, whatever its last bit.
    n = max(1, math.floor(found + 0.5 + _NOTHING)) if found > _NOTHING else 0
    extra = _solve(powers, n) if n else 1.0
    weights = _volume([_sums(a.plain + extra * a.extra, a.of_chunk) for a in axes])
    first = np.stack([a.of_stratum[i] for a, i in zip(axes, special.T, strict=True)], -1)
    last = np.stack([a.of_stratum[i + 1] for a, i in zip(axes, special.T, strict=True)], -1)
    owner, turn = turns(last - first)
    piece = (first[owner] + turn).T
    before = np.ones(len(owner))
    for a, p in zip(axes, piece, strict=True):
        before *= a.plain[p] + extra * a.extra[p]
    allowed = _patterns(axes, piece, np.float64(extra), blocked[owner]).sum(0)
    room = np.bincount(owner, allowed, len(special))
    wanted = _polynomial(own, extra) * share
    factor = np.divide(wanted, room, out=np.zeros(len(room)), where=room > 0)
    mass = allowed * factor[owner]
    begin = np.stack([a.begin[p] for a, p in zip(axes, piece, strict=True)], -1)
    index = grid.chunk_of(begin)
    chunk = grid.flat(index)
    turn = np.zeros(len(owner), np.int64)
    for a, p, i in zip(axes, piece, index.T, strict=True):
        turn = turn * (a.of_chunk[i + 1] - a.of_chunk[i]) + p - a.of_chunk[i]
    if len(owner):
        given = np.bincount(chunk, mass, grid.n_chunks)
        # Where all pieces are special nothing is left over, not even by rounding.
        n_pieces = _volume([np.diff(a.of_chunk).astype(np.float64) for a in axes])
        whole = np.bincount(chunk, minlength=grid.n_chunks) == n_pieces
        rest = weights - np.bincount(chunk, before, grid.n_chunks)
        weights = np.where(whole, given, rest + given)
        weights[weights < _NOTHING] = 0
    upto = np.concatenate([[0.0], np.cumsum(weights)])
    n = n if upto[-1] else 0
    upto = upto * (n / upto[-1]) if n else upto * 0
    # Where all are counted, rounding must not lose the last one.
    upto[upto >= upto[-1] - _NOTHING] = n
    order = np.lexsort((turn, chunk))
    of_chunk = np.searchsorted(chunk[order], np.arange(grid.n_chunks + 1)).astype(np.int64)
    return Weights(n, extra, upto, of_chunk, turn[order], mass[order], blocked[owner][order])


def draw(
    axes: Sequence[Axis],
    piece: Sequence[Ints],
    extra: Floats,
    blocked: Ints,
    words: Sequence[npt.NDArray[np.uint64]],
    size: Sequence[int],
) -> Ints:
    """A first pixel in each piece, by weight: int64[n, ndim].

    Parameters
    ----------
    axes
        Of the image.
    piece
        Pieces, one column an axis.
    extra, blocked
        See `Weights`: float64[] or float64[n], and int64[n].
    words
        Chance: four columns of 32 bits.
    size
        Extent of a patch on each axis, in pixels.
    """
    corners = np.empty((len(blocked), len(axes)), np.int64)
    for k, (a, p) in enumerate(zip(axes, piece, strict=True)):
        at = words[k] * UNIT * (a.plain[p] + extra * a.extra[p]) - extra * a.left[p]
        begin = a.begin[p]
        corners[:, k] = np.clip(begin + np.floor(at * size[k]), begin, a.stop[p] - 1)
    some = np.flatnonzero(blocked)
    if not len(some):
        return corners
    piece, words = [p[some] for p in piece], [w[some] for w in words]
    extra = np.broadcast_to(extra, len(blocked))[some]
    upto = np.cumsum(_patterns(axes, piece, extra, blocked[some]), 0)
    pattern = (upto <= words[3] * UNIT * upto[-1]).sum(0)
    for k, (a, p) in enumerate(zip(axes, piece, strict=True)):
        at = words[k] * UNIT * (a.rest[0, p] + extra * a.rest[1, p])
        begin = a.begin[p] + (a.edge[0, p] > 0)
        free = np.clip(begin + np.floor(at * size[k]), begin, a.stop[p] - 1)
        corners[some, k] = np.where(pattern >> k & 1, a.begin[p], free)
    return corners


def _special(axes: Sequence[Axis], said: Said) -> tuple[Ints, Ints, Floats]:
    """Strata of which something was said or whose patches reach into excluded ones.

    Returns
    -------
    int64[n, ndim], int64[n], float64[n]
        The strata; bit d says that the one at offset d is excluded; their share.
    """
    shape = tuple(len(a.start) for a in axes)
    if said == UNSAID:
        none = np.zeros(0, np.int64)
        return none.reshape(0, len(shape)), none, np.zeros(0)
    out, probs = np.array(sorted(said[0]), np.int64), dict(said[1])
    named = np.array(sorted(probs), np.int64)
    coords = np.stack(np.unravel_index(out, shape), -1).astype(np.int64)
    near, bits = [named, out], [np.zeros_like(named), np.ones_like(out)]
    for bit, step in list(enumerate(itertools.product((0, 1), repeat=len(shape))))[1:]:
        apart = [a.leads[c] & (s > 0) for a, c, s in zip(axes, coords.T, step, strict=True)]
        left = coords[~np.any(apart, 0)] - np.asarray(step)
        near.append(np.ravel_multi_index(tuple(left.T), shape).astype(np.int64))
        bits.append(np.full(len(left), 1 << bit))
    special, place = np.unique(np.concatenate(near), return_inverse=True)
    blocked = np.zeros(len(special), np.int64)
    np.bitwise_or.at(blocked, place, np.concatenate(bits))
    share = np.ones(len(special))
    share[np.searchsorted(special, named)] = [probs[k] for k in named.tolist()]
    share[blocked & 1 > 0] = 0
    return np.stack(np.unravel_index(special, shape), -1).astype(np.int64), blocked, share


def _patterns(
    axes: Sequence[Axis], piece: Sequence[Ints] | Ints, extra: Floats | np.float64, blocked: Ints
) -> Floats:
    """Weight of what is allowed of some pieces: float64[2**ndim, n].

    Bit k of a pattern says that a patch begins at the first pixel of its stratum on axis k,
    so that it does not reach into the next one there.
    """
    found = np.ones((1, len(blocked)))
    for a, p in zip(axes, piece, strict=True):
        edge = a.edge[0, p] + extra * a.edge[1, p]
        rest = a.rest[0, p] + extra * a.rest[1, p]
        found = np.concatenate([found * rest, found * edge])
    for row, touched in zip(found, _touched(len(axes)), strict=True):
        row *= blocked & touched == 0
    return found


@cache
def _touched(ndim: int) -> tuple[int, ...]:
    """For each pattern, the neighbours that a patch reaches into, as bits.

    It reaches into the one at a step unless it stays out of it on one axis.
    """
    steps = list(enumerate(itertools.product((0, 1), repeat=ndim)))
    return tuple(
        sum(
            1 << bit
            for bit, step in steps
            if not any(s and pattern >> k & 1 for k, s in enumerate(step))
        )
        for pattern in range(2**ndim)
    )


def _powers(factors: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Products of ``plain + x * more`` as polynomials in x: float64[degree + 1, n]."""
    found = np.ones((1, len(factors[0][0])))
    for plain, more in factors:
        found = plain * np.pad(found, ((0, 1), (0, 0))) + more * np.pad(found, ((1, 0), (0, 0)))
    return found


def _solve(powers: Sequence[float], n: int) -> float:
    """The factor of the border extras at which the weights add up to n, or 1 if none does."""
    low, high = 0.0, 1.0
    while _polynomial(powers, high) < n and high < 2**20:
        high *= 2
    if _polynomial(powers, low) > n or _polynomial(powers, high) < n:
        return 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _polynomial(powers, middle) < n else (low, middle)
    return high


def _polynomial(powers: Any, x: float) -> Any:
    """Horner's rule: no power function, which machines round differently."""
    found = 0.0
    for power in reversed(powers):
        found = found * x + power
    return found


def _sums(weights: Floats, first: Ints) -> Floats:
    """Sums over consecutive parts, some of them empty."""
    upto = np.append(0.0, np.cumsum(weights))
    return np.diff(upto[first])


def _volume(extents: Sequence[Floats]) -> Floats:
    """Outer product of per-axis weights, raveled in C order."""
    product: Floats = math.prod(np.ix_(*extents), start=np.float64(1)).ravel()
    return product
