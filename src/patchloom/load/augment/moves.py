"""Moves: what was drawn for each patch of a batch, as columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from patchloom.load.augment.orientations import Orientation
from patchloom.load.augment.splines import basis

__all__ = ["Moves"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moves:
    """Where the pixels of n patches come from, and what becomes of their grey levels.

    A pixel `q` of the patch, before it is cropped, turned and flipped, is taken from
    ``centre + matrix @ (q + displacement(q) - shift - centre)``. All in pixels, with the
    centres of pixels at whole numbers.
    """

    extents: tuple[int, ...]
    """Of the patches that come in, spatial axes only."""
    window: tuple[int, ...]
    """Extents of the part that is kept, before it is turned."""
    corner: Ints
    """int64[n, d]: first pixel of that part."""
    kinds: tuple[Orientation, ...]
    """Orientations that occur."""
    orientation: Ints
    """int64[n]: position in `kinds`."""
    matrix: Floats | None = None
    """float64[n, d, d]; None if no patch is resampled, then there is no shift either."""
    shift: Floats | None = None
    """float64[n, d]: by how many pixels the contents move."""
    control: Floats | None = None
    """float64[n, d, g + 3, ...]: displacements of control points, see `splines`."""
    gain: Floats | None = None
    """float64[n, channels]: what grey levels are multiplied by; None if they stay."""
    bias: Floats | None = None
    """float64[n, channels]: what is then added."""

    @property
    def is_exact(self) -> bool:
        """Whether every pixel is one of the source."""
        return self.matrix is None

    @property
    def is_cropped(self) -> bool:
        """Whether a part of each patch is kept."""
        return self.window != self.extents

    def part(self, low: int, high: int) -> Moves:
        """Of some patches."""
        columns = ("corner", "orientation", "matrix", "shift", "control", "gain", "bias")
        own = {name: getattr(self, name) for name in columns}
        return replace(self, **{k: c[low:high] for k, c in own.items() if c is not None})

    @cached_property
    def centre(self) -> Floats:
        """float64[d]: the middle of a patch."""
        return (np.array(self.extents, np.float64) - 1) / 2

    @cached_property
    def bases(self) -> list[Floats]:
        """One an axis, over the whole patch, see `splines.basis`."""
        assert self.control is not None
        sizes = self.control.shape[2:]
        return [basis(extent, g - 3) for extent, g in zip(self.extents, sizes, strict=True)]

    @cached_property
    def linear(self) -> tuple[Floats, Floats]:
        """``matrix @ q + offset`` is the source of `q` without displacement: [n, d, d], [n, d]."""
        assert self.matrix is not None
        assert self.shift is not None
        offset = self.centre - np.einsum("nij,nj->ni", self.matrix, self.centre + self.shift)
        return self.matrix, offset
