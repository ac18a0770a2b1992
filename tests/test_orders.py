"""Orders of rows: the same patches, the same bytes, the same numbers, only elsewhere."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import BudgetError, ConfigError
from patchloom.planning.rows import Rows
from patchloom.run.sharing import unshared
from tests import oracle

GRID = {"name": "sequential", "patch_size": [8, 8], "overlaps": [3, 3]}
ALIGNED = {"name": "chunk_aligned", "patch_size": [8, 8]}


# -- rows alone -------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    window=st.one_of(st.none(), st.integers(1, 20)),
    data=st.data(),
)
def test_rows_are_a_bijection(sizes: list[int], window: int | None, data: st.DataObject) -> None:
    """Rank, turn and row of every patch, against lists that are dealt out one by one."""
    n = np.array(sizes)
    begin = np.cumsum(n) - n
    order = np.array(data.draw(st.permutations(range(len(sizes)))))
    dealt = [r for k in order for r in range(begin[k], begin[k] + n[k])]
    if window is None:
        rows, turns = Rows.of(begin[order], n[order]), dealt
    else:
        rows = Rows.mixed(begin[order], n[order], window, 7)
        windows = [dealt[k : k + window] for k in range(0, len(dealt), window)]
        turns = [rank for some in windows for rank in sorted(some)]
    total = len(dealt)
    numbers = np.arange(total)
    assert rows.n_rows == total
    assert rows.ranks_of(numbers).tolist() == turns
    assert rows.turns_of(np.array(turns)).tolist() == list(range(total))
    to = rows.rows_of(numbers)
    assert sorted(to.tolist()) == list(range(total))
    assert rows.turns_of_rows(to).tolist() == list(range(total))
    wide = window or 1
    assert (to // wide == numbers // wide).all()
    start, stop = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))
    if start < stop:
        low, high = rows.pieces(start, stop)
        pieces = zip(low.tolist(), high.tolist(), strict=True)
        assert [r for a, b in pieces for r in range(a, b)] == turns[start:stop]


def test_windows_are_well_mixed() -> None:
    """Every turn of a window goes to every row of it equally often."""
    n, window = 6 * 4000, 6
    rows = Rows.mixed(np.zeros(1, np.int64), np.array([n]), window, 3)
    to = rows.rows_of(np.arange(n)) % window
    counts = np.zeros((window, window))
    np.add.at(counts, (np.arange(n) % window, to), 1)
    chi = ((counts - 4000 / 1.0 / window) ** 2 / (4000 / window)).sum()
    # 25 degrees of freedom: beyond 60 once in ten thousand.
    assert chi < 60
    # All 720 permutations occur.
    assert len({tuple(row) for row in to.reshape(-1, window).tolist()}) > 700


# -- whole stores -----------------------------------------------------------------------


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Some small images, a strategy and an order."""
    ndim = draw(st.integers(1, 3))
    n_images = draw(st.integers(1, 3))
    most = {1: 40, 2: 14, 3: 8}[ndim]
    sample = draw(st.sampled_from(["", "", "t"]))
    shapes = [
        (
            *([draw(st.integers(1, 3))] * len(sample)),
            *(draw(st.integers(5, most)) for _ in range(ndim)),
        )
        for _ in range(n_images)
    ]
    order = draw(st.sampled_from(["grouped", "shuffled", "shuffled", "shuffled"]))
    name = draw(st.sampled_from(["sequential", "random", "chunk_aligned", "points"]))
    # A patch that stays inside its chunk is not larger.
    least = 5 if name == "chunk_aligned" else 1
    return {
        "axes": sample + "zyx"[-ndim:],
        "shapes": shapes,
        "chunks": tuple(draw(st.integers(least, 7)) for _ in shapes[0]),
        "size": [draw(st.integers(2, 5)) for _ in range(ndim)],
        "name": name,
        "edge": draw(st.sampled_from(["drop", "pad"])),
        "pad_mode": draw(st.sampled_from(["constant", "reflect"])),
        "masked": draw(st.booleans()),
        "labels": draw(st.booleans()),
        "order": order,
        "group_by": draw(st.sampled_from(["image_id", "split", "well", "kind"]))
        if order == "grouped"
        else None,
        "window": draw(st.one_of(st.none(), st.integers(1, 6))) if order == "shuffled" else None,
        "rows_per_shard": draw(st.sampled_from([None, 2, 5, 8])),
        "lazy": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def opened(job: dict[str, Any]) -> tuple[list[patchloom.Image], list[npt.NDArray[Any]]]:
    """The images of a job with their roles, and their pixels."""
    rng = np.random.default_rng(job["seed"])
    pixels = [rng.integers(0, 2**16, shape, dtype="uint16") for shape in job["shapes"]]
    spaces = [shape[len(shape) - len(job["size"]) :] for shape in job["shapes"]]
    sources = [
        da.from_array(p, chunks=tuple(map(min, job["chunks"], p.shape))) if job["lazy"] else p
        for p in pixels
    ]
    images = patchloom.open_images(
        sources,
        axes=job["axes"],
        mask=[rng.random(space) < 0.7 for space in spaces] if job["masked"] else None,
        labels=[rng.integers(0, 9, s, dtype="uint8") for s in spaces] if job["labels"] else None,
        ids=[f"image {k}" for k in range(len(pixels))],
        sample=[{"well": well} for well in [None, "B", "A", "B"][: len(pixels)]],
    )
    return images, pixels


def config_of(job: dict[str, Any]) -> dict[str, Any]:
    found = {"name": job["name"], "patch_size": job["size"]}
    if job["name"] == "random":
        found["n_patches"] = 20
    if job["name"] == "sequential":
        found["overlaps"] = [p // 2 for p in job["size"]]
    if job["name"] == "points":
        rng = np.random.default_rng(job["seed"] + 1)
        which = rng.integers(0, len(job["shapes"]), 30)
        axes = "zyx"[-len(job["size"]) :]
        table: dict[str, Any] = {
            "image": [f"image {k}" for k in which],
            **{a: rng.integers(0, 20, 30) for a in axes},
            "kind": [None if k % 5 == 4 else f"k{k % 3}" for k in range(30)],
        }
        if "t" in job["axes"]:
            table["t"] = np.zeros(30, np.int64)
        sample = "t" if "t" in job["axes"] else None
        found["points"] = patchloom.read_points(table, image="image", sample=sample)
    return found


def plans(job: dict[str, Any], images: Any) -> tuple[patchloom.Plan, patchloom.Plan]:
    """In the order of the job, and along the curve."""
    asked = {
        "seed": job["seed"],
        "edge": job["edge"],
        "pad_mode": job["pad_mode"],
        "min_coverage": 0.3,
        "rows_per_shard": job["rows_per_shard"],
    }
    config = config_of(job)
    group_by = job["group_by"]
    if group_by == "kind" and job["name"] != "points":
        group_by = "image_id"
    more = {"order": job["order"], "window": job["window"], "group_by": group_by}
    return patchloom.plan(images, config, **asked, **more), patchloom.plan(images, config, **asked)


def rows_of(store: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = store.manifest.to_pylist()
    return rows


def content(row: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in row.items() if k != "row"}, sort_keys=True)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(job=jobs())
def test_every_order_holds_the_same_patches(job: dict[str, Any]) -> None:
    """Rows, pixels, ids, columns, counts and statistics, against the curve and NumPy."""
    images, pixels = opened(job)
    plan, spatial = plans(job, images)
    assert plan.n_patches == spatial.n_patches
    assume(plan.n_patches <= 150)
    url, other = (f"memory://{uuid.uuid4().hex}.zarr" for _ in range(2))
    with dask.config.set(scheduler="synchronous"):
        report = patchloom.materialize(plan, url, progress=False)
        patchloom.materialize(spatial, other, progress=False)
    store, straight = patchloom.open_patches(url), patchloom.open_patches(other)
    rows, along = rows_of(store), rows_of(straight)
    assert [row["row"] for row in rows] == list(range(plan.n_patches))
    assert Counter(map(content, rows)) == Counter(map(content, along))
    assert report.complete
    summary = plan.summary()
    assert plan.chunks_needed <= report.chunk_reads <= summary["chunk_reads"]
    assert report.chunks_needed == summary["chunks_needed"] == spatial.summary()["chunks_needed"]
    assert report.peak_memory <= summary["peak_memory"]
    assert report.n_tasks == plan.n_tasks

    space = "zyx"[-len(job["size"]) :]
    where = {row["patch_id"]: row["row"] for row in along}
    for row in rows:
        index = int(row["image_id"].split()[1])
        corner = tuple(row[f"start_{a}"] for a in space)
        spec = plan.get_patch_spec(row["row"])
        assert (spec["data_idx"], spec["sample_idx"]) == (index, row["sample"])
        assert spec["coords"] == corner
        whole = oracle.canonical(pixels[index], job["axes"])
        cut = oracle.cut(whole[row["sample"]], corner, job["size"], job["pad_mode"])
        np.testing.assert_array_equal(store[row["row"]], cut)
        assert (store.labels is not None) == job["labels"]
        if store.labels is not None and straight.labels is not None:
            labels = store.labels[row["row"]]
            np.testing.assert_array_equal(labels, straight.labels[where[row["patch_id"]]])
    if rows:
        assert store.statistics.identical(straight.statistics)
    for k in range(len(images)):
        mine = [row["row"] for row in rows if row["image_id"] == f"image {k}"]
        assert list(plan.get_patch_indices(k)) == mine
    for parts in (plan.walk(), plan.patches(0, plan.n_patches)):
        got = {int(r): (p.image, *c) for p in parts for r, c in zip(p.row, p.corner, strict=True)}
        assert len(got) == plan.n_patches
        for row in rows:
            index = int(row["image_id"].split()[1])
            assert got[row["row"]] == (index, *(row[f"start_{a}"] for a in space))

    if job["order"] == "grouped":
        name = plan.group_by
        assert name is not None
        values = [(row[name] is None, row[name] or "") for row in rows]
        assert values == sorted(values)
        ranks = {row["patch_id"]: row["row"] for row in along}
        for value in set(values):
            same = [ranks[r["patch_id"]] for r, v in zip(rows, values, strict=True) if v == value]
            assert same == sorted(same)
    else:
        assert summary["n_windows"] == plan.n_tasks
        assert plan.window_rows % plan.rows_per_shard == 0


def noise(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 2**16, shape, dtype="uint16")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two stored images of noise."""
    folder = tmp_path_factory.mktemp("source")
    for k, name in enumerate(("a", "b")):
        array = zarr.create_array(
            folder / f"{name}.zarr", shape=(96, 80), dtype="uint16", chunks=(16, 16)
        )
        array[...] = noise((96, 80), k)
    return [folder / "a.zarr", folder / "b.zarr"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


SHUFFLED = {"order": "shuffled", "window": 12, "rows_per_shard": 24, "seed": 5}


def shuffled(images: list[Path], config: Any = GRID, **more: Any) -> patchloom.Plan:
    return patchloom.plan(patchloom.open_images(images), config, **{**SHUFFLED, **more})


def test_bytes_do_not_depend_on_who_works(stored: list[Path], tmp_path: Path) -> None:
    """One thread, several, processes: the same objects, the same bytes."""
    plan = shuffled(stored)
    assert 1 < plan.n_tasks < plan.n_shards
    found = []
    for scheduler, workers in (("synchronous", 1), ("threads", 4), ("processes", 2)):
        out = tmp_path / f"{scheduler}.zarr"
        with dask.config.set(scheduler=scheduler, num_workers=workers):
            report = patchloom.materialize(plan, out, progress=False)
        # Processes of their own share nothing.
        assert report.chunk_reads == (plan.chunk_reads if workers == 2 else plan.chunks_needed)
        found.append(contents(out))
    assert found[0] == found[1] == found[2]


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), kind=st.sampled_from(["manifest", "summaries", "images/c"]))
def test_resume_writes_the_same_bytes(
    data: st.DataObject, kind: str, stored: list[Path], tmp_path_factory: Any
) -> None:
    """Any shards lost, in any of their parts: the same bytes, and nothing else is written."""
    out = tmp_path_factory.mktemp("resume") / "out.zarr"
    plan = shuffled(stored)
    with dask.config.set(scheduler="synchronous"):
        patchloom.materialize(plan, out, progress=False)
        whole = contents(out)
        lost = data.draw(st.sets(st.integers(0, plan.n_shards - 1), min_size=1, max_size=6))
        for shard in lost:
            names = [n for n in whole if _shard_of(n) == shard and kind.split("/")[0] in n]
            assert names
            for name in names:
                (out / name).unlink()
        report = patchloom.materialize(plan, out, progress=False)
    assert report.n_shards == len(lost)
    assert contents(out) == whole
    assert report.chunk_reads <= plan.chunk_reads


def _shard_of(name: str) -> int | None:
    parts = Path(name).parts
    if parts[0] == "images" and "c" in parts:
        return int(parts[2])
    stem = Path(name).stem
    return int(stem) if stem.isdigit() else None


def test_a_new_process_deals_the_same_rows(stored: list[Path], tmp_path: Path) -> None:
    """Another process, with another hash seed, and a saved plan: the same rows."""
    plan = shuffled(stored)
    plan.save(str(tmp_path / "plan"))
    code = (
        "import sys, patchloom\n"
        "plan = patchloom.Plan.load(sys.argv[1])\n"
        "print(plan.fingerprint, [plan.get_patch_spec(k)['coords'] for k in range(40)])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "plan")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    corners = [plan.get_patch_spec(k)["coords"] for k in range(40)]
    assert told == f"{plan.fingerprint} {corners}"
    seeds = {shuffled(stored, seed=k).fingerprint for k in range(3)}
    assert len(seeds | {shuffled(stored, window=None).fingerprint}) == 4


def test_one_window_reads_each_chunk_once(stored: list[Path]) -> None:
    """With room for all, everything is mixed with everything, and nothing is read twice."""
    plan = shuffled(stored, window=None)
    assert plan.n_tasks == 1
    assert plan.chunk_reads == plan.chunks_needed
    rows = np.concatenate([np.asarray(plan.get_patch_indices(k)) for k in range(2)])
    assert sorted(rows.tolist()) == list(range(plan.n_patches))
    # The first half of the store holds about as many patches of either image.
    half = (np.asarray(plan.get_patch_indices(0)) < plan.n_patches // 2).sum()
    assert abs(half - plan.n_patches / 4) < 4 * math.sqrt(plan.n_patches / 16)


def test_aligned_windows_read_each_chunk_once(stored: list[Path]) -> None:
    """Where no chunk is shared, and groups fill windows, windows cost nothing."""
    plan = shuffled(stored, ALIGNED, rows_per_shard=4)
    assert plan.n_tasks > 1
    assert plan.chunk_reads == plan.chunks_needed
    assert plan.summary()["window_groups"] == 12


def test_a_small_window_costs_what_it_says(stored: list[Path]) -> None:
    """The wider the window, the fewer chunks are read again; always as many as predicted."""
    reads = [shuffled(stored, window=w).chunk_reads for w in (1, 8, 1000)]
    assert reads[0] > reads[1] > reads[2]


def test_windows_fit_into_the_memory(stored: list[Path]) -> None:
    """By default as many groups as fit; a window that was asked for and does not is refused."""
    wide = shuffled(stored, window=None, memory="1 GiB")
    need = wide.runs.peak_memory
    tight = shuffled(stored, window=None, memory=need * 2 // 3)
    assert tight.runs.peak_memory <= need * 2 // 3
    assert tight.n_tasks > 1
    with pytest.raises(BudgetError, match=r"smaller window=.*"):
        shuffled(stored, window=1000, memory=need * 2 // 3)
    with pytest.raises(BudgetError, match="rows_per_shard"):
        shuffled(stored, window=None, memory=10_000)


def test_what_a_window_holds_is_foreseen(tmp_path: Path) -> None:
    """The measured peak is below the projection, and not far below."""
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(512, 512), dtype="uint16", chunks=(64, 64)
    )
    array[...] = noise((512, 512))
    config = {"name": "random", "patch_size": [32, 32], "n_patches": 1500}
    [image] = patchloom.open_images(tmp_path / "a.zarr")
    plan = patchloom.plan(image, config, order="shuffled", rows_per_shard=32, memory="3 MiB")
    with dask.config.set(scheduler="synchronous"), unshared():
        report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert plan.n_tasks > 1
    assert report.chunk_reads == plan.chunk_reads
    assert report.peak_memory <= plan.runs.peak_memory <= 3 * 2**20
    assert report.peak_memory > plan.runs.peak_memory / 3


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"order": "random"}, "one of"),
        ({"order": "spatial", "window": 3}, "belongs to order='shuffled'"),
        ({"order": "grouped"}, "group_by= names the column"),
        ({"order": "shuffled", "group_by": "split"}, "group_by= names the column"),
        ({"order": "grouped", "group_by": "nothing"}, "one of .*image_id"),
        ({"order": "shuffled", "window": 0}, "at least 1"),
        ({"order": "shuffled", "window": "many"}, "integer"),
    ],
)
def test_wrong_orders_are_refused(asked: dict[str, Any], words: str) -> None:
    """With the law, what was given and the way out."""
    with pytest.raises(ConfigError, match=words):
        patchloom.plan(patchloom.open_images(np.zeros((20, 20), "uint8")), GRID, **asked)


def test_a_chunk_that_cannot_be_read_costs_its_patches(stored: list[Path], tmp_path: Path) -> None:
    """What needs it waits; filled in later, the store is the undisturbed one."""
    import shutil

    copies = [tmp_path / p.name for p in stored]
    for path, copy in zip(stored, copies, strict=True):
        shutil.copytree(path, copy)
    plan = shuffled(copies, ALIGNED, rows_per_shard=2)
    chunk = copies[0] / "c" / "1" / "1"
    good = chunk.read_bytes()
    chunk.write_bytes(b"damaged")
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    with dask.config.set(scheduler="synchronous"):
        report = patchloom.materialize(plan, out, progress=False, on_error="skip")
        assert not report.complete
        [skipped] = report.skipped
        assert skipped["n_patches"] == report.n_shards * 2 - report.n_patches
        chunk.write_bytes(good)
        assert patchloom.materialize(plan, out, progress=False).complete
        patchloom.materialize(plan, whole, progress=False)
    assert contents(out) == contents(whole)


def test_statistics_of_a_task_that_comes_by_an_image_twice(tmp_path: Path) -> None:
    """Grouped by split, images take turns inside one shard: each pixel is still counted once."""
    pixels = [np.random.default_rng(k).integers(0, 1000, (64, 64)).astype("uint16") for k in (0, 1)]
    paths = [tmp_path / f"{k}.zarr" for k in (0, 1)]
    for path, array in zip(paths, pixels, strict=True):
        zarr.create_array(path, data=array, chunks=(16, 16))
    images = patchloom.open_images([str(path) for path in paths])
    split = {"by": "blocks", "block_size": 32, "shares": {"train": 0.5, "val": 0.5}}
    asked: dict[str, Any] = {"order": "grouped", "group_by": "split", "split": split}
    grid = {"name": "sequential", "patch_size": [16, 16]}
    plan = patchloom.plan(images, grid, **asked)
    turns = [part.image for part in plan.visits(0, plan.n_patches)]
    assert len(turns) > len(set(turns)), "an image comes twice"
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    found = patchloom.open_patches(tmp_path / "out.zarr").statistics
    for image, array in zip(images, pixels, strict=True):
        own = found.sel(image=image.id)
        assert own["count"].item() == array.size
        assert own["mean"].item() == pytest.approx(array.mean(), rel=1e-12)


def test_an_image_between_others_may_keep_nothing(tmp_path: Path) -> None:
    """Its cells are none, while patches of one task lie before and after it."""
    full, empty = np.ones((48, 48), "uint8"), np.zeros((48, 48), "uint8")
    for order in ("spatial", "shuffled"):
        images = patchloom.open_images(
            [full + k for k in range(3)], ids=["a", "b", "c"], mask=[full, empty, full]
        )
        plan = patchloom.plan(
            images, {**GRID, "context": 2}, min_coverage=0.5, rows_per_shard=100, order=order
        )
        assert len(plan.get_patch_indices(1)) == 0
        report = patchloom.materialize(plan, tmp_path / order, progress=False)
        assert report.n_patches == plan.n_patches > 0
