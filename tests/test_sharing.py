"""Blocks shared between the legs of a plan: read once, kept within the budget, gone afterwards.

Law: whatever is shared, on any number of threads and in any budget, the store has the same bytes;
a run reads no more than its plan counted, and each needed chunk once where memory holds them.
"""

from __future__ import annotations

import gc
import math
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ChunkError
from patchloom.planning.incidence import touches
from patchloom.planning.runs import MAX_TASKS
from patchloom.run import sharing
from patchloom.run.nearby import Nearby
from patchloom.run.reports import RunReport
from patchloom.run.sharing import SharedBlocks, Visit, unshared
from patchloom.run.stretches import Stretches, stretched
from tests.clusters import local_cluster

GRID = {"name": "sequential", "patch_size": [24, 24], "overlaps": [8, 8]}


def stored(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], seed: int = 0) -> Path:
    """An image of noise."""
    array: Any = zarr.create_array(path, shape=shape, chunks=chunks, dtype="uint16")
    array[...] = np.random.default_rng(seed).integers(1, 2**16, shape, dtype="uint16")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def written(plan: patchloom.Plan, out: Path | str, threads: int, **more: Any) -> RunReport:
    """The report of a run on threads of this process; 0: on this thread, sharing nothing."""
    if not threads:
        with dask.config.set(scheduler="synchronous"), unshared():
            return patchloom.materialize(plan, out, progress=False, **more)
    with dask.config.set(scheduler="threads", num_workers=threads):
        return patchloom.materialize(plan, out, progress=False, **more)


def left_over() -> int:
    """What this process still shares over plans that are gone."""
    gc.collect()
    return len(sharing._SHARED)


# -- whole runs ---------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ndim=st.sampled_from([2, 3]),
    name=st.sampled_from(["sequential", "random"]),
    order=st.sampled_from(["spatial", "shuffled"]),
    threads=st.integers(1, 4),
    spare=st.integers(0, 60_000),
    with_labels=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_budget_and_threads_write_the_same(
    ndim: int,
    name: str,
    order: str,
    threads: int,
    spare: int,
    with_labels: bool,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Bytes of a run that shares nothing, pixels of NumPy, and never more reads than foreseen."""
    folder = tmp_path_factory.mktemp("share")
    shape = (90, 70) if ndim == 2 else (20, 45, 40)
    chunks = (16, 12) if ndim == 2 else (8, 16, 12)
    source = stored(folder / "a.zarr", shape, chunks, seed)
    labels = stored(folder / "l.zarr", shape, tuple(c + 5 for c in chunks), seed + 1)
    images = patchloom.open_images(source, labels=str(labels) if with_labels else None)
    size = [13] * ndim if ndim == 2 else [6, 13, 13]
    config = {"name": name, "patch_size": size, **({"n_patches": 60} if name == "random" else {})}
    said: dict[str, Any] = {"rows_per_shard": 4, "order": order, "seed": seed}
    need = patchloom.plan(images, config, **said, memory="1 GiB").runs.memory.max()
    plan = patchloom.plan(images, config, **said, memory=int(need) + spare)

    alone = written(plan, folder / "alone.zarr", 0)
    report = written(plan, folder / "out.zarr", threads)
    assert contents(folder / "out.zarr") == contents(folder / "alone.zarr")
    assert alone.chunk_reads == plan.chunk_reads
    assert plan.chunks_needed <= report.chunk_reads <= plan.chunk_reads
    assert report.role_reads <= plan.role_reads == alone.role_reads
    assert report.peak_memory <= plan.runs.peak_memory
    pixels: Any = zarr.open_array(source, mode="r")[...]
    store: Any = patchloom.open_patches(folder / "out.zarr")
    for row in store.manifest.to_pylist():
        start = [row[f"start_{axis}"] for axis in "zyx"[-ndim:]]
        box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        assert np.array_equal(store.images[row["row"]][0], pixels[box])
    assert not left_over()


@pytest.mark.parametrize("order", ["spatial", "shuffled", "grouped"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_each_chunk_is_read_once_where_memory_holds_them(
    order: str, threads: int, tmp_path: Path
) -> None:
    """Of the image and of its labels, whose chunks lie otherwise; over passes before too."""
    source = stored(tmp_path / "a.zarr", (300, 300), (32, 32))
    labels = stored(tmp_path / "l.zarr", (300, 300), (50, 40))
    images = patchloom.open_images(source, labels=str(labels))
    more: Any = {"shuffled": {"window": 20}, "grouped": {"group_by": "image_id"}}.get(order, {})
    plan = patchloom.plan(images, GRID, rows_per_shard=8, order=order, **more)
    assert plan.n_tasks > 4
    assert plan.chunk_reads > 1.2 * plan.chunks_needed
    report = written(plan, tmp_path / "out.zarr", threads, normalize="mean-std")
    assert report.chunk_reads == plan.chunks_needed == 100
    assert report.survey_reads == 100
    assert report.role_reads == 6 * 8
    assert report.read_amplification == 1.0
    assert not left_over()


def test_aligned_plans_share_nothing(tmp_path: Path) -> None:
    """Nothing is asked for that no other leg needs: no store is made."""
    images = patchloom.open_images(stored(tmp_path / "a.zarr", (128, 128), (32, 32)))
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]}, rows_per_shard=4)
    assert len(plan.runs.legs) > 2
    assert not plan.has_common_blocks
    with sharing.visit_to(plan, 0) as visit:
        assert visit is None
    assert written(plan, tmp_path / "out.zarr", 2).read_amplification == 1.0


@pytest.mark.parametrize("threads", [1, 3])
def test_damaged_chunks_cost_the_same_patches(threads: int, tmp_path: Path) -> None:
    """With threads that wait for the chunk that breaks: the error names it, the rest is written."""
    images = patchloom.open_images(stored(tmp_path / "a.zarr", (200, 200), (32, 32)))
    plan = patchloom.plan(images, GRID, rows_per_shard=6)
    whole = tmp_path / "whole.zarr"
    written(plan, whole, threads)
    chunk = tmp_path / "a.zarr" / "c" / "3" / "2"
    good = chunk.read_bytes()
    chunk.write_bytes(b"broken")
    with pytest.raises(ChunkError, match="c/3/2"):
        written(plan, tmp_path / "raised.zarr", threads)
    alone = written(plan, tmp_path / "alone.zarr", 0, on_error="skip")
    report = written(plan, tmp_path / "out.zarr", threads, on_error="skip")
    assert report.skipped == alone.skipped != ()
    assert contents(tmp_path / "out.zarr") == contents(tmp_path / "alone.zarr")
    chunk.write_bytes(good)
    for out in ("out.zarr", "raised.zarr"):
        assert written(plan, tmp_path / out, threads).complete
        assert contents(tmp_path / out) == contents(whole)
    assert not left_over()


def test_workers_of_a_cluster_share_and_forget(tmp_path: Path) -> None:
    """Two threads of a worker read each chunk once; two workers only what lies between them."""

    def left() -> int:
        import gc

        from patchloom.run import sharing

        gc.collect()
        return len(sharing._SHARED)

    images = patchloom.open_images(stored(tmp_path / "a.zarr", (480, 480), (32, 32)))
    plan = patchloom.plan(images, GRID, rows_per_shard=20)
    written(plan, tmp_path / "alone.zarr", 0)
    for n, threads, most in ((1, 2, 1.0), (2, 1, (1 + plan.chunk_reads / plan.chunks_needed) / 2)):
        out = tmp_path / f"{n}.zarr"
        with (
            local_cluster(n_workers=n, threads_per_worker=threads, processes=True) as cluster,
            Client(cluster) as client,
        ):
            report = patchloom.materialize(plan, out, progress=False)
            waited = time.monotonic() + 60
            # Workers hear by and by that nobody wants the plan any longer.
            while any(client.run(left).values()) and time.monotonic() < waited:
                time.sleep(0.1)
            assert not any(client.run(left).values())
        assert 1.0 <= report.read_amplification <= most
        assert contents(out) == contents(tmp_path / "alone.zarr")


# -- which legs need a block ----------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    chunks=st.tuples(st.integers(5, 30), st.integers(5, 30)),
    order=st.sampled_from(["spatial", "shuffled"]),
    edge=st.sampled_from(["drop", "pad"]),
    samples=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_legs_of_a_block_are_those_that_touch_it(
    chunks: tuple[int, int], order: str, edge: Any, samples: bool, seed: int
) -> None:
    """Against going over all patches, for arrays on the image's chunks and on others."""
    shape = (3, 80, 60) if samples else (80, 60)
    import dask.array as da

    def lazy(space: tuple[int, ...]) -> Any:
        return da.zeros(shape, dtype="uint16", chunks=((2, *space) if samples else space))

    images = patchloom.open_images(
        [lazy((16, 12))], labels=[lazy(chunks)], axes="SYX" if samples else "YX"
    )
    config = {"name": "random", "patch_size": [10, 9], "n_patches": 50}
    plan = patchloom.plan(images, config, rows_per_shard=3, order=order, edge=edge, seed=seed)
    for array in plan.images[0].cut_arrays.values():
        needs: dict[int, set[int]] = {}
        for part in plan.walk():
            leg = plan.runs.legs_at(plan.sequence.turns_of(part.rank))
            patch, block = touches(array.layout, part.sample, part.corner, plan.cut)
            for one, number in zip(block.tolist(), leg[patch].tolist(), strict=True):
                needs.setdefault(one, set()).add(number)
        blocks = np.array(sorted(needs)[seed % 5 :: 3], np.int64)
        if not len(blocks):
            continue
        near = Nearby.of(plan, 0, array.layout, blocks, np.arange(3 if samples else 1))
        assert near.shared(plan) == {
            block: needs[block] for block in blocks.tolist() if len(needs[block]) > 1
        }


# -- the store of blocks ----------------------------------------------------------------------


def pixels_of(number: int) -> Any:
    return np.full(100, number, np.uint8)


def load(
    blocks: SharedBlocks, visit: Visit, numbers: list[int], legs: set[int], seen: Counter[int]
) -> None:
    """Load blocks that some legs need, and look at what comes."""

    def decode(positions: Any) -> list[Any]:
        seen.update(numbers[at] for at in positions.tolist())
        return [pixels_of(numbers[at]) for at in positions.tolist()]

    keys = [(0, "image", number) for number in numbers]
    found = blocks.load(visit, keys, [legs] * len(keys), decode)
    assert [int(one[0]) for one in found] == numbers


@settings(max_examples=200, deadline=None)
@given(
    needs=st.lists(st.sets(st.integers(0, 9), min_size=2), min_size=1, max_size=20),
    memory=st.integers(300, 3000),
    projected=st.integers(100, 300),
    legs=st.permutations(range(10)),
)
def test_what_is_kept_fits(
    needs: list[set[int]], memory: int, projected: int, legs: list[int]
) -> None:
    """Two visits at a time, legs in any order: within the capacity, nothing left at the end."""
    blocks, seen = SharedBlocks(memory, projected), Counter[int]()

    def check() -> None:
        kept = [e for e in blocks._entries.values() if not e.holders]
        assert blocks.nbytes == sum(e.nbytes for e in kept) <= blocks.capacity
        assert blocks.capacity <= 2 * memory

    for pair in zip(legs[::2], legs[1::2], strict=True):
        with blocks.visit(pair[0]) as one, blocks.visit(pair[1]) as other:
            for visit in (one, other):
                mine = [k for k, some in enumerate(needs) if visit.leg in some]
                for number in mine:
                    load(blocks, visit, [number], needs[number], seen)
                    check()
                for number in mine[::2]:
                    blocks.leave(visit, (0, "image", number))
                    check()
        check()
    assert not len(blocks)
    assert blocks.nbytes == 0
    most = math.inf if memory - projected < 2000 else 1
    for number, some in enumerate(needs):
        assert 1 <= seen[number] <= min(len(some), most)


@pytest.mark.parametrize("url", ["memory://kept.zarr", ""])
def test_what_is_kept_leaves_room_for_what_is_sent(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that writes to a store that is not local takes a copy of a shard more."""
    projected = set()

    class Watched(SharedBlocks):
        def __init__(self, memory: int, needs: int) -> None:
            projected.add(needs)
            super().__init__(memory, needs)

    monkeypatch.setattr(sharing, "SharedBlocks", Watched)
    images = patchloom.open_images(stored(tmp_path / "a.zarr", (240, 240), (32, 32)))
    plan = patchloom.plan(images, GRID, rows_per_shard=4)
    report = written(plan, url or tmp_path / "out.zarr", 2)
    assert projected == {report.projected_memory}
    assert (report.projected_memory > plan.peak_memory()) == bool(url)


def test_the_farthest_is_forgotten_first() -> None:
    """Of blocks for near and far legs, those that fit are for the nearest."""
    blocks, seen = SharedBlocks(600, 300), Counter[int]()
    with blocks.visit(0) as visit:
        for number in range(1, 7):
            load(blocks, visit, [number], {0, number}, seen)
    # Between two tasks 600 bytes are free, while one works 300.
    assert blocks.nbytes == 600
    with blocks.visit(1) as visit:
        assert blocks.nbytes == 300
        load(blocks, visit, [1, 2, 3, 4], {1, 9}, seen)
    assert [seen[number] for number in range(1, 5)] == [1, 1, 1, 2]


def test_a_task_begins_where_the_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread goes through all legs one way, whichever way Dask goes through the tasks."""
    images = patchloom.open_images(stored(tmp_path / "a.zarr", (200, 200), (16, 16)))
    wide = patchloom.plan(images, GRID, rows_per_shard=2)
    plan = patchloom.plan(images, GRID, rows_per_shard=2, memory=wide.peak_memory())
    shards = [plan.runs.shards(task) for task in range(plan.n_tasks)]
    assert any(len(plan.runs.legs_of(some)) > 2 for some in shards)
    order: list[int] = []

    class Watched(SharedBlocks):
        def visit(self, leg: int) -> Any:
            order.append(leg)
            return super().visit(leg)

    monkeypatch.setattr(sharing, "SharedBlocks", Watched)
    report = written(plan, tmp_path / "out.zarr", 1)
    legs = list(range(len(plan.runs.legs) - 1))
    assert order in (legs, legs[::-1])
    written(plan, tmp_path / "alone.zarr", 0)
    assert contents(tmp_path / "out.zarr") == contents(tmp_path / "alone.zarr")
    assert report.chunk_reads < plan.chunk_reads

    blocks, some = SharedBlocks(10, 1), [(k, [k]) for k in range(10, 20)]
    assert blocks.from_here(some) == some[::-1]
    for place, first in ((9, 10), (12, 10), (17, 19), (40, 19)):
        blocks = SharedBlocks(10, 1)
        with blocks.visit(place):
            assert blocks.from_here(some)[0][0] == first
        assert blocks.from_here(some[:1]) == some[:1]


def test_who_fails_lets_others_try() -> None:
    """A reader fails while another waits for its block: the other reads it, and nothing stays."""
    blocks, begun, go = SharedBlocks(10_000, 100), threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def broken(_: Any) -> list[Any]:
        begun.set()
        go.wait(60)
        raise ChunkError("broken")

    def fail() -> None:
        try:
            with blocks.visit(0) as visit:
                blocks.load(visit, [(0, "image", 7)], [{0, 1}], broken)
        except ChunkError as error:
            errors.append(error)

    seen = Counter[int]()

    def wait() -> None:
        with blocks.visit(1) as visit:
            load(blocks, visit, [7], {0, 1}, seen)

    threads = [threading.Thread(target=fail), threading.Thread(target=wait)]
    threads[0].start()
    begun.wait(60)
    threads[1].start()
    while not blocks._changed._waiters:  # type: ignore[attr-defined]  # of the standard library
        time.sleep(0.001)
    assert not seen
    go.set()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 1
    assert seen == {7: 1}
    with blocks.visit(0) as visit:
        load(blocks, visit, [7], {0, 1}, seen)
    assert not len(blocks)


def test_threads_never_wait_for_one_another() -> None:
    """Eight threads that want the same blocks in different orders: each is read once."""
    blocks, seen = SharedBlocks(10**6, 10), Counter[int]()
    rng = np.random.default_rng(0)
    orders = [rng.permutation(200) for _ in range(8)]
    together = threading.Barrier(8)
    ended: list[int] = []

    def work(leg: int) -> None:
        with blocks.visit(leg) as visit:
            together.wait(60)
            for some in np.split(orders[leg], 20):
                load(blocks, visit, some.tolist(), set(range(8)), seen)
        ended.append(leg)

    threads = [threading.Thread(target=work, args=(leg,)) for leg in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(ended) == list(range(8))
    assert {*seen.values()} == {1}
    assert len(seen) == 200
    assert not len(blocks)


def test_a_view_keeps_no_larger_buffer() -> None:
    """A block that is a view of what was fetched with it is kept as a copy, for reading only."""
    blocks, fetched = SharedBlocks(10**6, 10), np.arange(1000, dtype=np.uint16)
    with blocks.visit(0) as visit:
        [found] = blocks.load(visit, [(0, "image", 0)], [{0, 1}], lambda _: [fetched[10:20]])
        assert not np.shares_memory(found, fetched)
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 1


# -- dealing out ------------------------------------------------------------------------------


@given(n=st.integers(1, 50), threads=st.lists(st.integers(1, 4), min_size=2, max_size=6))
def test_each_worker_has_one_stretch(n: int, threads: list[int]) -> None:
    """Every task has one worker, neighbours the same, as many as threads ask for, within one."""
    keys = [("write", f"{k:02}") for k in range(n)]
    workers = {f"tcp://{k}": n_threads for k, n_threads in enumerate(threads)}
    dealt = Stretches.of(keys, workers)
    found = [dealt(key) for key in keys]
    assert found == sorted(found)
    for worker, n_threads in workers.items():
        share = n * n_threads / sum(threads)
        assert abs(found.count([worker]) - share) <= 1
    assert dealt("patchloom-plan") == dealt(("other", "00")) == []


def test_the_caller_says_which_workers_take_tasks(tmp_path: Path) -> None:
    """A stretch is a wish of ours; who annotates workers knows more."""
    ran = set()

    class Plugin(SchedulerPlugin):  # type: ignore[misc]  # distributed is untyped
        def transition(self, key: Any, start: str, finish: str, *_: Any, **more: Any) -> None:
            if finish == "memory" and key[0].startswith("patchloom-write"):
                ran.add(more["worker"])

    images = patchloom.open_images(stored(tmp_path / "a.zarr", (240, 240), (32, 32)))
    plan = patchloom.plan(images, GRID, rows_per_shard=4)
    assert plan.has_common_blocks
    with (
        local_cluster(n_workers=2, threads_per_worker=1, processes=False) as cluster,
        Client(cluster) as client,
    ):
        cluster.scheduler.add_plugin(Plugin())
        one, _ = client.nthreads()
        with dask.annotate(workers=[one], allow_other_workers=False):
            patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
        keys = [("write", f"{k:02}") for k in range(8)]
        for asked in ({"resources": {"disk": 1}}, {"workers": [one]}):
            with dask.annotate(**asked), stretched(client, keys, neighbours=True):
                assert dask.get_annotations() == asked
    assert ran == {one}


def test_a_petabyte_has_few_tasks(tmp_path: Path) -> None:
    """Tasks grow where there were too many of them, and their memory does not."""
    side = 2**17
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(2**15, side, side), chunks=(512, 512, 512), dtype="uint16"
    )
    assert array.nbytes == 2**50
    images = patchloom.open_images(tmp_path / "a.zarr")
    config = {"name": "sequential", "patch_size": [256] * 3}
    plan = patchloom.plan(images, config, memory="8 GiB", rows_per_shard=8)
    assert plan.n_shards == 2**22
    assert plan.n_tasks <= MAX_TASKS < 50_000
    assert plan.runs.peak_memory <= 8 * 2**30
    assert (plan.runs.memory == plan.runs.memory[0]).all()
