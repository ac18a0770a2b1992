"""SequentialPatching: a grid of patches with overlaps."""

from __future__ import annotations

from collections.abc import Sequence

from patchloom.patching.lattice import LatticePatching, lattice
from patchloom.patching.protocol import Edge, Ints

__all__ = ["SequentialPatching"]


class SequentialPatching(LatticePatching):
    """A grid of patches with overlaps, image after image, sample after sample.

    As a bare class the last patch of an axis is shifted inward, as CAREamics' does; in a
    plan the plan's edge policy decides.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels.
    overlaps
        Pixels that neighbours share on each spatial axis; none by default.
    edge, chunks, keys
        See `GridPatching`.

    Raises
    ------
    PatchSizeError
        If sizes or overlaps do not fit the axes.

    Examples
    --------
    >>> patching = SequentialPatching([(1, 1, 10, 10)], (4, 4))
    >>> patching.n_patches, patching.get_patch_spec(8)["coords"]
    (9, (6, 6))
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        overlaps: Sequence[int] | None = None,
        *,
        edge: Edge = "shift",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        super().__init__(data_shapes, patch_size, overlaps, edge=edge, chunks=chunks, keys=keys)

    def _place(self, image: int, axis: int) -> Ints:
        size = self.patch_size[axis]
        extent = self.grids[image].shape[axis]
        return lattice(extent, size, size - self.overlaps[axis], self.edge)
