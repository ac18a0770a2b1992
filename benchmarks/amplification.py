"""Count how often chunks are decoded, against the memory of a worker thread.

``python -m benchmarks amplification --help`` lists the options; ``README.md`` says what each number
means. No figure here is a time: all of them can be made on a busy machine.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment

MIB = 2**20
BUDGETS = tuple(64 * MIB * 2**k for k in range(8))
"""Bytes that a thread may use: 64 MiB to 8 GiB."""
MEASURED = (64 * MIB, 256 * MIB, 1024 * MIB)
"""Of these, those in which images are really read."""
LARGE = BUDGETS[4:]
"""Those in which the largest image is counted."""
THREADS = 2
"""Threads of a run."""
CLUSTER = 8
"""Processes of one thread each that a cluster is counted with."""
DRAWN = 4
"""Chunks that are drawn; the others are copies of them."""
PUBLISHED = {2**30: 1.46, 4 * 2**30: 1.19, 16 * 2**30: 1.05}
"""Decodes a needed chunk of the published reference, by bytes of its LRU cache, in best order."""


@dataclass(frozen=True)
class Case:
    """Patches over an image.

    Parameters
    ----------
    name, shape, chunks, config
        What is cut.
    target
        Decodes a needed chunk, at most, at 1 GiB a thread.
    masked
        Whether a mask with holes lies over it.
    written
        Whether it is written and read; else reads are counted from the plan.
    budgets
        In which it is measured.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    config: dict[str, Any]
    target: float
    masked: bool = False
    written: bool = False
    budgets: tuple[int, ...] = BUDGETS


_GRID_2 = {"name": "sequential", "patch_size": [192, 192], "overlaps": [32, 32]}
_GRID_3 = {"name": "sequential", "patch_size": [64] * 3, "overlaps": [16] * 3}
_ALIGNED = {"name": "sequential", "patch_size": [128, 128]}


def _random(n: int, like: dict[str, Any]) -> dict[str, Any]:
    return {"name": "random", "patch_size": like["patch_size"], "n_patches": n}


_FLAT, _DEEP = (512, 512), (64, 128, 128)
_SMALL_2, _SMALL_3 = (8192, 8192), (256, 512, 1024)
_LARGE_2, _LARGE_3 = (45_056, 45_056), (512, 4096, 2560)
CASES = (
    Case(
        "2-D aligned, masked",
        _SMALL_2,
        _FLAT,
        _ALIGNED,
        1.0,
        masked=True,
        written=True,
        budgets=MEASURED,
    ),
    Case("2-D grid", _SMALL_2, _FLAT, _GRID_2, 1.05, written=True, budgets=MEASURED),
    Case(
        "2-D random", _SMALL_2, _FLAT, _random(2600, _GRID_2), 1.05, written=True, budgets=MEASURED
    ),
    Case("3-D grid", _SMALL_3, _DEEP, _GRID_3, 1.10, written=True, budgets=MEASURED),
    Case(
        "3-D random", _SMALL_3, _DEEP, _random(1050, _GRID_3), 1.10, written=True, budgets=MEASURED
    ),
    Case("2-D aligned", _LARGE_2, _FLAT, _ALIGNED, 1.0),
    Case("2-D grid", _LARGE_2, _FLAT, _GRID_2, 1.05),
    Case("2-D random", _LARGE_2, _FLAT, _random(79_000, _GRID_2), 1.05),
    Case("3-D grid", _LARGE_3, _DEEP, _GRID_3, 1.10),
    Case("3-D random", _LARGE_3, _DEEP, _random(45_000, _GRID_3), 1.10),
    Case("3-D grid", (1024, 6144, 6144), _DEEP, _GRID_3, 1.10, budgets=LARGE),
)


@dataclass(frozen=True)
class Record:
    """One case in one budget.

    Parameters
    ----------
    case, shape, target
        What was cut, and the most that is asked at 1 GiB a thread.
    budget
        Bytes that a thread may use.
    refused
        What the planner said if one shard does not fit; then nothing follows.
    n_patches, n_tasks, rows_per_shard, chunks_needed
        Of the plan.
    bound
        Decodes a needed chunk if nothing is shared, as the plan foresees.
    measured
        Decodes a needed chunk that a run on two threads counted; None if it was not written.
    threads_1, threads_2
        The same counted from the plan, for so many threads of one process.
    cluster
        Counted from the plan for `CLUSTER` processes of one thread.
    task_mib, kept_mib
        Memory of a task beside what is shared, as projected, and most that two threads kept.
    """

    case: str
    shape: tuple[int, ...]
    target: float
    budget: int
    refused: str | None = None
    n_patches: int = 0
    n_tasks: int = 0
    rows_per_shard: int = 0
    chunks_needed: int = 0
    bound: float = 0.0
    measured: float | None = None
    threads_1: float = 0.0
    threads_2: float = 0.0
    cluster: float = 0.0
    task_mib: float = 0.0
    kept_mib: float = 0.0


def main(argv: Sequence[str]) -> int:
    """Run the benchmark of reads.

    Parameters
    ----------
    argv
        Arguments after ``amplification``.

    Returns
    -------
    int
        Exit status.
    """
    options = _parser().parse_args(argv)
    records: list[Record] = []
    with tempfile.TemporaryDirectory(prefix="patchloom-amplification-") as temporary:
        folder = options.cache or Path(temporary)
        print(_HEADER, flush=True)
        for case in CASES:
            if case.written and options.counted_only:
                continue
            source = write(folder, case)
            for budget in case.budgets:
                records.append(measure(case, source, budget, Path(temporary)))
                print(_row(records[-1]), flush=True)
                if options.output is not None:
                    _save(records, options.output, argv)
    return 0


def _save(records: Sequence[Record], path: Path, argv: Sequence[str]) -> None:
    """Write what is known so far: the last cases take long."""
    environment.save(
        path,
        "amplification",
        argv,
        records=[asdict(record) for record in records],
        published={str(nbytes): reads for nbytes, reads in PUBLISHED.items()},
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks amplification", description=__doc__)
    parser.add_argument("--cache", type=Path, help="keeps the images; default a temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    parser.add_argument("--counted-only", action="store_true", help="leave out what is written")
    return parser


def write(folder: Path, case: Case) -> Any:
    """Write the image of a case, unless it is there, and open it.

    Parameters
    ----------
    folder
        Gets the image, and its mask.
    case
        What it looks like; only written cases get chunks.
    """
    import zarr

    import patchloom

    kind = "full" if case.written else "empty"
    path = folder / f"{kind}-{'x'.join(map(str, case.shape))}.zarr"
    if not path.exists():
        array: Any = zarr.create_array(path, shape=case.shape, chunks=case.chunks, dtype="uint16")
        if case.written:
            _fill(path, array)
    if not case.masked:
        return patchloom.open_images(path)
    # Half of what the chunks show, in pieces of a quarter of a chunk's side.
    draw = np.random.default_rng(1)
    mask = draw.random([4 * n // c for n, c in zip(case.shape, case.chunks, strict=True)]) < 0.5
    return patchloom.open_images(path, mask=mask)


def _fill(path: Path, array: Any) -> None:
    """Draw some chunks, and copy them to all others."""
    draw, drawn = np.random.default_rng(0), []
    first = tuple(slice(0, c) for c in array.chunks)
    chunk = path.joinpath("c", *("0" for _ in array.shape))
    for _ in range(DRAWN):
        array[first] = draw.poisson(200, array.chunks).astype("uint16")
        drawn.append(chunk.read_bytes())
    counts = [n // c for n, c in zip(array.shape, array.chunks, strict=True)]
    for k, at in enumerate(np.ndindex(*counts)):
        file = path.joinpath("c", *map(str, at))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(drawn[k % DRAWN])


def measure(case: Case, source: Any, budget: int, folder: Path) -> Record:
    """Count the decodes of one case in one budget.

    Parameters
    ----------
    case, source
        From `write`.
    budget
        Bytes that a thread may use.
    folder
        Takes the output of runs.
    """
    import patchloom
    from patchloom.errors import BudgetError

    # Shards of the usual 32 MiB, but not more than a sixteenth of the budget.
    patch = 2 * math.prod(case.config["patch_size"])
    rows = max(1, min(32 * MIB, budget // 16) // patch)
    about: dict[str, Any] = {
        "case": case.name,
        "shape": case.shape,
        "target": case.target,
        "budget": budget,
    }
    more: dict[str, Any] = {"min_coverage": 0.5} if case.masked else {}
    try:
        plan = patchloom.plan(source, case.config, memory=budget, rows_per_shard=rows, **more)
    except BudgetError as error:
        return Record(**about, refused=str(error))
    one, _ = count(plan, 1, 1)
    two, kept = count(plan, 1, THREADS)
    cluster, _ = count(plan, CLUSTER, 1)
    return Record(
        **about,
        n_patches=plan.n_patches,
        n_tasks=plan.n_tasks,
        rows_per_shard=rows,
        chunks_needed=plan.chunks_needed,
        bound=plan.chunk_reads / plan.chunks_needed,
        measured=_run(plan, folder / "out.zarr") if case.written else None,
        threads_1=one / plan.chunks_needed,
        threads_2=two / plan.chunks_needed,
        cluster=cluster / plan.chunks_needed,
        task_mib=plan.peak_memory() / MIB,
        kept_mib=kept / MIB,
    )


def _run(plan: Any, out: Path) -> float:
    import dask

    import patchloom

    with dask.config.set(scheduler="threads", num_workers=THREADS):
        report = patchloom.materialize(plan, out, progress=False)
    shutil.rmtree(out)
    return report.read_amplification


def count(plan: Any, processes: int, threads: int) -> tuple[int, int]:
    """Decodes of a run, from its plan: the real store of blocks, with pixels that take no memory.

    Threads go along leg by leg, in step; each process has a stretch of neighbouring tasks.

    Parameters
    ----------
    plan
        Of images whose workers read by themselves.
    processes, threads
        Who works, and with how many threads each.

    Returns
    -------
    int, int
        Decodes, and most bytes that one process kept.
    """
    from patchloom.run.sharing import SharedBlocks

    # In the order in which Dask goes: the last one first.
    tasks = np.array_split(np.arange(plan.n_tasks)[::-1], processes)
    reads = [0]
    stores = [SharedBlocks(plan.memory, plan.peak_memory()) for _ in range(processes)]
    going = [
        _walk(plan, store, queue, reads)
        for store, some in zip(stores, tasks, strict=True)
        for queue in [some.tolist()]
        for _ in range(threads)
    ]
    while going:
        going = [one for one in going if next(one, False)]
    return reads[0], max(store.peak for store in stores)


def _walk(plan: Any, store: Any, queue: list[int], reads: list[int]) -> Iterator[bool]:
    """One thread: it takes tasks from its queue, and goes through their legs."""
    from patchloom.planning.incidence import touches
    from patchloom.run.nearby import Nearby
    from patchloom.run.sharing import Share

    def decode(blocks: Any) -> list[Any]:
        reads[0] += len(blocks)
        return [pixels] * len(blocks)

    while queue:
        task = queue.pop(0)
        for leg, shards in store.from_here(plan.runs.legs_of(plan.runs.shards(task))):
            with store.visit(leg) as visit:
                for part in plan.tour(shards):
                    layout = plan.images[part.image].layout
                    nbytes = math.prod(layout.block_shape()) * plan.dtype.itemsize
                    pixels = np.broadcast_to(np.uint8(0), (nbytes,))
                    blocks = np.unique(touches(layout, part.sample, part.corner, plan.cut)[1])
                    needs = {}
                    if plan.has_common_blocks:
                        near = Nearby.of(plan, part.image, layout, blocks, part.sample)
                        needs = near.shared(plan)
                    share = Share(visit, part.image, "image", needs)
                    share.load(blocks, decode)
                    yield True
                    for block in blocks.tolist():
                        share.leave(block)


_HEADER = (
    f"{'case':20} {'shape':>16} {'budget':>8} {'tasks':>6} {'bound':>6} {'measured':>8} "
    f"{'1 thread':>8} {'2 threads':>9} {'cluster':>8} {'target':>6}"
)


def _row(record: Record) -> str:
    head = f"{record.case:20} {'x'.join(map(str, record.shape)):>16} {record.budget // MIB:8}"
    if record.refused is not None:
        return f"{head} refused"
    measured = "-" if record.measured is None else f"{record.measured:.3f}"
    return (
        f"{head} {record.n_tasks:6} {record.bound:6.2f} {measured:>8} {record.threads_1:8.3f} "
        f"{record.threads_2:9.3f} {record.cluster:8.3f} {record.target:6.2f}"
    )
