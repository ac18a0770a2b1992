"""SequentialPatching: a grid of patches with overlaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError
from patchloom.patching.protocol import Edge, GridPatching, Ints, volume

__all__ = ["SequentialPatching", "lattice"]


def lattice(extent: int, size: int, step: int, edge: Edge) -> Ints:
    """First pixels of the patches along one axis.

    >>> [lattice(10, 4, 4, edge).tolist() for edge in ("drop", "shift", "pad")]
    [[0, 4], [0, 4, 6], [0, 4, 8]]
    """
    if extent < size:
        return np.zeros(1 if edge == "pad" and extent else 0, np.int64)
    starts = np.arange(0, extent - size + 1, step, dtype=np.int64)
    end = int(starts[-1]) + size
    if end < extent and edge == "shift":
        starts = np.append(starts, extent - size)
    elif end < extent and edge == "pad":
        starts = np.append(starts, starts[-1] + step)
    return starts


class SequentialPatching(GridPatching):
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
        super().__init__(data_shapes, patch_size, edge=edge, chunks=chunks, keys=keys)
        overlaps = [0] * len(self.patch_size) if overlaps is None else overlaps
        self.overlaps = tuple(int(o) for o in overlaps)
        if len(self.overlaps) != len(self.patch_size) or any(
            not 0 <= o < p for o, p in zip(self.overlaps, self.patch_size, strict=False)
        ):
            raise PatchSizeError(
                "an overlap is at least 0 and smaller than the patch on each axis, got overlaps="
                f"{list(self.overlaps)} for patch_size={list(self.patch_size)}"
            )
        self._starts = {
            (i, axis): lattice(
                extent, self.patch_size[axis], self.patch_size[axis] - self.overlaps[axis], edge
            )
            for i, grid in enumerate(self.grids)
            for axis, extent in enumerate(grid.shape)
        }

    @property
    def is_aligned(self) -> bool:
        """Whether every patch lies inside its owner chunk."""
        return all(
            bool((starts % grid.chunks[axis] + self.patch_size[axis] <= grid.chunks[axis]).all())
            for i, grid in enumerate(self.grids)
            for axis, starts in ((a, self._starts[i, a]) for a in range(len(grid.chunks)))
        )

    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""
        return np.tile(
            volume([self._per_chunk(image, axis)[1] for axis in range(len(self.patch_size))]),
            self.n_samples(image),
        )

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""
        index = self._split(image, cells)
        ndim = len(self.patch_size)
        columns = [self._per_chunk(image, axis) for axis in range(ndim)]
        first = np.stack([columns[a][0][index[:, a]] for a in range(ndim)], -1)
        n = np.stack([columns[a][1][index[:, a]] for a in range(ndim)], -1)
        counts = n.prod(-1)
        cell = np.repeat(np.arange(len(counts)), counts)
        inside = np.arange(len(cell)) - np.repeat(np.cumsum(counts) - counts, counts)
        corners = np.empty((len(cell), ndim), np.int64)
        for axis in reversed(range(ndim)):
            inside, turn = np.divmod(inside, n[cell, axis])
            corners[:, axis] = self._starts[image, axis][first[cell, axis] + turn]
        return corners, counts

    def _per_chunk(self, image: int, axis: int) -> tuple[Ints, Ints]:
        """Along one axis, for each chunk: its first lattice point, and how many it holds."""
        starts, grid = self._starts[image, axis], self.grids[image]
        edges = np.arange(grid.counts[axis] + 1, dtype=np.int64) * grid.chunks[axis]
        first = np.searchsorted(starts, edges).astype(np.int64)
        return first[:-1], np.diff(first)
