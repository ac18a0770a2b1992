"""Blocks: splits inside images, by the cells of a lattice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import lcm

import numpy as np
import numpy.typing as npt

from patchloom.planning.worlds import Frame
from patchloom.randomness import Words, philox

__all__ = ["Blocks"]

Ints = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int8]
_HALF = np.uint64(32)
_FEW = 2**10
"""Boxes that are looked at rather than counted."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A lattice of boxes over each frame; chance deals every box out to one split.

    A patch belongs to a split if all boxes that it touches do, after it was widened by half
    the guard on both sides of each axis; else to none. So the widened patches of two splits
    touch no common box of the lattice, and have no point in common: on some axis one ends
    before the other begins, and the patches themselves are a whole guard apart there. With a
    guard of 0 they still share no pixel, in the world no point: a pixel that a face of the
    lattice cuts lies in both boxes. What is widened beyond an image of its own is cut off: of
    two that meet, a common point lies inside.

    Only the boxes that patches touch are ever looked at.
    """

    size: tuple[tuple[Fraction, ...], ...]
    """Extent of a box on each axis of each image, in units of its frame."""
    frames: tuple[Frame, ...]
    keys: tuple[int, ...]
    """Of each image: 64 bits, equal for all of one frame."""
    upto: Words
    """Below which 64-bit words each part but the last lies: uint64[n - 1], ascending."""
    split: Positions
    """Split of each part: int8[n]."""

    def of_boxes(self, image: int, low: Ints, high: Ints) -> Positions:
        """The split of half-open boxes of pixels; -1 belongs to none: int8[n].

        Parameters
        ----------
        image
            Which image.
        low, high
            All source pixels that each patch needs: int64[n, ndim].
        """
        if not len(low):
            return np.zeros(0, np.int8)
        first, last = self.spans(image, low, high)
        look = self._lookup(self.keys[image], first, last)
        found = look(first)
        widest = (last - first).max(0)
        for turn in itertools.islice(itertools.product(*(range(w + 1) for w in widest)), 1, None):
            at = first + np.array(turn)
            hit = np.flatnonzero((found >= 0) & (at <= last).all(-1))
            found[hit[look(at[hit]) != found[hit]]] = -1
        return found

    def spans(self, image: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """The boxes of the lattice that half-open boxes of pixels touch, along each axis.

        Parameters
        ----------
        image, low, high
            As of `of_boxes`; at least one box.

        Returns
        -------
        int64[n, ndim], int64[n, ndim]
            The first and the last one.
        """
        frame = self.frames[image]
        first, last = np.empty_like(low), np.empty_like(low)
        for axis, size in enumerate(self.size[image]):
            step, start, reach = frame.step[axis], frame.start[axis], frame.reach[axis]
            first[:, axis] = _steps(low[:, axis], step / size, (start - reach) / size, up=False)
            last[:, axis] = _steps(high[:, axis], step / size, (start + reach) / size, up=True)
            if frame.shape is not None:
                # What a guard reaches beyond the image is nothing.
                first[:, axis] = np.maximum(first[:, axis], 0)
                last[:, axis] = np.minimum(last[:, axis], math.ceil(frame.shape[axis] / size))
        last -= 1
        return first, last

    def too_small(self, image: int, size: Sequence[int]) -> bool:
        """Whether no box of one image can hold a patch of some pixels and its guard."""
        frame = self.frames[image]
        return any(
            n * step + 2 * reach > extent
            for n, step, reach, extent in zip(
                size, frame.step, frame.reach, self.size[image], strict=True
            )
        )

    def _lookup(self, key: int, first: Ints, last: Ints) -> Callable[[Ints], Positions]:
        """What tells the split of boxes of the lattice between some."""
        least = first.min(0)
        extent = (np.maximum(first, last).max(0) - least + 1).tolist()
        if math.prod(extent) > max(_FEW, len(first)):
            return partial(self._of, key)
        # Many patches share a box: each box is looked at once.
        boxes = np.stack([m.ravel() for m in np.indices(extent)], -1)
        table = self._of(key, boxes + least).reshape(extent)

        def look(index: Ints) -> Positions:
            found: Positions = table[tuple((index - least).T)]
            return found

        return look

    def _of(self, key: int, index: Ints) -> Positions:
        """The split of boxes of the lattice, by their int64[n, ndim] indices."""
        # Negative indices count as what they are modulo 2**32.
        high, low, _, _ = philox(key, *(index.T & 0xFFFFFFFF))
        return self.split[np.searchsorted(self.upto, high << _HALF | low, side="right")]


def _steps(pixel: Ints, slope: Fraction, offset: Fraction, *, up: bool) -> Ints:
    """``floor(pixel * slope + offset)``, or ``ceil``, of some whole numbers: exact.

    The pixels at which the result steps are found in integers of any length; looking them up
    compares 64 bits.
    """
    unit = lcm(slope.denominator, offset.denominator)
    a, b = int(slope * unit), int(offset * unit)
    ends = [int(pixel.min()), int(pixel.max())]
    if up:
        # ceil(v) > m where v > m.
        least, most = (-(-(k * a + b) // unit) for k in ends)
        table = [(m * unit - b) // a for m in range(least, most)]
        return least + np.searchsorted(np.array(table, np.int64), pixel, side="left")
    # floor(v) >= m where v >= m.
    least, most = ((k * a + b) // unit for k in ends)
    table = [-((b - m * unit) // a) for m in range(least + 1, most + 1)]
    return least + np.searchsorted(np.array(table, np.int64), pixel, side="right")
