"""What statistics are asked for: percentiles and a method, checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from patchloom.errors import ConfigError
from patchloom.summaries import METHODS

__all__ = [
    "EACH",
    "OVER",
    "check_low_high",
    "check_method",
    "check_percentiles",
    "check_pixels",
    "quantiles_of",
]

OVER = ("image", "mask", "patches")
"""Of which pixels statistics may be."""
EACH = ("once", "taken")
"""Whether a pixel counts once, or as often as patches take it."""


def check_pixels(over: str, each: str = "once") -> None:
    """Of which pixels statistics are, and how often each of these counts.

    Raises
    ------
    ConfigError
        If one is none of its choices, or they do not go together.
    """
    for name, value, choices in (("over", over, OVER), ("each", each, EACH)):
        if value not in choices:
            raise ConfigError(f"{name}= is one of {list(choices)}, got {value!r}")
    if each == "taken" and over != "patches":
        raise ConfigError(
            f"each='taken' counts a pixel as often as patches take it, got over={over!r}; take "
            "over='patches' of a plan, or each='once'"
        )


def check_percentiles(q: Sequence[float]) -> tuple[float, ...]:
    """Percentiles in percent, as floats.

    Raises
    ------
    ConfigError
        If one is not in [0, 100].
    """
    try:
        found = tuple(float(v) for v in q)
    except (TypeError, ValueError):
        found = (math.nan,)
    if any(not 0 <= v <= 100 for v in found) or len(set(found)) != len(found):
        raise ConfigError(
            f"percentiles are different numbers in percent, from 0 to 100, got {q!r}; "
            "give a list such as (1, 99)"
        )
    return found


def check_low_high(q: Sequence[float]) -> tuple[float, float]:
    """A low and a high percentile, in that order.

    Raises
    ------
    ConfigError
        If there are not two.
    """
    found = check_percentiles(q)
    if len(found) != 2 or found[0] > found[1]:
        raise ConfigError(
            f"this takes a low and a high percentile, in that order, got {q!r}; give (1, 99)"
        )
    return found[0], found[1]


def check_method(method: str) -> str:
    """How percentiles lie between pixels: one of NumPy's names.

    Raises
    ------
    ConfigError
        If it is another.
    """
    if method not in METHODS:
        raise ConfigError(f"method= is one of {list(METHODS)}, got {method!r}")
    return method


def quantiles_of(q: Sequence[float]) -> list[float]:
    """Percentiles as decimals.

    >>> quantiles_of((99.9,)), 99.9 / 100
    ([0.999], 0.9990000000000001)
    """
    return [float(Fraction(str(v)) / 100) for v in q]
