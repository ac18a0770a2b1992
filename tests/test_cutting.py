"""Cutting without a store, who decoded, and what a shard is made of."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, TransposeCodec, ZstdCodec

import patchloom
from patchloom.errors import ChunkError
from patchloom.patching.sequential import SequentialPatching
from patchloom.run.batches import cut_batches
from patchloom.sources.chunks import DirectReader
from patchloom.store.schema import CODECS, ArraySpec, Codec
from patchloom.store.shards import ShardBuilder

GRID = {"name": "sequential", "patch_size": [24, 24], "overlaps": [8, 8]}


@pytest.fixture
def images(tmp_path: Path) -> Any:
    rng = np.random.default_rng(5)
    found = {}
    for name, dtype in (("image", "uint16"), ("labels", "uint8")):
        array = zarr.create_array(
            tmp_path / f"{name}.zarr", shape=(100, 90), chunks=(32, 32), dtype=dtype
        )
        array[...] = rng.integers(0, 200, (100, 90), dtype=dtype)
        found[name] = str(tmp_path / f"{name}.zarr")
    return patchloom.open_images(found["image"], labels=found["labels"], axes="yx")


def test_tasks_do_not_look_at_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all tasks of a plan have in common is asked once, not of each image for each task."""
    asked = []

    class Counting(SequentialPatching):
        @property
        def is_aligned(self) -> bool:
            asked.append(1)
            return super().is_aligned

    array = zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), chunks=(16, 16), dtype="uint8")
    array[...] = 7
    names = [str(k) for k in range(30)]
    images = patchloom.open_images([str(tmp_path / "a.zarr")] * 30, ids=names)
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]}, rows_per_shard=8)
    assert plan.n_tasks > 10
    shapes = [image.layout.data_shape for image in images]
    plan = replace(plan)
    monkeypatch.setitem(
        plan.__dict__, "patching", Counting(shapes, (16, 16), chunks=[(16, 16)] * 30)
    )
    for task in range(plan.n_tasks):
        assert sum(len(rows) for rows, _ in cut_batches(plan, plan.runs.shards(task)))
    assert len(asked) == 1


@pytest.mark.parametrize("order", ["spatial", "shuffled"])
def test_batches_are_the_rows_of_the_store(images: Any, order: str, tmp_path: Path) -> None:
    plan = patchloom.plan(images, GRID, order=order, rows_per_shard=7, edge="pad")
    patchloom.materialize(plan, tmp_path / "out", progress=False)
    store = patchloom.open_patches(tmp_path / "out")
    assert store.labels is not None
    seen = []
    for task in range(plan.n_tasks):
        # A part of a task too: what another one would write is not cut.
        for rows, pixels in cut_batches(plan, plan.runs.shards(task)[::2]):
            assert set((rows // 7).tolist()) <= set(plan.runs.shards(task)[::2])
            np.testing.assert_array_equal(pixels["image"], store.images.oindex[rows.tolist()])
            np.testing.assert_array_equal(pixels["labels"], store.labels.oindex[rows.tolist()])
            seen += rows.tolist()
    asked = [s for task in range(plan.n_tasks) for s in plan.runs.shards(task)[::2]]
    assert sorted(seen) == [r for r in range(plan.n_patches) if r // 7 in asked]


@pytest.mark.parametrize("size", [24, 40])
def test_batches_share_blocks(size: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Each chunk is decoded once over all tasks, for patches that are small or large to a copy."""
    pixels = np.random.default_rng(0).integers(0, 200, (3, 200, 190), dtype="uint16")
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(1, 32, 32))
    decoded: list[tuple[int, ...]] = []
    read_into = DirectReader.read_into

    def watched(self: Any, chunks: Any, places: Any) -> None:
        decoded.extend(map(tuple, chunks.tolist()))
        read_into(self, chunks, places)

    monkeypatch.setattr(DirectReader, "read_into", watched)
    images = patchloom.open_images(tmp_path / "a.zarr", axes="cyx")
    config = {"name": "sequential", "patch_size": [size] * 2, "overlaps": [8, 8]}
    plan = patchloom.plan(images, config, rows_per_shard=3)
    assert plan.n_tasks > 4
    [where] = plan.patches(0, plan.n_patches)
    for _ in range(2):  # whoever goes through a plan once more shares as before
        seen = []
        decoded.clear()
        for task in range(plan.n_tasks):
            for rows, cut in cut_batches(plan, plan.runs.shards(task)):
                for row, patch in zip(rows.tolist(), cut["image"], strict=True):
                    y, x = where.corner[row].tolist()
                    np.testing.assert_array_equal(patch, pixels[:, y : y + size, x : x + size])
                seen += rows.tolist()
        assert sorted(seen) == list(range(plan.n_patches))
        assert len(decoded) == len({*decoded}) == plan.chunks_needed


@settings(max_examples=30, deadline=None)
@given(
    axes=st.sampled_from(["cyx", "yxc", "zcyx", "scyx", "syxc"]),
    codec=st.sampled_from(["blosc", "zstd", "gzip", "none", "transposed", "swapped", "v2"]),
    together=st.integers(1, 3),
    sharded=st.booleans(),
    size=st.integers(5, 24),
)
def test_blocks_are_joined_from_chunks_of_channels(
    axes: str,
    codec: str,
    together: int,
    sharded: bool,
    size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """However channels are dealt out to chunks, stored and encoded: the pixels of NumPy."""
    folder = tmp_path_factory.mktemp("joined")
    extent = {"c": 5, "y": 37, "x": 30, "z": 3, "s": 3}
    chunk = {"c": together, "y": 16, "x": 11, "z": 2, "s": 2}
    pixels = np.random.default_rng(size).integers(0, 9, [extent[a] for a in axes]).astype("uint16")
    chunks = tuple(chunk[a] for a in axes)
    more: dict[str, Any] = {"compressors": None}
    if codec in ("blosc", "zstd", "gzip"):
        more = {"compressors": {"blosc": BloscCodec, "zstd": ZstdCodec, "gzip": GzipCodec}[codec]()}
    if codec == "transposed":
        order = tuple(reversed(range(len(axes))))
        more = {"filters": TransposeCodec(order=order), "compressors": ZstdCodec()}
    if codec == "swapped":
        more = {"serializer": BytesCodec(endian="big"), "compressors": BloscCodec()}
    if codec == "v2":
        more = {"zarr_format": 2}
    elif sharded:
        more["shards"] = tuple(2 * n for n in chunks)
    array: Any = zarr.create_array(
        folder / "a.zarr", shape=pixels.shape, chunks=chunks, dtype="uint16", **more
    )
    array[...] = pixels
    images = patchloom.open_images(folder / "a.zarr", axes=axes.upper())
    spatial = [a for a in axes if a in "zyx"]
    patch = [min(size, extent[a]) for a in spatial]
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": patch}, edge="pad")
    canonical = [axes.index(a) for a in "sczyx" if a in axes]
    moved = pixels.transpose(canonical).reshape(-1, 5, *(extent[a] for a in spatial))
    moved = np.pad(moved, [(0, 0), (0, 0), *((0, n) for n in patch)])
    [where] = plan.patches(0, plan.n_patches)
    for task in range(plan.n_tasks):
        for rows, cut in cut_batches(plan, plan.runs.shards(task)):
            for row, found in zip(rows.tolist(), cut["image"], strict=True):
                low = where.corner[row].tolist()
                box = tuple(slice(a, a + n) for a, n in zip(low, patch, strict=True))
                np.testing.assert_array_equal(found, moved[(where.sample[row], slice(None), *box)])


@pytest.mark.parametrize("codec", [BloscCodec, ZstdCodec])
@pytest.mark.parametrize("height", [15, 17])
def test_a_chunk_of_another_size_is_refused(codec: Any, height: int, tmp_path: Path) -> None:
    """Codecs fill less than what they are given without a word: the rest would be any bytes."""
    for name, n in (("a", 16), ("b", height)):
        zarr.create_array(
            tmp_path / f"{name}.zarr",
            data=np.full((2, n, 16), 7, "uint16"),
            chunks=(1, n, 16),
            compressors=codec(),
        )
    other = (tmp_path / "b.zarr" / "c" / "0" / "0" / "0").read_bytes()
    (tmp_path / "a.zarr" / "c" / "1" / "0" / "0").write_bytes(other)
    images = patchloom.open_images(tmp_path / "a.zarr", axes="cyx")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [8, 8]})
    with pytest.raises(ChunkError, match=r"chunk \(1, 0, 0\)"):
        list(cut_batches(plan, [0]))


def test_the_report_says_who_decoded(tmp_path: Path) -> None:
    from zarr.codecs import numcodecs as extra

    array = np.arange(4096, dtype="uint16").reshape(64, 64)
    config = {"name": "sequential", "patch_size": [16, 16]}
    with warnings.catch_warnings():
        # Not among the codecs of the Zarr v3 specification, so not among ours; zarr-python warned
        # of that up to 3.1.
        warnings.simplefilter("ignore", UserWarning)
        strange = zarr.create_array(
            tmp_path / "strange.zarr",
            data=array,
            chunks=(32, 32),
            compressors=extra.LZ4(),
        )
    known = zarr.create_array(tmp_path / "known.zarr", data=array, chunks=(32, 32))
    known[...] = array
    import dask.array as da

    given = {
        "direct": str(tmp_path / "known.zarr"),
        "zarr": str(tmp_path / "strange.zarr"),
        "dask": da.from_array(array, chunks=(32, 32)) + 0,
    }
    assert strange.shape == known.shape
    for path, image in given.items():
        plan = patchloom.plan(patchloom.open_images(image, axes="yx"), config, rows_per_shard=4)
        report = patchloom.materialize(plan, tmp_path / f"to-{path}", progress=False)
        assert report.codec_paths == {path: report.chunk_reads} == {path: 4}
        assert report.to_dict()["codec_paths"] == {path: 4}


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_a_shard_reads_as_what_was_put(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    n = data.draw(st.integers(1, 9))
    codec = Codec(data.draw(st.sampled_from(CODECS)))
    spec = ArraySpec("images", (2, 5, 3), np.dtype("uint16"), "cyx", 9, codec)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    patches = rng.integers(0, 2**16, (n, 2, 5, 3), dtype="uint16")
    # A buffer that was used before, too short or long enough.
    spare = np.full(data.draw(st.sampled_from([10, 10_000])), 7, np.uint8)
    objects = []
    for slots in (data.draw(st.permutations(range(n))), range(n)):
        builder = ShardBuilder(spec, n, spare)
        for some in np.array_split(np.array(slots), 2):
            builder.put(some, patches[some])
        objects.append(b"".join(builder.finish()))
        assert objects[-1] == b"".join(builder.finish())
    assert objects[0] == objects[1], "the order in which rows come leaves no trace"
    folder = tmp_path_factory.mktemp("shard")
    (folder / "c/0/0/0").mkdir(parents=True)
    (folder / "c/0/0/0/0").write_bytes(objects[0])
    import json

    (folder / "zarr.json").write_text(json.dumps(spec.document(n)))
    np.testing.assert_array_equal(zarr.open_array(folder, mode="r")[...], patches)


def test_a_shard_that_lacks_a_row_is_not_made() -> None:
    spec = ArraySpec("images", (1, 2), np.dtype("uint8"), "cx", 3, Codec())
    builder = ShardBuilder(spec, 3)
    builder.put(np.array([0, 2]), np.zeros((2, 1, 2), "uint8"))
    with pytest.raises(ValueError, match="3 rows, 1 are missing"):
        builder.finish()


FAULTS = """
import resource, numpy as np, dask, patchloom
image = np.random.default_rng(1).integers(0, 999, (4096, 4096), dtype="uint16")
import zarr, sys
zarr.create_array(sys.argv[1] + "/image.zarr", data=image, chunks=(512, 512))
plan = patchloom.plan(
    patchloom.open_images(sys.argv[1] + "/image.zarr", axes="yx"),
    {"name": "sequential", "patch_size": [256, 256]},
)
with dask.config.set(scheduler="synchronous"):
    patchloom.materialize(plan, sys.argv[1] + "/first", progress=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    patchloom.materialize(plan, sys.argv[1] + "/second", progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_pages_are_used_again_where_dask_gives_them_back(tmp_path: Path) -> None:
    faults = []
    # As Dask starts its workers; who sets the other variable besides is left alone.
    for name, more in (("ours", {}), ("theirs", {"MALLOC_MMAP_THRESHOLD_": str(2**17)})):
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, str(tmp_path / name)],
            env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536", **more},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        faults.append(int(done.stdout))
    assert faults[0] * 2 < faults[1], faults
