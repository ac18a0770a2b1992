"""Pixels of NumPy arrays moved: exactly by slices, or resampled once by SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.load.augment.moves import Moves
from patchloom.load.augment.sampling import Sampling
from patchloom.load.augment.splines import field

__all__ = ["cropped", "oriented", "resampled", "scaled"]

Pixels = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
_MODES = {"nearest": "nearest", "reflect": "reflect", "constant": "grid-constant"}


def cropped(x: Pixels, moves: Moves) -> Pixels:
    """The kept part of each patch: [n, c, *window]."""
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, moves.window, axis=axes)  # type: ignore[call-overload]
    rows = np.arange(len(x))
    found: Pixels = windows[(rows, slice(None), *moves.corner.T)]
    return found


def oriented(x: Pixels, moves: Moves) -> Pixels:
    """Each patch turned and flipped."""
    if len(moves.kinds) == 1 and moves.kinds[0].is_identity:
        return x
    # Turned axes are of equal extent, so that all patches stay of one shape.
    out = np.empty(x.shape, x.dtype)
    for k, kind in enumerate(moves.kinds):
        rows = np.flatnonzero(moves.orientation == k)
        turned = x[rows].transpose(0, 1, *(axis + 2 for axis in kind.order))
        out[rows] = np.flip(turned, tuple(axis + 2 for axis in kind.backward))
    return out


def resampled(arrays: Sequence[tuple[Pixels, Sampling]], moves: Moves) -> list[Pixels]:
    """The kept part of each patch after matrix, shift and displacement.

    All arrays are read at the same coordinates, which are computed once a patch.
    """
    outs = [np.empty((*x.shape[:2], *moves.window), x.dtype) for x, _ in arrays]
    for k in range(len(moves.corner)):
        at = _coordinates(moves, k)
        nearest: dict[str, tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_] | None]] = {}
        for (x, sampling), out in zip(arrays, outs, strict=True):
            if sampling.order:
                _smooth(x[k], at, sampling, out[k])
                continue
            mode = sampling.fill_mode
            if mode not in nearest:
                nearest[mode] = _nearest(at, moves.extents, mode)
            index, outside = nearest[mode]
            out[k] = x[k].reshape(len(x[k]), -1)[:, index]
            if outside is not None:
                out[k][:, outside] = sampling.fill(x.dtype)
    return outs


def _coordinates(moves: Moves, k: int) -> Floats:
    """Source of each pixel of the window of patch `k`: float64[d, *window]."""
    matrix, offset = (column[k] for column in moves.linear)
    ndim = len(moves.window)
    grid: list[Floats] = []
    for axis, (low, size) in enumerate(zip(moves.corner[k].tolist(), moves.window, strict=True)):
        shape = [size if j == axis else 1 for j in range(ndim)]
        grid.append(np.arange(low, low + size, dtype=np.float64).reshape(shape))
    moved: Sequence[Floats] = grid
    if moves.control is not None:
        bases = [
            one[low : low + size]
            for one, low, size in zip(
                moves.bases, moves.corner[k].tolist(), moves.window, strict=True
            )
        ]
        moved = [g + u for g, u in zip(grid, field(moves.control[k], bases), strict=True)]
    out = np.empty((ndim, *moves.window))
    for i in range(ndim):
        # Sums of axes that broadcast, until one is as large as the window.
        total: Any = offset[i]
        for j in range(ndim):
            total = total + matrix[i, j] * moved[j]
        out[i] = total
    return out


def _smooth(x: Pixels, at: Floats, sampling: Sampling, out: Pixels) -> None:
    """One patch, interpolated: x is [c, *extents], `out` [c, *window]."""
    from scipy.ndimage import map_coordinates

    whole = x.dtype.kind in "iu"
    kind = np.float64 if whole or x.dtype.itemsize > 4 else np.float32
    cval = float(sampling.cval)
    for source, target in zip(x, out, strict=True):
        found = map_coordinates(
            source.astype(kind, copy=False),
            at,
            order=sampling.order,
            mode=_MODES[sampling.fill_mode],
            cval=cval,
            output=kind,
        )
        target[:] = _rounded(found, x.dtype) if whole else found


def _nearest(
    at: Floats, extents: tuple[int, ...], mode: str
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_] | None]:
    """Flat indices of the nearest pixels, and which lie outside, where that matters."""
    flat = np.zeros(at.shape[1:], np.intp)
    outside = np.zeros(at.shape[1:], bool) if mode == "constant" else None
    for found, extent in zip(at, extents, strict=True):
        index = np.floor(found + 0.5).astype(np.intp)
        if mode == "reflect":
            index %= 2 * extent
            np.minimum(index, 2 * extent - 1 - index, out=index)
        elif outside is not None:
            outside |= (index < 0) | (index >= extent)
        flat *= extent
        flat += np.clip(index, 0, extent - 1, out=index)
    return flat, outside


def scaled(x: Pixels, moves: Moves, clip: bool) -> Pixels:
    """Grey levels multiplied and moved, by patch and channel; `clip` to those that there were."""
    if moves.gain is None or moves.bias is None:
        return x
    whole = x.dtype.kind in "iu"
    kind = np.float64 if whole or x.dtype.itemsize > 4 else np.float32
    shape = (*x.shape[:2], *[1] * (x.ndim - 2))
    gain, bias = (c[:, : x.shape[1]].reshape(shape).astype(kind) for c in (moves.gain, moves.bias))
    out = np.multiply(x, gain, dtype=kind)
    out += bias
    if clip:
        axes = tuple(range(1, x.ndim))
        low, high = (f(x, axis=axes, keepdims=True).astype(kind) for f in (np.min, np.max))
        np.clip(out, low, high, out=out)
    return _rounded(out, x.dtype) if whole else out.astype(x.dtype, copy=False)


def _rounded(x: Pixels, dtype: np.dtype[Any]) -> Pixels:
    """To the nearest whole number, halves to the even one; what is beyond the type to its end."""
    info = np.iinfo(dtype)
    # The greatest 64-bit integer is no float64; the next lower float is.
    high = info.max if info.bits < 64 else math.nextafter(float(info.max), 0.0)
    return np.clip(np.rint(x), info.min, high).astype(dtype)
