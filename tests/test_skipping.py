"""What cannot be read costs the patches that need it, and nothing else; a later run fills it in."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ChunkError
from patchloom.location import Location
from patchloom.run.cutting import Job, write_run
from patchloom.run.materializing import _specs
from patchloom.store.manifest import part_names
from patchloom.store.schema import Codec
from tests import oracle
from tests.servers.s3 import S3Server

SHAPE, CHUNK, LABEL_CHUNK = (2, 48, 40), 16, 24
STRATEGIES: list[dict[str, Any]] = [
    {"name": "sequential", "patch_size": [12, 12], "overlaps": [5, 5]},
    {"name": "chunk_aligned", "patch_size": [8, 8]},
    {"name": "random", "patch_size": [10, 6], "n_patches": 40},
]
SPLIT = {"by": "blocks", "block_size": 24, "shares": {"train": 0.5, "val": 0.5}}
Chunks = set[tuple[int, ...]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of two channels and labels with chunks of another size, all of noise."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(7)
    for name, shape, chunks in (
        ("image.zarr", SHAPE, (1, CHUNK, CHUNK)),
        ("labels.zarr", SHAPE[1:], (LABEL_CHUNK, LABEL_CHUNK)),
    ):
        array = zarr.create_array(folder / name, shape=shape, dtype="uint16", chunks=chunks)
        array[...] = rng.integers(1, 4000, shape, dtype="uint16")
    return folder


def made(folder: Path, config: dict[str, Any], labels: bool, **more: Any) -> patchloom.Plan:
    images = patchloom.open_images(
        folder / "image.zarr", axes="CYX", labels=folder / "labels.zarr" if labels else None
    )
    return patchloom.plan(images, config, **{"rows_per_shard": 5, **more})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def break_chunks(folder: Path, image: Chunks, labels: Chunks) -> None:
    for name, chunks in (("image.zarr", image), ("labels.zarr", labels)):
        for chunk in chunks:
            (folder / name / "c" / "/".join(map(str, chunk))).write_bytes(b"damaged")


def mend(folder: Path, source: Path, image: Chunks, labels: Chunks) -> None:
    for name, chunks in (("image.zarr", image), ("labels.zarr", labels)):
        for chunk in chunks:
            place = Path(name) / "c" / "/".join(map(str, chunk))
            (folder / place).write_bytes((source / place).read_bytes())


def needed(corner: Sequence[int], size: Sequence[int], mode: str, chunk: int) -> Chunks:
    """The spatial chunks of the pixels that a patch shows, pixel by pixel."""
    axes = []
    for first, extent, n in zip(corner, size, SHAPE[1:], strict=True):
        shown = [oracle.shown(first + k, n, mode) for k in range(extent)]
        axes.append({place // chunk for place in shown if place is not None})
    return set(itertools.product(*axes))


def lost_rows(
    rows: Sequence[dict[str, Any]], size: Sequence[int], mode: str, image: Chunks, labels: Chunks
) -> set[int]:
    """The rows whose patches show a pixel of a broken chunk, whatever the channel."""
    flat = {chunk[1:] for chunk in image}
    found = set()
    for row in rows:
        corner = row["start_y"], row["start_x"]
        in_image = needed(corner, size, mode, CHUNK) & flat
        if in_image or needed(corner, size, mode, LABEL_CHUNK) & labels:
            found.add(row["row"])
    return found


def check_gaps(
    store: patchloom.PatchStore, whole: patchloom.PatchStore, lost: set[int], report: Any
) -> None:
    """A store lacks these rows and says so; all others are as in the whole one."""
    kept = sorted(set(range(len(whole))) - lost)
    assert not store.complete
    assert len(store) == len(whole)
    assert store.manifest.equals(whole.manifest.take(pa.array(kept, pa.int64())))
    for name in whole.attributes["arrays"]:
        there = np.asarray(store._array(name)[...])
        full = np.asarray(whole._array(name)[...])
        np.testing.assert_array_equal(there[kept], full[kept])
        assert not there[sorted(lost)].any()
    table = store.skipped
    assert table["row"].to_pylist() == sorted(lost)
    same = whole.manifest.take(sorted(lost))
    for name in ("patch_id", "image_id", "sample", "start_y", "start_x"):
        assert table[name].equals(same[name]), name
    assert all("damaged" in why or "does not" in why for why in table["reason"].to_pylist())
    assert sum(item["n_patches"] for item in report.skipped) == len(lost)
    assert store.attributes["skipped"]["n_patches"] == len(lost)


def counted(plan: patchloom.Plan, rows: Sequence[dict[str, Any]], mode: str, image: Chunks) -> int:
    """Pixels of one channel under all patches, outside of blocks with a broken chunk."""
    seen = np.zeros(SHAPE[1:], bool)
    for row in rows:
        boxes = zip((row["start_y"], row["start_x"]), plan.patch_size, strict=True)
        seen[tuple(slice(max(0, a), max(0, a + n)) for a, n in boxes)] = True
        if mode == "reflect":  # blocks that are read for their mirror image alone add no pixel
            continue
    for _, y, x in image:
        seen[y * CHUNK : (y + 1) * CHUNK, x * CHUNK : (x + 1) * CHUNK] = False
    return int(seen.sum())


image_chunks = st.sets(
    st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 2)), max_size=4
)
label_chunks = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=1)


JOBS: dict[str, Any] = {
    "config": st.sampled_from(STRATEGIES),
    "order": st.sampled_from(
        [
            {},
            {"order": "grouped", "group_by": "split", "split": SPLIT},
            {"order": "shuffled", "window": 3},
            {"order": "shuffled", "window": 1000},
        ]
    ),
    "rows": st.sampled_from([1, 5, 17]),
    "mode": st.sampled_from(["drop", "constant", "reflect"]),
    "image": image_chunks,
    "labels": label_chunks,
    "with_labels": st.booleans(),
    "mended": st.integers(0, 4),
}


NOTHING_LEFT: dict[str, Any] = {
    "config": {"name": "sequential", "patch_size": [12, 12], "overlaps": [5, 5]},
    "order": {},
    "rows": 1,
    "mode": "drop",
    "image": {(0, 2, 0), (0, 2, 1), (0, 0, 0), (0, 0, 1)},
    "labels": set(),
    "with_labels": False,
    "mended": 0,
}
"""Every patch shows a broken chunk."""


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@example(**NOTHING_LEFT)
@given(**JOBS)
def test_lost_patches_are_those_that_show_a_broken_chunk(
    source: Path, tmp_path_factory: pytest.TempPathFactory, **job: Any
) -> None:
    """Against brute force; again after some are mended; and whole in the end, byte by byte."""
    check_job(source, tmp_path_factory.mktemp("job"), **job)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(**JOBS)
def test_lost_patches_are_those_that_show_a_broken_chunk_for_long(
    source: Path, tmp_path_factory: pytest.TempPathFactory, **job: Any
) -> None:
    """The same over many more jobs."""
    check_job(source, tmp_path_factory.mktemp("job"), **job)


def check_job(
    source: Path,
    folder: Path,
    config: dict[str, Any],
    order: dict[str, Any],
    rows: int,
    mode: str,
    image: Chunks,
    labels: Chunks,
    with_labels: bool,
    mended: int,
) -> None:
    """Break, skip, mend some, skip, mend all; compare with brute force after each step."""
    for name in ("image.zarr", "labels.zarr"):
        shutil.copytree(source / name, folder / name)
    labels = labels if with_labels else set()
    if config["name"] == "random":
        mode = "drop"
    edge = {} if mode == "drop" else {"edge": "pad", "pad_mode": mode}
    plan = made(folder, config, with_labels, rows_per_shard=rows, **order, **edge)
    size = plan.patch_size
    with dask.config.set(scheduler="synchronous"):
        patchloom.materialize(plan, folder / "whole.zarr", progress=False)
        whole = patchloom.open_patches(folder / "whole.zarr")
        told = whole.manifest.to_pylist()
        left = sorted(image)
        for broken in (image, set(left[mended:])):
            mend(folder, source, image - broken, set())
            break_chunks(folder, broken, labels)
            lost = lost_rows(told, size, mode, broken, labels)
            before = len(list((folder / "out.zarr").rglob("*.partial.parquet")))
            report = patchloom.materialize(
                plan, folder / "out.zarr", on_error="skip", progress=False
            )
            assert report.complete is not bool(lost)
            assert before in (0, report.n_shards)
            if not lost:
                break
            store = patchloom.open_patches(folder / "out.zarr")
            check_gaps(store, whole, lost, report)
            if mode != "reflect":
                found = store.statistics["count"].values.ravel().tolist()
                assert found == [counted(plan, told, mode, broken)] * 2
        mend(folder, source, image, labels)
        assert patchloom.materialize(plan, folder / "out.zarr", progress=False).complete
    assert contents(folder / "out.zarr") == contents(folder / "whole.zarr")
    shutil.rmtree(folder)


@pytest.fixture
def gaps(source: Path, tmp_path: Path) -> Iterator[tuple[patchloom.Plan, Path]]:
    """A plan, and a folder with a store that lacks rows and one that is whole."""
    for name in ("image.zarr", "labels.zarr"):
        shutil.copytree(source / name, tmp_path / name)
    plan = made(tmp_path, STRATEGIES[0], labels=False)
    patchloom.materialize(plan, tmp_path / "whole.zarr", progress=False)
    break_chunks(tmp_path, {(0, 1, 1)}, set())
    report = patchloom.materialize(plan, tmp_path / "out.zarr", on_error="skip", progress=False)
    assert not report.complete
    yield plan, tmp_path
    mend(tmp_path, source, {(0, 1, 1)}, set())
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert contents(tmp_path / "out.zarr") == contents(tmp_path / "whole.zarr")


def test_filling_in_leaves_other_shards_alone(
    gaps: tuple[patchloom.Plan, Path], source: Path
) -> None:
    """Only shards with gaps are written again."""
    plan, folder = gaps
    out = folder / "out.zarr"
    partial = [p.name.split(".")[0] for p in (out / "manifest").glob("*.partial.parquet")]
    assert 0 < len(partial) < plan.n_shards
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    mend(folder, source, {(0, 1, 1)}, set())
    report = patchloom.materialize(plan, out, progress=False)
    assert report.complete
    assert report.n_shards == len(partial)
    numbers = {str(int(number)) for number in partial}
    for path, when in times.items():
        inside = path.relative_to(out).parts
        shard = inside[2] if inside[:2] == ("images", "c") else str(path.name.split(".")[0])
        if inside[0] in ("images", "manifest", "summaries") and shard.isdigit():
            touched = not path.exists() or path.stat().st_mtime_ns != when
            assert touched == (str(int(shard)) in numbers), path


def test_a_client_killed_before_its_end_left_gaps(gaps: tuple[patchloom.Plan, Path]) -> None:
    """What the client writes last is not there: the gaps are known from the listing alone."""
    _, folder = gaps
    out = folder / "out.zarr"
    for name in ("skipped.parquet", "objects.parquet"):
        (out / name).unlink()
    document = json.loads((out / "zarr.json").read_text())
    for name in ("statistics", "skipped"):
        document["attributes"]["patchloom"].pop(name)
    (out / "zarr.json").write_text(json.dumps(document, indent=2))
    assert patchloom.open_patches(out).skipped.num_rows == 0


def test_a_task_killed_while_it_fills_a_gap(gaps: tuple[patchloom.Plan, Path]) -> None:
    """Both parts of the manifest are there: what surely stands counts, and the shard is redone."""
    _, folder = gaps
    out, whole = folder / "out.zarr", folder / "whole.zarr"
    rows = patchloom.open_patches(out).manifest
    for path in (out / "manifest").glob("*.partial.parquet"):
        name = path.name.replace(".partial", "")
        shutil.copy(whole / "manifest" / name, out / "manifest" / name)
        break
    assert patchloom.open_patches(out).manifest.equals(rows)
    assert len(part_names(p.name for p in (out / "manifest").iterdir())) == len(
        list((whole / "manifest").iterdir())
    )


def test_skipping_again_while_it_is_still_broken(gaps: tuple[patchloom.Plan, Path]) -> None:
    """The same gaps, the same bytes; without skipping it is an error that says what to do."""
    plan, folder = gaps
    before = contents(folder / "out.zarr")
    report = patchloom.materialize(plan, folder / "out.zarr", on_error="skip", progress=False)
    assert not report.complete
    assert contents(folder / "out.zarr") == before
    with pytest.raises(ChunkError, match="on_error='skip' goes on without the patches"):
        patchloom.materialize(plan, folder / "out.zarr", progress=False)
    assert contents(folder / "out.zarr") == before


def test_training_on_a_store_with_gaps(gaps: tuple[patchloom.Plan, Path]) -> None:
    """Rows of the manifest are there, others are said not to be; numbers say over what they are."""
    _, folder = gaps
    store = patchloom.open_patches(folder / "out.zarr")
    rows = store.manifest["row"].to_numpy()
    assert store.pad_mask(rows).shape == (len(rows), 12, 12)
    with pytest.raises(IndexError, match="written"):
        store.pad_mask([store.skipped["row"][0].as_py()])
    assert set(rows.tolist()) | set(store.skipped["row"].to_pylist()) == set(range(len(store)))
    assert 0 < store.statistics["count"].values[0, 0] < SHAPE[1] * SHAPE[2]
    view = store.to_xarray()
    assert view.row.values.tolist() == rows.tolist()
    last = len(rows) - 1
    np.testing.assert_array_equal(view.images[last].values, store[int(rows[last])])
    reasons = pq.read_table(folder / "out.zarr" / "skipped.parquet")["reason"].to_pylist()
    assert all("image.zarr" in reason for reason in reasons)


def test_a_client_that_skips_is_killed(
    gaps: tuple[patchloom.Plan, Path], tmp_path: Path, source: Path
) -> None:
    """In a process of its own, by -9, somewhere: skipping again ends as if it had not been."""
    _, folder = gaps
    given = {
        "image": str(folder / "image.zarr"),
        "patching": STRATEGIES[0],
        "rows_per_shard": 5,
        "on_error": "skip",
    }
    undisturbed, out = contents(folder / "out.zarr"), folder / "killed.zarr"
    for killed in (True, False):
        text = json.dumps({**given, "out": str(out)})
        client = subprocess.Popen(
            [sys.executable, "-m", "tests.runner", text],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            stdout=subprocess.DEVNULL,
        )
        while killed and client.poll() is None:
            if list(out.rglob("*.partial.parquet")):
                client.kill()
            time.sleep(0.001)
        client.wait(timeout=240)
    assert contents(out) == undisturbed


@pytest.mark.parametrize("where", ["processes", "memory", "s3"])
def test_skipping_anywhere(
    where: str,
    gaps: tuple[patchloom.Plan, Path],
    source: Path,
    request: pytest.FixtureRequest,
) -> None:
    """In other processes, in memory and on a real object store: the same objects."""
    plan, folder = gaps
    options, url = {}, f"memory://skips-{folder.name}"
    if where == "processes":
        url = str(folder / "again.zarr")
    elif where == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        options, url = server.storage_options, f"{server.fresh_bucket()}/out.zarr"
    scheduler = where if where == "processes" else "threads"
    more: dict[str, Any] = {"storage_options": options, "progress": False}

    def objects() -> dict[str, bytes]:
        place = Location.of(url, options)
        return {name: place.read(name) or b"" for name in sorted(place.list())}

    with dask.config.set(scheduler=scheduler, num_workers=2):
        patchloom.materialize(plan, url, on_error="skip", **more)
        assert objects() == contents(folder / "out.zarr")
        mend(folder, source, {(0, 1, 1)}, set())
        assert patchloom.materialize(plan, url, **more).complete
    assert objects() == contents(folder / "whole.zarr")


def test_a_shard_that_only_lacks_counts_is_made_again(source: Path, tmp_path: Path) -> None:
    """In a window a shard may count a block that only patches of other shards show."""
    for name in ("image.zarr", "labels.zarr"):
        shutil.copytree(source / name, tmp_path / name)
    config = {"name": "chunk_aligned", "patch_size": [16, 16]}
    plan = made(tmp_path, config, False, order="shuffled", window=1000, rows_per_shard=1)
    patchloom.materialize(plan, tmp_path / "whole.zarr", progress=False)
    break_chunks(tmp_path, {(0, 1, 1)}, set())
    report = patchloom.materialize(plan, tmp_path / "out.zarr", on_error="skip", progress=False)
    [item] = report.skipped
    partial = list((tmp_path / "out.zarr").rglob("*.partial.parquet"))
    assert item["n_patches"] == 1
    assert len(partial) == 2, "one shard shows the block, another one counts it"
    mend(tmp_path, source, {(0, 1, 1)}, set())
    assert patchloom.materialize(plan, tmp_path / "out.zarr", progress=False).n_shards == 2
    assert contents(tmp_path / "out.zarr") == contents(tmp_path / "whole.zarr")


def test_a_mask_that_breaks_after_planning_costs_its_shards(source: Path, tmp_path: Path) -> None:
    """The share under it cannot be told then: these shards wait as a whole."""
    mask = zarr.create_array(tmp_path / "m.zarr", shape=SHAPE[1:], chunks=(16, 40), dtype="uint8")
    mask[...] = 1
    images = patchloom.open_images(source / "image.zarr", axes="CYX", mask=tmp_path / "m.zarr")
    plan = patchloom.plan(images, STRATEGIES[1], min_coverage=0.5, rows_per_shard=4)
    good = (tmp_path / "m.zarr" / "c" / "0" / "0").read_bytes()
    (tmp_path / "m.zarr" / "c" / "0" / "0").write_bytes(b"damaged")
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    report = patchloom.materialize(plan, out, on_error="skip", progress=False)
    store = patchloom.open_patches(out)
    assert sum(item["n_patches"] for item in report.skipped) == store.skipped.num_rows
    assert 0 < store.manifest.num_rows == plan.n_patches - store.skipped.num_rows
    (tmp_path / "m.zarr" / "c" / "0" / "0").write_bytes(good)
    patchloom.materialize(plan, out, progress=False)
    patchloom.materialize(plan, whole, progress=False)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("name", ["image.zarr", "labels.zarr"])
def test_a_shard_without_any_row_is_sound(source: Path, tmp_path: Path, name: str) -> None:
    """Its objects say so, whatever an earlier run had written there."""
    for copied in ("image.zarr", "labels.zarr"):
        shutil.copytree(source / copied, tmp_path / copied)
    config = {"name": "chunk_aligned", "patch_size": [16, 16]}
    plan, out = made(tmp_path, config, labels=True, rows_per_shard=1), tmp_path / "out.zarr"
    broken = ({(0, 0, 0)}, set[Any]()) if name == "image.zarr" else (set[Any](), {(0, 0)})
    for _ in range(2):
        break_chunks(tmp_path, *broken)
        report = patchloom.materialize(plan, out, on_error="skip", progress=False)
        lost = patchloom.open_patches(out).skipped["row"].to_pylist()
        assert lost
        assert not report.complete
        assert patchloom.verify(out, plan, progress=False).ok
        assert not any(patchloom.open_patches(out)[row].any() for row in lost)
        mend(tmp_path, source, *broken)
        assert patchloom.materialize(plan, out, progress=False).complete
        # The next time round, the objects of the whole shards are still there.
        for row in lost:
            (out / "manifest" / f"{row:08d}.parquet").unlink()


def test_damage_that_cannot_be_mended_is_not_whole(source: Path, tmp_path: Path) -> None:
    """A damaged shard that must wait for its mask is no longer committed."""
    mask = zarr.create_array(tmp_path / "m.zarr", shape=SHAPE[1:], chunks=(48, 40), dtype="uint8")
    mask[...] = 1
    images = patchloom.open_images(source / "image.zarr", axes="CYX", mask=tmp_path / "m.zarr")
    plan = patchloom.plan(images, STRATEGIES[1], min_coverage=0.5, rows_per_shard=4)
    out = tmp_path / "out.zarr"
    patchloom.materialize(plan, out, progress=False)
    before = contents(out)
    shard, chunk = out / "images" / "c" / "1" / "0" / "0" / "0", tmp_path / "m.zarr" / "c/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    good = chunk.read_bytes()
    chunk.write_bytes(b"damaged")
    report = patchloom.materialize(plan, out, on_error="skip", progress=False)
    assert sum(item["n_patches"] for item in report.skipped) == 4
    assert not report.complete
    assert patchloom.open_patches(out).skipped["row"].to_pylist() == [4, 5, 6, 7]
    chunk.write_bytes(good)
    assert patchloom.materialize(plan, out, progress=False).n_shards == 1
    assert contents(out) == before


# -- requests ---------------------------------------------------------------------------


class Asked(MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """A store in memory that remembers what it was asked."""

    protocol = "asked"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    log: list[tuple[str, str]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        found: str = super()._strip_protocol(path.replace("asked://", "memory://"))
        return found

    def cat_file(self, path: str, *arguments: Any, **more: Any) -> Any:
        """One read."""
        self.log.append(("get", path))
        return super().cat_file(path, *arguments, **more)

    def info(self, path: str, **more: Any) -> Any:
        """One question for a size."""
        self.log.append(("info", path))
        return super().info(path, **more)

    def find(self, path: str, **more: Any) -> Any:
        """One listing."""
        self.log.append(("list", path))
        before = len(self.log)
        found = super().find(path, **more)
        del self.log[before:]
        return found

    def pipe_file(self, path: str, value: bytes, **more: Any) -> Any:
        """One write."""
        self.log.append(("put", path))
        return super().pipe_file(path, value, **more)


@pytest.fixture
def asked() -> Iterator[list[tuple[str, str]]]:
    """What stores of ``asked://`` were asked."""
    fsspec.register_implementation("asked", Asked, clobber=True)
    Asked.log.clear()
    yield Asked.log
    Asked.store.clear()


def plan_of(n: int, rows: int) -> patchloom.Plan:
    images = patchloom.open_images(np.zeros((n, n), "uint8"))
    config = {"name": "sequential", "patch_size": [1, 1]}
    return patchloom.plan(images, config, rows_per_shard=rows)


def resume(plan: patchloom.Plan, name: str, log: list[tuple[str, str]]) -> list[str]:
    """The kinds of requests below the store that finding it finished takes."""
    with dask.config.set(scheduler="synchronous"):
        assert patchloom.materialize(plan, f"asked://{name}.zarr", progress=False).complete
        log.clear()
        report = patchloom.materialize(plan, f"asked://{name}.zarr", progress=False)
    assert (report.n_tasks, report.already_done) == (0, plan.n_shards)
    return sorted(kind for kind, path in log if f"{name}.zarr.report" not in path)


def test_resume_lists_once_whatever_the_number_of_patches(asked: list[tuple[str, str]]) -> None:
    """The attributes, the sizes and one listing."""
    few = resume(plan_of(8, 16), "few", asked)
    assert few == ["get", "get", "list"]
    assert resume(plan_of(40, 10), "many", asked) == few


@pytest.mark.slow
def test_resume_of_a_million_patches_lists_once(asked: list[tuple[str, str]]) -> None:
    """The same for a million."""
    plan = plan_of(1000, 2**14)
    assert plan.n_patches == 10**6
    assert resume(plan, "million", asked) == ["get", "get", "list"]


def test_a_task_asks_once_and_done_twice_it_passes_over(
    source: Path, asked: list[tuple[str, str]]
) -> None:
    """First nothing is found by one request; again nothing is read or written, counts are kept."""
    plan = made(source, STRATEGIES[0], labels=False)
    shards = list(plan.runs.shards(0)) + list(plan.runs.shards(1))
    job = Job(Location("asked://twice.zarr"), _specs(plan, (), Codec()))
    first = write_run(plan, job, shards)
    assert [path for kind, path in asked if kind == "get"] == [
        f"/twice.zarr/manifest/{shards[0]:08d}.parquet"
    ]
    before, before_log = dict(Asked.store), len(asked)
    again = write_run(plan, job, shards)
    assert len(asked) - before_log == len(shards)
    assert {kind for kind, _ in asked[before_log:]} == {"get"}
    assert dict(Asked.store) == before
    assert (again.n_patches, again.n_shards) == (first.n_patches, first.n_shards)
    assert (again.n_passed, again.chunk_reads) == (len(shards), 0)
    Asked.store.pop(f"/twice.zarr/manifest/{shards[-1]:08d}.parquet")
    last = write_run(plan, job, shards)
    assert (last.n_passed, last.n_patches) == (len(shards) - 1, first.n_patches)
    assert set(Asked.store) == set(before)


def test_chunks_of_shards_that_another_client_made_are_not_needed(
    source: Path, tmp_path: Path
) -> None:
    """Reads are told against what this call read for: never less than one a chunk."""
    from dask.callbacks import Callback

    plan, out = made(source, STRATEGIES[0], labels=False), tmp_path / "out.zarr"
    reports: list[Any] = []

    def other(_: Any) -> None:
        if not reports:
            reports.append(None)
            reports[0] = patchloom.materialize(plan, out, progress=False)
            (out / "manifest" / "00000000.parquet").unlink()

    with dask.config.set(scheduler="synchronous"), Callback(start=other):
        report = patchloom.materialize(plan, out, progress=False)
    assert reports[0].chunks_needed == plan.chunks_needed
    assert 0 < report.chunks_needed <= report.chunk_reads
    # Of the task whose first shard was not there no other is looked for.
    mine = len(plan.runs.shards(0))
    assert report.n_passed == plan.n_shards - mine


def test_truncated_objects_are_noticed_from_the_listing(source: Path, tmp_path: Path) -> None:
    """Sizes are recorded: a plain resume makes exactly the damaged shards."""
    plan, out = made(source, STRATEGIES[0], labels=True), tmp_path / "out.zarr"
    patchloom.materialize(plan, out, progress=False)
    before = contents(out)
    for name in ("labels/c/3/0/0/0", "summaries/00000004.parquet", "manifest/00000005.parquet"):
        (out / name).write_bytes(before[name][:-7])
    (out / "images" / "c" / "1" / "0" / "0" / "0").unlink()
    report = patchloom.materialize(plan, out, progress=False)
    assert (report.complete, report.n_shards, report.n_passed) == (True, 4, 0)
    assert contents(out) == before
    (out / "objects.parquet").write_bytes(b"damaged")
    assert patchloom.materialize(plan, out, progress=False).n_shards == 0
