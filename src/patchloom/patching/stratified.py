"""StratifiedPatching: about one patch in each cell of a grid, every pixel taken equally often."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from copy import copy
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from patchloom.errors import PatchSizeError, PlanError
from patchloom.grid import ChunkGrid
from patchloom.patching.fixed import FixedPatching
from patchloom.patching.protocol import (
    Edge,
    GridPatching,
    Ints,
    PatchSpecs,
    are_chunks,
    boxes_of,
    check_units,
    integers,
    turns,
)
from patchloom.patching.strata import (
    UNIT,
    UNSAID,
    Axis,
    Said,
    Weights,
    axis_of,
    draw,
    weigh,
)
from patchloom.randomness import key_of, philox

__all__ = ["StratifiedPatching", "create_val_split"]

_FIXED = 2.0**36
"""Weights are summed as integers: sums then do not depend on what is summed together."""
_BATCH = 2**14
"""Patches drawn together: what fits into a cache takes half the time."""


class StratifiedPatching(GridPatching):
    """About one patch in each cell of a grid, so that all pixels are taken equally often.

    The image is a grid of cells as large as a patch, and a patch that begins in a cell ends at
    most one cell further. Each cell offers its first pixels with the same weight; the first
    pixels at the border of the image weigh more, as patches cannot stick out. In each epoch
    the cells are drawn systematically: a cell of weight w gives w patches, rounded up or down.
    Over many epochs each pixel farther than one patch from a border is taken once an epoch,
    and all pixels are on average, up to the rounding of the number of patches. The border is
    that of the image; with `inside_chunks`, that of a chunk (or unit).

    `exclude_patches` and `set_region_probs` change the strategy; `create_val_split` does not.

    Parameters
    ----------
    data_shapes
        Shape of each image as ``SC(Z)YX``, in pixels.
    patch_size
        Extent on each spatial axis, in pixels.
    seed
        Fixes every position; None is 0.
    epoch
        Another epoch, other positions.
    inside_chunks
        Whether every patch lies inside one chunk, where the grid then begins anew.
    units
        With `inside_chunks`: extents of each image's boxes in which patches lie instead of in
        its chunks, multiples of these, for example its shards.
    edge, chunks, keys
        See `GridPatching`. Positions never stick out of an image, except that ``"pad"``
        admits an image smaller than a patch.

    Raises
    ------
    PatchSizeError
        If sizes do not fit the axes, `inside_chunks` is asked for and no chunk holds a patch, or
        `units` is given without it.

    Examples
    --------
    >>> patching = StratifiedPatching([(1, 1, 100, 100)], (25, 25), seed=7)
    >>> patching.n_patches
    16
    >>> patching.exclude_patches(0, 0, [(0, 0), (3, 1)])
    >>> len(patching.get_included_grid_coords()[0, 0])
    14
    """

    repeats: ClassVar[bool] = True

    def __init__(
        self,
        data_shapes: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        seed: int | None = None,
        *,
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
        self.inside_chunks = inside_chunks
        self.boxes = (
            boxes_of(self.grids, units, self.patch_size, edge)
            if inside_chunks
            else tuple(ChunkGrid(g.shape, tuple(max(1, n) for n in g.shape)) for g in self.grids)
        )
        self._said: dict[tuple[int, int], Said] = {}
        self._axes_of: dict[int, list[Axis]] = {}
        self._weights_of: dict[tuple[int, Said], Weights] = {}
        self._forget()

    @property
    def is_aligned(self) -> bool:
        """Whether every patch is known to lie inside its owner chunk."""
        return self.inside_chunks and are_chunks(self.boxes, self.grids)

    def _forget(self) -> None:
        """Drop what belongs to an epoch."""
        for name in ("_first", "_first_of_cell"):
            self.__dict__.pop(name, None)
        self._counts_of: dict[int, Ints] = {}
        self._offsets_of: dict[int, npt.NDArray[np.float64]] = {}

    def _say(self, where: tuple[int, int], said: Said) -> None:
        """Remember what was said of a sample, and drop what it changes."""
        self._said[where] = said
        self._weights_of = {}
        self._forget()

    def __getstate__(self) -> dict[str, object]:
        derived = ("_first", "_first_of_cell", "_counts_of", "_offsets_of")
        return {k: v for k, v in self.__dict__.items() if k not in derived} | {
            "_said": dict(self._said),
            "_axes_of": {},
            "_weights_of": {},
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def with_epoch(self, epoch: int) -> Self:
        """The same strategy in another epoch."""
        other = copy(self)
        other.epoch = epoch
        # What the samples weigh is the same in all epochs, and stays shared.
        other._axes_of, other._weights_of = self._axes_of, self._weights_of
        return other

    # -- regions ------------------------------------------------------------------------

    def exclude_patches(
        self, data_idx: int, sample_idx: int, grid_coords: Sequence[tuple[int, ...]]
    ) -> None:
        """Never again take a pixel of some cells of the grid; changes the strategy.

        Parameters
        ----------
        data_idx, sample_idx
            Which image, and which sample of it.
        grid_coords
            Cells: each holds a box as large as a patch, which `cell_start` places.

        Raises
        ------
        IndexError
            If the grid has no such cell.
        PatchSizeError
            If cells are not one integer a spatial axis.
        """
        flat = self._flat(data_idx, sample_idx, grid_coords)
        out, probs = self._said.get((data_idx, sample_idx), UNSAID)
        self._say((data_idx, sample_idx), (out.union(flat), probs))

    def set_region_probs(
        self, data_idx: int, sample_idx: int, probs: Mapping[tuple[int, ...], float]
    ) -> None:
        """Weight some cells of the grid by probabilities; changes the strategy.

        Parameters
        ----------
        data_idx, sample_idx
            Which image, and which sample of it.
        probs
            For cells of the grid: by how much the expected number of patches that begin there
            is multiplied, from 0 to 1.

        Raises
        ------
        IndexError
            If the grid has no such cell.
        PatchSizeError
            If a probability is not in [0, 1], or cells are not one integer a spatial axis.
        """
        flat = self._flat(data_idx, sample_idx, list(probs))
        values = [float(v) for v in probs.values()]
        if not all(0 <= v <= 1 for v in values):
            wrong = next(v for v in values if not 0 <= v <= 1)
            raise PatchSizeError(f"a probability is from 0 to 1, got {wrong}")
        out, old = self._said.get((data_idx, sample_idx), UNSAID)
        new = {**dict(old), **dict(zip(flat, values, strict=True))}
        self._say((data_idx, sample_idx), (out, frozenset(new.items())))

    def get_all_grid_coords(self) -> dict[tuple[int, int], list[tuple[int, ...]]]:
        """All cells of the grid, by image and sample."""
        return {
            (image, sample): list(itertools.product(*(range(n) for n in self.grid_shape(image))))
            for image in range(len(self.grids))
            for sample in range(self.n_samples(image))
        }

    def get_included_grid_coords(self) -> dict[tuple[int, int], list[tuple[int, ...]]]:
        """The cells of the grid that are not excluded, by image and sample."""
        found = self.get_all_grid_coords()
        for where, (out, _) in self._said.items():
            found[where] = [c for k, c in enumerate(found[where]) if k not in out]
        return found

    def grid_shape(self, image: int) -> tuple[int, ...]:
        """Cells of the grid on each axis; none sticks out of the image."""
        shape = tuple(len(axis.start) for axis in self._axes(image))
        return shape if all(shape) else (0,) * len(shape)

    def cell_start(self, image: int, grid_coords: Sequence[tuple[int, ...]]) -> Ints:
        """First pixels of some cells of the grid, which are boxes as large as a patch.

        Parameters
        ----------
        image
            Which image.
        grid_coords
            Cells. Cell g begins at ``g * patch_size``; with `inside_chunks` the count begins
            anew in each chunk, and what is left over at its end is no cell.

        Returns
        -------
        int64[n, ndim]
            In pixels of the image.

        Raises
        ------
        IndexError
            If the grid has no such cell.
        PatchSizeError
            If cells are not one integer a spatial axis.
        """
        columns = zip(self._axes(image), self._cells(image, grid_coords).T, strict=True)
        return np.stack([axis.start[column] for axis, column in columns], -1)

    def _cells(self, image: int, grid_coords: Sequence[tuple[int, ...]]) -> Ints:
        """Cells of the grid, checked: int64[n, ndim]."""
        shape = self.grid_shape(image)
        coords = integers(list(grid_coords), len(shape), "cells", "count cells of the grid from 0")
        outside = ((coords < 0) | (coords >= np.asarray(shape))).any(-1)
        if outside.any():
            raise IndexError(
                f"a cell lies in the grid {shape} of image {image}, got "
                f"{tuple(coords[outside][0].tolist())}"
            )
        return coords

    def _flat(self, image: int, sample: int, grid_coords: Sequence[tuple[int, ...]]) -> list[int]:
        if not (0 <= image < len(self.grids) and 0 <= sample < self.n_samples(image)):
            raise IndexError(
                f"an image is in range({len(self.grids)}) and has a sample, got image {image}, "
                f"sample {sample}"
            )
        coords = self._cells(image, grid_coords)
        if not len(coords):
            return []
        flat: list[int] = np.ravel_multi_index(tuple(coords.T), self.grid_shape(image)).tolist()
        return flat

    # -- weights ------------------------------------------------------------------------

    def _axes(self, image: int) -> list[Axis]:
        found = self._axes_of.get(image)
        if found is None:
            grid, box = self.grids[image], self.boxes[image]
            found = self._axes_of[image] = [
                axis_of(*row, self.edge)
                for row in zip(grid.shape, self.patch_size, grid.chunks, box.chunks, strict=True)
            ]
        return found

    def _weights(self, image: int, sample: int) -> Weights:
        """What a sample weighs; samples of which the same was said share one value."""
        said = self._said.get((image, sample), UNSAID)
        found = self._weights_of.get((image, said))
        if found is None:
            found = weigh(self._axes(image), self.grids[image], said)
            self._weights_of[image, said] = found
        return found

    def _groups(self, image: int, samples: Ints) -> list[tuple[Weights, Ints]]:
        """The distinct weights of some samples, and where each holds."""
        names, place = np.unique(samples, return_inverse=True)
        given = [self._weights(image, sample) for sample in names.tolist()]
        rank = {weights: k for k, weights in enumerate(dict.fromkeys(given))}
        if len(rank) < 2:
            return [(weights, np.arange(len(samples))) for weights in rank]
        group = np.array([rank[weights] for weights in given])[place]
        order = np.argsort(group, kind="stable")
        return list(zip(rank, np.split(order, np.cumsum(np.bincount(group))[:-1]), strict=True))

    # -- patches ------------------------------------------------------------------------

    def _offsets(self, image: int) -> npt.NDArray[np.float64]:
        """Where each sample's systematic draw begins: float64[n_samples], in [0, 1)."""
        found = self._offsets_of.get(image)
        if found is None:
            key = key_of("stratified offset", self.seed, self.epoch, self.keys[image])
            words = philox(key, np.arange(self.n_samples(image)))[0]
            found = self._offsets_of[image] = np.asarray(words * UNIT, np.float64)
        return found

    def counts(self, image: int) -> Ints:
        """Patches that each cell of an image owns: int64[n_samples * n_chunks]."""
        found = self._counts_of.get(image)
        if found is None:
            offsets = self._offsets(image)
            rows = np.empty((len(offsets), self.grids[image].n_chunks), np.int64)
            for each, mine in self._groups(image, np.arange(len(offsets))):
                rows[mine] = np.diff(np.ceil(each.upto - offsets[mine, None]), axis=1)
            found = self._counts_of[image] = rows.ravel()
        return found

    def corners(self, image: int, cells: npt.ArrayLike) -> tuple[Ints, Ints]:
        """First pixels of the patches of some cells, and how many each cell owns."""
        cells = np.asarray(cells, np.int64)
        counts = self.counts(image)[cells]
        full, n = cells[counts > 0], counts[counts > 0]
        cuts = np.flatnonzero(np.diff(np.cumsum(n) // _BATCH)) + 1
        parts = zip(np.split(full, cuts), np.split(n, cuts), strict=True)
        return np.concatenate([self._draw(image, *part) for part in parts]), counts

    def _draw(self, image: int, full: Ints, n: Ints) -> Ints:
        """First pixels of the patches of some cells that own n each: int64[n.sum(), ndim]."""
        axes, grid = self._axes(image), self.grids[image]
        sample, chunk = np.divmod(full, max(1, grid.n_chunks))
        groups = self._groups(image, sample)
        low, high, extra = np.empty((3, len(full)))
        for each, mine in groups:
            at = chunk[mine]
            low[mine], high[mine], extra[mine] = each.upto[at], each.upto[at + 1], each.extra
        index = grid.unflat(chunk).T
        first = np.stack([a.of_chunk[i] for a, i in zip(axes, index, strict=True)], -1)
        last = np.stack([a.of_chunk[i + 1] for a, i in zip(axes, index, strict=True)], -1)
        # Every piece of every chunk with its weight, as an integer.
        owner, turn = turns(last - first)
        ends = np.append(0, np.cumsum((last - first).prod(-1)))
        piece = [first[owner, k] + turn[:, k] for k in range(len(axes))]
        mass, blocked = np.ones(len(owner)), np.zeros(len(owner), np.int64)
        for a, p in zip(axes, piece, strict=True):
            mass *= a.plain[p] + extra[owner] * a.extra[p]
        for each, mine in groups:
            which, special = each.special(chunk[mine])
            place = ends[mine][which] + each.turn[special]
            mass[place], blocked[place] = each.mass[special], each.blocked[special]
        # What weighs anything keeps room: a cell that owns patches has a piece for them.
        fixed = np.maximum(np.rint(mass * _FIXED).astype(np.int64), mass > 0)
        sums = np.append(0, np.cumsum(fixed))
        # The patches of a cell lie one apart along its weight.
        offset = self._offsets(image)[sample]
        begin = np.ceil(low - offset) + offset - low
        cell = np.repeat(np.arange(len(full)), n)
        inside = np.arange(len(cell)) - np.repeat(np.cumsum(n) - n, n)
        share = np.clip((begin[cell] + inside) / (high - low)[cell], 0, 1)
        begins, room = sums[ends[:-1]][cell], np.diff(sums[ends])[cell]
        target = begins + np.minimum((share * room).astype(np.int64), room - 1)
        drawn = np.searchsorted(sums, target, "right") - 1
        key = key_of("stratified corner", self.seed, self.epoch, self.keys[image])
        words = philox(key, full[cell], full[cell] >> 32, inside)
        taken = [p[drawn] for p in piece]
        return draw(axes, taken, extra[cell], blocked[drawn], words, self.patch_size)


def create_val_split(
    stratified: StratifiedPatching, n_val_patches: int, rng: np.random.Generator
) -> tuple[StratifiedPatching, FixedPatching]:
    """Fixed validation patches, and a strategy that never takes a pixel of them.

    Parameters
    ----------
    stratified
        What to split; it is not changed.
    n_val_patches
        Cells of its grid that become validation patches.
    rng
        Draws them.

    Returns
    -------
    StratifiedPatching, FixedPatching
        For training and for validation.

    Raises
    ------
    PlanError
        If no training patch would be left, or the number is negative.

    Examples
    --------
    >>> whole = StratifiedPatching([(1, 1, 64, 64)], (16, 16))
    >>> train, val = create_val_split(whole, 3, np.random.default_rng(0))
    >>> train.n_patches, val.n_patches, whole.n_patches
    (13, 3, 16)
    """
    if n_val_patches < 0:
        raise PlanError(f"n_val_patches is at least 0, got {n_val_patches}")
    cells = [
        (image, sample, coords)
        for (image, sample), found in stratified.get_included_grid_coords().items()
        for coords in found
    ]
    if n_val_patches >= max(1, len(cells)):
        raise PlanError(
            f"validation leaves at least one cell of the grid for training, got n_val_patches="
            f"{n_val_patches} of {len(cells)} cells of {list(stratified.patch_size)} pixels; take "
            "fewer, or a smaller patch"
        )
    taken = [cells[k] for k in np.sort(rng.choice(len(cells), n_val_patches, replace=False))]
    train = stratified.with_epoch(stratified.epoch)
    for (image, sample), group in itertools.groupby(taken, lambda cell: cell[:2]):
        train.exclude_patches(image, sample, [coords for _, _, coords in group])
    if n_val_patches and not train.n_patches:
        raise PlanError(
            f"validation leaves at least one training patch, got n_val_patches={n_val_patches} of "
            f"{len(cells)} cells, the others with probability 0; take fewer"
        )
    specs = [
        PatchSpecs(
            data_idx=image,
            sample_idx=sample,
            coords=tuple(stratified.cell_start(image, [coords])[0].tolist()),
            patch_size=stratified.patch_size,
        )
        for image, sample, coords in taken
    ]
    return train, FixedPatching(specs)
