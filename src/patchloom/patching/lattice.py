"""What all grids of patches share: one sorted column of first pixels an axis, multiplied out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError
from patchloom.patching.protocol import Edge, GridPatching, Ints, ramp, volume

__all__ = ["LatticePatching", "covered", "lattice"]


def lattice(extent: int, size: int, step: int, edge: Edge, offset: int = 0) -> Ints:
    """First pixels of the patches along one axis.

    Parameters
    ----------
    extent, size, step
        Of the axis, of a patch, and from one patch to the next, in pixels.
    edge
        What happens at both ends of the axis.
    offset
        Where the grid is anchored: a pixel below `step`. What it leaves out at the start is
        covered as at the end: ``"shift"`` puts a patch at 0 before, ``"pad"`` and ``"shrink"``
        one a step before the first, which sticks out.

    >>> [lattice(10, 4, 4, edge).tolist() for edge in ("drop", "shift", "pad")]
    [[0, 4], [0, 4, 6], [0, 4, 8]]
    >>> [lattice(10, 4, 4, edge, 3).tolist() for edge in ("drop", "shift", "pad")]
    [[3], [0, 3, 6], [-1, 3, 7]]
    """
    out = edge in ("pad", "shrink")
    if extent < size:
        return np.zeros(1 if out and extent else 0, np.int64)
    # A step wider than a patch may leave the image, at its start as at its end.
    first = offset - step if out and offset and offset - step + size > 0 else offset
    starts = np.arange(first, extent - size + 1, step, dtype=np.int64)
    if edge == "shift":
        if offset:
            starts = np.append(np.zeros(1, np.int64), starts)
        if starts[-1] + size < extent:
            starts = np.append(starts, extent - size)
    elif out:
        after = int(starts[-1]) + step if len(starts) else first
        if after < extent and (not len(starts) or starts[-1] + size < extent):
            starts = np.append(starts, after)
    return starts


def covered(starts: Ints, size: int, extent: int) -> int:
    """Pixels of an axis that lie in at least one patch.

    >>> covered(np.array([-1, 3, 8]), 4, 10)
    9
    """
    inside = np.maximum(starts, 0)
    until = np.minimum(starts + size, extent)
    return int((np.minimum(np.append(inside[1:], extent), until) - inside).sum())


class LatticePatching(GridPatching):
    """A grid that is the product of one column of first pixels an axis.

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
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        overlaps: Sequence[int] | None = None,
        *,
        edge: Edge,
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        super().__init__(data_shapes, patch_size, edge=edge, chunks=chunks, keys=keys)
        self._last: tuple[int, npt.NDArray[Any]] | None = None
        overlaps = [0] * len(self.patch_size) if overlaps is None else overlaps
        self.overlaps = tuple(int(o) for o in overlaps)
        if len(self.overlaps) != len(self.patch_size) or any(
            not 0 <= o < p for o, p in zip(self.overlaps, self.patch_size, strict=False)
        ):
            raise PatchSizeError(
                "an overlap is at least 0 and smaller than the patch on each axis, got overlaps="
                f"{list(self.overlaps)} for patch_size={list(self.patch_size)}"
            )

    @abstractmethod
    def _place(self, image: int, axis: int) -> Ints:
        """First pixels along one axis of an image, ascending."""

    @cached_property
    def _starts(self) -> dict[tuple[int, int], Ints]:
        axes = range(len(self.patch_size))
        return {(i, axis): self._place(i, axis) for i in range(len(self.grids)) for axis in axes}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}

    @property
    def is_aligned(self) -> bool:
        """Whether what every patch takes of its image lies inside its owner chunk."""
        return all(
            bool((np.minimum(starts + size, extent) <= (inside // chunk + 1) * chunk).all())
            for i, grid in enumerate(self.grids)
            for axis, (extent, chunk) in enumerate(zip(grid.shape, grid.chunks, strict=True))
            for starts, size in ((self._starts[i, axis], self.patch_size[axis]),)
            for inside in (np.maximum(starts, 0),)
        )

    def starts(self, image: int, axis: int) -> Ints:
        """First pixels along one axis of an image, ascending: int64[n]; its grid is their product.

        Raises
        ------
        IndexError
            If there is no such image or axis.
        """
        if (image, axis) not in self._starts:
            raise IndexError(
                f"a grid has {len(self.grids)} images with {len(self.patch_size)} axes, got image "
                f"{image}, axis {axis}"
            )
        return self._starts[image, axis]

    def left_over(self, image: int) -> tuple[int, ...]:
        """Pixels of each axis of an image that no patch covers."""
        return tuple(
            extent - self._covered(image, axis)
            for axis, extent in enumerate(self.grids[image].shape)
        )

    def n_left_over(self, image: int) -> int:
        """Pixels of an image that no patch covers, all samples together (channels apart)."""
        shape = self.grids[image].shape
        covered = math.prod(self._covered(image, axis) for axis in range(len(shape)))
        return self.n_samples(image) * (math.prod(shape) - covered)

    def _covered(self, image: int, axis: int) -> int:
        return covered(
            self._starts[image, axis], self.patch_size[axis], self.grids[image].shape[axis]
        )

    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""
        return np.tile(
            volume([self.per_chunk(image, axis)[1] for axis in range(len(self.patch_size))]),
            self.n_samples(image),
        )

    def counts_of(self, image: int, cells: npt.ArrayLike) -> npt.NDArray[Any]:
        """Patches that some cells own: unsigned[k], of the narrowest type."""
        flat = np.asarray(cells, np.int64)
        if self.n_samples(image) > 1:
            flat = flat % max(1, self.grids[image].n_chunks)
        return self._volume(image)[flat]

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""
        return self._product(
            image, cells, [self._starts[image, a] for a in range(len(self.patch_size))]
        )

    def _product(
        self, image: int, cells: npt.ArrayLike, values: Sequence[Ints]
    ) -> tuple[Ints, Ints]:
        """Values of the lattice points of some cells, one column an axis; points of each cell."""
        index = self._index(image, cells)
        ndim, n_cells = len(index), len(index[0])
        counts = np.ones(n_cells, np.int64)
        # The patches of a cell, axis by axis: which cell each is of, and its pixels so far.
        owner, columns = np.arange(n_cells), np.zeros((ndim, n_cells), np.int64)
        for axis in range(ndim):
            first, n = (column[index[axis]] for column in self.per_chunk(image, axis))
            counts *= n
            place, repeats = first[owner], n[owner]
            place = np.repeat(place, repeats) + ramp(repeats)
            columns = np.repeat(columns, repeats, axis=1)
            columns[axis] = values[axis][place]
            owner = np.repeat(owner, repeats)
        return columns.T, counts

    def _volume(self, image: int) -> npt.NDArray[Any]:
        """Patches of each chunk, in the narrowest type: of the last image asked."""
        last = self._last  # Read once: other threads may ask for other images.
        if last is None or last[0] != image:
            columns = [self.per_chunk(image, axis)[1] for axis in range(len(self.patch_size))]
            most = math.prod(int(column.max(initial=0)) for column in columns)
            narrow = np.min_scalar_type(most)
            last = self._last = image, volume([column.astype(narrow) for column in columns])
        return last[1]

    def per_chunk(self, image: int, axis: int) -> tuple[Ints, Ints]:
        """Along one axis, for each chunk: its first lattice point, and how many it owns.

        Returns
        -------
        int64[n_chunks], int64[n_chunks]
        """
        starts, grid = self._starts[image, axis], self.grids[image]
        edges = np.arange(grid.counts[axis] + 1, dtype=np.int64) * grid.chunks[axis]
        # What begins before the image belongs to its first chunk.
        first = np.searchsorted(np.maximum(starts, 0), edges).astype(np.int64)
        return first[:-1], np.diff(first)
