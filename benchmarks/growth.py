"""Measure how plans, graphs, runs and reads grow, and report the slopes.

``python -m benchmarks growth --help`` lists the options; ``README.md`` says what each number
means. Every point is a process of its own. A slope is that of a line through the logarithms: 1 is
proportional, 0 does not grow.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, records
from benchmarks.workloads import Dataset

POINT = dict[str, float]
MIB = 2**20
TIMED, COUNTED = 1.10, 1.05
"""Slopes up to these are called proportional: of times and memory, and of counts."""
LEAST = {"_s": 0.05, "_mib": 1.0}
"""Seconds and MiB under which a quantity says nothing of growth: it is what every call costs."""
FLAT = Dataset("growth", "yx", (2048, 2048), (512, 512), 12.0, 64, 16.0)
DEEP = Dataset("growth", "zyx", (128, 256, 256), (64, 128, 128), 5.0, 28, 4.0)
"""Images that are repeated side by side: 8 and 16 MiB."""
GRID_2 = {"name": "sequential", "patch_size": [192, 192], "overlaps": [32, 32]}
GRID_3 = {"name": "sequential", "patch_size": [64] * 3, "overlaps": [16] * 3}
SQUARES = (1, 4, 9, 25, 49, 100)


def _nothing(size: int, cache: Path) -> None:
    """Draw no image."""


@dataclass(frozen=True)
class Factor:
    """Something that grows, and what is measured at each of its sizes.

    Parameters
    ----------
    name, unit
        What the page calls it.
    sizes
        Its values, least first.
    measure
        Takes a size, a folder for images and one for output, and returns quantities by name.
    is_work
        Whether more of it is more work, which should grow no more than proportionally.
    draw
        Writes the images of a size before anything is timed.
    """

    name: str
    unit: str
    sizes: tuple[int, ...]
    measure: Callable[[int, Path, Path], POINT]
    draw: Callable[[int, Path], Any] = _nothing
    is_work: bool = True


def _image(dataset: Dataset, size: int, cache: Path) -> str:
    """The image so many times as large: side by side with itself in its last two axes."""
    k = math.isqrt(size)
    times = (1,) * (len(dataset.shape) - 2) + (k, k)
    return str(dataset.repeated(f"growth-{dataset.axes}", times).write(cache).image)


def _area(dataset: Dataset, config: Mapping[str, Any], size: int, cache: Path, out: Path) -> POINT:
    import patchloom

    images = patchloom.open_images(_image(dataset, size, cache))
    plan, found = planned(lambda: patchloom.plan(images, config))
    return found | graphed(plan) | ran(plan, out, 3 if size < 20 else 1)


def _patches(size: int, cache: Path, out: Path) -> POINT:
    import patchloom

    images = patchloom.open_images(_image(FLAT, 4, cache))
    config = {"name": "random", "patch_size": [64, 64], "n_patches": size}
    plan, found = planned(lambda: patchloom.plan(images, config, seed=1))
    return found | graphed(plan) | ran(plan, out, 3)


def _empty(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    config: Mapping[str, Any],
    folder: Path,
    **settings: Any,
) -> POINT:
    """A plan of an image without a chunk written, and its graph."""
    import zarr

    import patchloom

    zarr.create_array(folder / "empty.zarr", shape=shape, chunks=chunks, dtype="uint16")
    images = patchloom.open_images(folder / "empty.zarr")
    plan, found = planned(lambda: patchloom.plan(images, config, seed=1, **settings), 3)
    return found | graphed(plan)


def _many_patches(size: int, cache: Path, out: Path) -> POINT:
    config = {"name": "random", "patch_size": [32] * 3, "n_patches": size}
    # Where few patches lie in each chunk a shard's worth of them touches more than 1 GiB of chunks.
    return _empty((16_384,) * 3, (128,) * 3, config, out, memory="4 GiB")


def _many_chunks(size: int, cache: Path, out: Path) -> POINT:
    side = 512 * math.isqrt(size)
    return _empty((side, side), (512, 512), {"name": "sequential", "patch_size": [256, 256]}, out)


def _chunked(size: int, cache: Path) -> str:
    name = f"growth-chunks-{size}"
    dataset = replace(FLAT, name=name, shape=(4096, 4096), chunks=(size, size))
    return str(dataset.write(cache).image)


def _chunk_side(size: int, cache: Path, out: Path) -> POINT:
    import patchloom

    images = patchloom.open_images(_chunked(size, cache))
    plan, found = planned(lambda: patchloom.plan(images, GRID_2))
    return found | graphed(plan) | ran(plan, out, 3)


def _small(size: int, cache: Path) -> list[str]:
    """Images of 512 x 512 in four chunks each: hard links to one that is drawn."""
    dataset = replace(FLAT, name="growth-small", shape=(512, 512), chunks=(256, 256))
    drawn = dataset.write(cache).image
    names = [cache / "growth-many" / f"{k:05}.zarr" for k in range(size)]
    for name in names:
        if not name.exists():
            shutil.copytree(drawn, name, copy_function=_link)
    return [str(name) for name in names]


def _link(source: str, to: str) -> None:
    try:
        os.link(source, to)
    except OSError:  # no links here, or too many to one file
        shutil.copyfile(source, to)


def _images(size: int, cache: Path, out: Path) -> POINT:
    import patchloom

    names = _small(size, cache)
    patchloom.open_images(names[:1])  # loads what is imported late
    begun = time.perf_counter()
    images = patchloom.open_images(names)
    found = {"open_s": time.perf_counter() - begun}
    config = {"name": "sequential", "patch_size": [128, 128]}
    plan, figures = planned(lambda: patchloom.plan(images, config))
    return found | figures | graphed(plan) | ran(plan, out, 3 if size < 300 else 1)


def _threads(size: int, cache: Path, out: Path) -> POINT:
    import patchloom

    plan = patchloom.plan(patchloom.open_images(_image(FLAT, 25, cache)), GRID_2)
    return ran(plan, out, 3, threads=size)


def _workers(size: int, cache: Path, out: Path) -> POINT:
    """512 tasks that sleep, on so many workers of one thread in this process."""
    from benchmarks.scheduling import PETABYTE, fine, simulate

    plan = fine(replace(PETABYTE, shape=(8192,) * 3).plan(out))
    [found] = simulate(plan, [512], size, 0.1)
    names = ("n_tasks", "wall_s", "cpu_s", "live")
    return {name: float(found[name]) for name in names} | {"thread_s": found["wall_s"] * size}


def _budget(size: int, cache: Path, out: Path) -> POINT:
    """Decodes of a plan by threads of so many MiB, counted without pixels."""
    import zarr

    import patchloom
    from benchmarks.amplification import THREADS, count

    shape, chunks = (512, 2048, 2048), (64, 128, 128)
    zarr.create_array(out / "empty.zarr", shape=shape, chunks=chunks, dtype="uint16")
    images = patchloom.open_images(out / "empty.zarr")
    rows = size * MIB // 16 // (2 * 64**3)
    plan = patchloom.plan(images, GRID_3, memory=size * MIB, rows_per_shard=max(1, min(64, rows)))
    decodes, kept = count(plan, 1, THREADS)
    return {
        "decodes": decodes,
        "decodes_a_chunk": decodes / plan.chunks_needed,
        "n_tasks": plan.n_tasks,
        "task_mib": plan.peak_memory() / MIB,
        "kept_mib": kept / MIB,
    }


FACTORS = {
    "area": Factor(
        "image, 2-D",
        "x 2048 x 2048 pixels",
        SQUARES,
        partial(_area, FLAT, GRID_2),
        partial(_image, FLAT),
    ),
    "volume": Factor(
        "image, 3-D",
        "x 128 x 256 x 256 voxels",
        SQUARES,
        partial(_area, DEEP, GRID_3),
        partial(_image, DEEP),
    ),
    "patches": Factor(
        "random patches of one image",
        "patches of 64 x 64",
        (100, 300, 1_000, 3_000, 10_000, 30_000),
        _patches,
        lambda size, cache: _image(FLAT, 4, cache),
    ),
    "planned patches": Factor(
        "random patches, planned only",
        "patches of 32^3 in 16,384^3 voxels",
        (10**5, 10**6, 10**7, 10**8, 10**9),
        _many_patches,
    ),
    "planned chunks": Factor(
        "chunks, planned only",
        "chunks of 512 x 512 with 4 patches each",
        (10**4, 10**5, 10**6, 10**7),
        _many_chunks,
    ),
    "chunk side": Factor(
        "chunk size, one image of 4096 x 4096",
        "pixels of a chunk's side",
        (64, 128, 256, 512, 1024),
        _chunk_side,
        _chunked,
        is_work=False,
    ),
    "images": Factor(
        "number of images",
        "images of 512 x 512 in 4 chunks",
        (10, 30, 100, 300, 1_000, 3_000),
        _images,
        _small,
    ),
    "threads": Factor(
        "threads, one image of 10,240 x 10,240",
        "threads",
        (1, 2),
        _threads,
        lambda size, cache: _image(FLAT, 25, cache),
        is_work=False,
    ),
    "workers": Factor(
        "simulated workers, 512 tasks that sleep 0.1 s",
        "workers of one thread",
        (4, 8, 16, 32, 64, 128),
        _workers,
        is_work=False,
    ),
    "budget": Factor(
        "memory of a thread, 512 x 2048 x 2048 voxels",
        "MiB",
        (32, 64, 128, 256, 512, 1024),
        _budget,
        is_work=False,
    ),
}
"""What is made to grow, by the name that ``--factor`` takes."""
QUICK = {"area", "images", "budget"}
"""Of these the first sizes are measured by ``--quick``."""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark of growth.

    Parameters
    ----------
    argv
        Arguments after ``growth``.

    Returns
    -------
    int
        Exit status.
    """
    options = _parser().parse_args(argv)
    names = options.factor or [name for name in FACTORS if not options.quick or name in QUICK]
    neighbours = environment.Neighbours(_children)
    series: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="patchloom-growth-") as temporary:
        cache = options.cache or Path(temporary) / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        for name in names:
            sizes = FACTORS[name].sizes[: 3 if options.quick else None]
            for size in sizes:
                FACTORS[name].draw(size, cache)
        for name in () if options.draw else names:
            series.append(_measure(name, options.quick, cache, Path(temporary)))
            print(_told(series[-1]), flush=True)
            if options.output is not None:
                _save(options.output, argv, series, neighbours.load())
    return 0


def _measure(name: str, is_quick: bool, cache: Path, scratch: Path) -> dict[str, Any]:
    """One factor at all of its sizes; of those that fail, why."""
    factor = FACTORS[name]
    points, failed = list[POINT](), {}
    for size in factor.sizes[: 3 if is_quick else None]:
        found = _ask(name, size, cache, scratch)
        if isinstance(found, str):
            failed[f"{size}"] = found
        else:
            points.append({"size": size} | found)
    told = {"factor": name, "name": factor.name, "unit": factor.unit, "failed": failed}
    return told | {"points": points, "slopes": slopes(points) if points else {}}


def _save(
    path: Path, argv: Sequence[str], series: Sequence[dict[str, Any]], others: float | None
) -> None:
    """Write what is known so far, beside the factors that were measured before."""
    measured = [one["factor"] for one in series]
    before = records.load(path).figures["series"] if path.exists() else []
    told = environment.command("growth", argv)
    kept = [one for one in before if one["factor"] not in measured]
    kept += [one | {"command": told} for one in series]
    kept.sort(key=lambda one: [*FACTORS].index(one["factor"]))
    records.save(path, "growth", argv, [], series=kept, others_cores=others)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks growth", description=__doc__)
    parser.add_argument("--factor", action="append", choices=FACTORS, help="default all")
    parser.add_argument("--quick", action="store_true", help="three factors, three sizes each")
    parser.add_argument("--draw", action="store_true", help="only draw the images into the cache")
    parser.add_argument("--cache", type=Path, help="keeps the images; default a temporary folder")
    parser.add_argument(
        "--output", type=Path, help="JSON file for the record; keeps its other factors"
    )
    return parser


def _ask(name: str, size: int, cache: Path, scratch: Path) -> POINT | str:
    """What one size takes, in a process of its own, or the last line of its error."""
    out = Path(tempfile.mkdtemp(dir=scratch))
    command = [sys.executable, "-m", "benchmarks.growth", name, str(size), str(cache), str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    shutil.rmtree(out)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    found: POINT = json.loads(done.stdout.splitlines()[-1])
    return found


def _children() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def slopes(points: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """The growth of each quantity, over all sizes and over the larger half.

    Parameters
    ----------
    points
        Each with its ``size`` and the same quantities.

    Returns
    -------
    dict
        Of each quantity ``all`` and ``end``: the slopes of lines through the logarithms, ``None``
        where a quantity is nothing, or too little to say anything.

    Examples
    --------
    >>> slopes([{"size": n, "tasks": 3 * n, "bytes": 40} for n in (1, 10, 100)])
    {'tasks': {'all': 1.0, 'end': 1.0}, 'bytes': {'all': 0.0, 'end': 0.0}}
    """
    names = [name for name in points[0] if name != "size"]
    larger = points[-max(2, (len(points) + 1) // 2) :]
    return {name: {"all": _slope(name, points), "end": _slope(name, larger)} for name in names}


def _slope(name: str, points: Sequence[Mapping[str, float]]) -> float | None:
    least = max((low for end, low in LEAST.items() if name.endswith(end)), default=0.0)
    some = [(point["size"], point[name]) for point in points if point[name] > least]
    if len(some) < 2:
        return None
    x, y = np.log(np.array(some, float).T)
    return round(float(np.polyfit(x, y, 1)[0]), 2) + 0.0


def steep(series: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Quantities that grow more than proportionally over the larger half, with their slopes."""
    work = FACTORS[series["factor"]].is_work
    for name, slope in series["slopes"].items() if work else ():
        measured = name.endswith(("_s", "_mib"))
        if slope["end"] is not None and slope["end"] > (TIMED if measured else COUNTED):
            yield name, slope["end"]


def planned(make: Callable[[], Any], repeats: int = 5) -> tuple[Any, POINT]:
    """Make a plan and decide its tasks: seconds, processor seconds and memory.

    Parameters
    ----------
    make
        Makes the plan.
    repeats
        Times that it is made; memory is that of the first, in MiB over what was there before.

    Returns
    -------
    Plan, dict
        The plan, and ``plan_s``, ``plan_cpu_s``, ``plan_mib``.
    """
    import patchloom

    tiny = patchloom.plan(
        patchloom.open_images(np.zeros((16, 16), "uint8")),
        {"name": "sequential", "patch_size": [8, 8]},
    )
    graphed(tiny)  # loads what is imported late
    before = environment.resident_bytes()
    walls, cpus, memory = [], [], 0.0
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        plan = make()
        assert plan.n_tasks
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        memory = memory or max(0, environment.peak_bytes() - before) / MIB
    return plan, {
        "plan_s": statistics.median(walls),
        "plan_cpu_s": statistics.median(cpus),
        "plan_mib": memory,
    }


def graphed(plan: Any) -> POINT:
    """What the graph of a plan holds, as it is sent: tasks, and bytes.

    Returns
    -------
    dict
        ``n_patches``, ``n_shards``, ``n_tasks``, ``needed``, and the bytes ``shared_bytes`` that
        all tasks have in common and ``task_bytes`` of all tasks together.
    """
    from patchloom.location import Location
    from patchloom.run.cutting import Job
    from patchloom.run.graph import run_graph

    job = Job(Location.of("memory://out"))
    graph = run_graph(plan, job, np.arange(plan.n_shards), "token")
    return {
        "n_patches": plan.n_patches,
        "n_shards": plan.n_shards,
        "n_tasks": plan.n_tasks,
        "shared_bytes": len(pickle.dumps(graph.shared)),
        "task_bytes": len(pickle.dumps(graph.part(graph.keys))),
    }


def ran(plan: Any, folder: Path, repeats: int, threads: int = 2) -> POINT:
    """Cut and write a plan on threads: what its runs took, and what one counted.

    Parameters
    ----------
    plan
        Of images that are there.
    folder
        Takes the output.
    repeats
        Timed runs, after one that is not.
    threads
        Of Dask.

    Returns
    -------
    dict
        ``wall_s``, ``cpu_s``, counts, ``task_mib`` that one task held, ``run_mib`` that the
        process took over what was there before.
    """
    import dask

    import patchloom

    before = environment.resident_bytes()
    walls, cpus = [], []
    with dask.config.set(scheduler="threads", num_workers=threads):
        for k in range(1 + repeats):
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            report = patchloom.materialize(plan, folder / "out.zarr", progress=False)
            if k:
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
            shutil.rmtree(folder / "out.zarr")
    return {
        "wall_s": statistics.median(walls),
        "cpu_s": statistics.median(cpus),
        "needed": report.chunks_needed,
        "decodes": report.chunk_reads,
        "requests": report.requests,
        "bytes_read": report.bytes_read,
        "bytes_written": report.bytes_written,
        "task_mib": report.peak_memory / MIB,
        "run_mib": (environment.peak_bytes() - before) / MIB,
    }


def _told(series: Mapping[str, Any]) -> str:
    lines = [f"{series['name']}: {series['unit']}"]
    lines += [f"  {size}: {reason}" for size, reason in series["failed"].items()]
    if not series["points"]:
        return "\n".join(lines)
    names = [name for name in series["points"][0] if name != "size"]
    lines += ["  ".join(("size".rjust(13), *names, ""))]
    for point in series["points"]:
        cells = (f"{point[name]:.4g}".rjust(len(name)) for name in names)
        lines.append("  ".join((f"{point['size']:13,}", *cells)))
    ends = (f"{series['slopes'][name]['end']}".rjust(len(name)) for name in names)
    lines.append("  ".join(("slope at end".rjust(13), *ends)))
    lines += [f"  steep: {name} {slope:.2f}" for name, slope in steep(series)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    _name, _size, _cache, _out = sys.argv[1:]
    print(json.dumps(FACTORS[_name].measure(int(_size), Path(_cache), Path(_out))))
