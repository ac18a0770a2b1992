"""Batching: which visits of an epoch make a batch, on which rank and in which worker.

What was visited so far is one number, the visits from the beginning of the epoch: ranks go in step,
so whoever resumes, with however many ranks or workers, goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchloom.errors import ConfigError
from patchloom.load.reader import Ints

__all__ = ["UNEVEN", "Batching"]

UNEVEN = ("repeat", "drop")
"""What is done with fewer patches than ranks."""


@dataclass(frozen=True)
class Batching:
    """Steps of an epoch, each a batch on every rank.

    A step visits ``batch_size * world`` patches, its ranks one stretch of ``batch_size`` each.
    What is left at the end is shared: all ranks make as many steps, each patch is visited once,
    and the batches of the last one or two steps are smaller. Only fewer patches than ranks cannot
    be shared (of an epoch, or at its end with ``batch_size=1``): ``uneven=`` says what then.

    Examples
    --------
    >>> parts = [Batching(11, 2, rank=rank, world=2) for rank in (0, 1)]
    >>> [[part.batch(step).tolist() for step in range(part.n_steps)] for part in parts]
    [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10]]]
    """

    n: int
    """Visits of the epoch."""
    batch_size: int
    """Of one rank."""
    start: int = 0
    """Visits that were made before the first step."""
    rank: int = 0
    world: int = 1
    """Ranks."""
    drop_last: bool = False
    """Whether only whole batches are made: fewer than ``batch_size * world`` patches are left out
    in an epoch."""
    uneven: str = "repeat"
    """``"repeat"``: some visits of the epoch's beginning are repeated, so that each rank has one.
    ``"drop"``: the visits are left out."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size= is at least 1, got {self.batch_size}")
        if not 0 <= self.rank < self.world:
            raise ConfigError(
                f"rank= is one of 0 to world - 1, got rank {self.rank} of world {self.world}"
            )
        if self.uneven not in UNEVEN:
            raise ConfigError(f"uneven= is one of {UNEVEN}, got {self.uneven!r}")

    @property
    def stride(self) -> int:
        """Visits of a whole step, over all ranks."""
        return self.batch_size * self.world

    @property
    def left(self) -> int:
        """Visits from the start on."""
        return max(0, self.n - self.start)

    @property
    def n_steps(self) -> int:
        """Batches that each rank makes from the start on."""
        whole, rest = divmod(self.left, self.stride)
        return whole + bool(rest and not self.drop_last and not self._is_lost(rest))

    def _is_lost(self, rest: int) -> bool:
        """Whether what is left after whole steps makes none of its own."""
        alone = self.batch_size == 1 or self.left < self.world
        return self.uneven == "drop" and rest < self.world and alone

    def visited(self, steps: int) -> int:
        """Visits of the epoch that are made, over all ranks, after some steps."""
        return self._bound(steps)

    def batch(self, step: int) -> Ints:
        """The visits of one batch of this rank.

        Parameters
        ----------
        step
            Batches since the start, in [0, n_steps).

        Returns
        -------
        int64[k]
            Of the epoch; ascending, but for some that are repeated.
        """
        begin, end = self._bound(step), self._bound(step + 1)
        size = end - begin
        if size < self.world:
            visits = np.arange(begin, begin + self.world, dtype=np.int64)
            return visits[self.rank : self.rank + 1] % self.n
        each, more = divmod(size, self.world)
        first = begin + self.rank * each + min(self.rank, more)
        return np.arange(first, first + each + (self.rank < more), dtype=np.int64)

    def _bound(self, steps: int) -> int:
        """Where the so-many-th step begins."""
        whole, rest = divmod(self.left, self.stride)
        if steps > whole:
            return self.n
        # A rest that is less than one patch a rank is taken from the step before it, so that it is.
        short = steps == whole > 0 and 0 < rest < self.world and not self.drop_last
        borrow = self.world - rest if short and self.batch_size > 1 else 0
        return self.start + steps * self.stride - borrow
