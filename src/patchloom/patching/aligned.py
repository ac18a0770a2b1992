"""ChunkAlignedPatching: a grid that begins anew in each chunk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchloom.errors import PatchSizeError
from patchloom.patching.lattice import LatticePatching
from patchloom.patching.protocol import Edge, Ints, boxes_of

__all__ = ["ChunkAlignedPatching"]


class ChunkAlignedPatching(LatticePatching):
    """A grid that begins anew in each chunk, so that no patch straddles a border of chunks.

    Each chunk is then decoded for its own patches only. Where chunks are no multiple of the
    grid's step, some pixels of each are left over: `left_over` says how many.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels; at most that of a chunk.
    overlaps
        Pixels that neighbours in a chunk share on each spatial axis; none by default.
    shift
        Pixels by which the grid moves inside each chunk on each spatial axis, at most as many
        as are left over there; none by default.
    units
        Extents of each image's boxes in which the grid begins anew instead of in its chunks:
        multiples of these, for example its shards. Patches may then straddle chunks.
    edge
        What happens at the border of a chunk: ``"drop"`` leaves pixels over, ``"shift"`` moves
        its last patch inward, ``"pad"`` too, but lets it stick out of the image in the last
        chunk of an axis. ``"shift"`` covers every pixel: a last chunk narrower than a patch is
        covered by one that reaches back into the chunk before, the only ones that straddle.
    chunks, keys
        See `GridPatching`.

    Raises
    ------
    PatchSizeError
        If sizes, overlaps or shifts do not fit the axes, or no chunk holds a patch.

    Examples
    --------
    >>> patching = ChunkAlignedPatching([(1, 1, 25)], (4,), chunks=[(10,)])
    >>> [patching.get_patch_spec(i)["coords"][0] for i in range(patching.n_patches)]
    [0, 4, 10, 14, 20]
    >>> patching.is_aligned, patching.left_over(0)
    (True, (5,))
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        overlaps: Sequence[int] | None = None,
        *,
        shift: Sequence[int] | None = None,
        units: Sequence[Sequence[int]] | None = None,
        edge: Edge = "drop",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        super().__init__(data_shapes, patch_size, overlaps, edge=edge, chunks=chunks, keys=keys)
        self.shift = tuple(int(s) for s in ([0] * len(self.patch_size) if shift is None else shift))
        if len(self.shift) != len(self.patch_size) or min(self.shift) < 0:
            raise PatchSizeError(
                "a shift is at least 0 on each spatial axis, got shift="
                f"{list(self.shift)} for patch_size={list(self.patch_size)}"
            )
        self.boxes = boxes_of(self.grids, units, self.patch_size, edge)

    def _place(self, image: int, axis: int) -> Ints:
        grid, size = self.boxes[image], self.patch_size[axis]
        extent, chunk, step = grid.shape[axis], grid.chunks[axis], size - self.overlaps[axis]
        small = any(e < p for e, p in zip(grid.shape, self.patch_size, strict=True))
        if small and not self.may_stick_out:
            return np.zeros(0, np.int64)
        begin = np.arange(0, extent, chunk, dtype=np.int64)
        wide = np.minimum(begin + chunk, extent) - begin
        n = np.where(wide >= size, (wide - size) // step + 1, 0)
        left = np.where(n > 0, wide - size - (n - 1) * step, wide)
        highest = begin + wide - size
        if self.edge == "drop":
            begin = begin + np.minimum(self.shift[axis], left)
        else:
            n += left > 0
            if self.may_stick_out:
                highest[-1:] = extent
        chunk_of = np.repeat(np.arange(len(n)), n)
        turn = np.arange(len(chunk_of)) - np.repeat(np.cumsum(n) - n, n)
        starts: Ints = np.minimum(begin[chunk_of] + turn * step, highest[chunk_of])
        return starts
