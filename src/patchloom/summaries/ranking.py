"""Which ranks a percentile lies between, and what lies between them: NumPy's methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from patchloom.errors import ConfigError
from patchloom.summaries.keys import Floats, Ints

__all__ = ["METHODS", "between", "middle", "ranks"]

_POSITIONS = {
    "interpolated_inverted_cdf": (0.0, 1.0),
    "hazen": (0.5, 0.5),
    "weibull": (0.0, 0.0),
    "median_unbiased": (1 / 3.0, 1 / 3.0),
    "normal_unbiased": (3 / 8.0, 3 / 8.0),
}
"""Plotting positions alpha and beta of R. J. Hyndman, Y. Fan, "Sample quantiles in statistical
packages", The American Statistician 50, 1996."""
METHODS = (
    *("linear", "lower", "higher", "nearest", "midpoint"),
    *("inverted_cdf", "averaged_inverted_cdf", *_POSITIONS),
)
"""What `method=` may be: all of `numpy.percentile` but ``"closest_observation"``, of which the
versions of NumPy have different ideas."""


def ranks(n: int, q: Sequence[float], method: str) -> tuple[Ints, Ints, Floats]:
    """Ranks below and above each percentile of `n` numbers, and how far it is on the way.

    Parameters
    ----------
    n
        At least 1.
    q
        In percent, from 0 to 100.
    method
        One of `METHODS`.

    Returns
    -------
    int64[k], int64[k], float64[k]
        From 0 to n - 1; the last one is 0 where the percentile is the number below.

    Raises
    ------
    ConfigError
        If `method` is none of them.
    """
    if method not in METHODS:
        raise ConfigError(f"a percentile's method is one of {', '.join(METHODS)}, got {method!r}")
    quantiles = np.asarray(q, np.float64) / 100.0
    at = _positions(n, quantiles, method)
    below = np.floor(at)
    part = at - below
    if method == "midpoint":
        part = np.where(part > 0, 0.5, 0.0)
    elif method == "averaged_inverted_cdf":
        part = np.where(part > 0, 1.0, 0.5)
    part[(at >= n - 1) | (at < 0)] = 0.0
    lower = np.clip(below, 0, n - 1).astype(np.int64)
    # n - 1 as a float64 may be n.
    lower = np.minimum(lower, n - 1)
    return lower, np.where(part > 0, np.minimum(lower + 1, n - 1), lower), part


def _positions(n: int, quantiles: Floats, method: str) -> Floats:
    """Where each percentile lies among the sorted numbers, counted from 0."""
    if method in _POSITIONS:
        alpha, beta = _POSITIONS[method]
        return np.asarray(n * quantiles + (alpha + quantiles * (1 - alpha - beta)) - 1)
    if method == "averaged_inverted_cdf":
        return n * quantiles - 1
    if method == "inverted_cdf":
        return np.maximum(np.ceil(n * quantiles - 1), 0)
    at = (n - 1) * quantiles
    if method == "lower":
        return np.floor(at)
    if method == "higher":
        return np.ceil(at)
    return np.around(at) if method == "nearest" else at


def between(a: Floats, b: Floats, part: Floats) -> Floats:
    """The numbers `part` of the way from a to b, rounded as NumPy rounds them.

    Where NumPy says NaN, since it takes infinity from infinity or times 0, the limit is given.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        step = b - a
        # NumPy interpolates from the nearer end, which keeps the result inside [a, b].
        found = np.where(part >= 0.5, b - step * (1 - part), a + step * part)
        found = np.where((part == 0) | (a == b), a, found)
        limit = a * (1 - part) + b * part
    found = np.where(np.isnan(found), limit, found)
    return np.asarray(found + 0.0)


def middle(a: float, b: float) -> float:
    """The mean of two numbers, as `numpy.median` takes it; no overflow."""
    total = a + b
    return total / 2 if math.isfinite(total) else a / 2 + b / 2
