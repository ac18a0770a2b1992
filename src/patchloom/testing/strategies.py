"""Every strategy in one list, and the laws that all of them keep."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from patchloom.patching.aligned import ChunkAlignedPatching
from patchloom.patching.blue_noise import BlueNoisePatching
from patchloom.patching.listed import CenteredPatching
from patchloom.patching.pixels import PixelPatching
from patchloom.patching.protocol import EDGES, Edge, GridPatching
from patchloom.patching.random import FixedRandomPatching, RandomPatching
from patchloom.patching.sequential import SequentialPatching
from patchloom.patching.stratified import StratifiedPatching
from patchloom.patching.strided import StridedPatching
from patchloom.patching.tiled import TiledPatching
from patchloom.patching.whole import WholeSamplePatching

__all__ = ["STRATEGIES", "Geometry", "PatchingLaws", "check_laws"]


@dataclass(frozen=True)
class Geometry:
    """What a strategy is laid over."""

    shapes: tuple[tuple[int, ...], ...]
    """Shape of each image as ``SC(Z)YX``, in pixels."""
    size: tuple[int, ...]
    """Extent of a patch on each spatial axis, in pixels."""
    overlaps: tuple[int, ...]
    """Pixels that neighbours share on each spatial axis, fewer than a patch has."""
    chunks: tuple[tuple[int, ...], ...]
    """Chunk extents of each image on its spatial axes."""
    edge: Edge = "drop"
    seed: int = 0

    @property
    def common(self) -> dict[str, Any]:
        """What the constructors of all strategies take."""
        return {"edge": self.edge, "chunks": self.chunks}

    @property
    def wide(self) -> dict[str, Any]:
        """The same with chunks that can hold a patch."""
        chunks = [
            tuple(max(c, p) for c, p in zip(row, self.size, strict=True)) for row in self.chunks
        ]
        return {"edge": self.edge, "chunks": chunks}

    @property
    def sharded(self) -> dict[str, Any]:
        """The same chunks, and units of at least 2 of them an axis that can hold a patch."""
        units = [
            tuple(c * (-(-p // c) + 1) for c, p in zip(row, self.size, strict=True))
            for row in self.chunks
        ]
        return {**self.common, "units": units}


def _some_cells(geometry: Geometry, **options: Any) -> GridPatching:
    """Every third cell of a grid excluded, every fourth less probable."""
    found = StratifiedPatching(geometry.shapes, geometry.size, geometry.seed, epoch=1, **options)
    for (image, sample), cells in found.get_all_grid_coords().items():
        if sample % 2 == 0:
            found.exclude_patches(image, sample, cells[1::3])
            found.set_region_probs(image, sample, dict.fromkeys(cells[::4], 0.3))
    return found


def _around_points(geometry: Geometry) -> GridPatching:
    """Patches centred on random points, some of them outside their image, some twice."""
    rng = np.random.default_rng(geometry.seed)
    image = rng.integers(0, len(geometry.shapes), 20)
    shapes = np.array(geometry.shapes, np.int64)[image]
    centers = rng.integers(-4, shapes[:, 2:] + 4)
    sample = rng.integers(0, shapes[:, 0])
    centers[3], image[3], sample[3] = centers[0], image[0], sample[0]
    return CenteredPatching(
        geometry.shapes, geometry.size, centers, image=image, sample=sample, **geometry.common
    )


def _moved_grid(geometry: Geometry) -> GridPatching:
    """A grid anchored anywhere below its stride, the same on no two axes."""
    common = zip(geometry.size, geometry.overlaps, strict=True)
    stride = [p + geometry.seed % 3 - o for p, o in common]
    offset = [(5 * geometry.seed + 3 * axis + 2) % s for axis, s in enumerate(stride)]
    return StridedPatching(geometry.shapes, geometry.size, stride, offset=offset, **geometry.common)


def _every_pixel(geometry: Geometry) -> GridPatching:
    """Patches centred on every pixel, of at most 6 pixels of each axis."""
    shapes = [(*shape[:2], *(min(n, 6) for n in shape[2:])) for shape in geometry.shapes]
    return PixelPatching(shapes, geometry.size, **geometry.common)


STRATEGIES: Mapping[str, Callable[[Geometry], GridPatching]] = MappingProxyType(
    {
        "sequential": lambda g: SequentialPatching(g.shapes, g.size, g.overlaps, **g.common),
        "grid": lambda g: StridedPatching(
            g.shapes,
            g.size,
            [p + g.seed % 3 - o for p, o in zip(g.size, g.overlaps, strict=True)],
            **g.common,
        ),
        "grid, offset": _moved_grid,
        "tiled": lambda g: TiledPatching(g.shapes, g.size, g.overlaps, **g.common),
        "tiled as CAREamics": lambda g: TiledPatching(
            g.shapes, g.size, g.overlaps, chunks=g.chunks
        ),
        "chunk_aligned": lambda g: ChunkAlignedPatching(g.shapes, g.size, g.overlaps, **g.wide),
        "chunk_aligned, shifted": lambda g: ChunkAlignedPatching(
            g.shapes, g.size, g.overlaps, shift=[g.seed % p for p in g.size], **g.wide
        ),
        "chunk_aligned in shards": lambda g: ChunkAlignedPatching(
            g.shapes, g.size, g.overlaps, **g.sharded
        ),
        "random": lambda g: RandomPatching(g.shapes, g.size, g.seed, **g.common),
        "random, some": lambda g: RandomPatching(
            g.shapes, g.size, g.seed, n_patches=7, epoch=3, **g.common
        ),
        "random in chunks": lambda g: RandomPatching(
            g.shapes, g.size, g.seed, inside_chunks=True, **g.wide
        ),
        "random in shards": lambda g: RandomPatching(
            g.shapes, g.size, g.seed, inside_chunks=True, **g.sharded
        ),
        "fixed_random": lambda g: FixedRandomPatching(g.shapes, g.size, g.seed, **g.common),
        "stratified": lambda g: StratifiedPatching(g.shapes, g.size, g.seed, **g.common),
        "stratified, some cells": lambda g: _some_cells(g, **g.common),
        "stratified in chunks": lambda g: StratifiedPatching(
            g.shapes, g.size, g.seed, inside_chunks=True, **g.wide
        ),
        "stratified in chunks, some cells": lambda g: _some_cells(g, inside_chunks=True, **g.wide),
        "stratified in shards, some cells": lambda g: _some_cells(
            g, inside_chunks=True, **g.sharded
        ),
        "blue_noise": lambda g: BlueNoisePatching(g.shapes, g.size, g.seed, **g.common),
        "blue_noise, overlapping": lambda g: BlueNoisePatching(
            g.shapes,
            g.size,
            g.seed,
            radius=[max(1, p // 2) for p in g.size],
            allow_overlap=True,
            resample_positions=True,
            epoch=2,
            **g.common,
        ),
        "whole": lambda g: WholeSamplePatching(g.shapes, **g.common),
        "centered": _around_points,
        "pixels": _every_pixel,
    }
)
"""Every strategy over any geometry: the list that all laws run over."""


def check_laws(strategy: GridPatching, *, may_stick_out: bool | None = None) -> None:
    """Check all laws on one strategy, by looking at every patch.

    Parameters
    ----------
    strategy
        Over images that are small enough for it.
    may_stick_out
        Whether patches may end outside their image; by default what the strategy says.

    Raises
    ------
    AssertionError
        On the first law that is broken.

    Examples
    --------
    >>> check_laws(SequentialPatching([(1, 1, 20, 30)], (8, 8), chunks=[(10, 10)]))
    """
    if may_stick_out is None:
        may_stick_out = strategy.may_stick_out
    n_images = len(strategy.data_shapes)
    ranges = [strategy.get_patch_indices(i) for i in range(n_images)]
    said = [i for indices in ranges for i in indices]
    assert said == list(range(strategy.n_patches)), "images partition the indices"
    again = pickle.loads(pickle.dumps(strategy))
    for image, indices in enumerate(ranges):
        _check_image(strategy, again, image, indices, may_stick_out)
    for outside in (-1, strategy.n_patches):
        try:
            strategy.get_patch_spec(outside)
        except IndexError:
            continue
        raise AssertionError(f"index {outside} of {strategy.n_patches} patches is refused")


def _check_image(
    strategy: GridPatching, again: GridPatching, image: int, indices: range, may_stick_out: bool
) -> None:
    grid, size = strategy.grids[image], strategy.size_of(image)
    counts = strategy.counts(image)
    cells = np.arange(strategy.n_samples(image) * grid.n_chunks)
    assert len(counts) == len(cells), "every cell has a count"
    corners, owned = strategy.corners(image, cells)
    assert owned.tolist() == counts.tolist(), "counts equal enumeration"
    assert len(corners) == len(indices) == int(counts.sum()), "counts add up"
    cell = np.repeat(cells, counts)
    owner = grid.flat(grid.chunk_of(np.maximum(corners, 0)))
    n_chunks = max(1, grid.n_chunks)
    assert (owner == cell % n_chunks).all(), "the chunk of its first pixel owns a patch"
    shape, ends = np.asarray(grid.shape), corners + np.asarray(size)
    assert ((ends > 0) & (corners < shape)).all(), "patches touch their image"
    if not may_stick_out:
        assert ((corners >= 0) & (ends <= shape)).all(), "patches lie in their image"
    if strategy.is_aligned:
        last = grid.chunk_of(np.minimum(ends, shape) - 1)
        first = grid.chunk_of(np.maximum(corners, 0))
        assert (last == first).all(), "aligned patches straddle nothing"
    if not strategy.repeats:
        boxes = set(zip((cell // n_chunks).tolist(), map(tuple, corners.tolist()), strict=True))
        assert len(boxes) == len(corners), "no box is taken twice"
    # In any order, any number of times, on any machine.
    for k in np.random.default_rng(0).permutation(len(indices)).tolist():
        spec = strategy.get_patch_spec(indices[k])
        assert spec == strategy.get_patch_spec(indices[k]) == again.get_patch_spec(indices[k])
        assert spec["data_idx"] == image
        assert spec["sample_idx"] == cell[k] // n_chunks
        corner, stop = corners[k], ends[k]
        if strategy.edge == "shrink":
            corner, stop = np.maximum(corner, 0), np.minimum(stop, shape)
        assert spec["coords"] == tuple(corner.tolist()), "one by one equals all at once"
        assert tuple(spec["patch_size"]) == tuple((stop - corner).tolist())
    if len(cells):
        some = np.random.default_rng(1).choice(cells, 3)
        part, n = strategy.corners(image, some)
        assert n.tolist() == counts[some].tolist()
        whole = np.concatenate([corners[cell == c] for c in some])
        assert part.tolist() == whole.tolist(), "any cells in any order answer the same"


def _geometries() -> Iterator[Geometry]:
    """A few that have been hard: odd extents, ragged chunks, images smaller than a patch."""
    for seed, edge in enumerate(EDGES):
        yield Geometry(((2, 1, 23),), (5,), (2,), ((7,),), edge, seed)
        yield Geometry(((1, 1, 15), (3, 2, 4)), (8,), (0,), ((16,), (3,)), edge, seed)
        yield Geometry(((1, 3, 21, 17), (2, 1, 6, 30)), (8, 6), (3, 1), ((9, 17), (4, 7)), edge)
        yield Geometry(((1, 1, 9, 12, 14),), (3, 4, 5), (1, 2, 0), ((4, 5, 6),), edge, seed)


class PatchingLaws(ABC):
    """The laws as tests: subclass it, and say how your strategy is made.

    Examples
    --------
    >>> class TestMine(PatchingLaws):
    ...     def strategy(self, geometry):
    ...         return SequentialPatching(geometry.shapes, geometry.size, **geometry.common)
    >>> TestMine().test_laws()
    """

    @abstractmethod
    def strategy(self, geometry: Geometry) -> GridPatching:
        """The strategy over a geometry; `Geometry.wide` has chunks that can hold a patch."""

    def test_laws(self) -> None:
        """Images partition indices, owners are right, all answers agree and repeat."""
        for geometry in _geometries():
            check_laws(self.strategy(geometry))

    def test_epochs(self) -> None:
        """Epoch 0 is the strategy itself, and epochs do not depend on the way there."""
        for geometry in _geometries():
            strategy = self.strategy(geometry)
            later = strategy.with_epoch(2)
            check_laws(later)
            there_and_back = strategy.with_epoch(5).with_epoch(2)
            specs = [
                [s.get_patch_spec(i) for i in range(s.n_patches)] for s in (later, there_and_back)
            ]
            assert specs[0] == specs[1], "an epoch is a pure function of its number"
