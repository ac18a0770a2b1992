"""RandomPatching: uniform random positions, each with an address."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError
from patchloom.patching.protocol import Edge, GridPatching, Ints, volume
from patchloom.randomness import below, key_of, philox

__all__ = ["RandomPatching"]


class RandomPatching(GridPatching):
    """Patches at uniform random positions inside each image.

    The number of patches of each chunk is a seeded multinomial by the volume of its valid
    first pixels, and each position is a function of ``(seed, epoch, image, chunk, index)``:
    uniform over the image, the same on every worker and in every order.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels.
    seed
        Fixes every position; None is 0.
    n_patches
        Patches drawn from each image; by default as many as tile it once,
        ``n_samples * prod(ceil(shape / patch_size))``, as in CAREamics.
    epoch
        Another epoch, other positions.
    edge, chunks, keys
        See `GridPatching`. Positions never stick out of an image, except that ``"pad"``
        admits an image smaller than a patch.

    Examples
    --------
    >>> patching = RandomPatching([(1, 1, 100, 100)], (32, 32), seed=7)
    >>> patching.n_patches, patching.get_patch_spec(3) == patching.get_patch_spec(3)
    (16, True)
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        seed: int | None = None,
        *,
        n_patches: int | None = None,
        epoch: int = 0,
        edge: Edge = "drop",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        super().__init__(data_shapes, patch_size, edge=edge, chunks=chunks, keys=keys)
        if n_patches is not None and n_patches < 0:
            raise PatchSizeError(f"n_patches is at least 0, got {n_patches}")
        self.seed = 0 if seed is None else int(seed)
        self.epoch = epoch
        self.per_image = n_patches
        # Bound methods cannot be cached by lru_cache without keeping self alive for ever.
        self._counts = lru_cache(maxsize=None)(self._draw_counts)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_counts"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._counts = lru_cache(maxsize=None)(self._draw_counts)

    def with_epoch(self, epoch: int) -> RandomPatching:
        """The same strategy in another epoch."""
        return RandomPatching(
            self.data_shapes,
            self.patch_size,
            self.seed,
            n_patches=self.per_image,
            epoch=epoch,
            edge=self.edge,
            chunks=[grid.chunks for grid in self.grids],
            keys=self.keys,
        )

    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""
        return self._counts(image)

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""
        cells = np.asarray(cells, np.int64)
        index = self._split(image, cells)
        counts = self.counts(image)[cells]
        cell = np.repeat(np.arange(len(cells)), counts)
        inside = np.arange(len(cell)) - np.repeat(np.cumsum(counts) - counts, counts)
        key = key_of("corner", self.seed, self.epoch, self.keys[image])
        words = philox(key, cells[cell], cells[cell] >> 32, inside)
        corners = np.empty((len(cell), len(self.patch_size)), np.int64)
        for axis in range(len(self.patch_size)):
            chunk = index[cell, axis]
            room = self._room(image, axis)[chunk]
            corners[:, axis] = chunk * self.grids[image].chunks[axis] + below(room, words[axis])
        return corners, counts

    def _room(self, image: int, axis: int) -> Ints:
        """Along one axis, for each chunk: how many valid first pixels it holds."""
        grid, size = self.grids[image], self.patch_size[axis]
        valid = grid.shape[axis] - size + 1
        if valid < 1:
            valid = 1 if self.edge == "pad" and grid.shape[axis] else 0
        start = np.arange(grid.counts[axis], dtype=np.int64) * grid.chunks[axis]
        return np.clip(valid - start, 0, grid.chunks[axis])

    def _draw_counts(self, image: int) -> Ints:
        grid, n_samples = self.grids[image], self.n_samples(image)
        room = volume([self._room(image, axis) for axis in range(len(self.patch_size))])
        weights = np.tile(room, n_samples).astype(np.float64)
        n = self.per_image
        if n is None:
            tiles = [-(-s // p) for s, p in zip(grid.shape, self.patch_size, strict=True)]
            n = n_samples * int(np.prod(tiles))
        if not weights.sum():
            return np.zeros(len(weights), np.int64)
        key = key_of("counts", self.seed, self.epoch, self.keys[image])
        generator = np.random.Generator(np.random.Philox(key=key))
        # Only over chunks with room: the last weight takes what rounding leaves over.
        some = np.flatnonzero(weights)
        counts = np.zeros(len(weights), np.int64)
        counts[some] = generator.multinomial(n, weights[some] / weights.sum())
        return counts
