"""What patches need, told by chunks: as patch by patch, and at the cost of chunks."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.image import Image
from patchloom.location import Location
from patchloom.patching.lattice import LatticePatching
from patchloom.planning.alike import alike
from patchloom.planning.incidence import Cut, touches
from patchloom.planning.lenses import around
from patchloom.planning.reach import boxes_between
from patchloom.planning.rows import stretches_of, union
from patchloom.run.cutting import Job
from patchloom.run.graph import run_graph
from patchloom.run.materializing import _needed

GRIDS: tuple[dict[str, Any], ...] = (
    {"name": "sequential", "overlaps": 1},
    {"name": "sequential", "overlaps": [2, 0]},
    {"name": "grid", "stride": {"y": 2, "x": 7}},
    {"name": "grid", "stride": 9, "offset": 4},
    {"name": "tiled", "overlaps": [1, 2]},
    {"name": "random", "n_patches": 40},
    {"name": "chunk_aligned"},
    {"name": "pixels", "max_num": 60},
)


@pytest.fixture(scope="module", autouse=True)
def more_than_a_few() -> Iterator[None]:
    """Small images go the way of large ones, most of them."""
    with pytest.MonkeyPatch.context() as patched:
        for module in ("needs", "alike"):
            patched.setattr(f"patchloom.planning.{module}.FEW", 16)
        yield


@st.composite
def plans(draw: st.DrawFn) -> patchloom.Plan:
    """Plans of every order over images of several chunkings, with what is cut along."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    images, n_images = [], draw(st.integers(1, 3))
    masked = draw(st.booleans())
    for k in range(n_images):
        shape = (int(rng.integers(1, 4)), *rng.integers(12, 36, 2).tolist())
        pixels, labels = (
            da.zeros(shape, chunks=(int(rng.integers(1, 3)), *rng.integers(4, 12, 2).tolist()),
                     dtype="uint8")
            for _ in range(2)
        )  # fmt: skip
        planes: Any = labels if k % 2 or n_images > 1 else labels[0]
        mask = rng.random(tuple(-(-n // 5) for n in shape[1:])) < 0.7 if masked else None
        images += patchloom.open_images(
            pixels, axes="TYX", ids=[f"{k}"], mask=mask, labels=planes, sample="t"
        )
    config = dict(draw(st.sampled_from(GRIDS)))
    size = [4, 4] if config["name"] == "chunk_aligned" else draw(st.sampled_from([[4, 5], [6, 11]]))
    if config["name"] != "chunk_aligned":
        config["context"] = draw(st.sampled_from([0, 0, 2]))
    order = draw(st.sampled_from(["spatial", "shuffled", "grouped"]))
    asked: dict[str, Any] = {
        "edge": draw(st.sampled_from(["drop", "shift", "pad"])),
        "pad_mode": draw(st.sampled_from(["constant", "reflect", "symmetric"])),
        "order": order,
        "rows_per_shard": draw(st.sampled_from([3, 8, 50])),
        "seed": draw(st.integers(0, 99)),
    }
    if order == "grouped":
        asked["group_by"] = "image_id"
    if order == "shuffled":
        asked["window"] = draw(st.sampled_from([1, 3, 40]))
    if masked:
        asked["min_coverage"] = 0.5
    return patchloom.plan(images, {**config, "patch_size": size}, **asked)


def needed(plan: patchloom.Plan, rows: Iterator[int], name: str) -> set[tuple[int, int]]:
    """The blocks of one array that some rows need: one patch after the other."""
    wanted, found = {*rows}, set()
    for part in plan.walk():
        array = plan.images[part.image].cut_arrays[name]
        for k in np.flatnonzero([row in wanted for row in part.row.tolist()]):
            sample = array.layout.own_samples(part.sample[[k]])
            place, cut = around(plan.images[part.image], name, part.corner[[k]], plan.cut)
            found |= {(part.image, b) for b in pixel_by_pixel(array, sample[0], place[0], cut)}
    return found


def pixel_by_pixel(array: Image, sample: int, corner: Any, cut: Cut) -> set[int]:
    """The blocks under every pixel that a patch shows."""
    space = array.layout.space
    group = int(array.layout.groups_of(np.array([sample]))[0])
    chunks = []
    for low, size, extent, chunk in zip(corner, cut.size, space.shape, space.chunks, strict=True):
        shows = [p for p in range(low, low + size) if cut.is_mirrored or 0 <= p < extent]
        inside = {int(cut.source(p, p + 1, extent)[0]) // chunk for p in shows}
        chunks.append(range(min(inside), max(inside) + 1))
    flat = [int(np.ravel_multi_index(i, space.counts)) for i in itertools.product(*chunks)]
    return {group * space.n_chunks + block for block in flat}


@settings(max_examples=40, deadline=None)
@given(plan=plans(), data=st.data())
def test_needs_are_those_of_every_patch(plan: patchloom.Plan, data: st.DataObject) -> None:
    """Of all rows, of any stretch of rows, and of each leg: of images and of labels."""
    n = plan.n_patches
    if not n:
        assert plan.chunks_needed == plan.chunk_reads == plan.role_reads == 0
        return
    low = data.draw(st.integers(0, n - 1))
    high = data.draw(st.integers(low, n))
    for name in ("image", "labels"):
        for start, stop in ((0, n), (low, high)):
            ranks = plan.sequence.ranks_within(start, stop)
            found = [*plan.needs.of_ranks(*ranks, name)]
            blocks = [(index, block) for index, some in found for block in some.tolist()]
            assert len(blocks) == len({*blocks})
            assert {*blocks} == needed(plan, iter(range(start, stop)), name)
    everything = needed(plan, iter(range(n)), "image")
    assert plan.chunks_needed == len(everything)
    # Of arrays that only Dask reads a block counts once.
    assert plan.chunk_reads == len(everything)
    assert plan.role_reads == len(needed(plan, iter(range(n)), "labels"))


@settings(max_examples=40, deadline=None)
@given(plan=plans(), data=st.data())
def test_tasks_are_handed_what_their_tour_needs(plan: patchloom.Plan, data: st.DataObject) -> None:
    """Of any shards: all blocks of their patches and of their turns, and no other one."""
    if not plan.n_patches:
        return
    every = range(plan.n_shards)
    shards = sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))
    graph = run_graph(plan, Job(Location.of("memory://out")), shards, "t")
    for task in graph.part(graph.keys).values():
        if not isinstance(task, tuple) or len(task) != 8:
            continue
        mine, ids = task[4], task[5]
        tour = {int(rank) for part in plan.tour(mine) for rank in part.rank}
        low, high = plan.toured(mine)
        ranks = [r for a, b in zip(low, high, strict=True) for r in range(a, b)]
        assert sorted(ranks) == sorted(tour)
        want: set[tuple[int, str, int]] = set()
        for part in plan.tour(mine):
            for name, array in plan.images[part.image].cut_arrays.items():
                sample = array.layout.own_samples(part.sample)
                place, cut = around(plan.images[part.image], name, part.corner, plan.cut)
                blocks = touches(array.layout, sample, place, cut)[1]
                want |= {(part.image, name, int(b)) for b in blocks}
        pairs = Counter(
            (key, len(chunks)) for key, chunks in zip(ids.arrays, ids.chunks, strict=True)
        )
        assert sum(n for _, n in pairs) == len(want)
        assert {key for key, _ in pairs} == {(image, name) for image, name, _ in want}
    each, n = plan.rows_per_shard, plan.n_patches
    rows = [row for shard in shards for row in range(shard * each, min((shard + 1) * each, n))]
    assert _needed(plan, shards) == len(needed(plan, iter(rows), "image"))


@pytest.mark.parametrize("rows", [3, 30])
@pytest.mark.parametrize("name", ["sequential", "random", "chunk_aligned"])
@pytest.mark.parametrize(
    "order",
    [
        {"order": "spatial"},
        {"order": "shuffled", "window": 2},
        {"order": "grouped", "group_by": "image_id"},
        {"order": "grouped", "group_by": "split"},
    ],
    ids=lambda order: order.get("group_by", order["order"]),
)
def test_each_leg_reads_for_itself(
    name: str, order: dict[str, Any], rows: int, tmp_path: Path
) -> None:
    """And anew whenever it comes back to an image, as a run may."""
    for k in range(3):
        for role, chunk in (("image", 7), ("labels", 11)):
            zarr.create_array(
                tmp_path / f"{role}{k}.zarr", shape=(30, 24 + k), chunks=(chunk, 9), dtype="u1"
            )
    images, labels = (
        [str(tmp_path / f"{role}{k}.zarr") for k in range(3)] for role in ("image", "labels")
    )
    size = [4, 4] if name == "chunk_aligned" else [5, 6]
    config: dict[str, Any] = {"name": name, "patch_size": size}
    config |= {"n_patches": 40} if name == "random" else {}
    plan = patchloom.plan(
        patchloom.open_images(images, labels=labels),
        config,
        split={"by": "blocks", "block_size": 12, "guard": 0, "shares": {"train": 0.5, "val": 0.5}},
        seed=1,
        rows_per_shard=rows,
        memory="1400KiB",
        **order,
    )
    reads = Counter[str]()
    for part in itertools.chain.from_iterable(plan.visits(*leg) for leg in plan.runs.rows()):
        for role, array in plan.images[part.image].cut_arrays.items():
            blocks = touches(array.layout, part.sample, part.corner, plan.cut)[1]
            reads[role] += len(np.unique(blocks))
    assert plan.chunk_reads == reads["image"] >= plan.chunks_needed
    assert plan.role_reads == reads["labels"]


@settings(max_examples=200, deadline=None)
@given(extents=st.lists(st.integers(1, 6), min_size=1, max_size=3), data=st.data())
def test_boxes_make_up_a_stretch(extents: list[int], data: st.DataObject) -> None:
    """Each element once, and few boxes."""
    n = math.prod(extents)
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    owner, low, high = boxes_between(np.array([extents]), np.array([start]), np.array([stop]))
    assert not owner.any()
    assert len(low) <= 2 * len(extents) - 1
    found = [
        int(np.ravel_multi_index(at, extents))
        for a, b in zip(low, high, strict=True)
        for at in itertools.product(*map(range, a, b))
    ]
    assert sorted(found) == [*range(start, stop)]


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=12))
def test_ranges_of_some_numbers(pairs: list[tuple[int, int]]) -> None:
    """Ranges that overlap are one; numbers that follow one another are one."""
    low = np.array([a for a, _ in pairs], np.int64)
    high = low + np.array([n for _, n in pairs], np.int64)
    begin, end = union(low, high)
    every = {k for a, b in zip(low, high, strict=True) for k in range(a, b)}
    assert [k for a, b in zip(begin, end, strict=True) for k in range(a, b)] == sorted(every)
    begin, end = stretches_of(np.array(sorted(every), np.int64))
    assert [k for a, b in zip(begin, end, strict=True) for k in range(a, b)] == sorted(every)
    assert (begin[1:] > end[:-1]).all()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    grid=st.sampled_from(GRIDS[:5]),
    edge=st.sampled_from(["drop", "shift", "pad", "shrink"]),
    guard=st.sampled_from([0, 3]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_patches_stand_for_those_that_are_alike(
    shape: tuple[int, int], grid: dict[str, Any], edge: Any, guard: int, masked: bool, seed: int
) -> None:
    """Patches of each split, their extents and their pixels, counted one by one."""
    rng = np.random.default_rng(seed)
    pixels = [da.zeros(shape, chunks=(9, 12), dtype="uint8") for _ in range(2)]
    mask = [rng.random(shape) < 0.6 for _ in pixels] if masked else None
    images = patchloom.open_images(pixels, ids=["a", "b"], mask=mask)
    split = {"by": "blocks", "block_size": 17, "guard": guard, "shares": {"train": 0.6, "val": 0.4}}
    config = {**grid, "patch_size": [5, 6]}
    asked: dict[str, Any] = {"min_coverage": 0.4} if masked else {}
    plan = patchloom.plan(images, config, edge=edge, split=split, seed=seed, **asked)
    counts, sizes, area = Counter(dict.fromkeys(plan.split_names, 0)), set(), 0
    for part in plan.walk():
        counts.update(plan.split_names[k] for k in plan.split_of(part))
        sizes |= {tuple(row) for row in plan.sizes(part).tolist()}
        area += int(plan.sizes(part).prod(1).sum())
    assert plan.split_counts == counts
    assert plan.n_pixels == area
    if edge == "shrink":
        assert plan.distinct_sizes() == sorted(sizes)


class _Corners:
    """Counts the corners that are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        made = LatticePatching._product

        def product(*given: Any) -> Any:
            found = made(*given)
            self.n += len(found[0])
            return found

        monkeypatch.setattr(LatticePatching, "_product", product)


@pytest.mark.parametrize("order", ["spatial", "shuffled", "grouped"])
def test_what_grids_need_makes_no_patch(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one corner of a billion that straddle, whatever the order, for images and labels."""
    for name, chunk in (("image", 4096), ("labels", 3000)):
        zarr.create_array(
            tmp_path / f"{name}.zarr", shape=(2**19 + 8,) * 2, chunks=(chunk,) * 2, dtype="u2"
        )
    images = patchloom.open_images(
        str(tmp_path / "image.zarr"), labels=str(tmp_path / "labels.zarr")
    )
    config = {"name": "sequential", "patch_size": [32, 32], "overlaps": [16, 16]}
    asked: dict[str, Any] = {"group_by": "image_id"} if order == "grouped" else {}
    plan = patchloom.plan(images, config, order=order, **asked)
    assert plan.n_patches > 10**9
    made = _Corners(monkeypatch)
    side = -(-(2**19 + 8) // 4096)
    assert plan.chunks_needed == side**2 - 2 * side + 1
    assert plan.chunk_reads > plan.chunks_needed
    assert plan.role_reads >= (-(-(2**19) // 3000)) ** 2
    assert made.n == 0


def test_few_patches_stand_for_all_of_a_grid() -> None:
    """Four times the patches over the same chunks: as many are looked at."""
    pixels = da.zeros((2048, 2048), chunks=(256, 256), dtype="uint8")
    looked = []
    for overlap in (0, 16):
        images = patchloom.open_images(pixels, ids=["a"])
        plan = patchloom.plan(
            images, {"name": "sequential", "patch_size": [32, 32], "overlaps": [overlap] * 2}
        )
        found = [*alike(plan.kept, 0, lambda corner: corner // 512)]
        looked.append(sum(len(part) for part, _ in found))
        assert sum(int(n.sum()) for _, n in found) == plan.n_patches
    assert looked[0] == looked[1] == 64
