"""Counting pixels: the loops in which statistics spend their time.

Each has a version in NumPy, which is always there, and one compiled by numba (the extra
``fast``), which does not hold the interpreter's lock. Both give the same numbers to the last
bit. Importing numba takes more than a second and some 120 MB, so a process turns to it only
after so many pixels that NumPy has cost it about as much.
"""

from __future__ import annotations

import logging
import math
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PATIENCE", "Buckets", "count_distinct", "count_values"]

PATIENCE = 2**29
"""Pixels that a process counts with NumPy before it imports numba."""

UNIT = 1074
"""Sums of floats are in units of 2**-UNIT, those of their squares of 2**(-2 UNIT)."""

_TOGETHER = 2**16
"""Small integers that NumPy counts together."""
_SETTLED = 2**31
"""Numbers after which a table of 64-bit sums is emptied, before it could overflow."""

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]

_log = logging.getLogger(__name__)


class _Compiled:
    """numba's versions, once they pay."""

    def __init__(self) -> None:
        self._module: Any = None
        self._counted = 0
        self._possible = find_spec("numba") is not None

    def after(self, n: int) -> Any:
        """The compiled versions, or None as long as NumPy is to count.

        Parameters
        ----------
        n
            Pixels that are to be counted now.
        """
        if self._module is None and self._possible:
            self._counted += n
            if self._counted > PATIENCE:
                self._load()
        return self._module

    def _load(self) -> None:
        try:
            self._module = import_module("patchloom.compiled")
        except ImportError as error:
            _log.warning("numba is installed but cannot be used: %s; NumPy counts", error)
            self._possible = False


_compiled = _Compiled()


def count_values(flat: Pixels, bins: Ints) -> Ints:
    """Count small integers value by value.

    Parameters
    ----------
    flat
        uint8[n] or uint16[n], contiguous.
    bins
        How often each value occurred so far, from 0 on: int64[k].

    Returns
    -------
    int64[m]
        `bins` with the new ones added, in place if none lies beyond it.

    Examples
    --------
    >>> count_values(np.array([1, 3, 3], np.uint8), np.zeros(2, np.int64)).tolist()
    [0, 1, 0, 2]
    """
    if not flat.size:
        return bins
    top = int(flat.max())
    if top >= len(bins):
        grown = np.zeros(1 << top.bit_length(), np.int64)
        grown[: len(bins)] = bins
        bins = grown
    fast = _compiled.after(flat.size)
    if fast is not None:
        fast.count_values(flat, bins)
    else:
        _count_values(flat, bins)
    return bins


def _count_values(flat: Pixels, bins: Ints) -> None:
    # NumPy widens each pixel to 64 bits: some at a time, so that this stays in the cache.
    for low in range(0, flat.size, _TOGETHER):
        some = flat[low : low + _TOGETHER]
        first = some[0]
        if first == some[-1] and (some == first).all():
            # Background: counting equal pixels one by one is the slowest case of all.
            bins[first] += some.size
            continue
        counts = np.bincount(some)
        bins[: len(counts)] += counts


def count_distinct(keys: Pixels, limit: int) -> tuple[Pixels, Ints] | None:
    """Count integers of any width value by value, if few different ones occur.

    Parameters
    ----------
    keys
        uint32[n] or uint64[n], contiguous.
    limit
        Different values up to which it goes on.

    Returns
    -------
    (keys[k], int64[k]) or None
        The different ones, ascending, and how often each occurs; None beyond `limit` of them.

    Examples
    --------
    >>> values, counts = count_distinct(np.array([7, 5, 7], np.uint32), 2)
    >>> values.tolist(), counts.tolist()
    ([5, 7], [1, 2])
    """
    fast = _compiled.after(keys.size)
    if fast is not None:
        return _hashed(fast, keys, limit)
    if keys.size > 4 * limit and len(np.unique(keys[: 2 * limit])) > limit:
        return None
    values, counts = np.unique(keys, return_counts=True)
    return (values, counts.astype(np.int64)) if len(values) <= limit else None


def _hashed(fast: Any, keys: Pixels, limit: int) -> tuple[Pixels, Ints] | None:
    bits = 12
    done = 0
    table, counts = np.zeros(1 << bits, keys.dtype), np.zeros(1 << bits, np.int64)
    while True:
        done, used = fast.count_distinct(keys, done, table, counts, min(limit, 1 << (bits - 1)))
        if done == keys.size:
            where = np.flatnonzero(counts)
            order = where[np.argsort(table[where])]
            return table[order], counts[order]
        if used >= limit:
            return None
        bits += 1
        where = np.flatnonzero(counts)
        old, often = table[where], counts[where]
        table, counts = np.zeros(1 << bits, keys.dtype), np.zeros(1 << bits, np.int64)
        fast.place(old, often, table, counts)
