"""Chance of patches: columns of random numbers, by seed, epoch, position and purpose."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index as whole

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.randomness import key_of, philox

__all__ = ["Chance"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_LOW = 2**32 - 1


@dataclass(frozen=True)
class Chance:
    """Random numbers of n patches; no patch's depend on which others are asked for with it.

    Every purpose is a stream of its own, so that two of them are independent.

    Examples
    --------
    >>> one = Chance.of([7, 3], seed=0).uniform("flip", 2)
    >>> other = Chance.of([3], seed=0).uniform("flip", 1)
    >>> bool(one[1, 0] == other[0, 0])
    True
    """

    seed: int
    epoch: int
    positions: Ints
    """int64[n], not negative."""
    planes: Ints
    """int64[n]: which plane of its patch, where planes are drawn for apart; else 0."""
    turns: Ints
    """int64[n]: which of several draws of the same patch."""

    @classmethod
    def of(
        cls,
        positions: npt.ArrayLike,
        *,
        seed: int,
        epoch: int = 0,
        draw: npt.ArrayLike = 0,
        planes: int = 1,
    ) -> Chance:
        """Of patches, or of each of their planes.

        Parameters
        ----------
        positions
            int[n], not negative.
        seed, epoch
            Whole numbers.
        draw
            Which of several draws of the same patch in one epoch: one for all, or int[n].
        planes
            Planes of a patch that are drawn for apart: n * planes rows, patch by patch.

        Raises
        ------
        ConfigError
            If these are no such numbers.
        """
        found = np.asarray(positions)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu") or (found < 0).any():
            raise ConfigError(
                "a draw is addressed by the position of its patch: whole numbers from 0, one a "
                f"patch; got {found.dtype}{list(found.shape)}"
            )
        turns = np.asarray(draw)
        if turns.dtype.kind not in "iu" or turns.shape not in ((), found.shape):
            raise ConfigError(
                "draw= is a whole number, or one a patch, got "
                f"{turns.dtype}{list(turns.shape)} for {len(found)} patches"
            )
        rows = found.astype(np.int64).repeat(planes)
        return cls(
            whole(seed),
            whole(epoch),
            rows,
            np.tile(np.arange(planes), len(found)),
            np.broadcast_to(turns, found.shape).astype(np.int64).repeat(planes),
        )

    def words(self, purpose: str, n: int) -> npt.NDArray[np.uint64]:
        """uint64[rows, n] in [0, 2**32)."""
        kinds, which = np.unique(self.turns, return_inverse=True)
        keys = [key_of("augment", self.seed, self.epoch, k, purpose) for k in kinds.tolist()]
        place = self.positions[:, None]
        block = np.arange(-(-n // 4))
        drawn = philox(
            np.array(keys, np.uint64)[which][:, None],
            place & _LOW,
            place >> 32,
            self.planes[:, None],
            block,
        )
        return np.stack(drawn, -1).reshape(len(place), 4 * len(block))[:, :n]

    def uniform(self, purpose: str, n: int) -> Floats:
        """float64[rows, n] in (0, 1)."""
        return (self.words(purpose, n).astype(np.float64) + 0.5) / 2.0**32

    def between(self, purpose: str, low: npt.ArrayLike, high: npt.ArrayLike) -> Floats:
        """float64[rows, n] between two columns of n ends."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        found: Floats = low + (high - low) * self.uniform(purpose, low.size)
        return found

    def normal(self, purpose: str, n: int) -> Floats:
        """float64[rows, n] of mean 0 and standard deviation 1."""
        from scipy.special import ndtri

        found: Floats = ndtri(self.uniform(purpose, n))
        return found
