"""Pixels of NumPy arrays moved: exactly by slices, or resampled once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.load.augment.interpolation import Places, kernels
from patchloom.load.augment.moves import Moves
from patchloom.load.augment.sampling import Sampling
from patchloom.load.augment.splines import field

__all__ = ["cropped", "oriented", "resampled", "scaled"]

Pixels = npt.NDArray[Any]


def cropped(x: Pixels, moves: Moves) -> Pixels:
    """The kept part of each patch: [n, c, *window]."""
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, moves.window, axis=axes)
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

    All arrays are read at the same places.
    """
    outs = [np.empty((*x.shape[:2], *moves.window), x.dtype) for x, _ in arrays]
    for k in range(len(moves.corner)):
        places = _places(moves, k)
        fast = kernels.after(math.prod(moves.window))
        nearest: dict[str, npt.NDArray[np.int64]] = {}
        for (x, sampling), out in zip(arrays, outs, strict=True):
            if sampling.order:
                found = places.interpolated(x[k].astype(_kind(x), copy=False), sampling, fast)
                out[k] = _rounded(found, x.dtype) if x.dtype.kind in "iu" else found
                continue
            mode = sampling.fill_mode
            if mode not in nearest:
                nearest[mode] = places.nearest(mode, fast)
            flat = nearest[mode]
            # Of -1, the last pixel, until it is filled.
            out[k] = x[k].reshape(len(x[k]), -1).take(flat, axis=1, mode="wrap")
            if mode == "constant":
                np.copyto(out[k], sampling.fill(x.dtype), where=flat < 0)
    return outs


def _places(moves: Moves, k: int) -> Places:
    """Of the window of patch `k`."""
    matrix, offset = (column[k] for column in moves.linear)
    warp = None
    if moves.control is not None:
        ends = zip(moves.bases, moves.corner[k].tolist(), moves.window, strict=True)
        warp = field(moves.control[k], [one[low : low + size] for one, low, size in ends])
        warp = np.ascontiguousarray(warp)
    return Places(moves.extents, moves.window, moves.corner[k], matrix, offset, warp)


def _kind(x: Pixels) -> type[np.floating[Any]]:
    """What it is computed in."""
    return np.float64 if x.dtype.kind in "iu" or x.dtype.itemsize > 4 else np.float32


def scaled(x: Pixels, moves: Moves, clip: bool) -> Pixels:
    """Grey levels multiplied and moved, by patch and channel; `clip` to those that there were."""
    if moves.gain is None or moves.bias is None:
        return x
    whole = x.dtype.kind in "iu"
    kind = _kind(x)
    shape = (*x.shape[:2], *[1] * (x.ndim - 2))
    gain, bias = (c[:, : x.shape[1]].reshape(shape).astype(kind) for c in (moves.gain, moves.bias))
    out = np.multiply(x, gain, dtype=kind)
    out += bias
    if clip:
        axes = tuple(range(1, x.ndim))
        # Pixels that are no number have no grey level.
        low, high = (f.reduce(x, axes, keepdims=True).astype(kind) for f in (np.fmin, np.fmax))
        np.clip(out, low, high, out=out)
    return _rounded(out, x.dtype) if whole else out.astype(x.dtype, copy=False)


def _rounded(x: Pixels, dtype: np.dtype[Any]) -> Pixels:
    """To the nearest whole number, halves to the even one; what is beyond the type to its end."""
    info = np.iinfo(dtype)
    # The greatest 64-bit integer is no float64; the next lower float is.
    high = info.max if info.bits < 64 else math.nextafter(float(info.max), 0.0)
    return np.clip(np.rint(x), info.min, high).astype(dtype)
