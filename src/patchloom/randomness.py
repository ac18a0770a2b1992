"""Chance with an address: numbers fixed by where they are, never by what was drawn before.

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
as easy as 1, 2, 3", SC 2011), evaluated on whole columns of addresses at once. It is a
bijection of its 128-bit counter under each key, which is why patch ids use it too.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["below", "digest", "digest_of", "key_of", "philox"]

_ROUNDS = 10
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

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
    columns: list[npt.NDArray[np.uint64]] = [
        np.asarray(c).astype(np.uint64) & _LOW for c in counter
    ]
    columns += [np.zeros((), np.uint64)] * (4 - len(columns))
    x0, x1, x2, x3 = (np.array(c, np.uint64) for c in np.broadcast_arrays(*columns))
    keys = np.asarray(key, np.uint64)
    k0, k1 = keys & _LOW, keys >> _HALF
    for turn in range(_ROUNDS):
        r0 = (k0 + np.uint64(turn * _W0 & 0xFFFFFFFF)) & _LOW
        r1 = (k1 + np.uint64(turn * _W1 & 0xFFFFFFFF)) & _LOW
        p0, p1 = x0 * _M0, x2 * _M1
        x0, x1, x2, x3 = (p1 >> _HALF) ^ x1 ^ r0, p1 & _LOW, (p0 >> _HALF) ^ x3 ^ r1, p0 & _LOW
    return x0, x1, x2, x3


def below(extent: npt.ArrayLike, word: Words) -> npt.NDArray[np.int64]:
    """Integers in [0, extent) from 32-bit words, by multiplication and shift.

    The bias is at most ``extent / 2**32`` (Lemire, "Fast random integer generation in an
    interval", 2019), below 1e-5 for chunks of up to 40,000 pixels an axis.
    """
    return ((np.asarray(extent, np.uint64) * word) >> _HALF).astype(np.int64)
