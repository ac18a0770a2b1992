"""StridedPatching: a grid of patches at any distance from each other."""

from __future__ import annotations

from collections.abc import Sequence

from patchloom.errors import PatchSizeError
from patchloom.patching.extents import PerAxis, axes_of, per_axis
from patchloom.patching.lattice import LatticePatching, lattice
from patchloom.patching.protocol import Edge, Ints

__all__ = ["StridedPatching"]


class StridedPatching(LatticePatching):
    """A grid of patches, one at every multiple of a stride: zarrdataset's grid.

    A stride below the patch size lets patches overlap, one above it leaves pixels between them.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent in pixels: one number for all spatial axes, one for each in the order (z,) y, x,
        or one for each by name. Without images, one number is for y, x.
    stride
        From one patch to the next, in pixels, written like `patch_size`; by default the same.
    offset
        Where the grid is anchored: a pixel below `stride`, written like `patch_size`; 0 by
        default. `lattice` says what each edge policy does at the start of an axis then; an
        image smaller than a patch has its patch at 0.
    edge, chunks, keys
        See `GridPatching`. zarrdataset's incomplete patches are ``"pad"``.

    Raises
    ------
    AxesError
        If an axis is unknown, named twice or forgotten.
    PatchSizeError
        If sizes do not fit the axes.

    Examples
    --------
    >>> patching = StridedPatching([(1, 1, 10, 20)], {"y": 4, "x": 8}, stride=6)
    >>> [patching.get_patch_spec(i)["coords"] for i in range(patching.n_patches)]
    [(0, 0), (0, 6), (0, 12), (6, 0), (6, 6), (6, 12)]
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: PerAxis,
        stride: PerAxis | None = None,
        *,
        offset: PerAxis | None = None,
        edge: Edge = "drop",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        axes = axes_of(data_shapes, patch_size)
        size = per_axis(patch_size, axes, name="patch_size")
        super().__init__(data_shapes, size, edge=edge, chunks=chunks, keys=keys)
        self.stride = tuple(size if stride is None else per_axis(stride, axes, name="stride"))
        if min(self.stride) < 1:
            raise PatchSizeError(
                f"a stride is at least 1 pixel on each axis, got {list(self.stride)}; leave it "
                "out for the patch size"
            )
        self.offset = tuple(per_axis(0 if offset is None else offset, axes, name="offset"))
        if any(not 0 <= o < s for o, s in zip(self.offset, self.stride, strict=True)):
            raise PatchSizeError(
                "an offset is at least 0 and smaller than the stride on each axis, got "
                f"offset={list(self.offset)} for stride={list(self.stride)}; take it modulo the "
                "stride"
            )

    def _place(self, image: int, axis: int) -> Ints:
        extent = self.grids[image].shape[axis]
        size, stride = self.patch_size[axis], self.stride[axis]
        return lattice(extent, size, stride, self.edge, self.offset[axis])
