"""Blending: what a pixel of a tile counts where tiles overlap."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from patchloom.errors import ConfigError

__all__ = ["BLENDS", "Blend", "blend_of", "window"]

Floats = npt.NDArray[np.floating[Any]]
Blend = Literal["hann", "gaussian"]
BLENDS: tuple[Blend, ...] = get_args(Blend)
_SIGMA = 8
"""Standard deviations of a Gaussian that a tile extends over."""


def blend_of(given: object) -> Blend | None:
    """One of `BLENDS`, or None.

    Raises
    ------
    ConfigError
        If it is something else.
    """
    if given is None or given in BLENDS:
        return given
    raise ConfigError(
        f"blend= is one of {list(BLENDS)}, or None, which crops tiles and blends none, got "
        f"{given!r}"
    )


def window(size: Sequence[int], blend: Blend, dtype: npt.DTypeLike = np.float64) -> Floats:
    """What each pixel of a tile counts: greater than 0, and most in the middle.

    The product of one column an axis. Of n pixels, pixel i counts ``sin(pi * (i + 1/2) / n) ** 2``
    (``"hann"``, which falls to almost 0 at both ends), or ``exp(-u ** 2 / 2)`` with u the distance
    from the middle in eighths of n (``"gaussian"``). Weights of several tiles over one pixel are
    divided by their sum.

    Parameters
    ----------
    size
        Extent of a tile on each axis, in pixels.
    blend
        Which one.
    dtype
        Of the weights.

    Returns
    -------
    float[*size]

    >>> window((4,), "hann").round(3).tolist()
    [0.146, 0.854, 0.854, 0.146]
    >>> window((4,), "gaussian").round(3).tolist()
    [0.011, 0.607, 0.607, 0.011]
    """
    columns = []
    for n in size:
        middle = np.arange(n) + 0.5
        if blend == "hann":
            column = np.sin(np.pi * middle / n) ** 2
        else:
            column = np.exp(-(((middle - n / 2) * (_SIGMA / n)) ** 2) / 2)
        columns.append(column)
    whole: Floats = reduce(np.multiply.outer, columns)
    return whole.astype(dtype)
