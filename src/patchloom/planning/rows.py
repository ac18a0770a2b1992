"""Rows: in which order the patches of a plan stand, as a bijection made of few pieces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.randomness import philox

__all__ = ["ORDERS", "Rows", "ranges", "stretches_of", "union"]

Ints = npt.NDArray[np.int64]

ORDERS = ("spatial", "grouped", "shuffled")
"""Orders of a plan."""
_KEPT = 4
"""Permutations of windows that are kept."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Three numbers of one patch, and how they follow from one another.

    rank
        Its number along the curve, image by image, cell by cell.
    turn
        Its number in the order in which tasks go: pieces of consecutive ranks one after
        another. Memory grows with pieces, never with patches.
    row
        Where it stands in the store. Turns of one window are mixed with one another; without
        windows the row is the turn.
    """

    begin: Ints
    """First rank of each piece, in the order of turns: int64[k]."""
    turn: Ints
    """First turn of each piece, and the number of rows at the end: int64[k + 1]."""
    window: int = 0
    """Rows of a window, in which turns are mixed; the last has fewer. 0: none are mixed."""
    key: int = 0
    """64 bits that fix how."""

    @classmethod
    def straight(cls, n_rows: int) -> Rows:
        """Rows that stand as the curve goes."""
        return cls(np.zeros(1, np.int64), np.array([0, n_rows], np.int64))

    @classmethod
    def of(cls, begin: Ints, n: Ints) -> Rows:
        """Pieces of `n` ranks from `begin` on, in this order."""
        return cls(begin, np.append(0, np.cumsum(n)).astype(np.int64))

    @classmethod
    def mixed(cls, begin: Ints, n: Ints, window: int, key: int) -> Rows:
        """The pieces in this order, cut into windows, and each window mixed.

        Inside a window turns follow the curve, so that what neighbours share is read once.

        Parameters
        ----------
        begin, n
            First rank and length of each piece: int64[k] each.
        window
            Rows of a window.
        key
            64 bits.
        """
        dealt = np.append(0, np.cumsum(n))
        borders = np.unique(np.concatenate([dealt[:-1], np.arange(0, dealt[-1], window)]))
        piece = np.searchsorted(dealt, borders, side="right") - 1
        rank = begin[piece] + borders - dealt[piece]
        order = np.lexsort((rank, borders // window))
        whole = cls.of(rank[order], np.diff(np.append(borders, dealt[-1]))[order])
        return cls(whole.begin, whole.turn, window, key)

    @property
    def n_rows(self) -> int:
        """Patches in all."""
        return int(self.turn[-1])

    @property
    def is_straight(self) -> bool:
        """Whether rank, turn and row are the same."""
        return len(self.begin) < 2 and not self.window

    @property
    def is_mixed(self) -> bool:
        """Whether rows differ from turns."""
        return self.window > 0

    def __len__(self) -> int:
        return self.n_rows

    # -- rank and turn ------------------------------------------------------------------

    @cached_property
    def _along(self) -> tuple[Ints, Ints]:
        """First ranks ascending, and which piece each is of."""
        order = np.argsort(self.begin, kind="stable")
        return self.begin[order], order

    def turns_of(self, ranks: Ints) -> Ints:
        """int64[n] -> int64[n]."""
        if len(self.begin) < 2:
            return ranks
        begin, order = self._along
        place = np.searchsorted(begin, ranks, side="right") - 1
        found: Ints = self.turn[order[place]] + ranks - begin[place]
        return found

    def ranks_of(self, turns: Ints) -> Ints:
        """int64[n] -> int64[n]."""
        if len(self.begin) < 2:
            return turns
        piece = np.searchsorted(self.turn, turns, side="right") - 1
        found: Ints = self.begin[piece] + turns - self.turn[piece]
        return found

    def pieces(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Ranks [low, high) of the pieces of turns [start, stop), in their order."""
        first = int(np.searchsorted(self.turn, start, side="right")) - 1
        last = int(np.searchsorted(self.turn, stop))
        edges = self.turn[first : last + 1].copy()
        low = self.begin[first:last].copy()
        low[:1] += start - edges[0]
        edges[0], edges[-1] = start, stop
        return low, low + np.diff(edges)

    def ranks_within(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Ranks [low, high) of the patches of rows [start, stop), as ranges: int64[k] each.

        As many ranges as pieces; only of a window of which some rows are asked, one a patch.
        """
        if not self.window or start >= stop:
            return self.pieces(start, stop)
        step = self.window
        first, last = -(-start // step) * step, stop if stop == self.n_rows else stop // step * step
        if first >= last:
            return self._apart(np.arange(start, stop))
        some = np.concatenate([np.arange(start, first), np.arange(last, stop)])
        found = zip(self.pieces(first, last), self._apart(some), strict=True)
        low, high = (np.concatenate(column) for column in found)
        return low, high

    def _apart(self, rows: Ints) -> tuple[Ints, Ints]:
        return stretches_of(np.sort(self.ranks_of(self.turns_of_rows(rows))))

    # -- turn and row -------------------------------------------------------------------

    @cached_property
    def _mixes(self) -> Any:
        return lru_cache(_KEPT)(self._mix)

    def _mix(self, window: int) -> tuple[Ints, Ints]:
        """Rows of the turns of one window, and turns of its rows, from its first on."""
        n = min(self.window, self.n_rows - window * self.window)
        high, low, *_ = philox(self.key, np.arange(n), window & 0xFFFFFFFF, window >> 32)
        # Equal words keep their order, so that it is one permutation on every machine.
        back = np.argsort(high << np.uint64(32) | low, kind="stable")
        to = np.empty(n, np.int64)
        to[back] = np.arange(n)
        return to, back

    def rows_of(self, turns: Ints) -> Ints:
        """int64[n] -> int64[n]; costs a permutation of every window that they lie in."""
        return self._through(turns, 0)

    def turns_of_rows(self, rows: Ints) -> Ints:
        """int64[n] -> int64[n]; costs a permutation of every window that they lie in."""
        return self._through(rows, 1)

    def _through(self, numbers: Ints, way: int) -> Ints:
        if not self.window or not len(numbers):
            return numbers
        window = numbers // self.window
        first, last = int(window.min()), int(window.max())
        if first == last:
            found: Ints = (
                first * self.window + self._mixes(first)[way][numbers - first * self.window]
            )
            return found
        found = np.empty(len(numbers), np.int64)
        order = np.argsort(window, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(window[order])) + 1):
            at = int(window[some[0]])
            found[some] = at * self.window + self._mixes(at)[way][numbers[some] - at * self.window]
        return found


def stretches_of(numbers: Ints) -> tuple[Ints, Ints]:
    """The ranges [low, high) that distinct ascending numbers make up: int64[k] each.

    >>> [column.tolist() for column in stretches_of(np.array([2, 3, 4, 7]))]
    [[2, 7], [5, 8]]
    """
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    edges = np.arange(len(numbers))
    return numbers[np.append(edges[:1], breaks + 1)], numbers[np.append(breaks, edges[-1:])] + 1


def union(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """The ranges of all numbers that lie in at least one of some ranges [low, high), ascending.

    >>> [column.tolist() for column in union(np.array([4, 0, 1]), np.array([6, 3, 2]))]
    [[0, 4], [3, 6]]
    """
    order = np.argsort(low, kind="stable")
    low, upto = low[order], np.maximum.accumulate(high[order])
    new = np.append(np.ones(len(low[:1]), np.bool_), low[1:] > upto[:-1])
    ends = np.append(np.flatnonzero(new)[1:] - 1, np.arange(len(low))[-1:])
    return low[new], upto[ends]


def ranges(low: Ints, high: Ints) -> Ints:
    """All numbers of some ranges [low, high), one range after another."""
    n = high - low
    return np.repeat(low - (np.cumsum(n) - n), n) + np.arange(int(n.sum()))
