"""Draws: exactly so many of what there is, seeded, without replacement, spread evenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from patchloom.randomness import key_of, philox

__all__ = ["Draw", "apportion", "share_out"]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Draw:
    """Which members of some strata are taken, told as they pass by in their order.

    Of a stratum of n members, q are taken: its members, numbered as they pass, are cut into q
    stretches of equal length (to within one), and of each stretch one is drawn. So exactly q
    are taken, and they are spread as evenly as the members are. The stretches begin at a random
    member, so that each member has the same chance. Only counters are held.

    Parameters
    ----------
    available, taken
        Members of each stratum, and how many of them to take: int64[k] each.
    seed, keys
        Fix the draw; one address a stratum.

    Examples
    --------
    >>> draw = Draw(np.array([6, 2]), np.array([3, 0]), seed=0, keys=["a", "b"])
    >>> draw.next(np.array([0, 0, 1, 0, 0, 1, 0, 0])).sum()
    np.int64(3)
    """

    def __init__(self, available: Ints, taken: Ints, *, seed: int, keys: Sequence[object]) -> None:
        self._available = np.asarray(available, np.int64)
        self._taken = np.minimum(np.asarray(taken, np.int64), self._available)
        self._passed = np.zeros(len(self._available), np.int64)
        self._keys = [key_of("draw", seed, key) for key in keys]
        starts = [key_of("begin", key) for key in self._keys]
        self._begin = [s % max(1, int(n)) for s, n in zip(starts, self._available, strict=True)]

    def next(self, strata: Ints) -> Flags:
        """Whether each of the next members is taken: bool[n].

        Parameters
        ----------
        strata
            Stratum of each, int64[n]; -1 is of none and is not taken.
        """
        flags = np.zeros(len(strata), np.bool_)
        if not len(strata):
            return flags
        order = np.argsort(strata, kind="stable")
        # Only those that are here: there may be as many strata as images.
        here, begins = np.unique(strata[order], return_index=True)
        for stratum, members in zip(here.tolist(), np.split(order, begins[1:]), strict=True):
            if stratum < 0:
                continue
            number = self._passed[stratum] + np.arange(len(members))
            self._passed[stratum] += len(members)
            flags[members] = self._drawn(stratum, number)
        return flags

    def _drawn(self, stratum: int, number: Ints) -> Flags:
        n, q = int(self._available[stratum]), int(self._taken[stratum])
        if q in (0, n):
            return np.full(len(number), q > 0)
        place = (number - self._begin[stratum]) % n
        # Stretch i is [i * n // q, (i + 1) * n // q): in two steps, so that no product overflows.
        stretch = _scaled(place + 1, q, n, up=True) - 1
        first, stop = _scaled(stretch, n, q), _scaled(stretch + 1, n, q)
        word, *_ = philox(self._keys[stratum], stretch, stretch >> 32)
        pick = (word.astype(np.int64) * (stop - first)) >> 32 if n < 2**31 else None
        if pick is None:
            wide = word.astype(object) * (stop - first).astype(object)
            pick = (wide // 2**32).astype(np.int64)
        return np.asarray(place == first + pick, np.bool_)


def _scaled(value: Ints, by: int, over: int, up: bool = False) -> Ints:
    """``value * by / over`` rounded down, or up; exact."""
    if by * (int(value.max(initial=0)) + 1) < 2**62:
        scaled: Ints = -(-value * by // over) if up else value * by // over
        return scaled
    wide = value.astype(object) * by
    return (-(-wide // over) if up else wide // over).astype(np.int64)


def share_out(available: Ints, total: int) -> Ints:
    """Take `total` from several as evenly as they have: int64[k].

    Who has less than an even share gives all; what is missing then is shared by the others.
    What cannot be divided goes to the first ones.

    >>> share_out(np.array([2, 10, 10]), 9).tolist()
    [2, 4, 3]
    """
    available = np.asarray(available, np.int64)
    total = min(total, int(available.sum()))
    taken = np.zeros(len(available), np.int64)
    order = np.argsort(available, kind="stable")
    left = total
    for position, which in enumerate(order.tolist()):
        even = left // (len(order) - position)
        if available[which] > even:
            rest = np.sort(order[position:])
            taken[rest] = even
            # All of the rest have at least one more than the even share.
            taken[rest[: left - even * len(rest)]] += 1
            break
        taken[which] = available[which]
        left -= int(available[which])
    return taken


def apportion(shares: Mapping[int, Fraction], total: int) -> dict[int, int]:
    """Whole numbers in proportion to shares that add up to `total`.

    By largest remainders (Hamilton's method); of equal ones the smaller key comes first.

    >>> apportion({0: Fraction(1, 3), 1: Fraction(2, 3)}, 10)
    {0: 3, 1: 7}
    """
    whole = sum(shares.values())
    exact = {key: share * total / whole for key, share in shares.items()}
    found = {key: int(value) for key, value in exact.items()}
    by_rest = sorted(exact, key=lambda key: (found[key] - exact[key], key))
    for key in by_rest[: total - sum(found.values())]:
        found[key] += 1
    return found
