"""Rows 1 to 3 and 12: workers, clients and schedulers that die, and two clients at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

import patchloom
from patchloom.errors import SchedulerLostError
from patchloom.planning.plans import Plan
from tests.clients import PATCHING, ROWS, arguments, contents, finish, kill_at, start
from tests.clusters import local_cluster
from tests.servers.process import HOST, free_port, running, wait_until

ROOT = Path(__file__).parents[2]


def seeds(n: int, fast: int) -> list[Any]:
    """Numbers of random points, of which some run by default."""
    return [pytest.param(k, marks=[pytest.mark.slow] if k >= fast else []) for k in range(n)]


def committed(out: Path) -> int:
    """Shards of a store."""
    return len(list((out / "manifest").glob("*.parquet")))


class Cluster:
    """Two worker processes whose nannies start them again; a new one where they gave it up."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._client: Any = None

    def client(self) -> Any:
        """A client of it, with a worker that lives."""
        from distributed import Client

        if self._client is not None:
            try:
                self._client.wait_for_workers(1, timeout=20)
            except TimeoutError:
                self.close()
        if self._client is None:
            # On a busy machine a new worker is slow, but not lost.
            patience = {"distributed.deploy.lost-worker-timeout": "300s"}
            self._stack.enter_context(dask.config.set(patience))
            options = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
            cluster = self._stack.enter_context(local_cluster(**options))
            self._client = self._stack.enter_context(Client(cluster))
        return self._client

    def close(self) -> None:
        """End it."""
        self._client = None
        self._stack.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster for all rows that need one."""
    with contextlib.closing(Cluster()) as found:
        yield found


@contextlib.contextmanager
def killing_at(client: Any, out: Path, n: int, rng: random.Random) -> Iterator[list[int]]:
    """Kill one worker as soon as so many shards are committed; yields whom it killed."""
    import psutil

    pids = sorted(client.run(os.getpid).values())
    over, killed = threading.Event(), list[int]()

    def kill() -> None:
        while committed(out) < n and not over.is_set():
            time.sleep(0.002)
        victim = rng.choice(pids)
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(victim).kill()
            killed.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


def planned(image: Path) -> Plan:
    """The job of these rows."""
    [opened] = patchloom.open_images(image, axes="CYX")
    return patchloom.plan(opened, PATCHING, rows_per_shard=ROWS)


@pytest.mark.parametrize("seed", seeds(20, 1))
def test_killed_workers_cost_nothing(
    seed: int, cluster: Cluster, image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A worker of a real cluster is killed at a random point: the same call, the same bytes."""
    out, rng = tmp_path / "out.zarr", random.Random(seed)
    plan = planned(image)
    with killing_at(cluster.client(), out, rng.randrange(plan.n_shards // 2), rng) as killed:
        report = patchloom.materialize(plan, out, progress=False)
    assert len(killed) == 1
    assert report.complete
    assert contents(out) == undisturbed


@pytest.mark.slow
def test_workers_that_die_of_a_task_stop_the_run(
    cluster: Cluster, image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A task that no worker survives is an error of ours, and the next run completes."""
    out, client = tmp_path / "out.zarr", cluster.client()
    scheduler = client.cluster.scheduler
    allowed, scheduler.allowed_failures = scheduler.allowed_failures, 0
    try:
        with (
            pytest.raises(
                SchedulerLostError, match=r"1 workers died .* more than memory= .* again"
            ),
            killing_at(client, out, 3, random.Random(0)),
        ):
            patchloom.materialize(planned(image), out, progress=False)
    finally:
        scheduler.allowed_failures = allowed
    cluster.client()
    assert patchloom.materialize(planned(image), out, progress=False).already_done >= 3
    assert contents(out) == undisturbed


@pytest.mark.parametrize("seed", seeds(6, 1))
def test_killed_client_resumes_to_the_same_bytes(
    seed: int, image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Killed twice at random points, then run to its end: nothing differs, nothing is left over."""
    out = tmp_path / "out.zarr"
    shards = sum(name.startswith("manifest/") for name in undisturbed)
    points = sorted(random.Random(seed).sample(range(shards), 2))
    for n in points:
        kill_at(start(arguments(image, out)), lambda: committed(out), n)
    (out / "images" / "c").mkdir(parents=True, exist_ok=True)
    (out / "images" / "c" / f"0.{uuid.uuid4().hex}.part").write_bytes(b"half an object")
    report = finish(arguments(image, out))
    assert report["complete"]
    assert report["already_done"] + report["n_shards"] == shards
    assert report["already_done"] >= points[0]
    assert contents(out) == undisturbed


@contextlib.contextmanager
def scheduler_and_worker(folder: Path) -> Iterator[tuple[str, Any]]:
    """A scheduler and a worker as processes of their own: its address, and its process."""
    folder.mkdir()
    address = f"tcp://{HOST}:{free_port()}"
    dask, env = [sys.executable, "-m", "distributed.cli"], {"PYTHONPATH": os.pathsep.join(sys.path)}
    port = address.rpartition(":")[2]
    with contextlib.ExitStack() as stack:
        more = ("--port", port, "--host", HOST, "--dashboard-address", ":0")
        scheduler = stack.enter_context(
            running("scheduler", [*dask[:2], f"{dask[2]}.dask_scheduler", *more], folder, env=env)
        )
        more = (address, "--nthreads", "1", "--no-nanny", "--dashboard-address", ":0")
        worker = stack.enter_context(
            running("worker", [*dask[:2], f"{dask[2]}.dask_worker", *more], folder, env=env)
        )
        wait_until(lambda: "Registered to" in worker.tail(), "the worker", [scheduler, worker])
        yield address, scheduler


@pytest.mark.slow
def test_lost_scheduler_is_said_and_a_new_one_finishes(
    image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The scheduler of a run on the command line is killed: a sentence, no hang, no stack trace."""
    import psutil

    out, job = tmp_path / "out.zarr", tmp_path / "job.yaml"
    given = {"images": [str(image)], "axes": "CYX", "patching": PATCHING, "rows_per_shard": ROWS}
    job.write_text(json.dumps({**given, "output": str(out)}))

    def client(address: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "patchloom", "run", str(job), "--scheduler", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    with scheduler_and_worker(tmp_path / "first") as (address, scheduler):
        lost = client(address)
        while committed(out) < 3 and lost.poll() is None:
            time.sleep(0.002)
        # Its leash would end it gently; the daemon itself is killed.
        for process in psutil.Process(scheduler.popen.pid).children():
            process.kill()
        _, err = lost.communicate(timeout=120)
    assert lost.returncode == 3, err
    assert "Traceback" not in err
    assert f"its tasks at {address} were cancelled" in err
    assert "run the same call again" in err
    assert committed(out) >= 3
    with scheduler_and_worker(tmp_path / "second") as (address, _):
        again = client(address)
        _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert contents(out) == undisturbed


def test_two_clients_at_once_write_the_same_bytes(
    image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Two clients of one job on one store: both end, and nothing differs."""
    out = tmp_path / "out.zarr"
    first = start(arguments(image, out))
    while first.poll() is None and not list(out.rglob("*.part")):
        time.sleep(0.002)
    second = start(arguments(image, out))
    for client in (first, second):
        _, err = client.communicate(timeout=240)
        assert client.returncode == 0, err
    assert contents(out) == undisturbed
