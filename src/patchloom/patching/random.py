"""RandomPatching and FixedRandomPatching: uniform random positions, each with an address."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError
from patchloom.patching.protocol import (
    Edge,
    GridPatching,
    Ints,
    are_chunks,
    boxes_of,
    check_units,
    ramp,
)
from patchloom.randomness import below, key_of, philox, poissons

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
        If sizes do not fit the axes, `inside_chunks` is asked for and no chunk holds a patch,
        `units` is given without it, or `n_patches` is no natural number.

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
        check_units(units, inside_chunks)
        self.seed = 0 if seed is None else int(seed)
        self.epoch = epoch
        self.per_image = None if n_patches is None else _whole(n_patches)
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
        return self._counts(image).astype(np.int64)

    def counts_of(self, image: int, cells: npt.ArrayLike) -> npt.NDArray[Any]:
        """Patches that some cells own: unsigned[k], of a narrow type."""
        return self._counts(image)[np.asarray(cells, np.int64)]

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""
        cells = np.asarray(cells, np.int64)
        counts = self.counts_of(image, cells).astype(np.int64)
        owner = np.repeat(cells, counts)
        key = key_of("corner", self.seed, self.epoch, self.keys[image])
        words = philox(key, owner, owner >> 32, ramp(counts))
        corners = np.empty((len(self.patch_size), len(owner)), np.int64)
        for axis, chunk in enumerate(self._index(image, cells)):
            room = np.repeat(self._room(image, axis)[chunk], counts)
            corners[axis] = below(room, words[axis])
            first = chunk.astype(np.int64) * self.grids[image].chunks[axis]
            corners[axis] += np.repeat(first, counts)
        return corners.T, counts

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

    def _draw_counts(self, image: int) -> npt.NDArray[Any]:
        """A multinomial over the cells by their room: unsigned[n_cells], narrow.

        Independent Poisson numbers whose total is a little too low, and single draws for what is
        missing, are together exactly multinomial, and cost one look-up a cell.
        """
        rooms = [self._room(image, axis) for axis in range(len(self.patch_size))]
        n_samples = self.n_samples(image)
        room = n_samples * math.prod(int(r.sum()) for r in rooms)
        n = self._n_asked(image) if room else 0
        rate = max(0.0, n - 8 * math.sqrt(n)) / max(1, room)
        for attempt in itertools.count():
            address = (self.seed, self.epoch, self.keys[image], attempt)
            counts = poissons(key_of("counts", *address), rate, rooms, n_samples)
            missing = n - int(counts.sum(dtype=np.int64))
            if missing >= 0:
                break
        if missing:
            cells, more = _single(key_of("cells", *address), rooms, n_samples, missing)
            more += counts[cells]
            counts = counts.astype(np.result_type(counts, np.min_scalar_type(int(more.max()))))
            counts[cells] = more
        return counts

    def _n_asked(self, image: int) -> int:
        """Patches drawn from an image that has room for them."""
        if self.per_image is not None:
            return self.per_image
        shape = self.grids[image].shape
        tiles = (-(-s // p) for s, p in zip(shape, self.patch_size, strict=True))
        return self.n_samples(image) * math.prod(tiles)


def _whole(n_patches: int) -> int:
    try:
        found = operator.index(n_patches)
    except TypeError:
        found = -1
    if found < 0:
        raise PatchSizeError(f"n_patches is a whole number, at least 0, got {n_patches!r}")
    return found


def _single(key: int, rooms: Sequence[Ints], n_samples: int, n: int) -> tuple[Ints, Ints]:
    """The cells of `n` positions that are uniform over an image, and how many each holds."""
    turn = np.arange(n)
    sample, *words = philox(key, turn & 0xFFFFFFFF, turn >> 32)
    cell = below(n_samples, sample)
    for room, word in zip(rooms, words, strict=False):
        upto = np.cumsum(room)
        cell = cell * len(room) + np.searchsorted(upto, below(upto[-1], word), side="right")
    found, counts = np.unique(cell, return_counts=True)
    return found, counts.astype(np.int64)


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
