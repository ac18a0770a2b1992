"""Coverage: how much of each patch a mask covers, exactly, at any ratio of resolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Alignment", "coverage", "threshold"]

Ints = npt.NDArray[np.int64]
_SAFE = 2**62


@dataclass(frozen=True)
class Alignment:
    """Where the pixels of another array lie on the pixels of an image, axis by axis.

    Pixel ``k`` of the other array covers ``[offset + k * scale, offset + (k + 1) * scale)``,
    in pixels of the image.
    """

    scale: tuple[Fraction, ...]
    """Extent of one pixel of the other array, in pixels of the image; above 0."""

    offset: tuple[Fraction, ...]
    """Where the other array begins, in pixels of the image."""

    @classmethod
    def of_shapes(cls, shape: Sequence[int], other: Sequence[int]) -> Alignment:
        """The alignment of two arrays that show the same field: the ratio of their shapes."""
        scale = tuple(Fraction(s, o) for s, o in zip(shape, other, strict=True))
        return cls(scale, tuple(Fraction(0) for _ in scale))

    @property
    def is_identity(self) -> bool:
        """Whether both have the same pixels."""
        return all(s == 1 for s in self.scale) and all(o == 0 for o in self.offset)

    @cached_property
    def units(self) -> list[int]:
        """Parts of a pixel of the other array on each axis, so that positions are integers."""
        pairs = zip(self.scale, self.offset, strict=True)
        return [math.lcm(s.numerator, o.denominator * s.numerator) for s, o in pairs]

    @cached_property
    def pixel(self) -> int:
        """Area of one pixel of the image, in such parts."""
        return math.prod(int(u / s) for u, s in zip(self.units, self.scale, strict=True))

    def window(
        self, start: Sequence[int], stop: Sequence[int], shape: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        """The pixels of the other array that touch a box of the image, clipped to it.

        Parameters
        ----------
        start, stop
            The box, half open, in pixels of the image.
        shape
            Extent of the other array, in its pixels.

        Returns
        -------
        ((first, last + 1), ...)
            Empty ranges where nothing touches.
        """
        found = []
        for a, b, s, o, n in zip(start, stop, self.scale, self.offset, shape, strict=True):
            low = min(max(math.floor((a - o) / s), 0), n)
            found.append((low, max(low, min(n, math.ceil((b - o) / s)))))
        return tuple(found)


def coverage(
    block: npt.NDArray[np.bool_],
    origin: Sequence[int],
    alignment: Alignment,
    low: Ints,
    high: Ints,
) -> tuple[npt.NDArray[Any], int]:
    """Area of each box that a mask covers, as exact integers.

    The mask is constant on each of its pixels, so its integral is multilinear between the
    entries of a summed-area table (Crow, "Summed-area tables for texture mapping", SIGGRAPH
    1984). With a rational scale everything is an integer over a common denominator.

    Parameters
    ----------
    block
        A block of the mask, bool[*block]; what lies outside it counts as not covered.
    origin
        Index of the block's first pixel in the whole mask.
    alignment
        Where the mask's pixels lie on the image.
    low, high
        Half-open boxes, int64[n, ndim] each, in pixels of the image.

    Returns
    -------
    int[n], int
        Covered area of each box and the area of one pixel of the image, in the same unit.
    """
    ndim = block.ndim
    units, pixel = alignment.units, alignment.pixel
    table = np.zeros(tuple(n + 1 for n in block.shape), np.int64)
    table[(slice(1, None),) * ndim] = block
    for axis in range(ndim):
        np.cumsum(table, axis=axis, out=table)
    if int(table[(-1,) * ndim]) * math.prod(units) >= _SAFE:
        table = table.astype(object)
    total: npt.NDArray[Any] = np.zeros(len(low), table.dtype)
    ends = [
        [
            _places(side[:, a], block.shape[a], origin[a], alignment, units[a], a)
            for side in (low, high)
        ]
        for a in range(ndim)
    ]
    whole = [[not part.any() for _, part in sides] for sides in ends]
    for sign, picks in _vertices(ndim):
        term: npt.NDArray[Any] = np.zeros(len(low), table.dtype)
        for _, uppers in _vertices(ndim):
            if any(up and whole[axis][picks[axis]] for axis, up in enumerate(uppers)):
                continue  # boxes end where pixels do: the weight of the next one is 0
            index, weight = [], np.ones(len(low), table.dtype)
            for axis in range(ndim):
                first, part = ends[axis][picks[axis]]
                up = uppers[axis]
                index.append(np.minimum(first + up, block.shape[axis]))
                weight = weight * (part if up else units[axis] - part)
            term = term + table[tuple(index)] * weight
        total = total + sign * term
    return total, pixel


def threshold(fraction: float | Fraction, whole: int) -> int:
    """The smallest covered area that is at least a fraction of the whole.

    A float means the decimal that it prints as: 0.1 is one tenth.
    """
    exact = fraction if isinstance(fraction, Fraction) else Fraction(str(fraction))
    return math.ceil(exact * whole)


def _places(
    pixels: Ints, extent: int, origin: int, alignment: Alignment, unit: int, axis: int
) -> tuple[Ints, Ints]:
    """Where image pixels begin on one axis: mask pixel in the block, and part of it."""
    # (pixel - offset) / scale * unit is an integer by the choice of unit.
    slope = Fraction(unit) / alignment.scale[axis]
    base = -alignment.offset[axis] * slope - origin * unit
    position = np.clip(pixels * int(slope) + int(base), 0, extent * unit)
    first, part = np.divmod(position, unit)
    return first, part


def _vertices(ndim: int) -> list[tuple[int, tuple[int, ...]]]:
    """The corners of a cube as 0/1 on each axis, with the sign of inclusion-exclusion."""
    return [
        ((-1) ** (ndim - sum(bits)), bits)
        for bits in (tuple((n >> a) & 1 for a in range(ndim)) for n in range(2**ndim))
    ]
