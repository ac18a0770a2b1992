"""Rows 8 to 10: chunks of a source that are broken, missing, or change while they are read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from dask.callbacks import Callback

import patchloom
from patchloom.errors import ChunkError, SourceChangedError
from tests.clients import PATCHING, ROWS, contents
from tests.faults.jobs import SHAPE, StoredJob
from tests.servers.proxy import Fault, Proxy


@pytest.mark.parametrize(
    "path",
    [r"/sharded\.zarr/c/", pytest.param(r"/plain\.zarr/c/", marks=pytest.mark.slow)],
)
def test_bits_that_turn_over_on_the_way_cost_nothing(
    path: str, stored_job: StoredJob, proxy: Proxy
) -> None:
    """With a checksum in the chain a bad transfer is seen, and the second one is taken."""
    proxy.disturb(Fault(kind="flip", method="GET", path=path, every=4))
    out = stored_job.fresh()
    report = stored_job.run(out, workers=1)
    assert report.complete
    assert stored_job.written(out) == stored_job.undisturbed
    assert proxy.disturbed["flip"] >= 6
    # A decode that failed was a decode.
    assert report.chunk_reads > report.chunks_needed


def corrupted(data: bytes) -> bytes:
    """The same with one bit turned over near the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def halved(data: bytes) -> bytes:
    """The first half."""
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("name", "key", "damage"),
    [
        ("plain.zarr", "c/0/1/1", corrupted),
        ("sharded.zarr", "c/0/1/1", corrupted),
        pytest.param("plain.zarr", "c/0/1/1", halved, marks=pytest.mark.slow),
        pytest.param("sharded.zarr", "c/0/1/1", halved, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_object_is_named_and_the_run_goes_on_when_it_is_back(
    name: str, key: str, damage: Callable[[bytes], bytes], stored_job: StoredJob, proxy: Proxy
) -> None:
    """An object broken in the store: its name, the patches that wait, and a way out."""
    fs, path = stored_job.filesystem, f"{stored_job.bucket}/{name}/{key}"
    whole, out = fs.cat_file(path), stored_job.fresh()
    fs.pipe_file(path, damage(whole))
    try:
        with pytest.raises(ChunkError) as caught:
            stored_job.run(out, workers=1)
    finally:
        fs.pipe_file(path, whole)
    text = str(caught.value)
    assert key in text
    assert name in text
    assert "patches of output shards" in text
    assert "restore that object" in text
    assert proxy.count("GET", f"{name}/{key}") <= 5  # fetched twice, not for ever
    assert stored_job.run(out).complete
    assert stored_job.written(out) == stored_job.undisturbed


def test_a_missing_chunk_is_the_fill_value(tmp_path: Path) -> None:
    """Zarr says so; that the array itself is there is checked."""
    pixels = np.random.default_rng(3).integers(1, 999, (256, 256), "uint16")
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(256, 256), dtype="uint16", chunks=(64, 64), fill_value=7
    )
    array[...] = pixels
    (tmp_path / "a.zarr" / "c" / "1" / "2").unlink()
    pixels[64:128, 128:192] = 7
    images = patchloom.open_images(tmp_path / "a.zarr")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [64, 64]})
    assert patchloom.materialize(plan, tmp_path / "out.zarr", progress=False).complete
    store = patchloom.open_patches(tmp_path / "out.zarr")
    found = np.zeros_like(pixels)
    for k, (y, x) in enumerate(
        zip(*(store.manifest[f"start_{a}"].to_pylist() for a in "yx"), strict=True)
    ):
        found[y : y + 64, x : x + 64] = store[k][0]
    np.testing.assert_array_equal(found, pixels)


def others(n: int) -> Any:
    """Other pixels than any test has."""
    return np.random.default_rng(n).integers(1000, 2000, SHAPE, "uint16")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        # The index of a shard is read, then its chunks: they are of another, later object.
        ("sharded.zarr", "became another object|after the run began"),
        # Objects that are read once: the last one is written while the first one is held.
        pytest.param("plain.zarr", "after the run began", marks=pytest.mark.slow),
    ],
)
def test_a_source_that_changes_in_the_store_is_refused(
    name: str, says: str, stored_job: StoredJob, proxy: Proxy
) -> None:
    """A read is held, an object is written anew, the read goes on: refused, and no wrong bytes."""
    plan, out = stored_job.plan(), stored_job.fresh()
    held, key, after = "c/0/0/0", "c/0/0/0", 1
    if name == "plain.zarr":
        # One worker reads in the same order every time.
        stored_job.run(stored_job.fresh(), plan, workers=1)
        read = [r.path.split(f"/{name}/")[1] for r in proxy.requests if f"/{name}/c/" in r.path]
        held, key, after = read[0], read[-1], 0
    fs, path = stored_job.filesystem, f"{stored_job.bucket}/{name}/{key}"
    whole = fs.cat_file(path)
    fault = Fault(kind="hold", method="GET", path=f"/{name}/{held}", after=after, times=1)
    proxy.disturb(fault)
    with ThreadPoolExecutor(1) as pool:
        run: Future[Any] = pool.submit(stored_job.run, out, plan, workers=1)
        while not proxy.disturbed["hold"] and not run.done():
            time.sleep(0.02)
        try:
            # HTTP's dates are whole seconds: another task that reads the object only now would
            # not notice an earlier change.
            time.sleep(3.0)
            other = "c/0/1/1" if key != "c/0/1/1" else "c/0/1/0"
            fs.pipe_file(path, fs.cat_file(f"{stored_job.bucket}/{name}/{other}"))
            proxy.release()
            with pytest.raises(SourceChangedError) as caught:
                run.result(timeout=100)
        finally:
            fs.pipe_file(path, whole)
    text = str(caught.value)
    assert re.search(says, text)
    assert key in text
    assert name in text
    assert "patches of output shards" in text
    assert "run the same call again" in text
    proxy.disturb()
    assert stored_job.run(out).complete
    assert stored_job.written(out) == stored_job.undisturbed


def test_a_shard_that_changes_between_two_reads_is_refused(tmp_path: Path) -> None:
    """Its index is of one object and its chunks would be of another."""
    more: dict[str, Any] = {"chunks": (1, 64, 64), "shards": (2, 128, 128)}
    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, dtype="uint16", **more)
    array[...] = others(1)
    [image] = patchloom.open_images(tmp_path / "a.zarr", axes="CYX")
    reader = image.source.reader()
    [pixels] = reader.read(np.array([[0, 0, 0]]))
    np.testing.assert_array_equal(pixels, others(1)[:1, :64, :64])
    array[...] = others(2)
    with pytest.raises(SourceChangedError, match=r"c/0/0/0 of .* became another object"):
        reader.read(np.array([[0, 0, 1]]))
    [pixels] = image.source.reader().read(np.array([[0, 0, 1]]))
    np.testing.assert_array_equal(pixels, others(2)[:1, :64, 64:128])


@pytest.mark.parametrize("over", ["patches", "image"])
def test_a_source_that_changes_on_a_disk_is_refused(over: str, tmp_path: Path) -> None:
    """After the first task every chunk is written anew: the next task refuses it."""
    path = tmp_path / "a.zarr"
    array = zarr.create_array(path, shape=SHAPE, dtype="uint16", chunks=(1, 128, 128))
    array[...] = others(0)

    def run(out: str) -> Any:
        images = patchloom.open_images(path, axes="CYX")
        plan = patchloom.plan(images, PATCHING, rows_per_shard=ROWS)
        assert plan.n_tasks > 2
        return patchloom.materialize(plan, tmp_path / out, over=over, progress=False)

    def rewrite(key: Any, *_: Any) -> None:
        if isinstance(key, tuple) and str(key[0]).startswith("patchloom-write"):
            zarr.open_array(path)[...] = others(0)

    run("first.zarr")
    with dask.config.set(scheduler="synchronous"):
        with (
            Callback(posttask=rewrite),
            pytest.raises(SourceChangedError, match=r"a\.zarr was written .* patches of output"),
        ):
            run("second.zarr")
        assert run("second.zarr").complete
    # The pixels are the same again here, so the stores are too.
    assert contents(tmp_path / "second.zarr") == contents(tmp_path / "first.zarr")
