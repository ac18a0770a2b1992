"""Interpolation: pixels of one patch at places that a matrix and a field of displacements say.

Linear and nearest are ours: by numba (the extra ``fast``) once that pays, else by NumPy, the same
to the last bit. Cubic splines are SciPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.compiled_loops import CompiledLoops
from patchloom.load.augment.sampling import FILL_MODES, Sampling

__all__ = ["Places", "kernels"]

Pixels = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_SCIPY = {"nearest": "nearest", "reflect": "reflect", "constant": "grid-constant"}

kernels = CompiledLoops("patchloom.load.augment.compiled", 2**25, "NumPy goes on")


@dataclass(frozen=True)
class Places:
    """Where the pixels of one window come from: ``matrix @ (q + field) + offset``."""

    extents: tuple[int, ...]
    """Of the patch."""
    window: tuple[int, ...]
    corner: Ints
    """int64[d]: first `q`."""
    matrix: Floats
    """float64[d, d]."""
    offset: Floats
    """float64[d]."""
    field: Floats | None
    """float64[d, *window], in pixels."""

    @cached_property
    def at(self) -> Floats:
        """Source of each pixel: float64[d, *window]."""
        d = len(self.window)
        moved: list[Floats] = []
        for axis, (low, size) in enumerate(zip(self.corner.tolist(), self.window, strict=True)):
            line = np.arange(low, low + size, dtype=np.float64)
            place = line.reshape([size if j == axis else 1 for j in range(d)])
            moved.append(place if self.field is None else place + self.field[axis])
        out = np.empty((d, *self.window))
        for i in range(d):
            # Sums of axes that broadcast, until one is as large as the window.
            total: Any = self.offset[i]
            for j in range(d):
                total = total + self.matrix[i, j] * moved[j]
            out[i] = total
        return out

    def interpolated(self, x: Pixels, sampling: Sampling, fast: Any) -> Pixels:
        """Patch [c, *extents], float32 or float64, as [c, *window] of the same type.

        Parameters
        ----------
        x
            One patch.
        sampling
            Of an order above 0.
        fast
            What numba compiled, or None.
        """
        out = np.empty((len(x), *self.window), x.dtype)
        if sampling.order > 1:
            from scipy.ndimage import map_coordinates

            for source, target in zip(x, out, strict=True):
                map_coordinates(
                    source,
                    self.at,
                    output=target,
                    order=sampling.order,
                    mode=_SCIPY[sampling.fill_mode],
                    cval=sampling.cval,
                )
            return out
        kernel = getattr(fast, f"linear_{x.ndim - 1}d", None)
        if kernel is not None:
            # Of one layout, so that one kernel is compiled.
            x = np.ascontiguousarray(x)
            kernel(x, *self._arguments(sampling.fill_mode), float(sampling.cval), out)
            return out
        low = np.floor(self.at)
        weight = self.at - low
        first = low.astype(np.int64)
        pairs = [
            [_inside(index + step, extent, sampling.fill_mode) for step in (0, 1)]
            for index, extent in zip(first, self.extents, strict=True)
        ]
        flat = np.zeros(self.window, np.int64)
        out[:] = _between(x.reshape(len(x), -1), pairs, weight, self.extents, flat, sampling.cval)
        return out

    def nearest(self, fill_mode: str, fast: Any) -> Ints:
        """Flat index of the nearest pixel: int64[*window]; -1 for the constant."""
        kernel = getattr(fast, f"nearest_{len(self.window)}d", None)
        if kernel is not None:
            flat = np.empty(self.window, np.int64)
            kernel(np.array(self.extents), *self._arguments(fill_mode), flat)
            return flat
        flat = np.zeros(self.window, np.int64)
        for found, extent in zip(self.at, self.extents, strict=True):
            index = _inside(np.floor(found + 0.5).astype(np.int64), extent, fill_mode)
            flat = _joined(flat, index, extent)
        return flat

    def _arguments(self, fill_mode: str) -> tuple[Any, ...]:
        empty = np.zeros((0,) * (len(self.window) + 1))
        field = empty if self.field is None else self.field
        return self.matrix, self.offset, self.corner, field, FILL_MODES.index(fill_mode)


def _inside(index: Ints, extent: int, mode: str) -> Ints:
    """The pixels that stand at indices, -1 for the constant."""
    if mode == "nearest":
        return np.clip(index, 0, extent - 1)
    if mode == "reflect":
        index = index % (2 * extent)
        return np.minimum(index, 2 * extent - 1 - index)
    return np.where((index >= 0) & (index < extent), index, -1)


def _joined(flat: Ints, index: Ints, extent: int) -> Ints:
    """Flat indices with one more axis; -1 stays."""
    return np.where((flat < 0) | (index < 0), -1, flat * extent + index)


def _between(
    x: Pixels,
    pairs: Sequence[Sequence[Ints]],
    weight: Floats,
    extents: tuple[int, ...],
    flat: Ints,
    cval: float,
) -> Floats:
    """float64[c, *window] by halving one axis after another, the last one first."""
    if not pairs:
        taken = x[:, np.maximum(flat, 0)].astype(np.float64, copy=False)
        return taken if flat.min(initial=0) >= 0 else np.where(flat < 0, float(cval), taken)
    low, high = (
        _between(x, pairs[1:], weight[1:], extents[1:], _joined(flat, one, extents[0]), cval)
        for one in pairs[0]
    )
    found: Floats = low + (high - low) * weight[0]
    return found
