"""Order: which patch is visited when, as a function of seed and epoch that nobody lists.

A permutation of n patches is a generalised Feistel network over an almost square grid of cells
(Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002), with keys from Philox:
any visit is looked up without the others. Short ones are sorted by Philox words.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.load.reader import Ints
from patchloom.randomness import digest, digest_of, key_of, philox

__all__ = ["SHUFFLES", "WINDOW", "Order", "Ordering", "permuted"]

SHUFFLES = ("none", "window", "exact")
"""What ``shuffle=`` is called, besides True (``"window"``) and False (``"none"``)."""
WINDOW = 16
"""Blocks that are mixed together."""

_SORTED = 2**12
"""Up to so many are sorted by drawn words; every permutation of them is as likely."""
_ROUNDS = 8
_MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Ordering(Protocol):
    """What a loader asks: which patches are visited in an epoch, and when."""

    @property
    def n(self) -> int:
        """Visits of an epoch."""

    def at(self, epoch: int, visits: Ints) -> Ints:
        """The positions of some visits of an epoch: int64[k] in [0, n) -> int64[k]."""


@dataclass(frozen=True, eq=False)
class Order:
    """Each of n patches once an epoch: as they stand, block by block, or all mixed.

    Examples
    --------
    >>> order = Order(6, np.array([0, 2, 4, 6]), seed=0, shuffle="exact")
    >>> sorted(order.at(3, np.arange(6)).tolist())
    [0, 1, 2, 3, 4, 5]
    >>> Order(6, np.array([0, 2, 4, 6]), shuffle="none").at(3, np.arange(2, 4)).tolist()
    [2, 3]
    """

    n: int
    """Patches, which are visits of an epoch."""
    blocks: Ints = field(repr=False)
    """Bounds, in positions, of what is decoded together: int64[k + 1], ascending, 0 to n."""
    seed: int = 0
    shuffle: str = "window"
    """``"none"``: as they stand. ``"window"``: blocks are permuted, and so is what each `window`
    of them hold together: an epoch visits a block in one go. ``"exact"``: all are permuted."""
    window: int = WINDOW
    """Blocks that are mixed together."""
    streams: int = 1
    """Parts of that sequence that are visited by turns, `granule` visits each: of as many
    workers, which take batches by turns, each stays with its own blocks."""
    granule: int = 1
    """Visits of one turn: the size of a batch."""
    trails: Ints | None = field(default=None, repr=False)
    """Bounds, in positions, of runs of blocks that are visited one soon after the other, some of
    `blocks`: then runs are permuted, and a window holds a block of each of several. By default
    each block is a run."""

    replacement = False
    """A patch is visited once an epoch: what is drawn for it needs no number of the visit."""

    def __post_init__(self) -> None:
        blocks = np.asarray(self.blocks, np.int64)
        object.__setattr__(self, "blocks", blocks)
        bounds = len(blocks) and blocks[0] == 0 and blocks[-1] == self.n
        if not bounds or (np.diff(blocks) < 0).any():
            raise ConfigError(f"blocks ascend from 0 to the {self.n} patches, got {blocks}")
        if self.shuffle not in SHUFFLES:
            raise ConfigError(f"shuffle= is True, False or one of {SHUFFLES}, got {self.shuffle!r}")
        if min(self.window, self.streams, self.granule) < 1:
            raise ConfigError(
                "window=, streams= and granule= are at least 1, got "
                f"{self.window}, {self.streams} and {self.granule}"
            )

    @cached_property
    def identity(self) -> str:
        """What tells it from other orders: 128 bits in hex."""
        parts: list[object] = [self.n, self.shuffle]
        if self.shuffle != "none":
            parts += [self.seed]
        if self.shuffle == "window":
            trails = self.blocks if self.trails is None else np.asarray(self.trails, np.int64)
            parts += [min(self.window, len(self.blocks))]
            parts += [digest_of(bounds).hex() for bounds in (self.blocks, trails)]
        if self.streams > 1:
            parts += [self.streams, self.granule]
        return digest("order", *parts).hex()

    def at(self, epoch: int, visits: Ints) -> Ints:
        """The positions of some visits of an epoch.

        Parameters
        ----------
        epoch
            From 0; of no use where nothing is shuffled.
        visits
            int64[k] in [0, n).

        Returns
        -------
        int64[k]
            Over all n visits, each position once.
        """
        slots = self._slots(np.asarray(visits, np.int64))
        if self.shuffle == "none":
            return slots
        if self.shuffle == "exact":
            return permuted(key_of(self.seed, "order", epoch), self.n, slots)
        return self._windowed(epoch, slots)

    def _slots(self, visits: Ints) -> Ints:
        """Places in the sequence of one stream, of visits that go from stream to stream."""
        if self.streams == 1:
            return visits
        turn, within = np.divmod(visits, self.granule)
        each, more = divmod(-(-self.n // self.granule), self.streams)
        step, stream = np.divmod(turn, self.streams)
        # The last streams are one turn longer, so that the last turn of all is the short one.
        stream = np.where(step == each, stream + self.streams - more, stream)
        begin = stream * each + np.maximum(0, stream - (self.streams - more))
        slots: Ints = (begin + step) * self.granule + within
        return slots

    def _windowed(self, epoch: int, slots: Ints) -> Ints:
        blocks, first = self._mixed(epoch)
        starts = first[:: self.window]
        which = np.searchsorted(starts, slots, side="right") - 1
        found = np.empty_like(slots)
        for window in np.unique(which).tolist():
            mine = which == window
            low = window * self.window
            bounds = first[low : low + self.window + 1]
            key = key_of(self.seed, "window", epoch, window)
            place = permuted(key, int(bounds[-1] - bounds[0]), slots[mine] - bounds[0]) + bounds[0]
            member = low + np.searchsorted(bounds, place, side="right") - 1
            found[mine] = self.blocks[blocks[member]] + place - first[member]
        return found

    def _mixed(self, epoch: int) -> tuple[Ints, Ints]:
        """Blocks in the order of an epoch, and where each begins in it: int64[k], int64[k + 1]."""
        known: dict[int, tuple[Ints, Ints]] = self.__dict__.setdefault("_epochs", {})
        if epoch not in known:
            sizes = np.diff(self.blocks)
            full = np.flatnonzero(sizes)
            blocks = full[self._permuted_runs(epoch, self.blocks[full])]
            if len(known) > 1:
                known.clear()
            known[epoch] = blocks, np.concatenate([[0], np.cumsum(sizes[blocks])])
        return known[epoch]

    def _permuted_runs(self, epoch: int, starts: Ints) -> Ints:
        """A permutation of the blocks that begin at some positions, run by run: int64[k]."""
        key = key_of(self.seed, "blocks", epoch)
        trails = self.blocks if self.trails is None else self.trails
        run = np.searchsorted(trails, starts, side="right")
        begin = np.flatnonzero(np.diff(run, prepend=-1))
        if len(begin) == len(starts):
            return permuted(key, len(starts), _upto(len(starts)))
        n = np.diff(np.append(begin, len(starts)))
        # As many lanes as a window has blocks: the next run goes where the last one ends first.
        lanes = [(0, lane) for lane in range(self.window)]
        first, lane_of = np.empty_like(begin), np.empty_like(begin)
        for k in permuted(key, len(begin), _upto(len(begin))).tolist():
            end, lane = lanes[0]
            first[k], lane_of[k] = end, lane
            heapq.heapreplace(lanes, (end + int(n[k]), lane))
        which = np.repeat(_upto(len(begin)), n)
        within = _upto(len(starts)) - begin[which]
        back = (philox(key, _upto(len(begin)), np.uint64(1))[0] & np.uint64(1)).astype(np.bool_)
        within = np.where(back[which], n[which] - 1 - within, within)
        return np.lexsort((lane_of[which], first[which] + within)).astype(np.int64)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_epochs", "identity")}


def permuted(key: int, n: int, places: Ints) -> Ints:
    """What stands at some places of a permutation of range(n).

    Parameters
    ----------
    key
        64 bits: the permutation.
    n
        Its length.
    places
        int64[k] in [0, n).

    Returns
    -------
    int64[k]

    Examples
    --------
    >>> sorted(permuted(7, 5, np.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """
    if n <= _SORTED:
        return _sorted(key, n)[places]
    # A grid of rows x columns cells, of which fewer than `rows` are none of ours.
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    words = philox(key, np.arange(_ROUNDS), np.uint64(2**32 - 1))
    keys = (words[0] << np.uint64(32) | words[1]).astype(np.uint64)
    found = _network(keys, rows, columns, places)
    # What comes to a cell beyond the end goes round again, until it does not.
    while (beyond := np.flatnonzero(found >= n)).size:
        found[beyond] = _network(keys, rows, columns, found[beyond])
    return found


@lru_cache(maxsize=64)
def _sorted(key: int, n: int) -> Ints:
    """A short permutation as a list: batch after batch asks for the same one."""
    high, low, *_ = philox(key, _upto(n))
    return np.argsort(high << np.uint64(32) | low, kind="stable").astype(np.int64)


def _network(keys: npt.NDArray[np.uint64], rows: int, columns: int, cells: Ints) -> Ints:
    row, column = np.divmod(cells.astype(np.uint64), np.uint64(columns))
    for k, key in enumerate(keys):
        if k % 2:
            row = (row + _hashed(key, column) % np.uint64(rows)) % np.uint64(rows)
        else:
            column = (column + _hashed(key, row) % np.uint64(columns)) % np.uint64(columns)
    return (row * np.uint64(columns) + column).astype(np.int64)


def _hashed(key: np.uint64, value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """64 bits mixed (Stafford's 13th variant, as in SplitMix64)."""
    x = value ^ key
    x = (x ^ x >> np.uint64(30)) * _MIX[0]
    x = (x ^ x >> np.uint64(27)) * _MIX[1]
    return x ^ x >> np.uint64(31)


def _upto(n: int) -> Ints:
    return np.arange(n, dtype=np.int64)
