"""Exact sums of numbers and of their squares, as whole numbers of any length.

A sum that is never rounded does not depend on the order of its terms, so that mean and standard
deviation are the same to the last bit however the pixels were cut.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from patchloom.summaries.keys import Floats, Ints

__all__ = ["Sums", "deviation", "mean", "power_sums", "rounded_sums"]

_UNIT = 1074
"""Every float64 is a multiple of 2^-1074."""
_MOST = 4400
"""Bits of a sum of squares of fewer than 2^63 numbers, and some more."""
_PIECE = 2**15
"""Numbers that are added together: they stay in the cache, and their sum needs few bits more."""
_SLICE = 19
"""Bits of a slice: two of them and 15 for the sum of a piece fill a float64."""
_SLICES = 4
"""Slices that are multiplied with one another."""
_SHIFTS = (0, 600, -540)
"""Powers of 2 that bring usual, tiny and huge numbers where squares neither over- nor underflow."""
_LOW, _HIGH = 2.0**-470, 2.0**450


class Sums(NamedTuple):
    """Exact sums of finite numbers."""

    first: int = 0
    """Sum of the numbers, in units of 2^-1074."""
    second: int = 0
    """Sum of their squares, in units of 2^-2148."""

    def plus(self, other: Sums) -> Sums:
        """The sums of both."""
        return Sums(self.first + other.first, self.second + other.second)

    def times(self, n: int) -> Sums:
        """The sums if each number occurs `n` times as often."""
        return Sums(self.first * n, self.second * n)

    def to_text(self) -> list[str]:
        """Both as an odd whole number and a power of two: ``"-3p1074"`` is -3 · 2^1074 units."""
        return [_odd(self.first), _odd(self.second)]

    @classmethod
    def from_text(cls, texts: list[str]) -> Sums:
        """Inverse of `to_text`.

        Raises
        ------
        ValueError
            If it is none, or no sum of fewer than 2^63 numbers is as large.
        """
        first, second = (text.partition("p")[::2] for text in texts)
        if any(len(n) * 4 > _MOST or len(p) > 4 or int(p) > _MOST for n, p in (first, second)):
            raise ValueError("a sum of numbers has some thousand bits at most")
        return cls(*(int(number, 16) << int(power) for number, power in (first, second)))

    def fit(self, n: int) -> bool:
        """Whether `n` numbers can have these sums."""
        size = abs(self.first) >> _UNIT + 1024
        return size <= n and self.first**2 <= n * self.second <= n * n << 2 * (_UNIT + 1024)


def mean(sums: Sums, n: int) -> float:
    """The correctly rounded mean of `n` numbers."""
    return sums.first / (n << _UNIT)


def deviation(sums: Sums, n: int) -> float:
    """The standard deviation of `n` numbers, from n Σx² - (Σx)², which is exact here."""
    spread = n * sums.second - sums.first**2
    # As many digits as a float64 has and some more, whatever the size.
    more = max(0, 140 - spread.bit_length() + 1) // 2
    return math.isqrt(spread << (2 * more)) / (n << (_UNIT + more))


def rounded_sums(total: float, squares: float, n: int) -> Sums:
    """Sums that give this mean times `n` and this sum of squared differences from the mean."""
    first = _whole(total)
    # Rounded up: no spread is less than 0.
    return Sums(first, (_whole(squares) << _UNIT) - (-first * first // n))


def power_sums(values: Floats, counts: Ints | None = None, *, short: bool = False) -> Sums:
    """Exact sums of finite numbers.

    Parameters
    ----------
    values
        float64[n], finite.
    counts
        How often each occurs, int64[n]; once if None.
    short
        Whether all that are not 0 have an absolute value from 2^-470 to 2^450.
    """
    total = Sums()
    if counts is not None:
        if (found := _whole_sums(values, counts)) is not None:
            return found
        # Numbers of times are sums of powers of two.
        for bit in range(int(counts.max(initial=0)).bit_length()):
            part = power_sums(values[(counts >> bit) & 1 == 1], short=short)
            total = total.plus(part.times(1 << bit))
        return total
    for start in range(0, len(values), _PIECE):
        some = values[start : start + _PIECE]
        if short:
            total = total.plus(_band(some, 0))
            continue
        size = np.abs(some)
        tiny, huge = size < _LOW, size > _HIGH
        if not (tiny & (size > 0)).any() and not huge.any():
            total = total.plus(_band(some, 0))
            continue
        for mine, shift in zip((~(tiny | huge), tiny, huge), _SHIFTS, strict=True):
            total = total.plus(_band(some[mine], shift))
    return total


def _whole_sums(values: Floats, counts: Ints) -> Sums | None:
    """Sums of whole numbers, if 64 bits hold them, as those of most integer images."""
    top = float(np.abs(values).max(initial=0))
    if top >= 2**31 or top * top * float(counts.sum()) >= 2.0**62:
        return None
    whole = values.astype(np.int64)
    if (whole != values).any():
        return None
    often = whole * counts
    return Sums(int(often.sum()) << _UNIT, int(often @ whole) << 2 * _UNIT)


def _band(values: Floats, shift: int) -> Sums:
    """Sums of up to `_PIECE` numbers that 2^shift brings to a usual size.

    Each number is cut into slices of so few bits that sums of products of slices are float64 in
    any order. After K. Ozaki, T. Ogita, S. Oishi, S. M. Rump, "Error-free transformations of
    matrix multiplication by using fast routines of matrix multiplication", Numer. Algorithms 59,
    2012; the slices are cut as S. M. Rump, T. Ogita, S. Oishi do in "Accurate floating-point
    summation", SIAM J. Sci. Comput. 31, 2008.
    """
    values = np.ldexp(values, shift) if shift else values
    first = second = 0
    while values.size:
        slices, rest = _sliced(values)
        left = rest != 0
        if more := bool(left.any()):
            # Much smaller than the largest, and cut too short: they follow by themselves.
            for part in slices:
                part[left] = 0
        for k, part in enumerate(slices):
            first += _whole(float(part.sum()))
            second += _whole(float(np.einsum("i,i", part, part)))
            for other in slices[:k]:
                second += 2 * _whole(float(np.einsum("i,i", part, other)))
        values = values[left] if more else values[:0]
    second <<= _UNIT
    if shift > 0:
        return Sums(first >> shift, second >> 2 * shift)
    return Sums(first << -shift, second << -2 * shift)


def _sliced(values: Floats) -> tuple[list[Floats], Floats]:
    """At most `_SLICES` slices of each number, from the top of the largest, and what is left."""
    top = max(-float(values.min()), float(values.max()))
    unit = math.frexp(top)[1] - _SLICE
    slices: list[Floats] = []
    rest = values.copy()
    while len(slices) < _SLICES and rest.any():
        # Adding a large number rounds to multiples of 2^unit.
        lead = math.ldexp(1.5, unit + 52)
        upper = rest + lead
        upper -= lead
        rest -= upper
        slices.append(upper)
        unit -= _SLICE + 1
    return slices, rest


def _whole(number: float) -> int:
    numerator, denominator = number.as_integer_ratio()
    return numerator << (_UNIT + 1 - denominator.bit_length())


def _odd(number: int) -> str:
    power = (number & -number).bit_length() - 1 if number else 0
    return f"{number >> power:x}p{power}"
