"""Splines: smooth displacements from a coarse grid of control points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["anchored", "basis", "field"]

Floats = npt.NDArray[np.float64]


def basis(extent: int, grid_size: int) -> Floats:
    """What each control point counts for at each pixel of an axis.

    Uniform cubic B-splines on `grid_size` cells between the centres of the first and the last
    pixel, as SimpleITK's BSplineTransform has them.

    Returns
    -------
    float64[extent, grid_size + 3]
        Every row adds up to 1.

    Examples
    --------
    >>> basis(3, 1).round(3).tolist()
    [[0.167, 0.667, 0.167, 0.0], [0.021, 0.479, 0.479, 0.021], [0.0, 0.167, 0.667, 0.167]]
    """
    place = np.arange(extent) * (grid_size / max(1, extent - 1))
    cell = np.minimum(place.astype(np.int64), grid_size - 1)
    t = place - cell
    parts = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    out = np.zeros((extent, grid_size + 3))
    for k, part in enumerate(parts):
        out[np.arange(extent), cell + k] = part / 6
    return out


def anchored(inner: Floats, ndim: int) -> Floats:
    """Control points with a rim of zeros: float64[..., g + 3, ...] from float64[..., g + 1, ...].

    Parameters
    ----------
    inner
        Displacements of control points, over the last `ndim` axes.
    """
    rim = [(0, 0)] * (inner.ndim - ndim) + [(1, 1)] * ndim
    return np.pad(inner, rim)


def field(control: Floats, bases: list[Floats]) -> Floats:
    """Displacement of every pixel: float64[d, *extents].

    Parameters
    ----------
    control
        Of one patch, float64[d, g + 3, ...], in pixels.
    bases
        From `basis`, one an axis, or some rows of it.
    """
    out = control
    for axis, one in enumerate(bases, 1):
        out = np.moveaxis(np.tensordot(one, out, (1, axis)), 0, axis)
    return out
