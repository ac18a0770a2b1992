"""Pixels of PyTorch tensors moved on a GPU, as `numpy_pixels` moves those of arrays.

The draws are the same; patches are resampled together by `grid_sample`. Tensors on the CPU are
moved as arrays are, which is faster there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from patchloom.errors import ConfigError
from patchloom.load.augment.moves import Moves
from patchloom.load.augment.sampling import Sampling

__all__ = ["TOGETHER", "cropped", "oriented", "resampled", "scaled"]

Tensor = Any
TOGETHER = 2**25
"""Pixels that are resampled at once: what that takes beside them is some 30 times as many bytes."""

_PADDING = {"nearest": "border", "reflect": "reflection", "constant": "zeros"}
_SIGNED = {"uint16": torch.int16, "uint32": torch.int32, "uint64": torch.int64}
"""Types of the same width, for what PyTorch does not do with the unsigned ones."""


def cropped(x: Tensor, moves: Moves) -> Tensor:
    """The kept part of each patch: [n, c, *window]."""
    bits = _bits(x)
    for axis, size in enumerate(moves.window, 2):
        first = torch.from_numpy(moves.corner[:, axis - 2]).to(x.device)
        index = first[:, None] + torch.arange(size, device=x.device)
        shape = [1] * bits.ndim
        shape[0], shape[axis] = len(index), size
        wanted = list(bits.shape)
        wanted[axis] = size
        bits = bits.gather(axis, index.reshape(shape).expand(wanted))
    return bits.view(x.dtype)


def oriented(x: Tensor, moves: Moves) -> Tensor:
    """Each patch turned and flipped."""
    if len(moves.kinds) == 1 and moves.kinds[0].is_identity:
        return x
    bits = _bits(x)
    out = torch.empty_like(bits)
    for k, kind in enumerate(moves.kinds):
        rows = torch.from_numpy(np.flatnonzero(moves.orientation == k)).to(x.device)
        turned = bits[rows].permute(0, 1, *(axis + 2 for axis in kind.order))
        out[rows] = turned.flip([axis + 2 for axis in kind.backward])
    return out.view(x.dtype)


def resampled(arrays: Sequence[tuple[Tensor, Sampling]], moves: Moves) -> list[Tensor]:
    """The kept part of each patch after matrix, shift and displacement.

    Raises
    ------
    ConfigError
        If the interpolation is cubic.
    """
    if any(sampling.order > 1 for _, sampling in arrays):
        raise ConfigError("tensors are interpolated with order= 0 or 1, got 3; take arrays for it")
    device = arrays[0][0].device
    exact = any(_kind(x) == torch.float64 for x, s in arrays if s.order)
    outs = [x.new_empty((*x.shape[:2], *moves.window)) for x, _ in arrays]
    step = max(1, TOGETHER // math.prod(moves.window))
    for low in range(0, len(moves.corner), step):
        rows, own = slice(low, low + step), moves.part(low, low + step)
        at = _coordinates(own, device, torch.float64 if exact else torch.float32)
        for (x, sampling), out in zip(arrays, outs, strict=True):
            moved = _smooth if sampling.order else _nearest
            out[rows] = moved(x[rows], at, own, sampling)
    return outs


def _coordinates(moves: Moves, device: Any, dtype: Any) -> Tensor:
    """Source of each pixel of the windows: [n, d, *window]."""

    def put(column: Any) -> Tensor:
        return torch.as_tensor(column, dtype=dtype, device=device)

    n, d = moves.corner.shape
    # From the centre on, so that a narrow type loses least.
    places = []
    for axis, size in enumerate(moves.window):
        place = put(moves.corner[:, axis, None] + np.arange(size) - moves.centre[axis])
        places.append(place.reshape(n, *[size if j == axis else 1 for j in range(d)]))
    grid = torch.stack([place.expand(n, *moves.window) for place in places], 1)
    if moves.control is not None:
        moved = put(moves.control)
        for axis, one in enumerate(moves.bases):
            size = moves.window[axis]
            rows = put(one[moves.corner[:, axis, None] + np.arange(size)])
            moved = torch.einsum("npc,nc...->np...", rows, moved.movedim(axis + 2, 1))
            moved = moved.movedim(1, axis + 2)
        grid = grid + moved
    assert moves.matrix is not None
    assert moves.shift is not None
    offset = moves.centre - np.einsum("nij,nj->ni", moves.matrix, moves.shift)
    at = torch.einsum("nij,nj...->ni...", put(moves.matrix), grid)
    return at + put(offset).reshape(n, d, *[1] * d)


def _smooth(x: Tensor, at: Tensor, moves: Moves, sampling: Sampling) -> Tensor:
    extents = torch.tensor(moves.extents, dtype=at.dtype, device=at.device)
    # The edges of the first and the last pixel are -1 and 1, and x comes first.
    grid = (2 * at.movedim(1, -1) + 1) / extents - 1
    source = x.to(at.dtype)
    fill = sampling.cval if sampling.fill_mode == "constant" else 0
    found = torch.nn.functional.grid_sample(
        source - fill if fill else source,
        grid.flip(-1),
        mode="bilinear",
        padding_mode=_PADDING[sampling.fill_mode],
        align_corners=False,
    )
    return _as(found + fill if fill else found, x.dtype)


def _nearest(x: Tensor, at: Tensor, moves: Moves, sampling: Sampling) -> Tensor:
    flat = torch.zeros_like(at[:, 0], dtype=torch.int64)
    outside = torch.zeros_like(flat, dtype=torch.bool)
    for axis, extent in enumerate(moves.extents):
        index = torch.floor(at[:, axis] + 0.5).to(torch.int64)
        if sampling.fill_mode == "reflect":
            index = index.remainder(2 * extent)
            index = torch.minimum(index, 2 * extent - 1 - index)
        outside |= (index < 0) | (index >= extent)
        flat = flat * extent + index.clamp(0, extent - 1)
    bits = _bits(x)
    n, c = bits.shape[:2]
    index = flat.reshape(n, 1, -1).expand(n, c, -1)
    found = bits.reshape(n, c, -1).gather(2, index).reshape(n, c, *moves.window)
    if sampling.fill_mode == "constant":
        fill = sampling.fill(np.dtype(_name(x))) if not x.is_floating_point() else sampling.cval
        value = _bits(torch.as_tensor(fill, dtype=x.dtype, device=x.device))
        found = torch.where(outside[:, None], value, found)
    return found.view(x.dtype)


def scaled(x: Tensor, moves: Moves, clip: bool) -> Tensor:
    """Grey levels multiplied and moved, by patch and channel; `clip` to those that there were."""
    if moves.gain is None or moves.bias is None:
        return x
    kind = _kind(x)
    shape = (*x.shape[:2], *[1] * (x.ndim - 2))
    gain, bias = (
        torch.as_tensor(c[:, : x.shape[1]].reshape(shape), dtype=kind, device=x.device)
        for c in (moves.gain, moves.bias)
    )
    source = x.to(kind)
    out = source * gain + bias
    if clip:
        axes = tuple(range(1, x.ndim))
        # Pixels that are no number have no grey level.
        low, high = (torch.where(source.isnan(), end, source) for end in (math.inf, -math.inf))
        out = torch.clamp(out, low.amin(axes, keepdim=True), high.amax(axes, keepdim=True))
    return _as(out, x.dtype)


def _as(found: Tensor, dtype: Any) -> Tensor:
    """Whole numbers to the nearest, halves to the even one, within the type."""
    if dtype.is_floating_point:
        return found.to(dtype)
    info = torch.iinfo(dtype)
    high = float(info.max) if info.bits < 64 else float(np.nextafter(float(info.max), 0))
    return found.round().clamp(info.min, high).to(dtype)


def _kind(x: Tensor) -> Any:
    """What it is computed in."""
    if x.is_floating_point():
        return torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.float32 if x.element_size() <= 2 or x.device.type == "mps" else torch.float64


def _bits(x: Tensor) -> Tensor:
    name = _name(x)
    return x.view(_SIGNED[name]) if name in _SIGNED else x


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
