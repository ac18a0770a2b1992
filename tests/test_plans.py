"""Plans: identity, storage, size, cost and what they refuse."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom import errors
from patchloom.errors import (
    BudgetError,
    ChunkError,
    ConfigError,
    PatchloomError,
    PatchSizeError,
    PlanError,
    SourceError,
)
from patchloom.location import Location
from patchloom.planning.runs import pack
from patchloom.run.cutting import Job
from patchloom.run.graph import run_graph
from patchloom.table import as_bytes

GRID = {"name": "sequential", "patch_size": [32, 32], "overlaps": [8, 8]}
RANDOM = {"name": "random", "patch_size": [32, 32], "n_patches": 40}


def empty(folder: Path, shape: tuple[int, ...] = (1, 512, 512), name: str = "a.zarr") -> Path:
    """A stored image without pixels."""
    path = folder / name
    chunks = (*(1 for _ in shape[:-2]), 64, 64)
    zarr.create_array(path, shape=shape, chunks=chunks, dtype="uint16")
    return path


def test_fingerprint_ignores_paths_and_credentials(tmp_path: Path) -> None:
    """The same image elsewhere, opened otherwise, has the same fingerprint; another not."""
    (tmp_path / "x").mkdir()
    one = patchloom.open_images(empty(tmp_path), axes="CYX")
    two = patchloom.open_images(
        f"file://{empty(tmp_path / 'x')}", axes="cyx", storage_options={"auto_mkdir": False}
    )
    base = patchloom.plan(one, GRID, seed=3)
    assert patchloom.plan(two, GRID, seed=3).fingerprint == base.fingerprint
    assert len(base.fingerprint) == 32
    others: list[dict[str, Any]] = [
        {"seed": 4},
        {"edge": "pad"},
        {"rows_per_shard": 7},
        {"memory": "2 GiB"},
        {"min_coverage": 0.5},
    ]
    found = {patchloom.plan(one, GRID, **{"seed": 3, **o}).fingerprint for o in others}
    found |= {patchloom.plan(one, RANDOM, seed=3).fingerprint, base.fingerprint}
    renamed = patchloom.open_images(tmp_path / "a.zarr", axes="CYX", ids=["b"])
    found.add(patchloom.plan(renamed, GRID, seed=3).fingerprint)
    masked = [
        patchloom.open_images(tmp_path / "a.zarr", axes="CYX", mask=np.full((8, 8), value))
        for value in (True, False)
    ]
    found |= {patchloom.plan(m, GRID, seed=3, min_coverage=0.1).fingerprint for m in masked}
    assert len(found) == len(others) + 5


def test_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Hash seeds and processes play no part."""
    path = empty(tmp_path)
    code = (
        f"import patchloom; images = patchloom.open_images({str(path)!r}, axes='CYX');"
        f"print(patchloom.plan(images, {RANDOM!r}, seed=1).fingerprint)"
    )
    images = patchloom.open_images(path, axes="CYX")
    want = patchloom.plan(images, RANDOM, seed=1).fingerprint
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
        )
        assert done.stdout.strip() == want


@pytest.mark.parametrize(
    ("config", "fingerprint", "corner"),
    [
        (GRID, "a3506ff28ade499ef3df33b690395653", (48, 0)),
        ({**RANDOM, "n_patches": 500}, "3faf178f4a72cd0c154f7d078057138d", (21, 63)),
    ],
    ids=["grid", "random"],
)
def test_fingerprint_is_the_same_on_every_machine(
    config: dict[str, Any], fingerprint: str, corner: tuple[int, ...]
) -> None:
    """Written down once: every Python and NumPy that we support gives these (format 3)."""
    mask = np.add.outer(np.arange(20), np.arange(20)) % 7 < 4
    pixels = np.zeros((2, 200, 210), "uint16")
    images = patchloom.open_images(pixels, axes="CYX", mask=mask, ids=["a"])
    plan = patchloom.plan(images, config, min_coverage=0.55, seed=3)
    assert plan.fingerprint == fingerprint
    assert plan.get_patch_spec(7)["coords"] == corner


@pytest.mark.parametrize("config", [GRID, RANDOM], ids=["grid", "random"])
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_saved_plans_come_back(config: dict[str, Any], where: str, tmp_path: Path) -> None:
    """Saved and loaded, a plan is the same, down to each patch; it opens nothing."""
    mask = np.random.default_rng(0).random((13, 13)) < 0.5
    zarr.create_array(tmp_path / "mask.zarr", shape=(13, 13), chunks=(5, 5), dtype="bool")[...] = (
        mask
    )
    images = patchloom.open_images(
        empty(tmp_path), axes="CYX", mask=str(tmp_path / "mask.zarr"), storage_options={}
    )
    plan = patchloom.plan(images, config, min_coverage=0.4, seed=2, rows_per_shard=6)
    url = str(tmp_path / "plan") if where == "disk" else f"memory://plan-{config['name']}"
    plan.save(url)
    back = patchloom.Plan.load(url)
    assert back.fingerprint == plan.fingerprint
    assert back.summary() == plan.summary()
    specs = [plan.get_patch_spec(i) for i in range(plan.n_patches)]
    assert [back.get_patch_spec(i) for i in range(back.n_patches)] == specs
    assert patchloom.materialize(back, tmp_path / "out.zarr", progress=False).complete


def test_saved_plans_take_arrays_in_memory_from_images(tmp_path: Path) -> None:
    """A mask that was an array is not saved: the loaded plan asks for its image."""
    mask = np.random.default_rng(0).random((16, 16)) < 0.5
    images = patchloom.open_images(empty(tmp_path), axes="CYX", mask=mask, labels=None)
    plan = patchloom.plan(images, GRID, min_coverage=0.4)
    plan.save(str(tmp_path / "plan"))
    with pytest.raises(SourceError, match=r"the mask of 'a'.*images="):
        patchloom.Plan.load(str(tmp_path / "plan"))
    back = patchloom.Plan.load(str(tmp_path / "plan"), images=images)
    assert back.fingerprint == plan.fingerprint
    assert patchloom.materialize(back, tmp_path / "out.zarr", progress=False).complete


def test_loading_refuses_what_is_no_plan(tmp_path: Path) -> None:
    """Nothing there, a newer format, an edited plan, arrays that are gone: errors of ours."""
    with pytest.raises(PlanError, match=r"plan\.save"):
        patchloom.Plan.load(str(tmp_path / "none"))
    images = patchloom.open_images(np.zeros((64, 64), "uint8"))
    plan = patchloom.plan(images, GRID)
    plan.save(str(tmp_path / "plan"))
    with pytest.raises(SourceError, match="images="):
        patchloom.Plan.load(str(tmp_path / "plan"))
    assert patchloom.Plan.load(str(tmp_path / "plan"), images=images).n_patches == plan.n_patches
    head = tmp_path / "plan" / "plan.json"
    document = json.loads(head.read_text())
    head.write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(PlanError, match="format 99"):
        patchloom.Plan.load(str(tmp_path / "plan"), images=images)
    document["settings"]["seed"] = 5
    head.write_text(json.dumps(document))
    with pytest.raises(PlanError, match="edited by hand"):
        patchloom.Plan.load(str(tmp_path / "plan"), images=images)


def test_plans_grow_with_chunks_not_with_patches(tmp_path: Path) -> None:
    """Sixteen times the patches over the same chunks: the same columns, the same pickle."""
    images = patchloom.open_images(empty(tmp_path, (1, 4096, 4096)), axes="CYX")
    few, many = (
        patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32], "overlaps": [o, o]})
        for o in (0, 24)
    )
    assert many.n_patches > 15 * few.n_patches
    assert len(many.cells) <= len(few.cells)
    assert len(pickle.dumps(many.cells)) <= len(pickle.dumps(few.cells)) + 100
    assert len(pickle.dumps(few)) < 40 * len(few.cells) + 4096


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 64), overlap=st.sampled_from([0, 8, 16, 24]))
def test_tasks_follow_shards_not_patches(rows: int, overlap: int) -> None:
    """The graph has one task a run, the plan and the job, whatever the patches."""
    images = patchloom.open_images(np.zeros((1, 256, 256), "uint16"), axes="CYX")
    config = {"name": "sequential", "patch_size": [32, 32], "overlaps": [overlap, overlap]}
    plan = patchloom.plan(images, config, rows_per_shard=rows)
    graph = run_graph(plan, Job(Location.of("memory://out")), range(plan.n_shards), "token")
    ours = [k for k in dict(graph.dsk) if "patchloom" in str(k)]
    assert len(graph.keys) == plan.n_tasks <= plan.n_shards
    assert len(ours) == plan.n_tasks + 2


def test_graphs_carry_no_large_object(tmp_path: Path) -> None:
    """Without the plan and the job, a task is a few hundred bytes."""
    images = patchloom.open_images(empty(tmp_path, (1, 4096, 4096)), axes="CYX")
    plan = patchloom.plan(images, GRID, rows_per_shard=64)
    graph = dict(
        run_graph(plan, Job(Location.of("memory://out")), range(plan.n_shards), "token").dsk
    )
    tasks = [v for k, v in graph.items() if isinstance(k, tuple)]
    assert max(len(pickle.dumps(task)) for task in tasks) < 1000
    pixels = np.zeros((1, 2048, 2048), "uint16")
    images = patchloom.open_images(pixels, axes="CYX", labels=pixels[0], target=pixels)
    plan = patchloom.plan(images, GRID)
    graph = dict(
        run_graph(plan, Job(Location.of("memory://out")), range(plan.n_shards), "token").dsk
    )
    assert len(pickle.dumps(graph["patchloom-plan-token"])) < 40 * len(plan.cells) + 8192


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    rows=st.integers(1, 20),
    used=st.integers(0, 40),
)
def test_packing_is_a_permutation(sizes: list[int], rows: int, used: int) -> None:
    """Every unit is taken once, and ones of a single patch fill every gap."""
    order = pack(np.array(sizes), rows, used)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    filled = np.array(sizes + [1] * (10 * len(sizes)))
    ends = np.cumsum(filled[pack(filled, max(rows, 9), 0)])
    borders = np.arange(max(rows, 9), sum(sizes), max(rows, 9))
    assert np.isin(borders, ends).all()


@pytest.mark.parametrize("rows", [None, 4, 10, 16, 50])
def test_aligned_plans_read_every_chunk_once(rows: int | None, tmp_path: Path) -> None:
    """Several patches a chunk, under a mask, over several images: amplification is 1.00."""
    paths = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.zarr"
        array = zarr.create_array(path, shape=(2, 300, 310), chunks=(1, 64, 64), dtype="uint16")
        array[...] = np.random.default_rng(1).integers(0, 9, (2, 300, 310), dtype="uint16")
        paths.append(path)
    mask = np.random.default_rng(0).random((30, 31)) < 0.8
    images = patchloom.open_images(paths, axes="CYX", mask=mask)
    plan = patchloom.plan(
        images,
        {"name": "sequential", "patch_size": [16, 16]},
        min_coverage=0.7,
        rows_per_shard=rows,
    )
    assert plan.patching.is_aligned
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert plan.n_tasks > 1 or rows is None
    assert report.read_amplification == 1.0
    assert plan.summary()["read_amplification"] == 1.0


def test_patch_ids_survive_replanning(tmp_path: Path) -> None:
    """The same box of the same image has the same id in another plan, beside other images."""
    first = patchloom.open_images(np.zeros((64, 64), "uint8"), ids=["a"])
    both = patchloom.open_images([np.zeros((64, 64), "uint8")] * 2, ids=["z", "a"])
    masked = patchloom.open_images(
        np.zeros((64, 64), "uint8"), ids=["a"], mask=np.eye(8, dtype=bool)
    )
    ids: list[dict[tuple[int, int], str]] = []
    for k, (images, share) in enumerate(((first, 0), (both, 0), (masked, 0.2))):
        plan = patchloom.plan(
            images, {"name": "sequential", "patch_size": [8, 8]}, min_coverage=share
        )
        patchloom.materialize(plan, tmp_path / f"{k}.zarr", progress=False)
        rows = patchloom.open_patches(tmp_path / f"{k}.zarr").manifest.to_pylist()
        assert len({r["patch_id"] for r in rows}) == len(rows)
        assert all(len(r["patch_id"]) == 32 for r in rows)
        ids.append(
            {(r["start_y"], r["start_x"]): r["patch_id"] for r in rows if r["image_id"] == "a"}
        )
    assert ids[0] == ids[1]
    assert 0 < len(ids[2]) < 64
    assert ids[2].items() <= ids[0].items()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"patching": {"name": "sequential", "patch_size": [8]}}, PatchSizeError, "spatial axis"),
        ({"patching": {"name": "sequential", "patch_size": [99, 8]}}, PatchSizeError, "edge='pad'"),
        ({"edge": "wrap"}, ConfigError, "edge="),
        ({"order": "sorted"}, ConfigError, "order="),
        ({"window": 4}, ConfigError, "window="),
        ({"min_coverage": 1.5}, ConfigError, "min_coverage"),
        ({"min_coverage": "half"}, ConfigError, "min_coverage"),
        ({"rows_per_shard": 0}, ConfigError, "rows_per_shard"),
        ({"memory": "lots"}, ConfigError, "memory="),
        ({"memory": "1 kB"}, BudgetError, "raise memory"),
    ],
    ids=str,
)
def test_wrong_plans_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Before any pixel is read, with the law, what was given and the way out."""
    images = patchloom.open_images(np.zeros((64, 64), "uint8"))
    patching = options.pop("patching", {"name": "sequential", "patch_size": [8, 8]})
    with pytest.raises(error, match=words):
        patchloom.plan(images, patching, **options)
    options["patching"] = patching


@pytest.mark.parametrize("order", ["spatial", "shuffled"])
def test_default_shards_fit_into_the_memory(order: str, tmp_path: Path) -> None:
    """Of patches few of which share a chunk; asked for, too many are refused with a number."""
    zarr.create_array(tmp_path / "a.zarr", shape=(4096, 4096), chunks=(256, 256), dtype="uint16")
    images = patchloom.open_images(tmp_path / "a.zarr")
    patching = {"name": "random", "patch_size": [96, 96], "n_patches": 2000}
    by_default = patchloom.plan(images, patching, order=order)
    told: dict[str, Any] = {"order": order, "memory": "24 MiB"}
    tight = patchloom.plan(images, patching, **told)
    assert tight.runs.peak_memory <= 24 * 2**20
    assert by_default.rows_per_shard // 16 <= tight.rows_per_shard < by_default.rows_per_shard
    assert tight.figures()["layout"].endswith("as asked, or as the memory allows")
    with pytest.raises(BudgetError, match=r"; rows_per_shard=\d+ fits$") as caught:
        patchloom.plan(images, patching, rows_per_shard=by_default.rows_per_shard, **told)
    rows = int(str(caught.value).rpartition("rows_per_shard=")[2].partition(" ")[0])
    typed = patchloom.plan(images, patching, rows_per_shard=rows, **told)
    assert typed.fingerprint == tight.fingerprint
    with pytest.raises(BudgetError, match=r"rows_per_shard \(\d+\) or the patch size \[96, 96\]$"):
        patchloom.plan(images, patching, order=order, memory="256 KiB")


def test_memory_does_not_grow_with_the_shards_of_a_chunk() -> None:
    """A shard's counts are held if it owns a block that is there, not one for each shard."""
    images = patchloom.open_images(np.zeros((9, 29, 29), "float32"), axes="zyx")
    tiles = {"name": "sequential", "patch_size": [3, 3, 3]}
    many = patchloom.plan(images, tiles, edge="pad", rows_per_shard=1, memory="16 MiB")
    assert many.figures()["n_shards"] == 300
    report = patchloom.materialize(many, "memory://shards-of-a-chunk.zarr", progress=False)
    assert 0 < report.peak_memory <= many.figures()["peak_memory"] <= 2**24


def test_images_of_one_plan_are_alike() -> None:
    """Another dtype, other axes, other channels: refused, naming both images."""
    base = np.zeros((3, 16, 16), "uint8")
    for other, axes in ((base.astype("uint16"), "CYX"), (base[:2], "CYX"), (base, "ZYX")):
        images = [
            *patchloom.open_images(base, axes="CYX", ids=["one"]),
            *patchloom.open_images(other, axes=axes, ids=["two"]),
        ]
        with pytest.raises(PlanError, match=r"'one'.*'two'"):
            patchloom.plan(images, {"name": "sequential", "patch_size": [8, 8]})
    with pytest.raises(PlanError, match="at least one"):
        patchloom.plan([], GRID)


def test_whole_images_of_unequal_sizes_are_refused() -> None:
    """One store has one patch size: the refusal names the sizes and offers to pad."""
    images = [
        image
        for name, shape in (("one", (16, 20)), ("two", (18, 12)))
        for image in patchloom.open_images(np.zeros(shape, "uint8"), ids=[name])
    ]
    with pytest.raises(PatchSizeError, match=r"\[16, 20\].*\[18, 12\].*edge='pad'"):
        patchloom.plan(images, {"name": "whole"})
    assert patchloom.plan(images, {"name": "whole"}, edge="pad").patch_size == (18, 20)
    assert patchloom.plan(images[:1], {"name": "whole"}).patch_size == (16, 20)


def test_small_images_among_others_are_named() -> None:
    """An image smaller than the patch gives none, and the summary says so."""
    images = patchloom.open_images([np.zeros((64, 64)), np.zeros((16, 64))], ids=["big", "small"])
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]})
    assert plan.n_patches == 4
    assert any("small" in reason for reason in plan.figures()["rejected"])


def test_damaged_chunks_stop_the_run_or_are_skipped(tmp_path: Path) -> None:
    """A chunk that does not decode is named with its cost; skipping lists it; mending fills."""
    path = empty(tmp_path, (1, 128, 128))
    array = zarr.open_array(path, mode="r+")
    array[...] = np.arange(128 * 128, dtype="uint16").reshape(1, 128, 128)
    chunk = path / "c" / "0" / "1" / "0"
    good = chunk.read_bytes()
    chunk.write_bytes(b"damaged")
    images = patchloom.open_images(path, axes="CYX")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [32, 32]}, rows_per_shard=4)
    with pytest.raises(ChunkError, match=r"chunk \(0, 1, 0\).*on_error='skip'"):
        patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    report = patchloom.materialize(plan, tmp_path / "out.zarr", on_error="skip", progress=False)
    assert not report.complete
    assert [s["n_patches"] for s in report.skipped] == [4]
    store = patchloom.open_patches(tmp_path / "out.zarr")
    assert not store.complete
    assert store.manifest.num_rows == 12
    assert store.skipped.num_rows == 4
    assert store.statistics["count"].item() == 12 * 32 * 32
    chunk.write_bytes(good)
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert (report.complete, report.n_patches) == (True, 4)
    patchloom.materialize(plan, tmp_path / "whole.zarr", progress=False)
    for name in ("out", "whole"):
        assert patchloom.open_patches(tmp_path / f"{name}.zarr").manifest.num_rows == 16
    read = [
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*")
            if p.is_file()
        }
        for n in ("out.zarr", "whole.zarr")
    ]
    assert read[0] == read[1]


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_travel(name: str) -> None:
    """Every error survives pickling with its message, and is one of ours."""
    error = getattr(errors, name)("the law, what it got, and the way out")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == "the law, what it got, and the way out"
    assert isinstance(back, PatchloomError)


@pytest.mark.parametrize(
    ("shape", "chunk", "size", "rows", "why"),
    [
        ((64, 64), 32, 16, None, "one object of 16 patches (4.0 KiB), all there are"),
        ((64, 64), 32, 16, 6, "one object of 6 patches (1.5 KiB), as asked"),
        ((2**14, 2**14), 2**12, 2**10, None, "32 patches (32.0 MiB), whole chunks of the images"),
        ((2**14, 2**14), 2**14, 2**10, None, "32 patches (32.0 MiB), a power of two up to 32.0"),
    ],
)
def test_a_summary_says_why_shards_are_as_large(
    shape: tuple[int, int], chunk: int, size: int, rows: int | None, why: str, tmp_path: Path
) -> None:
    """As many patches as were asked for, or whole chunks of the images near 32 MiB."""
    path = tmp_path / "image.zarr"
    zarr.create_array(path, shape=shape, chunks=(chunk, chunk), dtype="uint8")
    config = {"name": "sequential", "patch_size": [size, size]}
    [image] = patchloom.open_images(str(path))
    plan = patchloom.plan(image, config, rows_per_shard=rows, memory="8 GiB")
    told = plan.summary()["layout"]
    assert told.startswith(f"a chunk is one patch ({as_bytes(size * size)})")
    assert why in told
