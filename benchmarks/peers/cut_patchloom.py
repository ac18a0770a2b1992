"""Our side: a saved plan cut through `cut_batches`, or images planned and materialised.

Everybody is told which patches to cut by a file. Ours is a plan, which is made and saved before the
clock runs and loaded while it does; how long it took to make is a count of its own.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import numpy as np
from patches import Job, Take, Written, serve

import patchloom
from patchloom.run.batches import cut_batches

COUNTS = (
    "n_shards",
    "n_tasks",
    "chunks_needed",
    "chunk_reads",
    "read_amplification",
    "bytes_read",
    "requests",
    "bytes_written",
)
"""What is taken over from the run's report."""


def _plan(job: Job) -> Any:
    images = patchloom.open_images(
        list(job.images),
        mask=job.mask,
        axes=job.axes,
        storage_options=job.storage_options or None,
    )
    return patchloom.plan(
        images,
        job.config,
        min_coverage=job.min_coverage if job.mask else 0,
        edge="drop",
        order="spatial",
        seed=0,
    )


def _numbers(plan: Any, job: Job) -> Any:
    """Which of the job's patches each row of the plan is."""
    parts = list(plan.patches(0, plan.n_patches))
    ours = np.concatenate(
        [np.column_stack([np.full(len(part), part.image), part.corner]) for part in parts]
    )
    rows = np.concatenate([part.row for part in parts])
    theirs = job.corners
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} patches were planned, {len(theirs)} asked")
    by_ours, by_theirs = np.lexsort(ours.T[::-1]), np.lexsort(theirs.T[::-1])
    if (theirs[by_theirs] != ours[by_ours]).any():
        raise ValueError("other patches were planned than asked")
    number = np.empty(len(ours), dtype=np.int64)
    number[rows[by_ours]] = by_theirs
    return number


def prepare(job: Job) -> dict[str, Any]:
    begun = time.perf_counter()
    plan = _plan(job)
    seconds = time.perf_counter() - begun
    plan.save(_saved(job))
    return {"plan_s": seconds}


def _saved(job: Job) -> str:
    return f"{job.corners_file}.plan"


def cut(job: Job, wanted: Any, take: Take) -> Any:
    plan = patchloom.Plan.load(_saved(job), storage_options=job.storage_options or None)

    def task(number: int) -> None:
        for rows, pixels in cut_batches(plan, list(plan.runs.shards(number))):
            for row, patch in zip(rows.tolist(), pixels["image"], strict=True):
                take(row, patch)

    with ThreadPoolExecutor(job.threads) as pool:
        for _ in pool.map(task, range(plan.n_tasks)):
            pass
    return lambda: _numbers(plan, job)


def write(job: Job, out: str) -> Written:
    with dask.config.set(scheduler="threads", num_workers=job.threads):
        plan = _plan(job)
        report = patchloom.materialize(plan, out, progress=False)
    counts = {name: getattr(report, name) for name in COUNTS}
    return Written("images", counts, lambda: _numbers(plan, job))


if __name__ == "__main__":
    serve("patchloom", cut, write=write, prepare=prepare)
