"""Weigh scheduler and client at a petabyte: a real plan, its real graph, tasks that only sleep.

``python -m benchmarks scheduling --help`` lists the options; ``README.md`` says what each number
means. No chunk of the images is written: planning reads none, and nothing is cut.
"""

from __future__ import annotations

import argparse
import copy
import pickle
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

import patchloom
from benchmarks import environment
from patchloom.location import Location
from patchloom.planning.plans import Plan
from patchloom.run.cutting import Job
from patchloom.run.executing import execute
from patchloom.run.graph import Graph, run_graph
from patchloom.run.task_report import TaskReport

COUNTS = (2_500, 5_000, 10_000, 20_000)
"""Tasks of the simulated runs."""
ALONE = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "1h",
}
"""What each worker does for itself, and what a hundred of one process would do a hundred times."""
TARGETS = {"live": 50_000, "graph_cpu_s": 2.0, "share": 0.02, "wall_s": 600.0}
"""Tasks known at a time, making a graph, the scheduler's share, 20,000 simulated tasks: at most."""


@dataclass(frozen=True)
class Case:
    """Images to plan without a chunk of them written.

    Parameters
    ----------
    name
        What the table calls it.
    n_images
        Images of the same make.
    shape, chunks, patch_size
        Extents in pixels, of uint16.
    rows_per_shard, memory
        Of the plan.
    """

    name: str
    n_images: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    patch_size: tuple[int, ...]
    rows_per_shard: int | None = None
    memory: str | None = None

    def plan(self, folder: Path) -> Plan:
        """The plan of a grid over the images."""
        path = folder / f"{'x'.join(map(str, self.shape))}.zarr"
        zarr.create_array(path, shape=self.shape, chunks=self.chunks, dtype="uint16")
        [image] = patchloom.open_images(path)
        images = [replace(image, id=f"{k:05}") for k in range(self.n_images)]
        config = {"name": "sequential", "patch_size": list(self.patch_size)}
        return patchloom.plan(
            images, config, rows_per_shard=self.rows_per_shard, memory=self.memory
        )


PETABYTE = Case("1 PB", 1, (79872,) * 3, (256,) * 3, (128,) * 3, rows_per_shard=64, memory="2 GiB")
CASES = (
    Case("10 TB", 1, (2_252_800,) * 2, (2048,) * 2, (256,) * 2),
    Case("10,000 images", 10_000, (16_384,) * 2, (512,) * 2, (256,) * 2),
    PETABYTE,
)
"""The plans whose graphs are made."""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark of scheduler and client.

    Parameters
    ----------
    argv
        Arguments after ``scheduling``.

    Returns
    -------
    int
        Exit status.
    """
    options = _parser().parse_args(argv)
    neighbours = environment.Neighbours(_cpu)
    document: dict[str, Any] = {"graphs": [], "runs": [], "share": None}
    plans: list[Plan] = []
    with tempfile.TemporaryDirectory(prefix="patchloom-scheduling-") as name:
        for case in CASES:
            plan, record = _graph(case, Path(name), options.repeats)
            plans.append(plan)
            document["graphs"].append(record)
            print(_told(record), flush=True)
    document["runs"] = simulate(fine(plans[-1]), options.tasks, options.workers, options.sleep)
    document["share"] = _share(plans[0], options)
    print(_told(document["share"]), flush=True)
    document |= {
        "slope": _slope(document["runs"]),
        "targets": TARGETS,
        "others": neighbours.load(),
    }
    print(_told(document["slope"]), flush=True)
    if options.output is not None:
        environment.save(options.output, "scheduling", argv, **document)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scheduling", description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[*COUNTS], help="of each run")
    parser.add_argument("--workers", type=int, default=128, help="in this process, a thread each")
    parser.add_argument("--sleep", type=float, default=0.1, help="seconds of a simulated task")
    parser.add_argument("--share-tasks", type=int, default=240, help="tasks of a second each")
    parser.add_argument("--repeats", type=int, default=3, help="graphs made of each plan")
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    return parser


def _graph(case: Case, folder: Path, repeats: int) -> tuple[Plan, dict[str, Any]]:
    """A plan, and what its graph takes."""
    planning, plan = _timed(lambda: case.plan(folder))
    made = [_timed(lambda: _everything(plan)) for _ in range(repeats)]
    graph = made[0][1]
    some = graph.part(graph.keys[:1000])
    return plan, {
        "case": asdict(case),
        "bytes": int(case.n_images * np.prod(case.shape, dtype=np.int64) * 2),
        "cells": len(plan.cells),
        "n_patches": plan.n_patches,
        "n_shards": plan.n_shards,
        "n_tasks": plan.n_tasks,
        "plan_cpu_s": planning,
        "graph_cpu_s": statistics.median(seconds for seconds, _ in made),
        "first_part_cpu_s": _timed(lambda: _first(plan))[0],
        "shared_bytes": len(pickle.dumps(graph.shared)),
        "bytes_a_task": len(pickle.dumps(some)) / len(some),
        "client_mib": _mib(),
    }


def fine(plan: Plan) -> Plan:
    """The plan with each leg as a task of its own: more tasks than plans have by themselves."""
    runs = plan.runs
    memory = np.full(len(runs.legs) - 1, runs.peak_memory)
    found = copy.copy(plan)
    found.__dict__["runs"] = replace(runs, bounds=runs.legs, memory=memory)
    return found


def _everything(plan: Plan) -> Graph:
    """Make every task once, as a run does it part by part."""
    graph = run_graph(plan, Job(Location.of("memory://out")), np.arange(plan.n_shards), "token")
    for start in range(0, len(graph.keys), 2500):
        graph.part(graph.keys[start : start + 2500])
    return graph


def _first(plan: Plan) -> None:
    graph = run_graph(plan, Job(Location.of("memory://out")), np.arange(plan.n_shards), "token")
    graph.part(graph.keys[:2500])


def _sleep(
    seconds: float, plan: Plan, job: Job, shards: Sequence[int], supplied: Any
) -> TaskReport:
    """What a simulated task does."""
    begun = time.perf_counter()
    time.sleep(seconds)
    n = len(shards) * plan.rows_per_shard
    return TaskReport(n_patches=n, n_shards=len(shards), seconds=time.perf_counter() - begun)


class _Live(SchedulerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Most tasks that a scheduler knows at a time."""

    name = "patchloom-live"

    def __init__(self) -> None:
        self.most = 0

    def update_graph(self, scheduler: Any, **_: Any) -> None:
        """Called for each part of a graph."""
        self.most = max(self.most, len(scheduler.tasks))


def simulate(
    plan: Plan, counts: Sequence[int], n_workers: int, sleep: float
) -> list[dict[str, Any]]:
    """Run the first tasks of a plan on many workers in this process; each only sleeps.

    Parameters
    ----------
    plan
        Of which so many tasks are taken.
    counts
        Tasks of each run.
    n_workers
        Of one thread each.
    sleep
        Seconds of a task.

    Returns
    -------
    list of dict
        What each run took, and the most tasks that the scheduler knew at a time.
    """
    records = []
    with (
        # So many workers in one process would watch one another all the time.
        dask.config.set(ALONE),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=False,
            memory_limit=0,
            dashboard_address=":0",
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster),
    ):
        for n in counts:
            live = _Live()
            cluster.scheduler.add_plugin(live)
            records.append({**_run(plan, n, sleep), "live": live.most})
            cluster.scheduler.remove_plugin(live.name)
            print(_told(records[-1]), flush=True)
    return records


def _run(plan: Plan, n_tasks: int, seconds: float) -> dict[str, Any]:
    """The first tasks of a plan, asleep."""
    shards = np.arange(plan.runs.bounds[n_tasks])
    began, cpu = time.perf_counter(), _cpu()
    graph = run_graph(
        plan, Job(Location.of("memory://out")), shards, f"{n_tasks}", write=partial(_sleep, seconds)
    )
    done: list[TaskReport] = execute(graph, progress=False, label="simulation")
    assert sum(report.n_shards for report in done) == len(shards)
    wall = time.perf_counter() - began
    return {
        "n_tasks": len(done),
        "wall_s": wall,
        "cpu_s": _cpu() - cpu,
        "wall_ms_a_task": 1e3 * wall / len(done),
        "cpu_ms_a_task": 1e3 * (_cpu() - cpu) / len(done),
        "slept_s": sum(report.seconds for report in done),
        "client_mib": _mib(),
    }


def _share(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """What is left of the wall time beside tasks of a second, on a cluster of processes."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=4,
            processes=True,
            memory_limit=0,
            dashboard_address=":0",
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster) as client,
    ):
        threads = sum(client.nthreads().values())
        # Workers import us, and the first tasks wait for the plan, once however many follow.
        first = _run(plan, threads, 0.0)
        short, long = (_run(plan, n, 1.0) for n in (options.share_tasks // 3, options.share_tasks))
    longer = {name: long[name] - short[name] for name in ("wall_s", "slept_s", "cpu_s")}
    return {
        "threads": threads,
        "runs": [first, short, long],
        "share": 1 - long["slept_s"] / (threads * long["wall_s"]),
        "share_without_start": 1 - longer["slept_s"] / (threads * longer["wall_s"]),
        "share_of_cpu": longer["cpu_s"] / (threads * longer["wall_s"]),
    }


def _slope(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of a line through the runs: milliseconds for each task more."""
    n = [run["n_tasks"] for run in runs]
    return {
        f"{key}_ms_a_task": 1e3 * float(np.polyfit(n, [run[f"{key}_s"] for run in runs], 1)[0])
        for key in ("wall", "cpu")
        if len(runs) > 1
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of this process, and what came of it."""
    begun = _cpu()
    found = work()
    return _cpu() - begun, found


def _cpu() -> float:
    return time.process_time()


def _mib() -> float:
    """Most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _told(record: dict[str, Any]) -> str:
    words = []
    for name, value in record.items():
        if isinstance(value, dict):
            value = value["name"]
        words.append(f"{name} {value:,.3f}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(words)
