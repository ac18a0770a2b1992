"""PixelPatching: a patch centred on every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from patchloom.patching.lattice import LatticePatching
from patchloom.patching.protocol import Edge, Ints

__all__ = ["PixelPatching"]


class PixelPatching(LatticePatching):
    """A patch centred on every pixel of an image; a plan keeps those under a mask or of a class.

    The centre of a patch is its pixel ``size // 2`` on each axis.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels; odd or even.
    edge
        What happens to patches that stick out: ``"pad"`` and ``"shrink"`` keep one for every
        pixel, ``"shift"`` moves them inward (several are then the same), ``"drop"`` leaves them
        out.
    chunks, keys
        See `GridPatching`.

    Examples
    --------
    >>> patching = PixelPatching([(1, 1, 10, 10)], (3, 4))
    >>> patching.n_patches, patching.get_patch_spec(0)["coords"]
    (100, (-1, -2))
    """

    repeats: ClassVar[bool] = True

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        *,
        edge: Edge = "pad",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        super().__init__(data_shapes, patch_size, edge=edge, chunks=chunks, keys=keys)

    def _place(self, image: int, axis: int) -> Ints:
        extent, size = self.grids[image].shape[axis], self.patch_size[axis]
        starts = np.arange(extent, dtype=np.int64) - size // 2
        if self.may_stick_out:
            return starts
        small = any(e < p for e, p in zip(self.grids[image].shape, self.patch_size, strict=True))
        if small:
            return starts[:0]
        if self.edge == "shift":
            return np.clip(starts, 0, extent - size)
        return np.arange(extent - size + 1, dtype=np.int64)

    def places(self, image: int, cells: npt.ArrayLike) -> Ints:
        """The centre pixel of each patch of some cells, in C order within its sample: int64[n]."""
        shape, halves = self.grids[image].shape, [size // 2 for size in self.patch_size]
        pixels = [
            np.arange(n, dtype=np.int64) + half * (self.edge == "drop")
            for n, half in zip(shape, halves, strict=True)
        ]
        place, _ = self._product(image, cells, pixels)
        return np.asarray(np.ravel_multi_index(tuple(place.T), shape), np.int64)
