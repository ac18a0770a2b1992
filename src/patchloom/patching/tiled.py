"""TiledPatching: overlapping tiles whose crops put the image together again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from patchloom.patching.lattice import LatticePatching, lattice
from patchloom.patching.protocol import Edge, Ints, TileSpecs

__all__ = ["TiledPatching"]


class TiledPatching(LatticePatching):
    """Overlapping tiles; what is kept of each puts the image together exactly once.

    Two neighbours share the pixels of their overlap: the left one keeps the first half of
    them (rounded down), the right one the rest. The last tile of an axis is moved inward, and
    what its neighbour keeps is cropped from its left. An axis that is not longer than a tile
    has one tile, which may stick out, and keeps the axis.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent of a tile on each spatial axis, in pixels.
    overlaps
        Pixels that neighbours share on each spatial axis; even or odd.
    edge
        None is the rule above, which is CAREamics'. Of a plan: ``"shift"`` leaves out images
        smaller than a tile, ``"pad"`` and ``"shrink"`` do not move the last tile inward, and
        ``"drop"`` leaves out what does not fit (crops then put together what tiles cover).
    chunks, keys
        See `GridPatching`.

    Raises
    ------
    PatchSizeError
        If sizes or overlaps do not fit the axes.

    Examples
    --------
    >>> patching = TiledPatching([(1, 1, 20)], (8,), (2,))
    >>> [patching.get_patch_spec(i)["stitch_coords"] for i in range(patching.n_patches)]
    [(0,), (7,), (13,)]
    >>> [patching.get_patch_spec(i)["crop_size"] for i in range(patching.n_patches)]
    [(7,), (6,), (7,)]
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        overlaps: Sequence[int],
        *,
        edge: Edge | None = None,
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        self._one_at_least = edge is None
        super().__init__(
            data_shapes, patch_size, overlaps, edge=edge or "shift", chunks=chunks, keys=keys
        )

    def _place(self, image: int, axis: int) -> Ints:
        extent, size = self.grids[image].shape[axis], self.patch_size[axis]
        edge = "pad" if self._one_at_least and extent < size else self.edge
        return lattice(extent, size, size - self.overlaps[axis], edge)

    @cached_property
    def _stitches(self) -> dict[tuple[int, int], Ints]:
        """Along each axis: where each tile's kept part begins, and at the end where all end."""
        found = {}
        for (image, axis), starts in self._starts.items():
            size, overlap = self.patch_size[axis], self.overlaps[axis]
            # The border before a tile lies where it would begin if it were not moved inward.
            borders = np.arange(len(starts) + 1, dtype=np.int64) * (size - overlap) + overlap // 2
            borders[0] = 0
            if len(starts):
                borders[-1] = min(self.grids[image].shape[axis], int(starts[-1]) + size)
            found[image, axis] = borders
        return found

    def crops(self, image: int, corners: npt.ArrayLike) -> tuple[Ints, Ints, Ints]:
        """What is kept of some tiles, and where it goes.

        Parameters
        ----------
        image
            Which image.
        corners
            First pixels of tiles of it, int[n, ndim], as `corners` answers them.

        Returns
        -------
        int64[n, ndim], int64[n, ndim], int64[n, ndim]
            First kept pixel, in pixels of the tile; extent of what is kept; first kept pixel,
            in pixels of the image.
        """
        corners = np.asarray(corners, np.int64)
        size, stitch = np.empty_like(corners), np.empty_like(corners)
        for axis in range(corners.shape[1]):
            borders = self._stitches[image, axis]
            place = np.searchsorted(self._starts[image, axis], corners[:, axis])
            stitch[:, axis] = borders[place]
            size[:, axis] = borders[place + 1] - borders[place]
        return stitch - corners, size, stitch

    def spec_at(self, image: int, cell: int, corner: Sequence[int] | Ints) -> TileSpecs:
        """The tile of a cell that begins at a corner, which `corners` answered."""
        coords, size, stitch = (
            tuple(int(v) for v in column[0]) for column in self.crops(image, np.asarray([corner]))
        )
        return TileSpecs(
            **super().spec_at(image, cell, corner),
            crop_coords=coords,
            crop_size=size,
            stitch_coords=stitch,
            total_tiles=len(self.get_patch_indices(image)),
        )
