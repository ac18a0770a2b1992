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
_PIECE = 2**14
"""Numbers that are added together: they stay in the cache, and their sum needs few bits more."""
_LIMB = 26
"""Bits of a count that times half a number still fit a float64."""
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
        """Inverse of `to_text`."""
        pairs = (text.split("p") for text in texts)
        return cls(*(int(number, 16) << int(power) for number, power in pairs))


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
    if not n or not math.isfinite(total) or not math.isfinite(squares):
        return Sums()
    first = _whole(total)
    return Sums(first, (_whole(squares) << _UNIT) + first * first // n)


def power_sums(values: Floats, counts: Ints | None = None, *, short: bool = False) -> Sums:
    """Exact sums of finite numbers.

    Parameters
    ----------
    values
        float64[n], finite.
    counts
        How often each occurs, int64[n]; once if None.
    short
        Whether the numbers have at most 26 bits and are no smaller or greater than a float32,
        so that their squares are float64 too.
    """
    total = Sums()
    for start in range(0, len(values), _PIECE):
        some = values[start : start + _PIECE]
        often = None if counts is None else counts[start : start + _PIECE]
        if short:
            total = total.plus(_band(some, often, 0, True))
            continue
        size = np.abs(some)
        usual = (size >= _LOW) & (size <= _HIGH) | (size == 0)
        if usual.all():
            total = total.plus(_band(some, often, 0, False))
            continue
        for band, shift in zip((usual, size < _LOW, size > _HIGH), _SHIFTS, strict=True):
            mine = band & (size > 0)
            part = None if often is None else often[mine]
            total = total.plus(_band(some[mine], part, shift, False))
    return total


def _band(values: Floats, counts: Ints | None, shift: int, short: bool) -> Sums:
    """Sums of numbers that 2^shift brings to a usual size."""
    if shift:
        values = np.ldexp(values, shift)
    squares = values * values
    rest = np.zeros(0) if short else _error_of_square(values, squares)
    if counts is None:
        first, second = _exact_sum(values), _exact_sum(squares) + _exact_sum(rest)
    else:
        first, second = _counted(values, counts), _counted(squares, counts)
        if len(rest):
            second += _counted(rest, counts)
    second <<= _UNIT
    if shift > 0:
        return Sums(first >> shift, second >> 2 * shift)
    return Sums(first << -shift, second << -2 * shift)


def _exact_sum(numbers: Floats) -> int:
    """Σ numbers in units of 2^-1074.

    Adding and taking away a power of two leaves the upper bits of each number, few enough that
    their sum is a float64 in any order; what is left follows in the next turn. From S. M. Rump,
    T. Ogita, S. Oishi, "Accurate floating-point summation, part I", SIAM J. Sci. Comput. 31, 2008.
    """
    total = 0
    while numbers.size:
        top = max(-float(numbers.min()), float(numbers.max()))
        if not top:
            break
        room = math.frexp(top)[1] + (numbers.size + 2).bit_length() + 1
        lead = math.ldexp(1.0, room)
        upper = (numbers + lead) - lead
        total += _whole(float(upper.sum()))
        numbers = numbers - upper
    return total


def _counted(numbers: Floats, counts: Ints) -> int:
    """Σ numbers · counts in units of 2^-1074: halves of numbers times limbs of counts are exact."""
    upper, lower = _halves(numbers)
    total, shift = 0, 0
    while counts.any():
        limb = (counts & (2**_LIMB - 1)).astype(np.float64)
        total += (_exact_sum(upper * limb) + _exact_sum(lower * limb)) << shift
        counts = counts >> _LIMB
        shift += _LIMB
    return total


def _halves(numbers: Floats) -> tuple[Floats, Floats]:
    """Each number as the sum of two of at most 26 bits.

    After G. W. Veltkamp; T. J. Dekker, "A floating-point technique for extending the available
    precision", Numer. Math. 18, 1971.
    """
    large = numbers * 134_217_729.0
    upper = large - (large - numbers)
    return upper, numbers - upper


def _error_of_square(numbers: Floats, squares: Floats) -> Floats:
    """What the rounded squares lack (Dekker 1971)."""
    upper, lower = _halves(numbers)
    return ((upper * upper - squares) + 2.0 * upper * lower) + lower * lower


def _whole(number: float) -> int:
    numerator, denominator = number.as_integer_ratio()
    return numerator << (_UNIT + 1 - denominator.bit_length())


def _odd(number: int) -> str:
    power = (number & -number).bit_length() - 1 if number else 0
    return f"{number >> power:x}p{power}"
