"""Orientations: the ways in which the axes of a patch can be swapped and flipped; all exact."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

__all__ = ["Orientation", "rotations"]


@dataclass(frozen=True)
class Orientation:
    """Axes in another order, some of them read backwards.

    ``out = np.flip(patch.transpose(order), backward)``, over spatial axes.
    """

    order: tuple[int, ...]
    backward: tuple[int, ...]
    """Axes of the result."""

    @property
    def is_identity(self) -> bool:
        """Whether nothing is moved."""
        return not self.backward and self.order == tuple(range(len(self.order)))

    def flipped(self, axes: Sequence[int]) -> Orientation:
        """With these axes of the result flipped afterwards.

        >>> Orientation((1, 0), (0,)).flipped([0, 1])
        Orientation(order=(1, 0), backward=(1,))
        """
        return Orientation(self.order, tuple(sorted({*self.backward} ^ {*axes})))


@cache
def rotations(ndim: int, axes: tuple[int, ...]) -> tuple[Orientation, ...]:
    """All turns by multiples of 90 degrees that move these axes only.

    Parameters
    ----------
    ndim
        Spatial axes of a patch.
    axes
        Those that are turned. Of none there is one turn, of two there are 4, of three 24.

    Examples
    --------
    >>> [len(rotations(3, axes)) for axes in [(), (1, 2), (0, 1, 2)]]
    [1, 4, 24]
    >>> [(r.order, r.backward) for r in rotations(2, (0, 1))]
    [((0, 1), ()), ((0, 1), (0, 1)), ((1, 0), (0,)), ((1, 0), (1,))]
    """
    found: list[Orientation] = []
    for order in itertools.permutations(axes):
        whole = list(range(ndim))
        for place, axis in zip(axes, order, strict=True):
            whole[place] = axis
        swaps = sum(a > b for a, b in itertools.combinations(order, 2))
        for k in range(len(axes) + 1):
            if (swaps + k) % 2 == 0:
                found += (Orientation(tuple(whole), b) for b in itertools.combinations(axes, k))
    return tuple(found)
