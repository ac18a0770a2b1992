"""Our side: the same job asked of patchloom, and its cutting alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import distributed

import patchloom
from benchmarks.workloads import Sources, Workload
from patchloom.run.batches import cut_batches

COUNTS = (
    "n_patches",
    "n_shards",
    "n_tasks",
    "chunks_needed",
    "chunk_reads",
    "read_amplification",
    "bytes_read",
    "requests",
    "bytes_written",
    "peak_memory",
)
"""What is taken over from the run's report."""

N_WORKERS = 2
"""Threads, or worker processes of one thread, as many as the floor has threads."""


@dataclass(frozen=True)
class JobReport:
    """What one run of the job did.

    Parameters
    ----------
    seconds, phases
        Wall time from opening the image to the last byte written, whole and by phase.
    counts
        The run's own figures, named in :data:`COUNTS`.
    rows_per_shard
        Patches a shard, which the floor is told to write too.
    """

    seconds: float
    phases: dict[str, float]
    counts: dict[str, Any]
    rows_per_shard: int


@contextlib.contextmanager
def engine(scheduler: str) -> Iterator[Callable[[], float]]:
    """Make the Dask scheduler that jobs inside the block run on.

    Parameters
    ----------
    scheduler
        ``threads``, or ``distributed`` for a local cluster of processes.

    Yields
    ------
    callable
        Returns the processor seconds that this process and the workers have used so far.
    """
    if scheduler == "threads":
        with dask.config.set(scheduler="threads", num_workers=N_WORKERS):
            yield time.process_time
        return
    with (
        distributed.LocalCluster(
            n_workers=N_WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield lambda: time.process_time() + sum(client.run(time.process_time).values())


def run_job(workload: Workload, sources: Sources, out: Path) -> JobReport:
    """Open, plan and materialise once, on the scheduler in force.

    Parameters
    ----------
    workload
        The patches asked.
    sources
        Where its image and mask lie.
    out
        Where the store goes; must not exist.

    Returns
    -------
    JobReport
        Counts and times.
    """
    start = time.perf_counter()
    plan = plan_of(workload, sources)
    planned = time.perf_counter()
    report = patchloom.materialize(plan, str(out), percentiles=(1, 99), progress=False)
    stop = time.perf_counter()
    return JobReport(
        seconds=stop - start,
        phases={"plan": planned - start, "materialize": stop - planned},
        counts={name: getattr(report, name) for name in COUNTS},
        rows_per_shard=int(plan.rows_per_shard),
    )


def run_cut(workload: Workload, sources: Sources) -> tuple[float, list[Any]]:
    """Open, plan and cut once on two threads, without a store; all pixels stay in memory.

    Returns
    -------
    float, list of (rows, pixels)
        Wall seconds, and the batches in the order of tasks.
    """
    start = time.perf_counter()
    plan = plan_of(workload, sources)

    def cut(task: int) -> list[Any]:
        shards = list(plan.runs.shards(task))
        return [(rows, pixels["image"]) for rows, pixels in cut_batches(plan, shards)]

    with ThreadPoolExecutor(N_WORKERS) as pool:
        batches = [batch for found in pool.map(cut, range(plan.n_tasks)) for batch in found]
    return time.perf_counter() - start, batches


def plan_of(workload: Workload, sources: Sources) -> Any:
    """Open the images and make the plan of a workload."""
    images = patchloom.open_images(
        [str(sources.image)], mask=str(sources.mask), axes=workload.dataset.axes
    )
    return patchloom.plan(
        images,
        {
            "name": "sequential",
            "patch_size": list(workload.patch_size),
            "overlaps": list(workload.overlaps),
        },
        min_coverage=workload.min_coverage,
        edge="drop",
        order="spatial",
        seed=0,
    )
