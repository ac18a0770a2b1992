"""Ranges: what a random number lies between, by axis or plane."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from patchloom.errors import ConfigError

__all__ = ["Ranges", "by_axis", "by_plane", "ends", "letters"]

Ranges = tuple[tuple[str, float, float], ...]
"""Axis or plane, least and greatest value; those in which nothing happens are left out."""

_SPACE = "zyx"
_PLANES = ("zy", "zx", "yx")


def letters(name: str, value: str) -> str:
    """Spatial axes in their order.

    Raises
    ------
    ConfigError
        If they are none, or twice.

    >>> letters("flip", "xy")
    'yx'
    """
    if not isinstance(value, str) or set(value) - {*_SPACE} or len({*value}) != len(value):
        raise ConfigError(f"{name}= is made of letters out of {_SPACE!r}, each once; got {value!r}")
    return "".join(axis for axis in _SPACE if axis in value)


def ends(name: str, value: Any, middle: float = 0.0) -> tuple[float, float]:
    """Least and greatest value of a range.

    Parameters
    ----------
    name
        Of the parameter, for the error.
    value
        A width, or both.
    middle
        What a width is about.

    Raises
    ------
    ConfigError
        If it is no range.

    Examples
    --------
    >>> ends("zoom_range", 0.25, middle=1), ends("zoom_range", (0.5, 1), middle=1)
    ((0.75, 1.25), (0.5, 1.0))
    """
    try:
        if isinstance(value, str):
            raise TypeError("text")
        if isinstance(value, (tuple, list)):
            low, high = map(float, value)
        else:
            low, high = middle - float(value), middle + float(value)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ConfigError(
            f"{name}= is a number that is not negative, or a pair (low, high); got {value!r}"
        )
    return low, high


def by_axis(name: str, value: Any, middle: float = 0.0) -> Ranges:
    """Ranges of axes; a single one is of y and of x.

    >>> by_axis("shift_range", {"z": 0.5, "x": (0, 1)})
    (('z', -0.5, 0.5), ('x', 0.0, 1.0))
    """
    return _parsed(name, value, middle, tuple(_SPACE), ("y", "x"))


def by_plane(name: str, value: Any) -> Ranges:
    """Ranges of planes; a single one is of the plane yx.

    >>> by_plane("rotation_range", 10)
    (('yx', -10.0, 10.0),)
    """
    return _parsed(name, value, 0.0, _PLANES, ("yx",))


def _parsed(
    name: str, value: Any, middle: float, known: tuple[str, ...], usual: tuple[str, ...]
) -> Ranges:
    if isinstance(value, tuple) and all(isinstance(one, tuple) for one in value):
        value = {key: (low, high) for key, low, high in value}
    asked: Mapping[str, Any] = value if isinstance(value, Mapping) else dict.fromkeys(usual, value)
    if unknown := [key for key in asked if key not in known]:
        raise ConfigError(f"{name}= is told for {list(known)}, got {unknown}")
    found = [(key, *ends(name, asked[key], middle)) for key in known if key in asked]
    return tuple(one for one in found if one[1:] != (middle, middle))
