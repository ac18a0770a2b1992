"""Chance with an address: numbers fixed by where they are, never by what was drawn before.

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
as easy as 1, 2, 3", SC 2011), evaluated on whole columns of addresses at once. It is a
bijection of its 128-bit counter under each key, which is why patch ids use it too.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["below", "digest", "digest_of", "key_of", "philox", "poissons"]

_ROUNDS = 10
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_PIECE = 2**13
"""Addresses that pass all rounds together."""
_DRAWS = 2**18
"""Numbers that are drawn together."""
_BITS = 53
"""Bits of a word that a table is looked up with."""
_GUIDE = 14
"""Leading bits that nearly always tell which number is drawn."""

Words = npt.NDArray[np.uint64]


def digest(*parts: object, size: int = 16) -> bytes:
    """Bytes fixed by `parts` on every machine (BLAKE2b over their unambiguous texts)."""
    text = "\x1f".join(f"{len(str(part))}:{part}" for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def digest_of(column: npt.NDArray[Any], size: int = 16) -> bytes:
    """Bytes fixed by type and values of a column on every machine."""
    little = np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<"), copy=False)
    found = hashlib.blake2b(little.dtype.str.encode() + b":", digest_size=size)
    found.update(little.data)
    return found.digest()


def key_of(*parts: object) -> int:
    """A 64-bit key fixed by `parts`: the address of a stream.

    >>> key_of(0, "A06") == key_of(0, "A06")
    True
    >>> key_of(0, "A06") == key_of(1, "A06")
    False
    """
    return int.from_bytes(digest(*parts, size=8), "little")


def philox(
    key: int | np.uint64 | Words, *counter: npt.ArrayLike
) -> tuple[Words, Words, Words, Words]:
    """Four 32-bit words for each address.

    Parameters
    ----------
    key
        64 bits: one for all addresses, or one each.
    *counter
        Up to four columns of non-negative integers below 2**32, broadcast together;
        missing ones are 0.

    Returns
    -------
    four uint64[n]
        Values in [0, 2**32).
    """
    shape = np.broadcast_shapes(*map(np.shape, (key, *counter)))
    words = np.empty((4, math.prod(shape)), np.uint64)
    columns = [np.broadcast_to(np.asarray(c), shape).ravel() for c in counter]
    keys = np.broadcast_to(np.asarray(key, np.uint64), shape).ravel() if np.ndim(key) else None
    # Pieces that stay in a processor's cache while all rounds pass over them.
    for low in range(0, words.shape[1], _PIECE):
        piece = slice(low, low + _PIECE)
        x = [np.asarray(c[piece]).astype(np.uint64) & _LOW for c in columns]
        x += [np.zeros_like(words[0, piece]) for _ in range(4 - len(x))]
        _rounds(np.asarray(key, np.uint64) if keys is None else keys[piece], x)
        words[:, piece] = x
    x0, x1, x2, x3 = words.reshape(4, *shape)
    return x0, x1, x2, x3


def _rounds(key: npt.NDArray[np.uint64], x: list[Words]) -> None:
    """All rounds, in place."""
    k0, k1 = key & _LOW, key >> _HALF
    for turn in range(_ROUNDS):
        r0 = (k0 + np.uint64(turn * _W0 & 0xFFFFFFFF)) & _LOW
        r1 = (k1 + np.uint64(turn * _W1 & 0xFFFFFFFF)) & _LOW
        x0, x1, x2, x3 = x
        x0 *= _M0
        x2 *= _M1
        x1 ^= r0
        x1 ^= x2 >> _HALF
        x3 ^= r1
        x3 ^= x0 >> _HALF
        x0 &= _LOW
        x2 &= _LOW
        x[:] = x1, x2, x3, x0


def poissons(
    key: int, rate: float, rooms: Sequence[npt.NDArray[np.int64]], times: int
) -> npt.NDArray[Any]:
    """Independent Poisson numbers over a grid, of mean `rate` times each cell's room.

    Only sums, products and quotients are taken, so that all machines draw the same.

    Parameters
    ----------
    key
        64 bits.
    rate
        Mean number of one unit of room.
    rooms
        Room along each axis; a cell's is their product. Few values differ.
    times
        Grids, one after another.

    Returns
    -------
    unsigned[times * n_cells]
        In C order, in a narrow type.

    >>> poissons(7, 0.5, [np.array([4, 4, 0])], 2).tolist()
    [4, 1, 0, 1, 0, 0]
    """
    if rate <= 0:
        return np.zeros(times * math.prod(len(room) for room in rooms), np.uint8)
    values: list[npt.NDArray[np.int64]] = []
    kind: npt.NDArray[Any] = np.zeros(1, np.uint8)
    usual = 0
    for room in rooms:
        own, which, n = np.unique(room, return_inverse=True, return_counts=True)
        values.append(own)
        usual = usual * len(own) + (int(n.argmax()) if len(n) else 0)
        narrow = np.min_scalar_type((int(kind.max(initial=0)) + 1) * len(own))
        kind = np.add.outer(kind.astype(narrow) * narrow.type(len(own)), which.astype(narrow))
        kind = kind.ravel()
    kind = np.tile(kind, times) if times != 1 else kind
    means = [rate * math.prod(some) for some in itertools.product(*(v.tolist() for v in values))]
    tables = [_table(mean) for mean in means]
    most = max((first + len(upto) for first, upto in tables), default=0)
    guide = _guide(*tables[usual]) if tables else np.zeros(0, np.int64)
    stream, found = np.random.Philox(key=key), np.empty(len(kind), np.min_scalar_type(most))
    for low in range(0, len(kind), _DRAWS):
        own = kind[low : low + _DRAWS]
        word = stream.random_raw(len(own)) >> np.uint64(64 - _BITS)
        drawn = found[low : low + _DRAWS]
        drawn[:] = told = guide[(word >> np.uint64(_BITS - _GUIDE)).astype(np.intp)]
        rest = np.flatnonzero((told < 0) | (own != usual))
        for k in np.unique(own[rest]).tolist():
            some = rest[own[rest] == k]
            first, upto = tables[k]
            drawn[some] = first + np.searchsorted(upto, word[some], side="right")
    return found


def _table(mean: float) -> tuple[int, Words]:
    """Least Poisson number that is drawn, and below which words it and each next one are."""
    if mean <= 0:
        return 0, np.zeros(0, np.uint64)
    # What is left out at either end is rarer than a word can say.
    spread = 12 * math.sqrt(mean) + 40
    middle, first, last = int(mean), max(0, int(mean - spread)), int(mean + spread)
    down = np.cumprod(np.arange(middle, first, -1) / mean)[::-1]
    up = np.cumprod(mean / np.arange(middle + 1, last + 1))
    upto = np.cumsum(np.concatenate([down, [1.0], up]))
    return first, (upto[:-1] / upto[-1] * 2.0**_BITS).astype(np.uint64)


def _guide(first: int, upto: Words) -> npt.NDArray[np.int64]:
    """The number that all words with some leading bits draw; -1 if they draw several."""
    edges = np.arange(2**_GUIDE + 1, dtype=np.uint64) << np.uint64(_BITS - _GUIDE)
    low = np.searchsorted(upto, edges[:-1], side="right")
    high = np.searchsorted(upto, edges[1:] - np.uint64(1), side="right")
    return np.where(low == high, first + low, -1)


def below(extent: npt.ArrayLike, word: Words) -> npt.NDArray[np.int64]:
    """Integers in [0, extent) from 32-bit words, by multiplication and shift.

    The bias is at most ``extent / 2**32`` (Lemire, "Fast random integer generation in an
    interval", 2019), below 1e-5 for chunks of up to 40,000 pixels an axis.
    """
    return ((np.asarray(extent, np.uint64) * word) >> _HALF).astype(np.int64)
