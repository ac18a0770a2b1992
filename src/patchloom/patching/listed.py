"""ListedPatching and CenteredPatching: patches at the places of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError
from patchloom.patching.protocol import Edge, GridPatching, Ints, integers

__all__ = ["CenteredPatching", "ListedPatching"]

_ROUNDING = "round positions to first pixels with patchloom.points.first_pixels"


class ListedPatching(GridPatching):
    """Patches whose first pixels stand in a table, in the order of their chunks.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels.
    corners
        First pixels, int64[n, ndim], in pixels of the image; they may lie before it.
    image, sample
        Which image and which sample of it, int64[n] each; 0 by default.
    edge
        What happens to a patch that touches its image but does not fit: ``"drop"`` leaves it
        out, ``"shift"`` moves it inward, ``"pad"`` and ``"shrink"`` keep it.
    chunks, keys
        See `GridPatching`.

    Raises
    ------
    PatchSizeError
        If sizes or columns do not fit the axes, or are not integers.
    IndexError
        If a row names no image or no sample of one.

    Examples
    --------
    >>> patching = ListedPatching([(1, 1, 20, 20)], (8, 8), [(3, 5), (15, 2)])
    >>> patching.n_patches, patching.get_patch_spec(0)["coords"]
    (1, (3, 5))
    """

    repeats: ClassVar[bool] = True

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        corners: npt.ArrayLike,
        *,
        image: npt.ArrayLike | None = None,
        sample: npt.ArrayLike | None = None,
        edge: Edge = "drop",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        super().__init__(data_shapes, patch_size, edge=edge, chunks=chunks, keys=keys)
        self._corner = integers(corners, len(self.patch_size), "first pixels", _ROUNDING)
        n = len(self._corner)
        self._image, self._sample = (
            np.zeros(n, np.int64)
            if column is None
            else integers(np.reshape(column, (-1, 1)), 1, name, "number them from 0")[:, 0]
            for name, column in (("images", image), ("samples", sample))
        )
        if len(self._image) != n or len(self._sample) != n:
            raise PatchSizeError(
                f"a table has one image and one sample a row, got {n} places, {len(self._image)} "
                f"images and {len(self._sample)} samples"
            )
        self._check_rows()
        self._order, self._owner, self._begin = self._sort()

    def _check_rows(self) -> None:
        n_samples = np.array([shape[0] for shape in self.data_shapes], np.int64)
        bad = (self._image < 0) | (self._image >= len(n_samples))
        if not bad.any():
            bad = (self._sample < 0) | (self._sample >= n_samples[self._image])
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise IndexError(
                f"every place lies in one of {len(n_samples)} images and in a sample of it, got "
                f"image {self._image[row]}, sample {self._sample[row]} in row {row}"
            )

    def _sort(self) -> tuple[Ints, Ints, Ints]:
        """Rows that are taken, by image, cell and row; the cell of each; where images begin."""
        size = np.asarray(self.patch_size, np.int64)
        order, owner = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        by_image = np.argsort(self._image, kind="stable")
        ends = np.searchsorted(self._image[by_image], np.arange(1, len(self.grids)))
        # No image, no rows: of nothing, one part would be left.
        parts = np.split(by_image, ends)[: len(self.grids)]
        for index, (grid, rows) in enumerate(zip(self.grids, parts, strict=True)):
            corner, extent = self._corner[rows], np.asarray(grid.shape, np.int64)
            # No sum of a corner: it may be as large as integers are.
            if self.edge == "drop":
                good = (corner >= 0) & (corner <= extent - size)
            else:
                # What lies far outside its image was not meant to be in it.
                good = (corner < extent) & (corner > -size) & (extent > 0)
                good &= (extent >= size) | (self.edge != "shift")
            rows = rows[good.all(-1)]
            chunk = grid.flat(grid.chunk_of(np.maximum(self._placed(index, rows), 0)))
            cell = self._sample[rows] * grid.n_chunks + chunk
            by_cell = np.argsort(cell, kind="stable")
            order.append(rows[by_cell])
            owner.append(cell[by_cell])
        begin = np.cumsum([len(rows) for rows in order], dtype=np.int64)
        return np.concatenate(order), np.concatenate(owner), begin

    def _placed(self, image: int, rows: Ints) -> Ints:
        """First pixels under the edge policy."""
        corner = self._corner[rows]
        if self.edge == "shift":
            extent = np.asarray(self.grids[image].shape, np.int64)
            corner = np.clip(corner, 0, np.maximum(0, extent - np.asarray(self.patch_size)))
        return corner

    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""
        n_cells = self.n_samples(image) * self.grids[image].n_chunks
        mine = slice(int(self._begin[image]), int(self._begin[image + 1]))
        return np.bincount(self._owner[mine], minlength=n_cells).astype(np.int64)

    def counts_of(self, image: int, cells: npt.ArrayLike) -> Ints:
        """Patches that some cells own: int64[k]."""
        mine = self._owner[int(self._begin[image]) : int(self._begin[image + 1])]
        ends = np.searchsorted(mine, cells, side="right")
        return np.asarray(ends - np.searchsorted(mine, cells), np.int64)

    def places(self, image: int, cells: npt.ArrayLike) -> Ints:
        """Rows of the table that the patches of some cells stand in: int64[n]."""
        return self._rows(image, cells)[0]

    def _rows(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        cells = np.asarray(cells, np.int64)
        mine = slice(int(self._begin[image]), int(self._begin[image + 1]))
        begin = np.searchsorted(self._owner[mine], cells)
        n = np.searchsorted(self._owner[mine], cells, side="right") - begin
        within = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
        return self._order[mine][np.repeat(begin, n) + within], n

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""
        rows, n = self._rows(image, cells)
        return self._placed(image, rows), n


class CenteredPatching(ListedPatching):
    """Patches centred on objects, in the order of their chunks.

    The centre of a patch is its pixel ``size // 2`` on each axis: the middle one of an odd
    extent, the first after the middle of an even one.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels; odd or even.
    centers
        Centre pixels, int64[n, ndim].
    image, sample, edge, chunks, keys
        See `ListedPatching`.

    Examples
    --------
    >>> patching = CenteredPatching([(1, 1, 20, 20)], (5, 4), [(10, 10)])
    >>> patching.get_patch_spec(0)["coords"]
    (8, 8)
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        centers: npt.ArrayLike,
        *,
        image: npt.ArrayLike | None = None,
        sample: npt.ArrayLike | None = None,
        edge: Edge = "drop",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        half = np.asarray(patch_size, np.int64) // 2
        super().__init__(
            data_shapes,
            patch_size,
            integers(centers, len(half), "centres", "make whole pixels of them") - half,
            image=image,
            sample=sample,
            edge=edge,
            chunks=chunks,
            keys=keys,
        )
