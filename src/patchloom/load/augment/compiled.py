"""The loops of `interpolation`, compiled by numba (the extra ``fast``) when they are first called.

The same sums in the same order, so that results are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["linear_2d", "linear_3d", "nearest_2d", "nearest_3d"]


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # There is no folder in which compiled code could be kept for the next process.
        return numba.njit(nogil=True)(function)


@_compiled
def _inside(index: int, extent: int, mode: int) -> int:
    """The pixel that stands at an index, or -1 for the constant."""
    if 0 <= index < extent:
        return index
    if mode == 0:
        return 0 if index < 0 else extent - 1
    if mode == 1:
        index %= 2 * extent
        return min(index, 2 * extent - 1 - index)
    return -1


@_compiled
def _between(a: float, b: float, c: float, d: float, wy: float, wx: float) -> float:
    """Of four neighbours: along x, then along y."""
    low = a + (b - a) * wx
    high = c + (d - c) * wx
    return low + (high - low) * wy


@_compiled
def linear_2d(
    x: Any, matrix: Any, offset: Any, corner: Any, field: Any, mode: int, cval: float, out: Any
) -> None:
    """Channels [c, y, x] into [c, *window]; `field` is [2, *window], or empty."""
    channels, height, width = x.shape
    _, rows, columns = out.shape
    warped = field.size > 0
    one = np.uint64(1)
    for i in range(rows):
        for j in range(columns):
            py, px = float(corner[0] + i), float(corner[1] + j)
            if warped:
                py += field[0, i, j]
                px += field[1, i, j]
            sy = offset[0] + matrix[0, 0] * py + matrix[0, 1] * px
            sx = offset[1] + matrix[1, 0] * py + matrix[1, 1] * px
            fy, fx = np.floor(sy), np.floor(sx)
            wy, wx = sy - fy, sx - fx
            y, z = int(fy), int(fx)
            if 0 <= y < height - 1 and 0 <= z < width - 1:
                # Unsigned numbers are not looked at for being negative.
                r, s = np.uint64(y), np.uint64(z)
                for c in range(channels):
                    out[c, i, j] = _between(
                        float(x[c, r, s]),
                        float(x[c, r, s + one]),
                        float(x[c, r + one, s]),
                        float(x[c, r + one, s + one]),
                        wy,
                        wx,
                    )
                continue
            y0, y1 = _inside(y, height, mode), _inside(y + 1, height, mode)
            x0, x1 = _inside(z, width, mode), _inside(z + 1, width, mode)
            for c in range(channels):
                out[c, i, j] = _between(
                    float(x[c, y0, x0]) if y0 >= 0 and x0 >= 0 else cval,
                    float(x[c, y0, x1]) if y0 >= 0 and x1 >= 0 else cval,
                    float(x[c, y1, x0]) if y1 >= 0 and x0 >= 0 else cval,
                    float(x[c, y1, x1]) if y1 >= 0 and x1 >= 0 else cval,
                    wy,
                    wx,
                )


@_compiled
def _in_plane(
    x: Any, c: int, z: int, y0: int, y1: int, x0: int, x1: int, wy: float, wx: float, cval: float
) -> Any:
    """Between four pixels of a plane, each of which may be the constant."""
    return _between(
        float(x[c, z, y0, x0]) if z >= 0 and y0 >= 0 and x0 >= 0 else cval,
        float(x[c, z, y0, x1]) if z >= 0 and y0 >= 0 and x1 >= 0 else cval,
        float(x[c, z, y1, x0]) if z >= 0 and y1 >= 0 and x0 >= 0 else cval,
        float(x[c, z, y1, x1]) if z >= 0 and y1 >= 0 and x1 >= 0 else cval,
        wy,
        wx,
    )


@_compiled
def linear_3d(
    x: Any, matrix: Any, offset: Any, corner: Any, field: Any, mode: int, cval: float, out: Any
) -> None:
    """Channels [c, z, y, x] into [c, *window]; `field` is [3, *window], or empty."""
    channels, depth, height, width = x.shape
    _, planes, rows, columns = out.shape
    warped = field.size > 0
    for k in range(planes):
        for i in range(rows):
            for j in range(columns):
                pz, py, px = float(corner[0] + k), float(corner[1] + i), float(corner[2] + j)
                if warped:
                    pz += field[0, k, i, j]
                    py += field[1, k, i, j]
                    px += field[2, k, i, j]
                sz = offset[0] + matrix[0, 0] * pz + matrix[0, 1] * py + matrix[0, 2] * px
                sy = offset[1] + matrix[1, 0] * pz + matrix[1, 1] * py + matrix[1, 2] * px
                sx = offset[2] + matrix[2, 0] * pz + matrix[2, 1] * py + matrix[2, 2] * px
                fz, fy, fx = np.floor(sz), np.floor(sy), np.floor(sx)
                wz, wy, wx = sz - fz, sy - fy, sx - fx
                lz, ly, lx = int(fz), int(fy), int(fx)
                z0, z1 = _inside(lz, depth, mode), _inside(lz + 1, depth, mode)
                y0, y1 = _inside(ly, height, mode), _inside(ly + 1, height, mode)
                x0, x1 = _inside(lx, width, mode), _inside(lx + 1, width, mode)
                for c in range(channels):
                    low = _in_plane(x, c, z0, y0, y1, x0, x1, wy, wx, cval)
                    high = _in_plane(x, c, z1, y0, y1, x0, x1, wy, wx, cval)
                    out[c, k, i, j] = low + (high - low) * wz


@_compiled
def nearest_2d(
    extents: Any, matrix: Any, offset: Any, corner: Any, field: Any, mode: int, flat: Any
) -> None:
    """Flat index of the nearest pixel, -1 for the constant, into int64[*window]."""
    rows, columns = flat.shape
    warped = field.size > 0
    for i in range(rows):
        for j in range(columns):
            py, px = float(corner[0] + i), float(corner[1] + j)
            if warped:
                py += field[0, i, j]
                px += field[1, i, j]
            sy = offset[0] + matrix[0, 0] * py + matrix[0, 1] * px
            sx = offset[1] + matrix[1, 0] * py + matrix[1, 1] * px
            y = _inside(int(np.floor(sy + 0.5)), extents[0], mode)
            z = _inside(int(np.floor(sx + 0.5)), extents[1], mode)
            flat[i, j] = y * extents[1] + z if y >= 0 and z >= 0 else -1


@_compiled
def nearest_3d(
    extents: Any, matrix: Any, offset: Any, corner: Any, field: Any, mode: int, flat: Any
) -> None:
    """Flat index of the nearest pixel, -1 for the constant, into int64[*window]."""
    planes, rows, columns = flat.shape
    warped = field.size > 0
    for k in range(planes):
        for i in range(rows):
            for j in range(columns):
                pz, py, px = float(corner[0] + k), float(corner[1] + i), float(corner[2] + j)
                if warped:
                    pz += field[0, k, i, j]
                    py += field[1, k, i, j]
                    px += field[2, k, i, j]
                sz = offset[0] + matrix[0, 0] * pz + matrix[0, 1] * py + matrix[0, 2] * px
                sy = offset[1] + matrix[1, 0] * pz + matrix[1, 1] * py + matrix[1, 2] * px
                sx = offset[2] + matrix[2, 0] * pz + matrix[2, 1] * py + matrix[2, 2] * px
                z = _inside(int(np.floor(sz + 0.5)), extents[0], mode)
                y = _inside(int(np.floor(sy + 0.5)), extents[1], mode)
                w = _inside(int(np.floor(sx + 0.5)), extents[2], mode)
                inside = z >= 0 and y >= 0 and w >= 0
                flat[k, i, j] = (z * extents[1] + y) * extents[2] + w if inside else -1
