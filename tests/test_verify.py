"""verify finds every kind of damage, says where, and the next run makes exactly that again."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import h5py
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import yaml
import zarr
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.cli import main
from patchloom.errors import ConfigError, FingerprintError, SourceMissingError, StoreError
from patchloom.run.verifying import TASKS
from tests import ome
from tests.servers.s3 import S3Server

PATCHING = {"name": "sequential", "patch_size": [12, 12], "overlaps": [4, 4]}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of two channels with labels, of noise."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(3)
    for name, shape, chunks in (
        ("image.zarr", (2, 60, 52), (1, 16, 16)),
        ("labels.zarr", (60, 52), (32, 32)),
    ):
        array = zarr.create_array(folder / name, shape=shape, dtype="uint16", chunks=chunks)
        array[...] = rng.integers(1, 4000, shape, dtype="uint16")
    return folder


def made(folder: Path, **more: Any) -> patchloom.Plan:
    images = patchloom.open_images(folder / "image.zarr", axes="CYX", labels=folder / "labels.zarr")
    return patchloom.plan(images, PATCHING, **{"rows_per_shard": 8, **more})


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nothing has damaged."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    patchloom.materialize(made(source), out, progress=False)
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "out.zarr"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def check(url: Path | str, plan: patchloom.Plan | None = None, **more: Any) -> Any:
    with dask.config.set(scheduler="synchronous"):
        return patchloom.verify(url, plan, progress=False, **more)


def flip(path: Path, place: int) -> None:
    """One bit of one byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """A part of the manifest with something else in it, a valid file of its own."""
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def shifted(column: str) -> Callable[[pa.Table], pa.Table]:
    """One row more to the right."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_numpy().copy()
        values[2] += 1
        return table.set_column(table.column_names.index(column), column, pa.array(values))

    return change


def swap(out: Path, one: str, other: str) -> None:
    a, b = (out / one).read_bytes(), (out / other).read_bytes()
    (out / one).write_bytes(b)
    (out / other).write_bytes(a)


def swapped_rows(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, table.num_rows)])


def other_id(table: pa.Table) -> pa.Table:
    ids = table["patch_id"].to_pylist()
    ids[3] = ids[3][::-1]
    return table.set_column(0, "patch_id", pa.array(ids))


DAMAGE: dict[str, tuple[Callable[[Path], Any], set[int], str]] = {
    "a byte of a patch": (lambda o: flip(o / "images/c/1/0/0/0", 40), {1}, "do not decode"),
    "a byte of a label": (lambda o: flip(o / "labels/c/2/0/0/0", 9), {2}, "do not decode"),
    "a byte of an index": (lambda o: flip(o / "images/c/1/0/0/0", -20), {1}, "index"),
    "a truncated object": (
        lambda o: (o / "images/c/3/0/0/0").write_bytes((o / "images/c/3/0/0/0").read_bytes()[:-9]),
        {3},
        "index|bytes",
    ),
    "an empty object": (lambda o: (o / "images/c/3/0/0/0").write_bytes(b""), {3}, "0 bytes"),
    "a missing object": (lambda o: (o / "labels/c/0/0/0/0").unlink(), {0}, "missing"),
    "a missing part of the manifest": (
        lambda o: (o / "manifest/00000002.parquet").unlink(),
        {2},
        "missing",
    ),
    "a missing summary": (lambda o: (o / "summaries/00000003.parquet").unlink(), {3}, "missing"),
    "a byte of a summary": (lambda o: flip(o / "summaries/00000001.parquet", 30), {1}, "written"),
    "a byte of the manifest": (lambda o: flip(o / "manifest/00000001.parquet", 30), {1}, "read"),
    "swapped objects": (
        lambda o: swap(o, "images/c/0/0/0/0", "images/c/1/0/0/0"),
        {0, 1},
        "not the object that was written|bytes",
    ),
    "swapped parts": (
        lambda o: swap(o, "manifest/00000000.parquet", "manifest/00000001.parquet"),
        {0, 1},
        "rows",
    ),
    "swapped summaries": (
        lambda o: swap(o, "summaries/00000002.parquet", "summaries/00000003.parquet"),
        {2, 3},
        "bytes|written",
    ),
    "a moved box": (
        lambda o: rewrite(o / "manifest/00000001.parquet", shifted("start_x")),
        {1},
        "first is row 10",
    ),
    "another id": (
        lambda o: rewrite(o / "manifest/00000001.parquet", other_id),
        {1},
        "first is row 11",
    ),
    "rows out of order": (
        lambda o: rewrite(o / "manifest/00000001.parquet", swapped_rows),
        {1},
        "in order",
    ),
    "a lost row": (
        lambda o: rewrite(o / "manifest/00000001.parquet", lambda t: t.slice(1)),
        {1},
        "lists 7 rows",
    ),
    "another number of rows in an array's metadata": (
        lambda o: (o / "images/zarr.json").write_text(
            (o / "images/zarr.json").read_text().replace("42", "43", 1)
        ),
        set(),
        "images/zarr.json",
    ),
    "no metadata of an array": (lambda o: (o / "labels/zarr.json").unlink(), set(), "missing"),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_damage_is_found_and_repaired(kind: str, source: Path, whole: Path, out: Path) -> None:
    """Where it is; the next run makes these shards again and no others, to the same bytes."""
    harm, shards, words = DAMAGE[kind]
    harm(out)
    assert contents(out) != contents(whole)
    report = check(out)
    assert not report.ok
    assert set(report.damaged_shards) == shards
    assert any(re.search(words, str(d)) for d in report.damage), report
    assert len(report.damage) <= 2 * max(1, len(shards))
    plan = made(source)
    assert set(check(out, plan, repair=True).repaired) == shards
    assert not patchloom.open_patches(out).complete
    again = patchloom.materialize(plan, out, progress=False)
    assert (again.complete, again.n_shards) == (True, len(shards))
    assert contents(out) == contents(whole)


def test_a_store_that_nothing_damaged(source: Path, whole: Path) -> None:
    """All is read once, and patches of the sample are compared with what they were cut from."""
    before = contents(whole)
    plan = made(source)
    for given_plan in (None, plan):
        report = check(whole, given_plan, sample=10)
        assert report.ok
        assert (report.n_checked, report.n_shards) == (plan.n_shards, plan.n_shards)
        assert (report.n_patches, report.n_compared) == (plan.n_patches, 10)
        assert (report.n_unfinished, report.n_partial, report.not_compared) == (0, 0, {})
        objects = [n for n in before if n.split("/")[0] in ("manifest", "summaries") or "/c/" in n]
        assert report.n_objects == len(objects)
        assert report.bytes_read == sum(len(before[name]) for name in objects)
    assert check(whole, sample=0).n_compared == 0
    assert contents(whole) == before
    assert "nothing is damaged" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_any_scheduler(scheduler: str, whole: Path, out: Path) -> None:
    """The same report."""
    flip(out / "images/c/1/0/0/0", 40)
    found = []
    for name in ("synchronous", scheduler):
        with dask.config.set(scheduler=name, num_workers=2):
            report = patchloom.verify(out, progress=False)
        found.append({**report.to_dict(), "seconds": 0})
    assert found[0] == found[1]


@pytest.mark.parametrize("normalize", [None, "percentile", "mean-std"])
@pytest.mark.parametrize("edge", ["drop", "pad"])
def test_a_changed_source_is_seen(
    normalize: str | None, edge: str, source: Path, tmp_path: Path
) -> None:
    """One pixel: the patches of the sample that show it, and no others; also when scaled."""
    for name in ("image.zarr", "labels.zarr"):
        shutil.copytree(source / name, tmp_path / name)
    plan = made(tmp_path, edge=edge, **({} if edge == "drop" else {"pad_mode": "reflect"}))
    patchloom.materialize(plan, tmp_path / "out.zarr", normalize=normalize, progress=False)
    n = plan.n_patches
    assert check(tmp_path / "out.zarr", sample=n).n_compared == plan.n_patches
    image = zarr.open_array(tmp_path / "image.zarr", mode="r+")
    image[1, 20, 30] = 5000 if normalize is None else 0
    report = check(tmp_path / "out.zarr", sample=n)
    rows = patchloom.open_patches(tmp_path / "out.zarr").manifest.to_pylist()
    showing = [
        r["row"]
        for r in rows
        if r["start_y"] <= 20 < r["start_y"] + 12 and r["start_x"] <= 30 < r["start_x"] + 12
    ]
    assert showing
    assert [d.what for d in report.damage] == [
        f"row {row} differs from its source" for row in showing
    ]


def test_changed_labels_are_seen_with_the_plan(source: Path, tmp_path: Path) -> None:
    """A store tells no URL of its labels; its plan does."""
    for name in ("image.zarr", "labels.zarr"):
        shutil.copytree(source / name, tmp_path / name)
    plan = made(tmp_path)
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    zarr.open_array(tmp_path / "labels.zarr", mode="r+")[5, 5] = 9999
    assert check(tmp_path / "out.zarr", sample=100).ok
    report = check(tmp_path / "out.zarr", plan, sample=100)
    assert {d.object.split("/")[0] for d in report.damage} == {"labels"}


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    """Arrays in memory, sources that are gone or have another shape; none of it is damage."""
    pixels = np.random.default_rng(0).integers(0, 99, (40, 40), dtype="uint8")
    plan = patchloom.plan(patchloom.open_images(pixels), PATCHING)
    patchloom.materialize(plan, tmp_path / "memory.zarr", progress=False)
    for given_plan in (None, plan):
        report = check(tmp_path / "memory.zarr", given_plan)
        assert (report.ok, report.n_compared) == (True, 0)
        assert sum(report.not_compared.values()) == plan.n_patches
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=pixels, chunks=(8, 8))
    plan = patchloom.plan(patchloom.open_images(path), PATCHING)
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    shutil.rmtree(path)
    report = check(tmp_path / "out.zarr")
    assert report.ok
    assert any("cannot be opened" in why for why in report.not_compared)
    zarr.create_array(path, data=pixels[:30], chunks=(8, 8))
    assert any("another shape" in why for why in check(tmp_path / "out.zarr").not_compared)


def test_a_store_with_gaps_is_not_damaged(source: Path, tmp_path: Path) -> None:
    """What could not be read is told apart; a damaged patch beside it is found."""
    for name in ("image.zarr", "labels.zarr"):
        shutil.copytree(source / name, tmp_path / name)
    (tmp_path / "image.zarr" / "c" / "0" / "1" / "1").write_bytes(b"damaged")
    plan, out = made(tmp_path), tmp_path / "out.zarr"
    patchloom.materialize(plan, out, on_error="skip", progress=False)
    store = patchloom.open_patches(out)
    for given_plan in (None, plan):
        report = check(out, given_plan)
        assert report.ok, report
        assert 0 < report.n_partial < report.n_shards
        assert report.n_patches == store.manifest.num_rows < plan.n_patches
    part = next((out / "manifest").glob("*.partial.parquet"))
    shard = int(part.name.split(".")[0])
    rewrite(part, lambda t: t.slice(1))
    assert check(out).damaged_shards == (shard,)


def test_a_store_of_which_nothing_could_be_read_is_not_damaged(
    source: Path, out: Path, tmp_path: Path
) -> None:
    """Shards that lack all rows have no pixels, or those of before; neither is damage."""
    for name in ("image.zarr", "labels.zarr"):
        shutil.copytree(source / name, tmp_path / name)
    for chunk in (tmp_path / "image.zarr" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    plan, empty = made(tmp_path), tmp_path / "empty.zarr"
    patchloom.materialize(plan, empty, on_error="skip", progress=False)
    for part in (out / "manifest").glob("*.parquet"):
        part.unlink()
    patchloom.materialize(plan, out, on_error="skip", progress=False)
    for store in (empty, out):
        report = check(store, plan)
        assert report.ok, report
        assert (report.n_partial, report.n_patches) == (plan.n_shards, 0)


def test_an_unfinished_store_is_not_damaged(out: Path) -> None:
    """Shards that no run has written yet are counted."""
    document = json.loads((out / "zarr.json").read_text())
    document["attributes"]["patchloom"]["complete"] = False
    (out / "zarr.json").write_text(json.dumps(document, indent=2))
    (out / "manifest" / "00000002.parquet").unlink()
    report = check(out)
    assert (report.ok, report.n_unfinished) == (True, 1)


def test_stores_of_before_have_no_checksums_of_objects(whole: Path, out: Path) -> None:
    """What they have is checked; swapped objects are seen by their sources."""
    for path in (out / "manifest").iterdir():
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    assert check(out).ok
    swap(out, "images/c/0/0/0/0", "images/c/1/0/0/0")
    assert set(check(out, sample=100).damaged_shards) == {0, 1}


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_flipped_bit_is_found(data: st.DataObject, whole: Path) -> None:
    """Of any object of a shard, with nothing but the store."""
    names = [n for n in contents(whole) if n.split("/")[0] in ("images", "labels", "summaries")]
    names = [n for n in names if not n.endswith("zarr.json")]
    path = whole / data.draw(st.sampled_from(names))
    before = path.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    try:
        flip(path, place)
        report = check(whole, sample=0)
    finally:
        path.write_bytes(before)
    assert len(report.damaged_shards) == 1


def test_a_folder_in_place_of_an_object_is_damage(out: Path) -> None:
    """Of any kind of object."""
    for name in ("images/c/1/0/0/0", "summaries/00000002.parquet", "manifest/00000003.parquet"):
        (out / name).unlink()
        (out / name).mkdir()
    report = check(out)
    assert report.damaged_shards == (1, 2, 3)


MEASURED = """
import os, sys, tracemalloc
import patchloom
patchloom.verify(sys.argv[1], sample=0, progress=False)
tracemalloc.start()
report = patchloom.verify(sys.argv[1], sample=0, progress=False)
print(report.n_checked, tracemalloc.get_traced_memory()[1], flush=True)
os._exit(0)
"""
"""In a process that ends at once: CPython 3.11 may crash where tracing stops beside threads."""


def test_memory_follows_one_shard_not_the_store(tmp_path: Path) -> None:
    """Four times as many shards are checked in the same memory."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (512, 512), dtype="uint16")
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(64, 64))
    images = patchloom.open_images(tmp_path / "a.zarr")
    peaks = []
    for stride in (64, 32):
        config = {"name": "grid", "patch_size": [64, 64], "stride": [stride, stride]}
        plan = patchloom.plan(images, config, rows_per_shard=32)
        patchloom.materialize(plan, tmp_path / f"{stride}.zarr", progress=False)
        command = [sys.executable, "-c", MEASURED, str(tmp_path / f"{stride}.zarr")]
        # One thread, which holds one object at a time.
        alone = {**os.environ, "DASK_SCHEDULER": "synchronous"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=alone, check=True
        )
        n_checked, peak = map(int, done.stdout.split())
        assert n_checked == plan.n_shards
        peaks.append(peak)
    shard = 32 * 64 * 64 * 2
    assert max(peaks) < 4 * shard
    assert peaks[1] < 1.2 * peaks[0]


def test_few_tasks_whatever_the_number_of_shards(tmp_path: Path) -> None:
    """One task takes many shards."""
    from patchloom.run import verifying

    graph = verifying._graph(None, range(10_000), frozenset({3}), {5: [1]})  # type: ignore[arg-type]
    assert len(graph.keys) <= TASKS
    shards = [s for key in graph.keys for s in graph.dsk[key][2].shards]
    assert shards == list(range(10_000))


def test_wrong_calls_are_refused(source: Path, whole: Path, tmp_path: Path) -> None:
    """With the law, what was given and the way out."""
    with pytest.raises(FingerprintError, match="its own plan"):
        check(whole, made(source, seed=1, order="shuffled"))
    with pytest.raises(SourceMissingError, match="none at"):
        check(tmp_path / "nothing.zarr")
    with pytest.raises(StoreError, match="has none"):
        check(source / "image.zarr")
    with pytest.raises(ConfigError, match="sample="):
        check(whole, sample=-1)


def test_run_with_verify_mends_what_is_damaged(source: Path, whole: Path, out: Path) -> None:
    """In one call; without it a flipped byte stays."""
    flip(out / "images/c/1/0/0/0", 40)
    plan = made(source)
    assert patchloom.materialize(plan, out, progress=False).n_shards == 0
    report = patchloom.materialize(plan, out, verify=True, progress=False)
    assert (report.complete, report.n_shards) == (True, 1)
    assert contents(out) == contents(whole)
    assert patchloom.materialize(plan, out, verify=True, progress=False).n_shards == 0


def test_on_an_object_store(source: Path, s3_server: S3Server) -> None:
    """Damage on S3 is found and mended."""
    import fsspec

    options = s3_server.storage_options
    fs = fsspec.filesystem("s3", **options)
    bucket = s3_server.fresh_bucket()
    plan, out = made(source), f"{bucket}/out.zarr"
    patchloom.materialize(plan, out, storage_options=options, progress=False)
    data = bytearray(fs.cat_file(f"{out}/images/c/2/0/0/0"))
    data[50] ^= 4
    fs.pipe_file(f"{out}/images/c/2/0/0/0", bytes(data))
    report = check(out, plan, storage_options=options, repair=True)
    assert report.repaired == (2,)
    again = patchloom.materialize(plan, out, storage_options=options, progress=False)
    assert (again.complete, again.n_shards) == (True, 1)
    assert check(out, plan, storage_options=options).ok


# -- the command ------------------------------------------------------------------------


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def job(source: Path, out: Path) -> Path:
    """The job file of the store."""
    document = {
        "images": str(source / "image.zarr"),
        "axes": "CYX",
        "labels": str(source / "labels.zarr"),
        "patching": PATCHING,
        "rows_per_shard": 8,
        "output": str(out),
    }
    path = out.parent / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_command_says_what_is_damaged(job: Path, whole: Path, out: Path) -> None:
    """Exit status 0, 1 and 2; repair and run make it whole; nothing prints a trace."""
    told = call("verify", out, "--job", job, "--sample", 5)
    assert told.exit_code == 0
    assert "nothing is damaged" in told.stdout
    assert "5 patches compared" in told.stdout
    flip(out / "images/c/1/0/0/0", 40)
    told = call("verify", out, "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout)["damage"][0]["object"] == "images/c/1/0/0/0"
    told = call("verify", out, "--repair")
    assert told.exit_code == 1
    assert "images/c/1/0/0/0: " in told.stdout
    assert "patchloom run" in told.stdout
    assert call("run", job).exit_code == 0
    assert contents(out) == contents(whole)
    flip(out / "images/c/1/0/0/0", 40)
    assert call("run", job, "--verify").exit_code == 0
    assert contents(out) == contents(whole)
    told = call("verify", out.parent / "nothing.zarr")
    assert told.exit_code == 2
    assert told.stderr.startswith("patchloom: a patch store is made by materialize")
    (out / "zarr.json").write_text("{")
    told = call("verify", out)
    assert told.exit_code == 2
    assert "Traceback" not in told.stdout + told.stderr


def test_run_says_what_was_skipped(job: Path, source: Path, tmp_path: Path) -> None:
    """Where the list is, and how to fill it in."""
    for name in ("image.zarr", "labels.zarr"):
        shutil.copytree(source / name, tmp_path / name)
    (tmp_path / "image.zarr" / "c" / "0" / "1" / "1").write_bytes(b"damaged")
    document = yaml.safe_load(job.read_text())
    document |= {
        "images": str(tmp_path / "image.zarr"),
        "output": str(tmp_path / "gaps.zarr"),
        "on_error": "skip",
    }
    job.write_text(yaml.safe_dump(document))
    told = call("run", job)
    assert told.exit_code == 0
    assert "gaps.zarr/skipped.parquet" in told.stdout
    table = pq.read_table(io.BytesIO((tmp_path / "gaps.zarr/skipped.parquet").read_bytes()))
    assert f"{table.num_rows} patches: every chunk" in told.stdout


# -- sources of every kind ---------------------------------------------------------------------

PIXELS = np.random.default_rng(5).integers(1, 4000, (3, 40, 48), dtype="uint16")


def _pyramid_tiff(folder: Path) -> Any:
    with tifffile.TiffWriter(folder / "a.tif") as tif:
        for step in (1, 2):
            tif.write(PIXELS[0, ::step, ::step], tile=(16, 16), subfiletype=step - 1, metadata=None)
    return folder / "a.tif"


def _several_tiffs(folder: Path) -> Any:
    with tifffile.TiffWriter(folder / "a.tif") as tif:
        for plane in PIXELS[:2]:
            tif.write(plane, photometric="minisblack", metadata=None)
            tif.write(plane[:30], photometric="minisblack", metadata=None)
    return f"{folder / 'a.tif'}::1"


def _hdf5(folder: Path) -> Any:
    with h5py.File(folder / "a.h5", "w") as file:
        file["deep/raw"] = PIXELS
        file["other"] = PIXELS + 1
    return f"{folder / 'a.h5'}::deep/raw"


def _pyramid_zarr(folder: Path, version: str) -> Any:
    levels = ome.multiscale("zyx", [(1.0, 1.0, 1.0), (1.0, 2.0, 2.0)])
    path = ome.group(folder / "a.ome.zarr", version, {"multiscales": [levels]})
    for k, step in enumerate((1, 2)):
        ome.array(path / str(k), version, PIXELS[:, ::step, ::step])
    return path


def _plate(folder: Path) -> Any:
    ome.plate(folder / "p.ome.zarr", "0.5", {"A/1": 2, "B/2": 1})
    return folder / "p.ome.zarr"


def _planes(folder: Path) -> Any:
    (folder / "planes").mkdir()
    for k, plane in enumerate(PIXELS):
        np.save(folder / "planes" / f"z{k}.npy", plane)
    return folder / "planes"


def _npz(folder: Path) -> Any:
    np.savez_compressed(folder / "a.npz", raw=PIXELS, other=PIXELS + 1)
    return f"{folder / 'a.npz'}::raw"


def _npy(folder: Path) -> Any:
    np.save(folder / "a.npy", PIXELS)
    return folder / "a.npy"


def _nifti(folder: Path) -> Any:
    nibabel.save(nibabel.Nifti1Image(PIXELS.T, np.eye(4)), folder / "a.nii.gz")
    return folder / "a.nii.gz"


def _zipped(folder: Path) -> Any:
    zarr.create_array(folder / "a.zarr", data=PIXELS, chunks=(1, 16, 16))
    return shutil.make_archive(str(folder / "a"), "zip", folder, "a.zarr")


def _turned(path: Path) -> Any:
    """Not what the file holds: opened by its URL alone, it would look damaged."""
    return np.load(path)[..., ::-1].copy()


class _Whole:
    """A stack as CAREamics takes them."""

    def __init__(self, source: Path) -> None:
        self.source, self.array = source, np.load(source)[:, None, :, ::-1]
        self.data_shape, self.data_dtype = self.array.shape, self.array.dtype

    def extract_patch(self, sample_idx: int, channels: Any, coords: Any, patch_size: Any) -> Any:
        box = tuple(slice(a, a + n) for a, n in zip(coords, patch_size, strict=True))
        return self.array[(sample_idx, slice(None), *box)]


def _loader(given: Any, axes: Any) -> list[_Whole]:
    return [_Whole(given)]


_LOADING = SimpleNamespace(image_stack_loader=_loader, image_stack_loader_kwargs={})
_SELECTED = {"isel": {"z": slice(0, 3, 2), "x": slice(5, 40)}}

SOURCES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "a level of OME-Zarr 0.4": (lambda f: _pyramid_zarr(f, "0.4"), {"level": 1}, ""),
    "a level of OME-Zarr 0.5": (lambda f: _pyramid_zarr(f, "0.5"), {"level": "1"}, ""),
    "part of a level": (lambda f: _pyramid_zarr(f, "0.5"), {"level": 1, "isel": {"z": 1}}, ""),
    "a level of a TIFF": (_pyramid_tiff, {"level": 1}, ""),
    "one of several images in a TIFF": (_several_tiffs, {}, ""),
    "one of several in HDF5": (_hdf5, {}, ""),
    "part of one in HDF5": (_hdf5, _SELECTED, ""),
    "planes as samples": (_hdf5, {"sample": "z"}, ""),
    "one of several in .npz": (_npz, {}, ""),
    "part of a .npy": (_npy, _SELECTED, ""),
    "some channels": (_npy, {"axes": "CYX", "channels": [2, 0]}, ""),
    "NIfTI": (_nifti, {}, ""),
    "Zarr in an archive": (_zipped, {}, ""),
    "fields of a plate": (_plate, {}, ""),
    "a stack of files": (_planes, {"stack": "z"}, "it is a stack of files"),
    "part of a stack": (_planes, {"stack": "z", **_SELECTED}, "it is a stack of files"),
    "a function": (_npy, {"read": _turned}, "a function that was given as read="),
    "a loader": (_npy, {"read": _LOADING}, "a loader that was given as read="),
    "time windows": (_npy, {"axes": "TYX", "time": {"window": 2}}, "it shows time windows"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_patches_of_any_source_are_compared_or_it_is_said_why_not(
    kind: str, tmp_path: Path
) -> None:
    """Without a plan by what the store tells, with one always."""
    write, options, why_not = SOURCES[kind]
    images = patchloom.open_images(write(tmp_path), **options)
    whole = [12] * len(images[0].axes.spatial)
    if len(whole) == 3:
        whole[0] = images[0].layout.space.shape[0]
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": whole})
    out = tmp_path / "out.zarr"
    patchloom.materialize(plan, out, progress=False)
    n = plan.n_patches
    assert n
    report = check(out, plan, sample=n)
    assert (report.ok, report.n_compared, report.not_compared) == (True, n, {})
    report = check(out, sample=n)
    assert report.ok
    if why_not:
        [(said, count)] = report.not_compared.items()
        assert (report.n_compared, count) == (0, n)
        assert said.startswith(why_not)
        assert said.endswith(", which a plan knows")
    else:
        assert (report.n_compared, report.not_compared) == (n, {})
