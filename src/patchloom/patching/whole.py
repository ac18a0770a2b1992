"""WholeSamplePatching: each sample is one patch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError
from patchloom.patching.protocol import Edge, GridPatching, Ints

__all__ = ["WholeSamplePatching"]


class WholeSamplePatching(GridPatching):
    """One patch a sample, as large as its image.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    edge
        ``"pad"`` gives all patches the largest extent of all images on each axis, so that they
        fit into one store; else each is as large as its image.
    chunks, keys
        See `GridPatching`.

    Raises
    ------
    PatchSizeError
        If images differ in their number of axes.

    Examples
    --------
    >>> patching = WholeSamplePatching([(2, 1, 40, 30), (1, 1, 8, 64)])
    >>> [patching.get_patch_spec(i)["patch_size"] for i in range(patching.n_patches)]
    [(40, 30), (40, 30), (8, 64)]
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        *,
        edge: Edge = "drop",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        spatial = [tuple(int(n) for n in shape[2:]) for shape in data_shapes]
        if len({len(shape) for shape in spatial}) > 1:
            raise PatchSizeError(
                f"whole samples have the same spatial axes, got the extents {spatial}"
            )
        largest = [max(1, *axis) for axis in zip(*spatial, strict=True)] if spatial else [1]
        super().__init__(data_shapes, largest, edge=edge, chunks=chunks, keys=keys)

    @property
    def is_aligned(self) -> bool:
        """Whether every image is a single chunk."""
        return all(grid.n_chunks <= 1 for grid in self.grids)

    def size_of(self, image: int) -> tuple[int, ...]:
        """Extent of the patches of one image, in pixels."""
        return self.patch_size if self.edge == "pad" else self.grids[image].shape

    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""
        n_chunks = self.grids[image].n_chunks
        counts = np.zeros(self.n_samples(image) * n_chunks, np.int64)
        counts[:: max(1, n_chunks)] = 1
        return counts

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""
        counts = self.counts(image)[np.asarray(cells, np.int64)]
        return np.zeros((int(counts.sum()), len(self.patch_size)), np.int64), counts
