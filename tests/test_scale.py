"""What keeps plans of a billion patches small: orders, columns, projections and draws."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.grid import ChunkGrid, morton, z_order
from patchloom.image import Layout
from patchloom.patching.random import RandomPatching
from patchloom.planning import runs
from patchloom.planning.cells import Cells, spatial_cells
from patchloom.planning.incidence import touches
from patchloom.randomness import philox, poissons
from patchloom.testing.strategies import STRATEGIES, Geometry

COLUMNS = ("bounds", "cell", "kept", "bit", "bits")


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 70), min_size=1, max_size=3), batch=st.integers(1, 5000))
def test_the_z_order_needs_no_sorting(counts: list[int], batch: int) -> None:
    """Every cell of any grid once, as a sort of `morton` would put them."""
    grid = ChunkGrid(tuple(counts), (1,) * len(counts))
    cells = np.concatenate(list(z_order(counts, batch)))
    index = np.stack(np.unravel_index(np.arange(grid.n_chunks), counts), -1)
    assert cells.tolist() == np.argsort(morton(index), kind="stable").tolist()
    assert grid.unflat(cells).tolist() == index[cells].tolist()


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), max_size=2),
    space=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=3),
)
def test_cells_follow_groups_then_the_curve_then_samples(
    samples: list[tuple[int, int]], space: list[tuple[int, int]]
) -> None:
    """Samples that share chunks stay together, whatever their ragged groups."""

    def grid(pairs: Sequence[tuple[int, int]]) -> ChunkGrid:
        return ChunkGrid(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))

    layout = Layout(grid(samples), grid([]), grid(space))
    cells = np.concatenate(list(spatial_cells(layout)))
    assert sorted(cells.tolist()) == list(range(layout.n_samples * layout.space.n_chunks))
    sample, chunk = np.divmod(cells, layout.space.n_chunks)
    keys = list(
        zip(
            layout.groups_of(sample).tolist(),
            morton(layout.space.unflat(chunk)).tolist(),
            sample.tolist(),
            strict=True,
        )
    )
    assert keys == sorted(keys)


@settings(max_examples=60, deadline=None)
@given(kept=st.lists(st.integers(1, 300), min_size=1, max_size=120), seed=st.integers(0, 9))
def test_rows_and_positions_are_prefix_sums(kept: list[int], seed: int) -> None:
    """Only every sixteenth sum is held; every row is found nevertheless."""
    counts = np.array(kept)
    cells = Cells.of(np.arange(len(kept)), counts, None)
    first = np.concatenate([[0], np.cumsum(counts)])
    assert cells.n_rows == first[-1]
    some = np.random.default_rng(seed).permutation(len(kept) + 1)
    assert cells.rows_of(some).tolist() == first[some].tolist()
    low, high = sorted(some[:2].tolist())
    assert cells.rows_of(np.arange(low, high + 1)).tolist() == first[low : high + 1].tolist()
    rows = np.random.default_rng(seed).permutation(int(first[-1]))
    want = np.searchsorted(first, rows, side="right") - 1
    assert cells.positions_of(rows).tolist() == want.tolist()


@pytest.mark.parametrize("overlap", [0, 24])
def test_a_cell_takes_a_few_bytes(overlap: int, tmp_path: Path) -> None:
    """However many patches it keeps: its number, its count, and a sixteenth of a sum."""
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(1, 8192, 8192), chunks=(1, 64, 64), dtype="uint16")
    images = patchloom.open_images(path, axes="CYX")
    config = {"name": "sequential", "patch_size": [32, 32], "overlaps": [overlap, overlap]}
    plan = patchloom.plan(images, config)
    nbytes = sum(getattr(plan.cells, name).nbytes for name in COLUMNS)
    assert nbytes <= 3 * len(plan.cells) + 64
    assert len(plan.cells) == 128 * 128


def test_columns_of_several_images_and_masks_come_back(tmp_path: Path) -> None:
    """Images that keep nothing, all or some: saved and loaded, no column changes."""
    pixels = np.zeros((96, 96), "uint8")
    masks = [np.ones((6, 6), bool), np.zeros((6, 6), bool), np.eye(6, dtype=bool)]
    images = [
        patchloom.open_images(pixels, ids=[name], mask=mask)[0]
        for name, mask in zip("abc", masks, strict=True)
    ]
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [8, 8]}, min_coverage=0.5)
    assert [len(plan.get_patch_indices(k)) for k in range(3)] == [144, 0, 24]
    plan.save(str(tmp_path / "plan"))
    back = patchloom.Plan.load(str(tmp_path / "plan"), images=images)
    for name in COLUMNS:
        one, two = getattr(plan.cells, name), getattr(back.cells, name)
        assert (one.dtype, one.tolist()) == (two.dtype, two.tolist())


def alive(plan: patchloom.Plan, low: int, high: int, layout: Layout) -> int:
    """Most blocks alive at once, told one by one."""
    image = plan.images[0]
    space, span = image.layout.space, plan.patch_size
    if plan.patching.is_aligned:
        span = (1,) * len(span)
    first: dict[tuple[int, ...], int] = {}
    last: dict[tuple[int, ...], int] = {}
    for step in range(low, high):
        sample, chunk = divmod(int(plan.cells.cell[step]), space.n_chunks)
        index = np.unravel_index(chunk, space.counts)
        ranges: list[npt.NDArray[np.int64]] = []
        for i, c, p, s, lc in zip(
            index, space.chunks, span, space.shape, layout.space.chunks, strict=True
        ):
            stop = min(int(i) * c + c + p - 1, s)
            start = max(0, int(i) * c - plan.cut.back[len(ranges)])
            ranges.append(np.arange(start // lc, (stop - 1) // lc + 1))
        group = int(layout.groups_of(np.array([sample]))[0])
        for block in np.stack([m.ravel() for m in np.meshgrid(*ranges)], -1).tolist():
            first.setdefault((group, *block), step)
            last[(group, *block)] = step
    times = range(low, high)
    return max(sum(first[b] <= t <= last[b] for b in first) for t in times)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_projected_blocks_are_those_alive(data: st.DataObject) -> None:
    """Exact for small plans; of merged cells an upper bound, never less."""
    size = data.draw(st.sampled_from([(4, 4), (9, 5), (16, 17)]))
    shape = (data.draw(st.integers(1, 3)), *(data.draw(st.integers(20, 75)) for _ in range(2)))
    chunks = (data.draw(st.integers(1, 2)), *(data.draw(st.integers(3, 12)) for _ in range(2)))
    other = (data.draw(st.integers(1, 2)), *(data.draw(st.integers(3, 12)) for _ in range(2)))
    pixels = da.zeros(shape, chunks=chunks, dtype="uint8")
    images = patchloom.open_images(pixels, axes="TYX")
    context = data.draw(st.sampled_from([0, 0, 3]))
    mode: Any = data.draw(st.sampled_from(["constant", "constant", "reflect"]))
    plan = patchloom.plan(
        images,
        {"name": "random", "patch_size": size, "n_patches": 150, "context": context},
        rows_per_shard=8,
        pad_mode=mode,
    )
    [image] = plan.images
    layout = Layout(
        ChunkGrid(shape[:1], other[:1]), ChunkGrid((), ()), ChunkGrid(shape[1:], other[1:])
    )
    bounds = list(plan.runs.rows())
    lows = plan.cells.positions_of([a for a, _ in bounds])
    highs = plan.cells.positions_of([b - 1 for _, b in bounds]) + 1
    for array in (image.layout, layout):
        want = [alive(plan, a, b, array) for a, b in zip(lows, highs, strict=True)]
        exact, _ = runs._peaks(image.layout, plan.cells, plan.cut, array, lows, highs)
        assert (exact >= want).all() if any(plan.cut.back) else exact.tolist() == want
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "_PAIRS", 0)
            patch.setattr(runs, "_STEPS", 1)
            bound, _ = runs._peaks(image.layout, plan.cells, plan.cut, array, lows, highs)
        assert (bound >= exact).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_counts_of_some_cells_are_those_of_all(name: str) -> None:
    """Also where they are made without a column of all."""
    geometry = Geometry(((1, 1, 9, 12), (3, 2, 50, 61)), (7, 8), (1, 2), ((4, 5), (16, 11)))
    strategy = STRATEGIES[name](geometry)
    for image in (1, 0, 1):
        counts = strategy.counts(image)
        cells = np.random.default_rng(0).permutation(len(counts))
        assert strategy.counts_of(image, cells).tolist() == counts[cells].tolist()


def test_addresses_draw_the_same_alone_and_together() -> None:
    """Longer columns than what passes the rounds together."""
    column = np.arange(20_000)
    together = philox(7, column, 5)
    for k in (0, 8191, 8192, 19_999):
        assert [int(w[k]) for w in together] == [int(w) for w in philox(7, k, 5)]


@pytest.mark.parametrize("mean", [0.2, 3.0, 64.0, 700.0])
def test_poisson_numbers_have_their_law(mean: float) -> None:
    """Chi-square against the textbook, looked up by leading bits or in full."""
    rooms = [np.full(400, 2), np.full(500, 3)]
    found = poissons(11, mean / 6, rooms, 1)
    assert found.dtype.itemsize <= 2
    values = np.arange(int(found.max()) + 1)
    law = np.exp([k * math.log(mean) - mean - math.lgamma(k + 1) for k in values])
    seen, want = np.bincount(found, minlength=len(values)), law * found.size
    common = want > 20
    chi = float(((seen - want) ** 2 / want)[common].sum())
    assert chi < common.sum() + 6 * math.sqrt(2 * common.sum())
    mixed = poissons(11, mean / 6, [np.array([2] * 399 + [0]), np.array([3] * 499 + [1])], 1)
    mixed = mixed.reshape(400, 500)
    # A cell's number does not depend on what else is in its grid.
    assert (mixed[:-1, :-1] == found.reshape(400, 500)[:-1, :-1]).all()
    assert not mixed[-1].any()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 3000), seed=st.integers(0, 5), inside=st.booleans())
def test_random_counts_add_up(n: int, seed: int, inside: bool) -> None:
    """As many as were asked for, none where there is no room."""
    common: dict[str, Any] = {"n_patches": n, "chunks": [(13, 11)], "inside_chunks": inside}
    strategy = RandomPatching([(3, 1, 40, 45)], (6, 7), seed, **common)
    counts = strategy.counts(0)
    assert counts.sum() == n == strategy.n_patches
    room = np.outer(strategy._room(0, 0), strategy._room(0, 1)).ravel()
    assert not counts[np.tile(room, 3) == 0].any()


def test_random_counts_are_multinomial() -> None:
    """Mean, variance and covariance over many seeds."""
    draws = np.array(
        [
            RandomPatching([(1, 1, 100, 130)], (10, 10), s, n_patches=900, chunks=[(30, 40)])
            .counts(0)
            .tolist()
            for s in range(2000)
        ]
    )
    share = np.outer([30, 30, 30, 1], [40, 40, 40, 1]).ravel() / (91 * 121)
    want = 900 * (np.diag(share) - np.outer(share, share))
    error = np.abs(draws.mean(0) - 900 * share) / np.sqrt(np.diag(want) / 2000)
    assert error.max() < 5
    spread = np.sqrt(np.outer(np.diag(want), np.diag(want)) / 2000)
    assert (np.abs(np.cov(draws.T) - want) / spread).max() < 8


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "sequential", "patch_size": 16, "overlaps": 8},
        {"name": "random", "patch_size": 32, "n_patches": 10**9},
    ],
    ids=["sequential", "random"],
)
def test_a_plan_of_a_billion_patches_is_saved_in_a_few_mb(
    strategy: dict[str, Any], tmp_path: Path
) -> None:
    """Two million cells with about 500 patches each, and it comes back the same."""
    path = tmp_path / "image.zarr"
    zarr.create_array(path, shape=(8192,) * 3, chunks=(64,) * 3, dtype="uint8")
    plan = patchloom.plan(patchloom.open_images(str(path)), strategy)
    assert plan.n_patches > 10**9 - 1
    plan.save(str(tmp_path / "plan"))
    assert sum(file.stat().st_size for file in (tmp_path / "plan").iterdir()) < 2 * 2**20
    loaded = patchloom.Plan.load(str(tmp_path / "plan"))
    assert loaded.fingerprint == plan.fingerprint
    assert loaded.n_patches == plan.n_patches


@pytest.mark.parametrize("order", ["spatial", "shuffled", "grouped"])
@pytest.mark.parametrize("axes", ["YX", "SYX"])
@pytest.mark.parametrize("lazy", [False, True])
def test_chunks_of_aligned_patches_are_those_that_they_touch(
    order: str, axes: str, lazy: bool, tmp_path: Path
) -> None:
    """Counted by their owners, as patch by patch: needed ones, and decodes of each leg."""
    shape, chunks = (3, 60, 70)[-len(axes) :], (2, 16, 16)[-len(axes) :]
    arrays: list[Any] = []
    for k in range(3):
        pixels = np.arange(np.prod(shape)).reshape(shape).astype("u2")
        array = zarr.create_array(tmp_path / f"{k}.zarr", shape=shape, chunks=chunks, dtype="u2")
        array[...] = pixels
        arrays.append(da.from_array(pixels, chunks) if lazy else str(tmp_path / f"{k}.zarr"))
    masks = [np.indices(shape[-2:]).sum(0) % 50 < 12 + 9 * k for k in range(3)]
    masks[1][:] = False
    images = patchloom.open_images(arrays, axes=axes, ids=list("abc"), mask=masks)
    how = {"name": "sequential", "patch_size": [8, 8]}
    asked: dict[str, Any] = {"rows_per_shard": 4, "order": order, "min_coverage": 0.4, "seed": 1}
    if order == "grouped":
        asked["group_by"] = "image_id"
    plan = patchloom.plan(images, how, **asked)
    assert plan.is_aligned
    assert plan.n_patches > 40
    legs = []
    for start, stop in plan.runs.rows():
        touched: dict[int, set[int]] = {}
        for part in plan.visits(start, stop):
            layout = plan.images[part.image].layout
            blocks = touches(layout, part.sample, part.corner, plan.cut)[1]
            touched.setdefault(part.image, set()).update(blocks.tolist())
        legs.append(touched)
    every = {(image, block) for leg in legs for image, blocks in leg.items() for block in blocks}
    each = plan.images[0].layout.chunks_per_block
    assert plan.chunks_needed == each * len(every)
    read = len(every) if lazy else sum(len(blocks) for leg in legs for blocks in leg.values())
    assert plan.chunk_reads == each * read


def test_chunks_of_a_billion_aligned_patches_are_told_at_once(tmp_path: Path) -> None:
    """By the chunks that own them; patch by patch it took ten minutes."""
    zarr.create_array(tmp_path / "a.zarr", shape=(2**19, 2**19), chunks=(4096, 4096), dtype="u2")
    images = patchloom.open_images(str(tmp_path / "a.zarr"))
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    assert plan.n_patches == 2**30
    begun = time.process_time()
    assert plan.chunks_needed == 2**14
    assert plan.chunk_reads >= plan.chunks_needed
    assert time.process_time() - begun < 5
