"""Live with Dask: settings, names, progress, waves, retries, interrupts, clusters that change."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import yaml
import zarr
from dask.utils import key_split

import patchloom
from patchloom.errors import ChunkError, ConfigError
from patchloom.image import ChunkReader, Image, Reads
from patchloom.location import Location
from patchloom.planning.plans import Plan
from patchloom.run.cutting import Job
from patchloom.run.graph import run_graph
from patchloom.run.materializing import _needed, _specs
from patchloom.run.progress import Progress
from patchloom.run.settings import DEFAULTS, Settings
from patchloom.run.task_report import TaskReport
from patchloom.sources.zarrs import ZarrSource
from patchloom.store.schema import CODECS, Codec
from tests.clusters import local_cluster

ROOT = Path(__file__).parents[1]
PATCHING = {"name": "sequential", "patch_size": [32, 32], "overlaps": [8, 8]}
INTERRUPTED = (
    "patchloom: interrupted; finished shards are kept: run the same command again to go on"
)
SCHEDULERS = ("synchronous", "threads", "processes", "distributed")


@dataclass(frozen=True)
class Troubled(ZarrSource):
    """A source whose readers take their time, and of which the first ones fail."""

    failures: int = 0
    seconds: float = 0.0
    notes: str = ""
    """A folder in which each failure leaves a file: workers share nothing else."""

    def reader(self) -> ChunkReader:
        time.sleep(self.seconds)
        for k in range(self.failures):
            try:
                Path(self.notes, str(k)).touch(exist_ok=False)
            except FileExistsError:
                continue
            raise ChunkError(f"trouble {k}")
        return super().reader()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "image.zarr"
    array = zarr.create_array(path, shape=(1, 512, 512), dtype="uint16", chunks=(1, 64, 64))
    array[...] = np.random.default_rng(0).integers(0, 2**16, (1, 512, 512), dtype="uint16")
    return path


@pytest.fixture
def image(stored: Path) -> Image:
    [found] = patchloom.open_images(stored, axes="CYX")
    return found


def planned(image: Image, rows: int = 16, **options: Any) -> Plan:
    return patchloom.plan(image, PATCHING, rows_per_shard=rows, **options)


def troubled(image: Image, **trouble: Any) -> Image:
    assert isinstance(image.source, ZarrSource)
    known = {f.name: getattr(image.source, f.name) for f in fields(image.source)}
    return replace(image, source=Troubled(**known, **trouble))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    [image] = patchloom.open_images(stored, axes="CYX")
    patchloom.materialize(planned(image), out, progress=False)
    return contents(out)


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """A cluster with its scheduler and workers in this process, so that tests can look inside."""
    with local_cluster(n_workers=2, threads_per_worker=1, processes=False) as cluster:
        yield cluster


@pytest.fixture
def cluster(workers: Any) -> Iterator[Any]:
    """The same with a client that is taken for the scheduler."""
    from distributed import Client

    with Client(workers):
        yield workers


class Seen:
    """What a scheduler had to do with: its tasks, how many at once, what they were asked for."""

    def __init__(self, scheduler: Any) -> None:
        from distributed.diagnostics.plugin import SchedulerPlugin

        self.most = 0
        self.retries = dict[str, int]()
        self.priority = dict[str, int]()
        self.keys = set[Any]()
        seen = self

        class Plugin(SchedulerPlugin):  # type: ignore[misc]  # distributed is untyped
            def update_graph(self, scheduler: Any, **_: Any) -> None:
                # Besides the plan and the job; a result that is fetched is no work.
                tasks = [t for t in scheduler.tasks.values() if t.prefix.name == "patchloom-write"]
                seen.most = max(seen.most, sum(task.state != "memory" for task in tasks))

            def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
                task = scheduler.tasks.get(key)
                if task is None or key in seen.keys:
                    return
                seen.keys.add(key)
                seen.retries[task.prefix.name] = task.retries
                seen.priority[task.prefix.name] = task.priority[0]

        scheduler.add_plugin(Plugin(), name=f"seen-{id(self)}")


# -- settings ---------------------------------------------------------------------------


def test_the_default_file_is_what_is_documented_and_read() -> None:
    """The page shows the file as it is, and without any other configuration it is what is read."""
    text = DEFAULTS.read_text(encoding="utf-8")
    page = (ROOT / "docs" / "schedulers.md").read_text(encoding="utf-8")
    assert f"```\n{text}```\n" in page
    said = yaml.safe_load(text)["patchloom"]
    with dask.config.set(patchloom={}):
        found = Settings.now()
    assert (found.retries, found.priority) == (said["retries"], said["priority"])
    assert found.tasks_at_once == said["tasks-at-once"] <= 50_000
    assert (found.show, found.seconds) == ("auto", 60)
    assert found.memory == 2**30


def test_the_environment_sets_settings() -> None:
    """As for any other package of Dask; ``_`` and ``-`` are the same."""
    code = "from patchloom.run.settings import Settings as s; print(s.now())"
    given = {"TASKS_AT_ONCE": "7", "PROGRESS__SHOW": "nothing", "MEMORY": "2 GiB"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **{f"DASK_PATCHLOOM__{k}": v for k, v in given.items()}},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "memory=2147483648" in done.stdout
    assert "tasks_at_once=7, show='nothing'" in done.stdout


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("patchloom.retrys", 1, "did you mean 'patchloom.retries'"),
        ("patchloom.progress.shows", 1, "did you mean 'patchloom.progress.show'"),
        ("patchloom.tasks_at_onc", 1, "did you mean 'patchloom.tasks-at-once'"),
        ("patchloom.cheese", 1, "there is 'patchloom.memory'"),
        ("patchloom.retries", -1, "is a whole number from 0 on, got -1"),
        ("patchloom.retries", True, "is a whole number from 0 on, got True"),
        ("patchloom.priority", "high", "is a whole number, got 'high'"),
        ("patchloom.tasks-at-once", 0, "is a whole number from 1 on, got 0"),
        ("patchloom.memory", "lots", "is a number of bytes"),
        ("patchloom.progress", "lines", "is a mapping of settings, got 'lines'"),
        ("patchloom.progress.show", "tree", "is one of"),
        ("patchloom.progress.seconds", "soon", "is a number of seconds"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    setting: str, value: Any, says: str, image: Image, tmp_path: Path
) -> None:
    plan = planned(image)
    with dask.config.set({setting: value}), pytest.raises(ConfigError, match=says):
        patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert not (tmp_path / "out.zarr").exists()


def test_memory_is_the_default_of_plans(image: Image) -> None:
    with dask.config.set({"patchloom.memory": "12 MiB"}):
        assert planned(image).memory == 12 * 2**20
        assert planned(image, memory="13 MiB").memory == 13 * 2**20
    assert planned(image).memory == 2**30


# -- names, retries, priorities ---------------------------------------------------------


def test_tasks_have_names_that_read_well(
    image: Image, cluster: Any, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The dashboard groups keys by what they do; settings reach every task of ours."""
    seen = Seen(cluster.scheduler)
    with dask.config.set({"patchloom.priority": 3}):
        patchloom.materialize(planned(image), tmp_path / "out.zarr", progress=False)
    assert {key_split(key) for key in seen.keys} == {
        "patchloom-plan",
        "patchloom-job",
        "patchloom-write",
    }
    assert seen.retries["patchloom-write"] == Settings.now().retries == 2
    assert seen.priority["patchloom-write"] == -3, "the scheduler's smallest goes first"
    assert contents(tmp_path / "out.zarr") == undisturbed


def test_annotations_of_the_caller_go_before_settings(
    image: Image, cluster: Any, tmp_path: Path
) -> None:
    seen = Seen(cluster.scheduler)
    with dask.annotate(retries=5, priority=7):
        patchloom.materialize(planned(image), tmp_path / "out.zarr", progress=False)
    assert seen.retries["patchloom-write"] == 5
    assert seen.priority["patchloom-write"] == -7


def test_a_task_that_fails_twice_is_healed_on_a_cluster(
    image: Image, cluster: Any, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A source that fails twice costs nothing by default, and the run where nothing is retried."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plan = planned(troubled(image, failures=2, notes=str(tmp_path / "a")))
    # One task alone: both failures are its own.
    plan = replace(plan, rows_per_shard=plan.n_patches)
    report = patchloom.materialize(plan, tmp_path / "one.zarr", progress=False)
    assert (report.complete, report.n_tasks) == (True, 1)
    assert len(list((tmp_path / "a").iterdir())) == 2

    plan = planned(troubled(image, failures=1, notes=str(tmp_path / "b")))
    with dask.config.set({"patchloom.retries": 0}), pytest.raises(ChunkError, match="trouble 0"):
        patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert contents(tmp_path / "out.zarr") == undisturbed


# -- progress ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_progress_is_told_in_patches_on_every_scheduler(
    scheduler: str,
    image: Image,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    """Lines in a log while tasks finish: patches, bytes a second, time to go, reads a chunk."""
    if scheduler == "distributed":
        request.getfixturevalue("cluster")
        set_to = dask.config.set({})
    else:
        set_to = dask.config.set(scheduler=scheduler, num_workers=2)
    plan = planned(image)
    with caplog.at_level(logging.INFO, "patchloom"), set_to:
        report = patchloom.materialize(plan, tmp_path / "out.zarr")
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("materialize: ")]
    assert 2 <= len(lines) <= 10
    assert all("MB/s" in line and "reads a chunk" in line for line in lines)
    assert "to go" in lines[0]
    n = plan.n_patches
    assert lines[-1].startswith(f"materialize: {n} of {n} patches, {plan.n_tasks} of ")
    assert f"{report.read_amplification:.2f} reads a chunk" in lines[-1]


def test_chunks_owned_by_tasks_add_up_to_those_needed(image: Image) -> None:
    """So that the reads a chunk so far are exact at the end, masks or not, in any order."""
    mask = np.zeros((512, 512), bool)
    mask[100:300, 50:400] = True
    for order in ("spatial", "shuffled"):
        for share in (0, 0.5):
            [one] = patchloom.open_images(image.uri, axes="CYX", mask=mask if share else None)
            plan = planned(one, min_coverage=share, order=order)
            graph = run_graph(plan, job_of(plan), range(plan.n_shards), "t")
            told: list[TaskReport] = list(dask.get(graph.dsk, list(graph.keys)))
            assert sum(t.chunks_owned for t in told) == plan.chunks_needed
            assert sum(t.n_patches for t in told) == plan.n_patches


def job_of(plan: Plan) -> Job:
    """What `materialize` tells the tasks, for a store in memory."""
    return Job(Location(f"memory://{next(_numbers)}"), _specs(plan, (), Codec(CODECS[0])))


_numbers = count()


def test_a_bar_on_a_terminal(stored: Path, tmp_path: Path) -> None:
    """A real terminal: the bar is drawn on it, with the same figures as the lines."""
    job = tmp_path / "job.yaml"
    job.write_text(
        f"images: {stored}\naxes: CYX\noutput: {tmp_path / 'a.zarr'}\nrows_per_shard: 16\n"
        "patching: {name: sequential, patch_size: [32, 32]}\n"
    )
    master, slave = pty.openpty()
    client = subprocess.Popen(
        [sys.executable, "-m", "patchloom", "run", str(job)],
        stdout=subprocess.DEVNULL,
        stderr=slave,
        env={**os.environ, "COLUMNS": "160"},
    )
    os.close(slave)
    shown = read_all(master)
    assert client.wait(240) == 0
    assert "256 of 256 patches" in shown
    assert "\x1b[" in shown


def read_all(terminal: int) -> str:
    """What is written on a terminal until nobody has it open."""
    data = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:
            more = b""
        if not more:
            os.close(terminal)
            return data.decode()
        data += more


def test_results_of_surveys_count_too() -> None:
    """A survey's tasks give what they found and what they read; others are counted as tasks."""
    progress = Progress("survey", 4, 0, replace(Settings.now(), show="nothing"))
    progress.step(({}, Reads(3, 1, 5_000_000)))
    progress.step([1, 2])
    assert progress.share == 0.5
    assert progress.text().startswith("2 of 4 tasks, read ")
    assert "patches" not in progress.text()


# -- waves ------------------------------------------------------------------------------


def test_a_cluster_knows_few_tasks_at_a_time(
    image: Image, cluster: Any, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """However many tasks a plan has; the plan and the job are sent once."""
    plan = planned(image)
    seen = Seen(cluster.scheduler)
    with dask.config.set({"patchloom.tasks-at-once": 4}):
        report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert report.n_tasks == plan.n_tasks >= 16
    assert 1 < seen.most <= 4
    assert len(seen.keys) == plan.n_tasks + 2
    assert contents(tmp_path / "out.zarr") == undisturbed


@pytest.mark.parametrize("at_once", [1, 5])
def test_threads_know_few_tasks_at_a_time(
    at_once: int, image: Image, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    from dask.callbacks import Callback

    sizes = []
    watch = Callback(start_state=lambda dsk, state: sizes.append(len(dsk)))
    with dask.config.set({"patchloom.tasks-at-once": at_once}), watch:
        patchloom.materialize(planned(image), tmp_path / "out.zarr", progress=False)
    assert max(sizes) <= at_once + 2
    assert contents(tmp_path / "out.zarr") == undisturbed


def test_a_task_that_needs_more_blocks_than_a_window_goes_alone(
    cluster: Any, tmp_path: Path
) -> None:
    """Of an array of many small blocks, one task of ours needs more than are handed in at once."""
    pixels = np.random.default_rng(3).integers(0, 2**16, (96, 96), dtype="uint16")
    images = patchloom.open_images(da.from_array(pixels, chunks=(8, 8)), axes="YX")
    plan = patchloom.plan(images, PATCHING, rows_per_shard=8)
    with dask.config.set({"patchloom.tasks-at-once": 20}):
        report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert report.complete
    for row, patch in enumerate(patchloom.open_patches(tmp_path / "out.zarr")[:]):
        y, x = plan.get_patch_spec(row)["coords"]
        assert (patch[0] == pixels[y : y + 32, x : x + 32]).all()


# -- graphs -----------------------------------------------------------------------------


def empty(path: Path, shape: Sequence[int], chunks: Sequence[int]) -> Path:
    zarr.create_array(path, shape=tuple(shape), chunks=tuple(chunks), dtype="uint16")
    return path


def test_the_graph_of_ten_terabytes_is_small(tmp_path: Path) -> None:
    """A task a run, a few hundred bytes each; the plan a few bytes a chunk, once."""
    path = empty(tmp_path / "a.zarr", (1, 2_252_800, 2_252_800), (1, 2048, 2048))
    images = patchloom.open_images(path, axes="CYX")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [256, 256]})
    assert images[0].dtype.itemsize * np.prod(images[0].shape, dtype=float) > 10e12
    graph = run_graph(plan, Job(Location.of("memory://out")), range(plan.n_shards), "token")
    assert len(graph.keys) == plan.n_tasks
    some = graph.part(graph.keys[:1000])
    assert len(some) == 1000
    assert len(pickle.dumps(some)) < 200 * len(some)
    assert len(pickle.dumps(graph.shared)) < 8 * len(plan.cells)


def test_resumed_shards_go_to_the_tasks_of_their_runs(image: Image) -> None:
    """Each missing shard once, in the task that has its run; tasks without any are left out."""
    plan = planned(image, rows=2)
    missing = sorted(np.random.default_rng(1).choice(plan.n_shards, 20, replace=False).tolist())
    graph = run_graph(plan, Job(Location.of("memory://out")), missing, "token")
    tasks = graph.part(graph.keys)
    dealt = {int(key[1]): [*task[4]] for key, task in tasks.items()}
    assert [s for shards in dealt.values() for s in shards] == missing
    assert all({*shards} <= {*plan.runs.shards(task)} for task, shards in dealt.items())


@pytest.mark.parametrize("order", ["spatial", "shuffled"])
def test_chunks_needed_by_some_shards_are_counted_in_stretches(order: str, image: Image) -> None:
    """As one by one, wherever shards are missing."""
    plan = planned(image, rows=3, order=order)
    draw = np.random.default_rng(4)
    for share in (0.05, 0.5, 0.95):
        shards = np.flatnonzero(draw.random(plan.n_shards) < share).tolist()
        want = set()
        for shard in shards:
            for row in range(shard * 3, min(shard * 3 + 3, plan.n_patches)):
                y, x = plan.get_patch_spec(row)["coords"]
                want |= {(i // 64, j // 64) for i in (y, y + 31) for j in (x, x + 31)}
        assert _needed(plan, shards) == len(want)


def transformed(array: Any, chunk: int) -> Any:
    """What a user may do to a Dask array, through xarray."""
    named = xr.DataArray(array, dims=("c", "y", "x"))
    scaled = named.astype("uint16") // 3 + 7
    return da.map_blocks(np.flip, scaled.data, axis=2, dtype="uint16").rechunk((1, chunk, chunk))


def test_dask_arrays_of_any_make_go_through_the_same_plan(image: Image, tmp_path: Path) -> None:
    """Patches of a transformed array are slices of it, in waves too; each block made once."""
    pixels = np.random.default_rng(2).integers(0, 2**16, (1, 192, 192), dtype="uint16")
    array = transformed(da.from_array(pixels, chunks=(1, 48, 96)), 64)
    blocks = [np.flip(pixels[:, :, x : x + 96] // 3 + 7, axis=2) for x in (0, 96)]
    want = np.concatenate(blocks, axis=2)
    for at_once in (10_000, 20):
        plan = patchloom.plan(patchloom.open_images(array, axes="CYX"), PATCHING, rows_per_shard=4)
        out = tmp_path / f"{at_once}.zarr"
        with dask.config.set({"patchloom.tasks-at-once": at_once}):
            report = patchloom.materialize(plan, out, progress=False)
        store = patchloom.open_patches(out)
        for row, patch in enumerate(store[:]):
            y, x = plan.get_patch_spec(row)["coords"]
            assert (patch == want[:, y : y + 32, x : x + 32]).all()
        assert report.read_amplification == 1.0 or at_once == 20


def test_graphs_of_dask_arrays_have_a_task_a_run_of_ours(tmp_path: Path) -> None:
    """Whatever the array is made of, and nothing of it is computed; its own tasks stay its own."""
    array = transformed(da.zeros((1, 65536, 65536), chunks=(1, 1024, 2048), dtype="uint16"), 4096)
    plan = patchloom.plan(
        patchloom.open_images(array, axes="CYX"), {"name": "sequential", "patch_size": [64, 64]}
    )
    graph = run_graph(plan, Job(Location.of("memory://out")), range(plan.n_shards), "token")
    ours = [key for key in graph.dsk if "patchloom" in str(key)]
    assert len(ours) == plan.n_tasks + 2 <= plan.n_shards + 2
    assert len(pickle.dumps(graph.shared)) < 100_000


def test_blocks_of_a_task_are_found_without_a_loop_over_patches() -> None:
    """Four times the patches: not one Python call more for the blocks that they touch."""
    images = patchloom.open_images(
        da.zeros((1, 1024, 1024), chunks=(1, 128, 128), dtype="uint8"), axes="CYX"
    )
    calls = {}
    for stride in (32, 16):
        config = {"name": "sequential", "patch_size": [32, 32], "overlaps": [32 - stride] * 2}
        whole = patchloom.plan(images, config)
        plan = patchloom.plan(images, config, rows_per_shard=whole.n_patches)
        graph = run_graph(plan, Job(Location.of("memory://out")), [0], "token")
        graph.part(graph.keys)
        n = 0

        def trace(frame: Any, event: str, argument: Any) -> None:
            nonlocal n
            n += event == "call"

        sys.setprofile(trace)
        try:
            graph.part(graph.keys)
        finally:
            sys.setprofile(None)
        calls[whole.n_patches] = n
    few, many = sorted(calls)
    assert many > 3.5 * few
    assert calls[many] <= 1.2 * calls[few]


# -- interrupts -------------------------------------------------------------------------


def committed(out: Path) -> int:
    return len(list((out / "manifest").glob("*.parquet")))


def interrupt(client: subprocess.Popen[str], out: Path) -> tuple[int, str, int]:
    """Press Ctrl-C when some shards are there: exit status, what it said, shards by then."""
    while client.poll() is None and committed(out) < 3:
        time.sleep(0.002)
    before = committed(out)
    client.send_signal(signal.SIGINT)
    said, errors = client.communicate(timeout=240)
    assert not said
    return client.returncode, errors, before


@pytest.mark.parametrize("where", ["threads", "distributed"])
def test_ctrl_c_leaves_a_store_that_is_gone_on_with(
    where: str, stored: Path, tmp_path: Path
) -> None:
    """Exit code 130, one line, no trace; what had not begun never does; the next run ends it."""
    from distributed import Client

    out = tmp_path / "out.zarr"
    job = tmp_path / "job.yaml"
    job.write_text(
        f"images: {stored}\naxes: CYX\noutput: {out}\nrows_per_shard: 32\n"
        "patching: {name: sequential, patch_size: [32, 32], overlaps: [24, 24]}\n"
    )
    run = [sys.executable, "-m", "patchloom", "run", str(job)]
    quiet = {
        **os.environ,
        "DASK_PATCHLOOM__PROGRESS__SHOW": "nothing",
        "DASK_NUM_WORKERS": "2",
    }
    plan = patchloom.plan(
        patchloom.open_images(stored, axes="CYX"),
        {"name": "sequential", "patch_size": [32, 32], "overlaps": [24, 24]},
        rows_per_shard=32,
    )
    with contextlib.ExitStack() as stack:
        if where == "distributed":
            two = local_cluster(n_workers=2, threads_per_worker=1, processes=True)
            cluster = stack.enter_context(two)
            run += ["--scheduler", cluster.scheduler_address]
        client = subprocess.Popen(
            run,
            env=quiet,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background jobs ignore Ctrl-C, and so do their children.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        status, said, before = interrupt(client, out)
        at_exit = committed(out)
        assert status == 130
        assert said.strip() == INTERRUPTED
        if where == "distributed":
            watching = stack.enter_context(Client(cluster))
            while any(watching.call_stack().values()):
                time.sleep(0.05)
            assert not cluster.scheduler.tasks
    after = committed(out)
    # Tasks that ran on a cluster may have gone on to their end, two of them and no others.
    running = 2 * int(np.diff(plan.runs.bounds).max()) if where == "distributed" else 0
    assert before <= at_exit <= after <= at_exit + running
    assert after < plan.n_shards
    done = subprocess.run(
        [sys.executable, "-m", "patchloom", "run", str(job), "--json"],
        env=quiet,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["already_done"] >= before >= 3
    assert report["complete"]
    patchloom.materialize(plan, tmp_path / "whole.zarr", progress=False)
    assert contents(out) == contents(tmp_path / "whole.zarr")


# -- clusters ---------------------------------------------------------------------------


def test_a_performance_report_is_written(image: Image, tmp_path: Path) -> None:
    """With a real cluster: the page has our tasks by name."""
    pytest.importorskip("bokeh")
    from distributed import Client, performance_report

    page = tmp_path / "report.html"
    with (
        local_cluster(n_workers=1, threads_per_worker=2, processes=True) as cluster,
        Client(cluster),
        performance_report(filename=str(page)),
    ):
        patchloom.materialize(planned(image), tmp_path / "out.zarr", progress=False)
    assert "patchloom-write" in page.read_text(encoding="utf-8")


def run_while(plan: Plan, out: Path, change: partial[None]) -> None:
    """Materialize, and change the cluster in a thread of its own meanwhile."""
    changing = threading.Thread(target=change)
    changing.start()
    try:
        report = patchloom.materialize(plan, out, progress=False)
    finally:
        changing.join()
    assert report.complete


def scale(cluster: Any, out: Path) -> None:
    """Grow when three shards are there, shrink to one worker when nine are."""
    for n_shards, n_workers in ((3, 3), (9, 1)):
        while committed(out) < n_shards:
            time.sleep(0.005)
        cluster.scale(n_workers)


def test_a_cluster_that_grows_and_shrinks_in_mid_run(
    image: Image, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Real workers come and go by hand while tasks run: the same bytes."""
    from distributed import Client

    out = tmp_path / "out.zarr"
    plan = planned(troubled(image, seconds=0.3))
    with (
        local_cluster(n_workers=1, threads_per_worker=1, processes=True) as cluster,
        Client(cluster),
    ):
        run_while(plan, out, partial(scale, cluster, out))
    assert contents(out) == undisturbed


@pytest.mark.slow
def test_an_adaptive_cluster_from_nothing_to_nothing(
    image: Image, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Dask brings workers for our tasks and takes them away again; the next run brings new ones."""
    from distributed import Client

    with (
        local_cluster(n_workers=0, threads_per_worker=1, processes=True) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=0, maximum=3, interval="200ms", target_duration="1s")
        most = 0
        for name in ("one", "two"):
            plan = planned(troubled(image, seconds=0.5))
            done = threading.Event()

            def watch(done: threading.Event = done) -> None:
                nonlocal most
                while not done.wait(0.02):
                    most = max(most, len(client.scheduler_info(n_workers=-1)["workers"]))

            watching = threading.Thread(target=watch)
            watching.start()
            patchloom.materialize(plan, tmp_path / f"{name}.zarr", progress=False)
            done.set()
            watching.join()
            while client.scheduler_info(n_workers=-1)["workers"]:
                time.sleep(0.1)
        assert most >= 2
    for name in ("one", "two"):
        assert contents(tmp_path / f"{name}.zarr") == undisturbed
