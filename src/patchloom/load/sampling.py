"""Sampling: patches drawn by weight, with or without replacement, as a function of the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError
from patchloom.load.order import permuted
from patchloom.load.reader import Ints
from patchloom.load.weights import Floats, checked
from patchloom.randomness import digest, digest_of, key_of, philox

__all__ = ["Sampling"]

_LOW = 2**32 - 1
_TERMS = 12
"""Of a series whose terms fall by 34 each: more would change no bit."""
_LN2 = 0.6931471805599453


@dataclass(frozen=True, eq=False)
class Sampling:
    """Visits of an epoch drawn at random: an `Ordering`, as `Order` is one.

    With replacement each visit is a draw of its own, fixed by (seed, epoch, visit). Without, the
    patches of an epoch are those that are drawn one after another, each from what is left, in
    proportion to its weight (Efraimidis and Spirakis, "Weighted random sampling with a reservoir",
    2006); patches of weight 0 are never drawn.

    Examples
    --------
    >>> drawn = Sampling(4, weights=np.array([0, 1, 1, 2.0]), seed=1)
    >>> drawn.n, 0 in drawn.at(0, np.arange(4))
    (4, False)
    >>> once = Sampling(4, weights=np.array([0, 1, 1, 2.0]), replacement=False, seed=1)
    >>> once.n, sorted(once.at(0, np.arange(3)).tolist())
    (3, [1, 2, 3])
    """

    patches: int
    """To draw from."""
    visits: int | None = None
    """Of an epoch; None: as many as patches, without replacement as many as can be drawn."""
    weights: Floats | None = field(default=None, repr=False)
    """float64[patches]; None: all are equal."""
    replacement: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.weights is not None:
            weights = checked(np.asarray(self.weights, np.float64))
            if weights.shape != (self.patches,):
                raise ConfigError(
                    f"weights= has one number a patch, got {weights.shape} for {self.patches}"
                )
            object.__setattr__(self, "weights", weights)
        if self.visits is None:
            object.__setattr__(self, "visits", self._most)
        elif self.visits < 0 or (self.visits and not self._most):
            raise ConfigError(
                f"an epoch has some visits of {self._most} patches, got {self.visits}"
            )
        elif not self.replacement and self.visits > self._most:
            raise ConfigError(
                f"without replacement an epoch visits each patch of a weight above 0 once at most, "
                f"got {self.visits} visits of {self._most} such patches; draw fewer, or with "
                "replacement"
            )

    @property
    def _most(self) -> int:
        """Patches that can be drawn."""
        if self.replacement or self.weights is None:
            return self.patches
        return int(np.count_nonzero(self.weights))

    @property
    def n(self) -> int:
        """Visits of an epoch."""
        assert self.visits is not None
        return self.visits

    @cached_property
    def identity(self) -> str:
        """What tells it from other orders: 128 bits in hex."""
        weights = None if self.weights is None else digest_of(self.weights).hex()
        parts = (self.patches, self.visits, weights, self.replacement, self.seed)
        return digest("sampling", *parts).hex()

    def at(self, epoch: int, visits: Ints) -> Ints:
        """The positions of some visits of an epoch.

        Parameters
        ----------
        epoch
            From 0.
        visits
            int64[k] in [0, n).

        Returns
        -------
        int64[k]
        """
        visits = np.asarray(visits, np.int64)
        key = key_of(self.seed, "sample", epoch)
        if self.replacement:
            return self._drawn(_uniform(key, visits))
        if self.weights is None:
            return permuted(key, self.patches, visits)
        return self._once(epoch, key)[visits]

    def _drawn(self, chance: Floats) -> Ints:
        if self.weights is None:
            return np.minimum((chance * self.patches).astype(np.int64), self.patches - 1)
        upto, last = self._cumulated
        found = np.searchsorted(upto, chance * upto[-1], side="right") if len(upto) else chance
        return np.minimum(found, last).astype(np.int64)

    @cached_property
    def _cumulated(self) -> tuple[Floats, int]:
        """Sums of weights up to each patch, and the last one that can be drawn."""
        assert self.weights is not None
        if not len(self.weights):
            return np.zeros(0), 0
        # Divided first, so that no sum overflows.
        return np.cumsum(self.weights / self.weights.max()), int(np.flatnonzero(self.weights)[-1])

    def _once(self, epoch: int, key: int) -> Ints:
        """The patches of an epoch in the order in which they are drawn."""
        known: dict[int, Ints] = self.__dict__.setdefault("_epochs", {})
        if epoch not in known:
            assert self.weights is not None
            some = np.flatnonzero(self.weights)
            waits = _waits(_uniform(key, some)) / (self.weights[some] / self.weights.max())
            if self.n < len(some):
                first = np.argpartition(waits, self.n)[: self.n]
                some, waits = some[np.sort(first)], waits[np.sort(first)]
            if len(known) > 1:
                known.clear()
            known[epoch] = some[np.argsort(waits, kind="stable")].astype(np.int64)
        return known[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return {
            k: v for k, v in self.__dict__.items() if k not in ("_epochs", "_cumulated", "identity")
        }


def _uniform(key: int, address: Ints) -> Floats:
    """A number in (0, 1) for each address."""
    high, low, *_ = philox(key, address & _LOW, address >> 32)
    word = (high << np.uint64(32) | low) >> np.uint64(11)
    return (word.astype(np.float64) + 0.5) * 2.0**-53


def _waits(chance: Floats) -> Floats:
    """``-log`` of numbers in (0, 1): waiting times.

    Of sums, products and quotients only, which all machines round alike.
    """
    part, power = np.frexp(chance)
    small = part < 0.7071067811865476
    part, power = np.where(small, part * 2, part), power - small
    s = (part - 1) / (part + 1)
    square: npt.NDArray[np.float64] = s * s
    series = np.zeros_like(s)
    for k in range(_TERMS, -1, -1):
        series = series * square + 1 / (2 * k + 1)
    waits: Floats = -(power * _LN2 + 2 * s * series)
    return waits
