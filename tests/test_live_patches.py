"""Training from the sources: what a store would hold, each chunk decoded about once, anywhere."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import subprocess
import sys
import threading
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import product, repeat
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ChunkError, ConfigError, PatchSizeError, PlanError
from patchloom.live.held import Held
from patchloom.live.live_patches import LivePatches
from patchloom.load.order import Order
from patchloom.normalization import Normalization
from patchloom.planning.plans import Plan
from patchloom.sources.chunks import DirectReader
from tests.servers.s3 import S3Server
from tests.test_context import pyramid

GRID = {"name": "sequential", "patch_size": [24, 24], "overlaps": [8, 8]}
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def stored(path: Path, pixels: npt.NDArray[Any], chunks: tuple[int, ...]) -> str:
    """An array on disk."""
    zarr.create_array(path, data=pixels, chunks=chunks)
    return str(path)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """What a plan may ask for."""
    axes = draw(st.sampled_from(["yx", "xy", "cyx", "yxc", "zyx", "syx", "tcyx", "zcyx", "x"]))
    extents = {a: draw(st.integers(1, 3)) for a in "stc"}
    extents |= {a: draw(st.integers(4, 19)) for a in "zyx"}
    shape = tuple(extents[a] for a in axes)
    space = [a for a in "zyx" if a in axes]
    size = [draw(st.integers(1, min(8, extents[a]))) for a in space]
    name = draw(st.sampled_from(["sequential", "random", "stratified", "grid"]))
    config: dict[str, Any] = {"name": name, "patch_size": size}
    if name == "sequential":
        config["overlaps"] = [draw(st.integers(0, p - 1)) for p in size]
    if name == "random":
        config["n_patches"] = draw(st.integers(1, 60))
    if name == "grid":
        config["stride"] = [draw(st.integers(1, 7)) for _ in space]
    if draw(st.booleans()):
        config["context"] = [draw(st.integers(0, 3)) for _ in space]
    return {
        "axes": axes,
        "shapes": [shape, tuple(n + draw(st.integers(0, 3)) if a in space else n
                                for a, n in zip(axes, shape, strict=True))],
        "chunks": tuple(draw(st.integers(1, n)) for n in shape),
        "role_chunks": tuple(draw(st.integers(1, n)) for n in shape),
        "config": config,
        "edge": draw(st.sampled_from(["drop", "shift", "pad"])),
        "pad_mode": draw(st.sampled_from(["constant", "edge", "reflect", "symmetric"])),
        "order": draw(st.sampled_from(["spatial", "shuffled", "grouped"])),
        "group_by": draw(st.sampled_from(["image_id", "well", "split"])),
        "masked": draw(st.booleans()),
        "kind": draw(st.sampled_from(["zarr", "numpy", "dask"])),
        "roles": draw(st.sets(st.sampled_from(["labels", "target", "targets", "weights"]))),
        "memory": draw(st.sampled_from([1, 300, 5_000, 2**30])),
        "window": draw(st.sampled_from([None, 1, 3])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }  # fmt: skip


def planned(job: dict[str, Any], folder: Path) -> Plan:
    """The plan of a job, over two images."""
    rng = np.random.default_rng(job["seed"])

    def source(shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...]) -> Any:
        pixels = rng.integers(0, 200, shape).astype(dtype)
        if job["kind"] == "zarr":
            return stored(folder / f"{uuid.uuid4().hex}.zarr", pixels, chunks)
        return pixels if job["kind"] == "numpy" else da.from_array(pixels, chunks=chunks)

    def role(name: str, dtype: str) -> Any:
        if name not in job["roles"]:
            return None
        return [source(shape, dtype, job["role_chunks"]) for shape in job["shapes"]]

    axes = job["axes"]
    order = [a for a in axes if a in "zyx"]
    masks = [rng.random([s for a, s in zip(axes, shape, strict=True) if a in order]) < 0.7
             for shape in job["shapes"]]  # fmt: skip
    further = role("targets", "float32")
    images = patchloom.open_images(
        [source(shape, "uint16", job["chunks"]) for shape in job["shapes"]],
        axes=axes,
        ids=["a", "b"],
        mask=masks if job["masked"] else None,
        labels=role("labels", "uint8"),
        target=role("target", "int16"),
        targets=None if further is None else {"far": further},
        weights=role("weights", "float64"),
        sample=[{"well": "B2"}, {"well": "A1"}],
    )
    return patchloom.plan(
        images,
        job["config"],
        edge=job["edge"],
        pad_mode=job["pad_mode"],
        order=job["order"],
        group_by=job["group_by"] if job["order"] == "grouped" else None,
        min_coverage=0.3 if job["masked"] else 0,
        split={"by": "blocks", "block_size": 14} if job["group_by"] == "split" else None,
        rows_per_shard=5,
        seed=job["seed"] % 7,
        memory="4 GiB",
    )


def check_equals_the_store(live: LivePatches, store: Any, seed: int = 0) -> None:
    """Every pixel of every array and every row of the manifest, in one read and in many."""
    assert len(live) == live.n_patches == store.manifest.num_rows
    assert sorted(live.arrays_held) == store.attributes["arrays"]
    rows = live.manifest["row"].to_numpy()
    assert sorted(rows.tolist()) == list(range(len(live)))
    assert live.manifest.equals(store.manifest.take(rows))
    if live.plan.order == "grouped":
        # Groups stand as the plan has them; their patches go along the bands.
        group = live.manifest.select([live.plan.group_by]).to_pydict()[live.plan.group_by]
        theirs = store.manifest.select([live.plan.group_by]).to_pydict()[live.plan.group_by]
        assert group == theirs
    blocks = live.blocks
    assert blocks[0] == 0
    assert blocks[-1] == len(live)
    assert (np.diff(blocks) > 0).all()
    reader = live.reader()
    mixed = np.random.default_rng(seed).permutation(len(live))
    for positions in [mixed, *np.array_split(np.append(mixed, mixed[:3]), 7)]:
        found = reader.read(positions, live.arrays_held)
        for name in live.arrays_held:
            expected = store.read(rows[positions], name)
            assert found[name].dtype == expected.dtype
            np.testing.assert_array_equal(found[name], expected)


def materialized(plan: Plan, **options: Any) -> Any:
    url = f"memory://{uuid.uuid4().hex}.zarr"
    with dask.config.set(scheduler="synchronous"):
        patchloom.materialize(plan, url, progress=False, **options)
    return patchloom.open_patches(url)


@settings(max_examples=30, deadline=None, suppress_health_check=SLOW)
@given(job=plans())
def test_equals_the_store(job: dict[str, Any], tmp_path_factory: Any) -> None:
    """Whatever is planned: live patches are those of the store, row for row, for every role."""
    plan = planned(job, tmp_path_factory.mktemp("live"))
    if not plan.n_patches:
        with pytest.raises(PlanError, match="at least one patch"):
            patchloom.stream(plan)
        return
    live = patchloom.stream(plan, memory=job["memory"], window=job["window"])
    check_equals_the_store(pickle.loads(pickle.dumps(live)), materialized(plan), job["seed"])


@pytest.mark.parametrize("edge", ["drop", "pad"])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_context_levels_equal_the_store(edge: Any, mode: Any, tmp_path: Path) -> None:
    """Coarser levels around the same centre, at ratios that are no whole numbers."""
    pyramid(tmp_path / "a.ome.zarr", [Fraction(3, 2), Fraction(4)], (13, 10))
    images = patchloom.open_images(str(tmp_path / "a.ome.zarr"), context=[1, 2])
    config = {"name": "random", "patch_size": [9, 14], "n_patches": 40}
    if edge == "pad":
        config = {"name": "sequential", "patch_size": [9, 14]}
    plan = patchloom.plan(images, config, edge=edge, pad_mode=mode, rows_per_shard=7)
    check_equals_the_store(patchloom.stream(plan), materialized(plan))


def test_columns_of_pixels_equal_those_of_the_store(tmp_path: Path) -> None:
    """Scores, classes of balanced plans, classes of centre pixels, places and tiles."""
    rng = np.random.default_rng(2)
    pixels, labels = rng.integers(0, 99, (60, 50)).astype("u2"), rng.integers(0, 3, (60, 50))
    image = stored(tmp_path / "a.zarr", pixels, (16, 16))
    images = patchloom.open_images(image, labels=labels.astype("u1"), axes="yx", ids=["a"])
    asked: list[dict[str, Any]] = [
        {"patching": {**GRID, "patch_size": [9, 9]}, "scores": [{"name": "mean"}, {"name": "std"}]},
        {"patching": {**GRID, "patch_size": [9, 9]}, "balance": {}},
        {"patching": {"name": "pixels", "patch_size": [5, 5], "classes": [1], "max_num": 40}},
        {"patching": {"name": "tiled", "patch_size": [20, 20], "overlaps": [8, 8]}},
    ]
    for options in asked:
        plan = patchloom.plan(images, options.pop("patching"), rows_per_shard=11, **options)
        check_equals_the_store(patchloom.stream(plan), materialized(plan))


def visited(live: LivePatches, shuffle: str, epoch: int = 0, batch: int = 16) -> list[Any]:
    """The positions of an epoch, batch by batch, in the order that loaders go by."""
    order = Order(len(live), live.blocks, 1, shuffle, live.window, trails=live.trails)
    visits = np.arange(len(live))
    return [order.at(epoch, visits[k : k + batch]) for k in range(0, len(live), batch)]


class Decoded:
    """Chunks that readers of stored arrays really decoded, counted beneath ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chunks: list[tuple[int, ...]] = []
        fetch = DirectReader._fetch

        def counting(reader: DirectReader, chunks: Any) -> Any:
            self.chunks += map(tuple, np.asarray(chunks).tolist())
            return fetch(reader, chunks)

        monkeypatch.setattr(DirectReader, "_fetch", counting)


def chunks_under(plan: Plan, chunks: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The chunks that hold a pixel of a patch, found patch by patch."""
    found: set[tuple[int, ...]] = set()
    extent = plan.images[0].layout.space.shape
    for row in range(plan.n_patches):
        spec = plan.get_patch_spec(row)
        spans = [
            range(max(0, a) // c, (min(a + p, n) - 1) // c + 1)
            for a, p, c, n in zip(spec["coords"], spec["patch_size"], chunks, extent, strict=True)
        ]
        found.update(product(*spans))
    return found


SMALL = {**GRID, "patch_size": [12, 12], "overlaps": [2, 2]}
ROWS = {"name": "sequential", "patch_size": [4] * 3, "overlaps": [1] * 3}
FEW = {"name": "random", "patch_size": [5, 5], "n_patches": 3000}


@pytest.mark.parametrize("order", ["spatial", "shuffled"])
@pytest.mark.parametrize("shuffle", ["window", "none"])
@pytest.mark.parametrize(
    ("shape", "chunks", "config", "memory", "window"),
    [
        ((700, 650), (8, 8), SMALL, 2**19, None),
        ((700, 650), (8, 8), FEW, 2**19, None),
        ((300, 290), (32, 32), GRID, 2**20, None),
        ((64, 56, 60), (8, 8, 8), {"name": "sequential", "patch_size": [8, 8, 8]}, 2**17, None),
        (
            (60, 70, 64),
            (8, 8, 8),
            {"name": "grid", "patch_size": [6] * 3, "stride": 7},
            2**21,
            None,
        ),
        ((48, 96, 96), (4, 8, 8), ROWS, 2**17, 1),
        ((48, 96, 96), (4, 8, 8), ROWS, 160_000, 2),
    ],
    ids=["2-D", "random", "all fits", "3-D aligned", "3-D fits", "a row", "two rows"],
)
def test_an_epoch_by_windows_decodes_each_chunk_about_once(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    config: dict[str, Any],
    memory: int,
    window: int | None,
    shuffle: str,
    order: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most 1.1 times what patches touch, within the memory, whatever the plan's own order."""
    pixels = np.random.default_rng(0).integers(0, 99, shape).astype("u2")
    axes = "zyx"[-len(shape) :]
    images = patchloom.open_images(stored(tmp_path / "a.zarr", pixels, chunks), axes=axes)
    plan = patchloom.plan(images, config, order=order, seed=2)
    needed = chunks_under(plan, chunks)
    live = patchloom.stream(plan, memory=memory, window=window)
    corner = np.stack([live.manifest[f"start_{a}"].to_numpy() for a in axes], -1)
    decoded, reader, seen = Decoded(monkeypatch), live.reader(by_block=True), list[int]()
    for positions in visited(live, shuffle):
        found = reader.read(positions, ["images"])["images"]
        seen += positions.tolist()
        k = len(positions) // 2
        at = corner[positions[k]].tolist()
        box = tuple(slice(a, a + n) for a, n in zip(at, plan.patch_size, strict=True))
        np.testing.assert_array_equal(found[k, 0], pixels[box])
    assert sorted(seen) == list(range(len(live)))
    told = reader.report()
    assert set(decoded.chunks) == needed
    assert told["chunk_reads"] == len(decoded.chunks) <= 1.1 * len(needed)
    assert told["chunks_needed"] == len(needed) == plan.chunks_needed
    assert told["read_amplification"] == len(decoded.chunks) / len(needed)
    assert told["peak_memory"] <= memory
    if shuffle == "window":
        assert told["read_amplification"] <= live.read_amplification + 0.03


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(("memory", "window", "told"), [(2**17, 1, 1.0), (160_000, 2, 13 / 12)])
def test_rows_of_slabs_are_decoded_as_often_as_is_told(
    memory: int, window: int, told: float, threads: int, tmp_path: Path
) -> None:
    """In a seventh of what is needed; also where an epoch is gone on with in its middle."""
    url = stored(tmp_path / "a.zarr", np.ones((48, 96, 96), "u2"), (4, 8, 8))
    plan = patchloom.plan(patchloom.open_images(url, axes="zyx"), ROWS)
    live = patchloom.stream(plan, memory=memory, window=window)
    assert patchloom.stream(plan, memory=memory).window >= 3
    assert live.read_amplification == pytest.approx(told)
    whole = [batch["position"] for batch in live.batches(64, seed=1, columns="position")]
    loader = live.batches(64, seed=1, threads=threads, memory=2 * memory, columns="position")
    batches = iter(loader)
    begun = [next(batches)["position"] for _ in range(len(whole) // 3)]
    later = live.batches(64, seed=1, threads=threads, memory=2 * memory, columns="position")
    later.load_state_dict(loader.state_dict())
    rest = [batch["position"] for batch in later]
    np.testing.assert_array_equal(np.concatenate(begun + rest), np.concatenate(whole))
    for _ in batches:
        pass
    found = loader.course.recipe.reader.report()  # type: ignore[attr-defined]
    assert found["chunks_needed"] == plan.chunks_needed
    assert found["read_amplification"] <= told + 0.02
    assert found["peak_memory"] <= memory
    more = later.course.recipe.reader.report()  # type: ignore[attr-defined]
    assert more["chunk_reads"] <= (told + 0.02) * plan.chunks_needed


def test_memory_decides_how_often_and_the_report_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less memory, or a permutation of all, decodes more; it is counted, and never exceeded."""
    pixels = np.random.default_rng(0).integers(0, 99, (1024, 1024)).astype("u2")
    images = patchloom.open_images(stored(tmp_path / "a.zarr", pixels, (32, 32)), axes="yx")
    plan = patchloom.plan(images, GRID)
    decoded, told = Decoded(monkeypatch), {}
    for shuffle, memory in product(["window", "exact"], [2**22, 2**18]):
        live, decoded.chunks = patchloom.stream(plan, memory=memory), []
        reader = live.reader(by_block=shuffle == "window")
        for positions in visited(live, shuffle):
            reader.read(positions, ["images"])
        told[shuffle, memory] = reader.report()
        assert told[shuffle, memory]["chunk_reads"] == len(decoded.chunks)
        assert told[shuffle, memory]["peak_memory"] <= memory
    amplification = {key: one["read_amplification"] for key, one in told.items()}
    assert amplification["window", 2**22] == amplification["exact", 2**22] == 1.0
    assert 1.0 < amplification["window", 2**18] < 1.2
    assert amplification["exact", 2**18] > 2
    # An epoch more with what is held from the last: all of it is there.
    live = patchloom.stream(plan, memory=2**22)
    reader = live.reader()
    for epoch in range(2):
        for positions in visited(live, "exact", epoch):
            reader.read(positions, ["images"])
    assert reader.report()["chunk_reads"] == plan.chunks_needed


@given(data=st.data())
def test_an_order_along_trails_visits_each_patch_once(data: st.DataObject) -> None:
    """Whatever the bounds; and while there are trails enough, a window has blocks of several."""
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=30))
    blocks = np.append(0, np.cumsum(sizes))
    inner = data.draw(st.sets(st.sampled_from(blocks.tolist())))
    trails = np.array(sorted({0, *inner, int(blocks[-1])}))
    window, streams = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    n = int(blocks[-1])
    order = Order(n, blocks, 3, "window", window, streams, data.draw(st.integers(1, 4)), trails)
    for epoch in range(2):
        assert sorted(order.at(epoch, np.arange(n)).tolist()) == list(range(n))
    grid = Order(64, np.arange(65), 3, "window", 4, trails=np.arange(0, 65, 8))
    bands = grid.at(0, np.arange(64)).reshape(-1, 4) // 8
    assert all(len(set(some)) == 4 for some in bands.tolist())
    # A band is gone through before another one takes its place.
    assert set(bands[0].tolist()) == set(bands[7].tolist()) != set(bands[8].tolist())


def test_channels_and_samples_in_one_chunk_are_decoded_once(tmp_path: Path) -> None:
    """A block is all channels, and all samples that share chunks; each stored chunk counts."""
    pixels = np.random.default_rng(0).integers(0, 99, (4, 3, 64, 60)).astype("u2")
    for chunks, n in (((2, 1, 16, 16), 2 * 3 * 16), ((1, 3, 16, 16), 4 * 16)):
        url = stored(tmp_path / f"{n}.zarr", pixels, chunks)
        images = patchloom.open_images(url, axes="scyx")
        plan = patchloom.plan(images, {"name": "sequential", "patch_size": [20, 20]}, edge="pad")
        live = patchloom.stream(plan)
        reader = live.reader()
        for positions in visited(live, "window"):
            reader.read(positions, ["images"])
        told = reader.report()
        assert told["chunk_reads"] == told["chunks_needed"] == plan.chunks_needed == n


def test_roles_are_counted_apart(tmp_path: Path) -> None:
    """Labels in other chunks, read only when they are asked for."""
    pixels = np.random.default_rng(0).integers(0, 99, (96, 96)).astype("u2")
    image = stored(tmp_path / "a.zarr", pixels, (32, 32))
    labels = stored(tmp_path / "l.zarr", pixels.astype("u1"), (48, 48))
    plan = patchloom.plan(patchloom.open_images(image, labels=labels, axes="yx"), GRID)
    reader = patchloom.stream(plan).reader()
    reader.read(np.arange(plan.n_patches), ["labels"])
    told = reader.report()
    assert (told["chunk_reads"], told["role_reads"], told["roles_needed"]) == (0, 4, 4)
    reader.read(np.arange(plan.n_patches), ["images", "labels"])
    told = reader.report()
    assert (told["chunk_reads"], told["role_reads"], told["roles_needed"]) == (9, 4, 4)


@pytest.mark.parametrize("shuffle", ["exact", False, True])
def test_loaders_give_the_batches_that_they_give_of_a_store(shuffle: Any, tmp_path: Path) -> None:
    """Threads and all, in every order."""
    pixels = np.random.default_rng(0).integers(0, 99, (200, 180)).astype("u2")
    labels = stored(tmp_path / "l.zarr", pixels.astype("u1") % 7, (40, 40))
    image = stored(tmp_path / "a.zarr", pixels, (16, 16))
    images = patchloom.open_images(image, labels=labels, axes="yx")
    plan = patchloom.plan(images, GRID, edge="pad", pad_mode="reflect")
    live, store = patchloom.stream(plan, memory="1 MiB"), materialized(plan)
    loader = live.batches(7, shuffle=shuffle, seed=3, columns=["position", "patch_id"])
    found = list(loader)
    assert loader.course.recipe.reader._held.memory < 2**20  # type: ignore[attr-defined]
    positions = np.concatenate([batch["position"] for batch in found])
    assert sorted(positions.tolist()) == list(range(len(live)))
    ids = store.manifest["patch_id"].to_numpy(zero_copy_only=False)
    rows = live.manifest["row"].to_numpy()
    for batch in found:
        assert (batch["patch_id"] == ids[rows[batch["position"]]]).all()
        for key, name in (("image", "images"), ("labels", "labels")):
            np.testing.assert_array_equal(batch[key], store.read(rows[batch["position"]], name))


def test_some_of_them_and_several_together_go_along_the_same_bands(tmp_path: Path) -> None:
    """What is selected or merged decodes no chunk oftener than all of one plan do."""
    rng = np.random.default_rng(0)
    wholes, lives = [], []
    for name in "ab":
        wholes.append(rng.integers(0, 99, (640, 600)).astype("u2"))
        url = stored(tmp_path / f"{name}.zarr", wholes[-1], (16, 16))
        images = patchloom.open_images(url, axes="yx", ids=[name])
        lives.append(patchloom.stream(patchloom.plan(images, GRID), memory=2**18))
    for found in (lives[0].where("start_y >= 64"), patchloom.merge_patches(lives)):
        told = found.manifest.select(["image_id", "start_y", "start_x"]).to_pylist()
        loader = found.batches(16, seed=1, columns="position")
        seen: list[int] = []
        for batch in loader:
            for position, patch in zip(batch["position"].tolist(), batch["image"], strict=True):
                seen.append(position)
                y, x = told[position]["start_y"], told[position]["start_x"]
                whole = wholes["ab".index(told[position]["image_id"])]
                np.testing.assert_array_equal(patch[0], whole[y : y + 24, x : x + 24])
        assert sorted(seen) == list(range(found.n_patches))
        assert len(found.trails) < len(found.blocks) / 4
    order = Order(found.n_patches, found.blocks, 1, "window", found.window, trails=found.trails)
    parts = [live.reader(by_block=True) for live in lives]
    for k in range(0, found.n_patches, 16):
        at = order.at(0, np.arange(k, min(k + 16, found.n_patches)))
        parts[0].read(at[at < len(lives[0])], ["images"])
        parts[1].read(at[at >= len(lives[0])] - len(lives[0]), ["images"])
    assert all(part.report()["read_amplification"] < 1.15 for part in parts)


def test_a_state_is_of_the_same_bands(tmp_path: Path) -> None:
    """With other memory positions are other patches: also a permutation of all is another."""
    pixels = np.zeros((1024, 1024), "u2")
    images = patchloom.open_images(stored(tmp_path / "a.zarr", pixels, (32, 32)), axes="yx")
    plan = patchloom.plan(images, GRID)
    state = patchloom.stream(plan, memory=2**16).batches(8, shuffle="exact").state_dict()
    patchloom.stream(plan, memory=2**16).batches(4, shuffle="exact").load_state_dict(state)
    with pytest.raises(ConfigError, match="same plan, memory="):
        patchloom.stream(plan, memory=2**19).batches(8, shuffle="exact").load_state_dict(state)


def test_advice_is_true(tmp_path: Path) -> None:
    """What is told to type decodes as little as it says; where little is decoded, nothing is."""
    url = tmp_path / "a.zarr"
    zarr.create_array(url, shape=(512, 1024, 1024), chunks=(16, 32, 32), dtype="u2")
    images = patchloom.open_images(url, axes="zyx")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16] * 3})
    wide = {"name": "sequential", "patch_size": [16] * 3, "overlaps": [4] * 3}
    assert patchloom.stream(plan, memory=2**22).summary()["advice"] is None
    plan = patchloom.plan(images, wide)
    live = patchloom.stream(plan, memory=2**22)
    told = re.fullmatch(
        r"each needed chunk is decoded about (\d\.\d\d) times .* memory='(\d+) MiB' for 1.1 times "
        r"or less, or window=(\d) for (\d\.\d\d), in batches .*",
        live.summary()["advice"],
    )
    assert told is not None
    assert float(told[1]) == round(live.read_amplification, 2) > 1.1
    enough = patchloom.stream(plan, memory=f"{told[2]} MiB")
    assert enough.read_amplification <= 1.1
    assert enough.summary()["advice"] is None
    assert patchloom.stream(plan, memory=enough.memory * 4 // 5).read_amplification > 1.1
    fewer = patchloom.stream(plan, memory=2**22, window=int(told[3]))
    assert round(fewer.read_amplification, 2) == float(told[4]) < live.read_amplification


def test_mixing_is_that_of_the_batches(tmp_path: Path) -> None:
    """Counted in batches by hand; of what is mixed wholly nearly that of a permutation."""
    pixels = np.zeros((2, 160, 160), "u1")
    images = patchloom.open_images([*pixels], ids=["a", "b"], axes="yx")
    plan = patchloom.plan(images, {**GRID, "patch_size": [10, 10], "overlaps": [0, 0]})
    live = patchloom.stream(plan)
    found = live.mixing(16, seed=4)
    rows = live.manifest
    x, y = (rows[f"start_{a}"].to_numpy() * 2 + 10 >= 160 for a in "xy")
    kind = np.char.add(
        np.char.add(rows["image_id"].to_numpy().astype(str), x.astype(str)), y.astype(str)
    )
    sums = []
    for batch in live.batches(16, seed=4, columns="position"):
        share = np.unique(kind[batch["position"]], return_counts=True)[1] / 16
        sums.append(-(share * np.log2(share)).sum())
    assert found["n_batches"] == len(sums) == 32
    region = found["region"]
    assert isinstance(region, dict)
    assert region["entropy"] == pytest.approx(np.mean(sums))
    assert region["relative"] > 0.95


# -- memory and time --------------------------------------------------------------------


def test_memory_grows_with_chunks_and_never_with_patches(tmp_path: Path) -> None:
    """Of a plan of a thousand million patches, a batch is read in a few megabytes."""
    zarr.create_array(tmp_path / "a.zarr", shape=(33_000, 33_000), chunks=(1024, 1024), dtype="u1")
    images = patchloom.open_images(tmp_path / "a.zarr", axes="yx")
    plan = patchloom.plan(images, {"name": "grid", "patch_size": [64, 64], "stride": 1})
    assert plan.n_patches > 10**9
    tracemalloc.start()
    live = patchloom.stream(plan, memory="64 MiB")
    assert len(pickle.dumps(live)) < 200_000
    reader = live.reader()
    found = reader.read(np.array([0, 5, plan.n_patches - 1]), ["images"])["images"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (3, 1, 64, 64)
    assert peak < 250 * 2**20
    assert "manifest" not in live.__dict__


def test_memory_is_what_it_was_given(tmp_path: Path) -> None:
    """An epoch holds what it says, measured by the allocator: memory, a batch, and little else."""
    pixels = np.random.default_rng(0).integers(0, 999, (1024, 1024)).astype("u2")
    images = patchloom.open_images(stored(tmp_path / "a.zarr", pixels, (32, 32)), axes="yx")
    plan = patchloom.plan(images, {**GRID, "patch_size": [32, 32]})
    del pixels
    for shuffle in ("window", "exact"):
        live = patchloom.stream(plan, memory=2**20)
        reader = live.reader()
        for positions in visited(live, shuffle)[:2]:
            reader.read(positions, ["images"])
        batches = visited(live, shuffle)
        tracemalloc.start()
        for positions in batches:
            reader.read(positions, ["images"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20 + 2**19


# -- processes, threads and errors ------------------------------------------------------


def _worker(live: LivePatches, shuffle: str, stream: int, of: int) -> tuple[Any, Any, Any]:
    order = Order(len(live), live.blocks, 3, shuffle, live.window, of, 8, live.trails)
    mine = [v for v in range(len(live)) if v // 8 % of == stream]
    reader, parts, seen = live.reader(), [], []
    for k in range(0, len(mine), 8):
        positions = order.at(0, np.array(mine[k : k + 8]))
        parts.append(reader.read(positions, ["images", "labels"]))
        seen.append(positions)
    both = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(seen), both, reader.report()


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_workers_of_any_kind(method: str, tmp_path: Path) -> None:
    """Two processes share an epoch: each patch once, the same pixels, chunks about once in all."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 99, (512, 512)).astype("u2"), rng.integers(0, 9, (512, 512))
    image = stored(tmp_path / "a.zarr", pixels, (16, 16))
    images = patchloom.open_images(image, labels=labels.astype("u1"), axes="yx")
    plan = patchloom.plan(images, {**GRID, "patch_size": [16, 16]}, edge="pad")
    live = patchloom.stream(plan, memory=2**18)
    assert live[0].shape == (1, 16, 16)  # what is open here plays no part there
    assert len(pickle.dumps(live)) < 20_000 + labels.size
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(_worker, [(live, "window", k, 2) for k in range(2)])
    seen = np.concatenate([positions for positions, _, _ in found])
    assert sorted(seen.tolist()) == list(range(len(live)))
    alone = live.reader().read(seen, ["images", "labels"])
    for name, expected in alone.items():
        both = np.concatenate([part[name] for _, part, _ in found])
        np.testing.assert_array_equal(both, expected)
    # What two workers need on both sides of a border, each decodes.
    assert sum(told["chunk_reads"] for _, _, told in found) <= 1.6 * plan.chunks_needed


def _first(live: LivePatches) -> Any:
    return live.reader().read(np.arange(9), ["images"])["images"]


def test_remote_sources_in_another_process(s3_server: S3Server) -> None:
    """Several images are asked for at once; a pickle holds no secret, and a worker can read."""
    bucket, options = s3_server.fresh_bucket(), s3_server.storage_options
    pixels = np.random.default_rng(0).integers(0, 99, (3, 48, 48)).astype("u2")
    for k, image in enumerate(pixels):
        zarr.create_array(
            f"{bucket}/{k}.zarr", data=image, chunks=(16, 16), storage_options=options
        )
    urls = [f"{bucket}/{k}.zarr" for k in range(3)]
    images = patchloom.open_images(urls, storage_options=options, axes="yx")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [24, 24]})
    live = patchloom.stream(plan)
    reader = live.reader()
    found = reader.read(np.arange(len(live))[::-1], ["images"])["images"][::-1, 0]
    expected = pixels.reshape(3, 2, 24, 2, 24).transpose(0, 1, 3, 2, 4).reshape(12, 24, 24)
    np.testing.assert_array_equal(found, expected)
    assert reader.report()["chunk_reads"] == plan.chunks_needed == 27
    text = pickle.dumps(live)
    assert not any(str(secret).encode() in text for secret in [options["key"], options["secret"]])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(_first, (live,))[:, 0], expected[:9])


def test_threads_share_what_one_has_decoded(tmp_path: Path) -> None:
    """Eight threads at once: right pixels, and no chunk twice."""
    pixels = np.random.default_rng(0).integers(0, 99, (400, 400)).astype("u2")
    images = patchloom.open_images(stored(tmp_path / "a.zarr", pixels, (16, 16)), axes="yx")
    plan = patchloom.plan(images, GRID)
    for memory, most in ((2**22, 1.0), (2**15, 99)):
        live = patchloom.stream(plan, memory=memory)
        expected = live.reader().read(np.arange(len(live)), ["images"])["images"]
        reader, batches = live.reader(), visited(live, "exact")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(reader.read, batches, repeat(["images"])))
        for positions, part in zip(batches, found, strict=True):
            np.testing.assert_array_equal(part["images"], expected[positions])
        told = reader.report()
        assert 1.0 <= told["read_amplification"] <= most
        assert told["peak_memory"] <= memory


def test_errors_name_the_image_and_the_chunk(tmp_path: Path) -> None:
    """A broken chunk is an error where it is needed, each time, and nowhere else."""
    pixels = np.random.default_rng(0).integers(0, 99, (96, 96)).astype("u2")
    for name in "ab":
        stored(tmp_path / f"{name}.zarr", pixels, (32, 32))
    images = patchloom.open_images([tmp_path / "a.zarr", tmp_path / "b.zarr"], axes="yx")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    (tmp_path / "b.zarr/c/1/2").write_bytes(b"no blosc")
    live = patchloom.stream(plan)
    manifest = live.manifest
    hit = (manifest["image_id"].to_numpy() == "b") & (manifest["start_y"].to_numpy() // 32 == 1)
    hit &= manifest["start_x"].to_numpy() // 32 == 2
    reader = live.reader()
    for _ in range(2):
        with pytest.raises(ChunkError, match=r"chunk \(1, 2\) of .*b\.zarr.*image 'b', image"):
            reader.read(np.arange(len(live)), ["images"])
    assert reader.read(np.flatnonzero(~hit), ["images"])["images"].shape == (68, 1, 16, 16)
    # Whole again, it is read: nothing broken is remembered.
    (tmp_path / "b.zarr/c/1/2").write_bytes((tmp_path / "a.zarr/c/1/2").read_bytes())
    assert reader.read(np.flatnonzero(hit), ["images"])["images"].shape == (4, 1, 16, 16)


def test_what_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), "u2")
    images = patchloom.open_images(pixels, axes="yx", ids=["a"])
    plan = patchloom.plan(images, GRID)
    live = patchloom.stream(plan)
    with pytest.raises(ConfigError, match="memory= is a number of bytes"):
        patchloom.stream(plan, memory="much")
    for window in (0, 2.5, "3", True):
        with pytest.raises(ConfigError, match="window= is a number of blocks"):
            patchloom.stream(plan, window=window)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"got \['labels'\]; there is \['image'\]"):
        live.reader().read(np.arange(2), ["labels"])
    with pytest.raises(ConfigError, match=r"a position is in range\(9\), got 0 to 9"):
        live.reader().read(np.array([0, 9]), ["images"])
    with pytest.raises(IndexError, match=r"range\(9\), got 9"):
        _ = live[9]
    assert live.reader().read(np.zeros(0, np.int64), ["images"])["images"].shape == (0, 1, 24, 24)
    other = patchloom.statistics(patchloom.open_images(pixels, axes="yx", ids=["b"]))
    scaling = Normalization.from_statistics(other, "min-max")
    with pytest.raises(ConfigError, match=r"it lacks those of \['a'\]"):
        patchloom.stream(plan, normalize=scaling)
    with pytest.raises(ConfigError, match="scales images and targets, got 'labels'"):
        patchloom.stream(plan, normalize={"labels": scaling})


def test_patches_that_are_cut_off_at_the_border(tmp_path: Path) -> None:
    """Under edge='shrink' patches have sizes of their own: one by one, or those of one size."""
    pixels = np.random.default_rng(0).integers(0, 99, (50, 40)).astype("u2")
    images = patchloom.open_images(stored(tmp_path / "a.zarr", pixels, (16, 16)), axes="yx")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [24, 24]}, edge="shrink")
    live = patchloom.stream(plan)
    for position in range(len(live)):
        spec = plan.get_patch_spec(position)
        (y, x), (height, width) = spec["coords"], spec["patch_size"]
        np.testing.assert_array_equal(live[position][0], pixels[y : y + height, x : x + width])
    with pytest.raises(PatchSizeError, match=r"one size, got .* edge='shrink'"):
        live.reader().read(np.arange(len(live)), ["images"])


@pytest.mark.parametrize("per", ["image", "channel"])
def test_normalised_patches_equal_the_store(per: str, tmp_path: Path) -> None:
    """By the numbers that a store records: float32, to the last bit."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(k, 999, (2, 60, 50)).astype("u2") for k in (0, 300)]
    urls = [stored(tmp_path / f"{k}.zarr", a, (1, 16, 16)) for k, a in enumerate(arrays)]
    targets = [rng.normal(k, 9, (60, 50)).astype("f4") for k in (0, 50)]
    images = patchloom.open_images(urls, target=targets, axes="cyx")
    plan = patchloom.plan(images, GRID, edge="pad", rows_per_shard=3)
    options = {"normalize": "percentile", "normalize_targets": "mean-std", "per": per}
    store = materialized(plan, **options)
    live = patchloom.stream(plan, normalize=store.applied)
    check_equals_the_store(live, store)
    assert live.reader().read(np.arange(2), ["images"])["images"].dtype == np.float32


def test_reading_needs_no_dask(tmp_path: Path) -> None:
    """What a worker imports and runs for stored sources."""
    pixels = np.random.default_rng(0).integers(0, 99, (64, 64)).astype("u2")
    images = patchloom.open_images(stored(tmp_path / "a.zarr", pixels, (16, 16)), axes="yx")
    live = patchloom.stream(patchloom.plan(images, GRID))
    (tmp_path / "live.pickle").write_bytes(pickle.dumps(live))
    code = (
        "import pickle, sys, numpy as np;"
        f"live = pickle.load(open({str(tmp_path / 'live.pickle')!r}, 'rb'));"
        "print(live.reader().read(np.arange(3), ['images'])['images'].shape);"
        "print([m for m in ('dask.array', 'distributed', 'torch')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(3, 1, 24, 24)", "[]"]


def test_held_waits_for_room_and_for_others() -> None:
    """Room is reserved before it is used; a value larger than all of it is made alone."""
    held = Held[str, int](100)
    assert held.claim(["a", "b"], 1) == ["a"]
    assert held.claim(["a", "b"], 5) == ["b"]
    with held.making(["a"], 60) as put:
        put("a", 1, 60)
    with held.making(["b"], 60) as put:
        put("b", 2, 50)
    assert held.get(["a", "b"]) == {"b": 2}
    assert held.counts.peak <= 100
    with pytest.raises(ZeroDivisionError), held.making(held.claim(["c"], 1), 10):
        _ = 1 / 0
    assert held.claim(["c"], 1) == ["c"]  # who failed lets the next one try
    waiting = threading.Thread(target=held.claim, args=(["c"], 1))
    waiting.start()
    with held.making(["c"], 500) as put:
        put("c", 3, 500)
    waiting.join(5)
    assert not waiting.is_alive()
    assert not held.get(["c"])  # too large to be held
