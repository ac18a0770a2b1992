"""RandomPatching and FixedRandomPatching: uniform random positions, each with an address."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError
from patchloom.patching.protocol import Edge, GridPatching, Ints, are_chunks, boxes_of, volume
from patchloom.randomness import below, key_of, philox

__all__ = ["FixedRandomPatching", "RandomPatching"]


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
    inside_chunks
        Whether every patch lies inside one chunk; then it is uniform over such positions.
    units
        With `inside_chunks`: extents of each image's boxes in which patches lie instead of in
        its chunks, multiples of these, for example its shards.
    edge, chunks, keys
        See `GridPatching`. Positions never stick out of an image, except that ``"pad"``
        admits an image smaller than a patch.

    Raises
    ------
    PatchSizeError
        If sizes do not fit the axes, or `inside_chunks` is asked for and no chunk holds a patch.

    Examples
    --------
    >>> patching = RandomPatching([(1, 1, 100, 100)], (32, 32), seed=7)
    >>> patching.n_patches, patching.get_patch_spec(3) == patching.get_patch_spec(3)
    (16, True)
    """

    repeats: ClassVar[bool] = True

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        seed: int | None = None,
        *,
        n_patches: int | None = None,
        epoch: int = 0,
        inside_chunks: bool = False,
        units: Sequence[Sequence[int]] | None = None,
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
        self.inside_chunks = inside_chunks
        self.boxes = boxes_of(self.grids, units, self.patch_size, edge) if inside_chunks else ()
        # Bound methods cannot be cached by lru_cache without keeping self alive for ever.
        self._counts = lru_cache(maxsize=None)(self._draw_counts)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_counts"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._counts = lru_cache(maxsize=None)(self._draw_counts)

    def with_epoch(self, epoch: int) -> Self:
        """The same strategy in another epoch."""
        other = copy(self)
        # What was derived belongs to the epoch it was derived in.
        for name in ("_first", "_first_of_cell"):
            other.__dict__.pop(name, None)
        other.epoch = epoch
        return other

    @property
    def is_aligned(self) -> bool:
        """Whether every patch is known to lie inside its owner chunk."""
        return self.inside_chunks and are_chunks(self.boxes, self.grids)

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
        extent, chunk = grid.shape[axis], grid.chunks[axis]
        start = np.arange(grid.counts[axis], dtype=np.int64) * chunk
        if extent < size:
            # Only the first pixel of the image, and only where a patch may stick out.
            return np.asarray(start == 0, np.int64) * self.may_stick_out
        stop: Ints | int = extent
        if self.inside_chunks:
            unit = self.boxes[image].chunks[axis]
            stop = np.minimum(start - start % unit + unit, extent)
        return np.asarray(np.clip(stop - size + 1 - start, 0, chunk), np.int64)

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


class FixedRandomPatching(RandomPatching):
    """Uniform random positions that stay the same in every epoch, for validation.

    The positions are those of `RandomPatching` with the same seed in epoch 0.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels.
    seed
        Fixes every position; None is 0.
    n_patches, inside_chunks, units, edge, chunks, keys
        See `RandomPatching`.

    Examples
    --------
    >>> patching = FixedRandomPatching([(1, 1, 100, 100)], (32, 32), seed=7)
    >>> patching.with_epoch(5).get_patch_spec(3) == patching.get_patch_spec(3)
    True
    """

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        seed: int | None = None,
        *,
        n_patches: int | None = None,
        inside_chunks: bool = False,
        units: Sequence[Sequence[int]] | None = None,
        edge: Edge = "drop",
        chunks: Sequence[Sequence[int]] | None = None,
        keys: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            data_shapes,
            patch_size,
            seed,
            n_patches=n_patches,
            inside_chunks=inside_chunks,
            units=units,
            edge=edge,
            chunks=chunks,
            keys=keys,
        )

    with_epoch = GridPatching.with_epoch
