"""Guard what is counted: decodes, requests, bytes, tasks and graphs of small jobs, and two ratios.

``python -m benchmarks guard`` compares counts with ``guard.json``, ``--ratios`` processor seconds
with the floor's, and ``--write`` writes the file again.  No figure is a number of seconds: counts
are the same on every machine, and ratios have room.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
from fsspec.implementations.memory import MemoryFileSystem

from benchmarks import environment
from benchmarks.growth import graphed
from benchmarks.workloads import WORKLOADS

PATH = Path(__file__).with_name("guard.json")
COUNTS = ("chunks_needed", "chunk_reads", "requests", "bytes_read", "bytes_written", "peak_memory")
"""Of the report of a run."""
ROOM = {
    "shared_bytes": 0.25,
    "task_bytes": 0.25,
    "bytes_written": 0.05,
    "load_bytes": 0.05,
    "peak_memory": 0.05,
}
"""How far these may be from what was written: pickles and codecs of other versions differ."""
RATIOS = ("w1-aligned", "w1-misaligned", "w2")
"""Workloads whose processor seconds are compared with the floor's, at half their sides."""
SPARE = 1.5
"""Room of the ratios that ``--write`` writes."""
ATTEMPTS = 3
"""Measurements of a ratio, of which one must be within its bound."""


class Counted(MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """Files in memory, whose requests are counted."""

    protocol = "counted"
    requests = 0
    nbytes = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("counted://", "memory://")))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        """Read a range of a file."""
        found: bytes = super().cat_file(path, start, end, **options)
        Counted.requests += 1
        Counted.nbytes += len(found)
        return found


@dataclass(frozen=True)
class Case:
    """A small job, of images without compression, so that bytes read are the same everywhere.

    Parameters
    ----------
    name
        In the file.
    shape, chunks, axes
        Of each image.
    config
        How patches lie.
    n_images, dtype, shards
        Of the images.
    settings
        Further ones of the plan.
    masked
        Whether a mask that keeps a third of all blocks of 128 pixels lies over it.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    axes: str
    config: Mapping[str, Any]
    n_images: int = 1
    dtype: str = "uint16"
    shards: tuple[int, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    masked: bool = False

    def plan(self) -> Any:
        """Write the images into memory, and plan them."""
        import patchloom

        urls = [f"memory://guard/{self.name}-{k:02}.zarr" for k in range(self.n_images)]
        for url in urls:
            self._write(url)
        more: dict[str, Any] = {"mask": self._mask()} if self.masked else {}
        images = patchloom.open_images(urls, axes=self.axes, **more)
        chosen: dict[str, Any] = {"min_coverage": 0.5} if self.masked else {}
        return patchloom.plan(images, self.config, seed=1, **chosen, **self.settings)

    def _write(self, url: str) -> None:
        import zarr

        array: Any = zarr.create_array(
            url,
            shape=self.shape,
            chunks=self.chunks,
            shards=self.shards,
            dtype=self.dtype,
            compressors=None,
            overwrite=True,
        )
        pixels = np.arange(math.prod(self.shape), dtype="uint32").reshape(self.shape)
        pixels = ((pixels * 2654435761 >> 20) % 4096).astype(self.dtype)
        if pixels.dtype.kind == "f":
            pixels[..., :10] = np.nan
        array[...] = pixels

    def _mask(self) -> npt.NDArray[np.bool_]:
        side = [n // 128 for n, axis in zip(self.shape, self.axes, strict=True) if axis != "c"]
        found: npt.NDArray[np.bool_] = np.indices(side).sum(0) % 3 == 0
        return found


GRID = {"name": "sequential", "patch_size": [192, 192], "overlaps": [32, 32]}
CASES = (
    Case("slide", (3, 1536, 1536), (1, 512, 512), "cyx", GRID, masked=True),
    Case(
        "shuffled",
        (2048, 2048),
        (256, 256),
        "yx",
        {"name": "sequential", "patch_size": [128, 128]},
        settings={"order": "shuffled", "rows_per_shard": 16},
    ),
    Case(
        "volume",
        (128, 256, 256),
        (64, 128, 128),
        "zyx",
        {"name": "sequential", "patch_size": [64] * 3, "overlaps": [16] * 3},
        settings={"rows_per_shard": 8, "memory": "128 MiB"},
    ),
    Case(
        "random",
        (2048, 2048),
        (512, 512),
        "yx",
        {"name": "random", "patch_size": [96, 96], "n_patches": 500},
        settings={"rows_per_shard": 100},
    ),
    Case(
        "many",
        (256, 256),
        (128, 128),
        "yx",
        {"name": "tiled", "patch_size": [96, 96], "overlaps": [16, 16]},
        n_images=24,
        settings={"rows_per_shard": 32},
    ),
    Case(
        "floats",
        (1024, 1024),
        (256, 256),
        "yx",
        {"name": "stratified", "patch_size": [128, 128]},
        dtype="float32",
    ),
    Case("sharded", (1024, 1024), (64, 64), "yx", GRID, shards=(512, 512)),
)
"""What is counted."""


def main(argv: Sequence[str]) -> int:
    """Compare with the file, or write it again.

    Parameters
    ----------
    argv
        Arguments after ``guard``.

    Returns
    -------
    int
        Exit status; 1 if anything differs.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks guard", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what is found, and all ratios")
    parser.add_argument("--ratios", action="store_true", help="compare ratios in place of counts")
    parser.add_argument("--cache", type=Path, help="keeps the images; default a temporary folder")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="patchloom-guard-") as name:
        cache, out = options.cache or Path(name) / "cache", Path(name) / "out"
        if options.write:
            write(cache, out)
            return 0
        kept = json.loads(PATH.read_text())
        if options.ratios:
            wrong = [*_above(kept["ratios"], cache, out)]
        else:
            wrong = [*differences(counts(), kept["counts"])]
    for line in wrong:
        print(line, flush=True)
    if not wrong:
        print(f"{'ratios' if options.ratios else 'counts'} are as {PATH.name} has them")
    return 1 if wrong else 0


def write(cache: Path, out: Path) -> None:
    """Write counts, and ratios with their room.

    Parameters
    ----------
    cache, out
        Folders for images and output.
    """
    ratios = {name: round(SPARE * ratio(name, cache, out), 2) for name in RATIOS}
    environment.save(PATH, "guard", ["--write"], counts=counts(), ratios=ratios)


def counts() -> dict[str, dict[str, int]]:
    """What each case counts.

    Returns
    -------
    dict
        By case: numbers of the plan, of its graph, of a run on one thread, of an epoch that is
        read live (``live_...``), and of one from the store (``load_...``).
    """
    memory = fsspec.filesystem("memory")
    fsspec.register_implementation("counted", Counted, clobber=True)
    try:
        return {case.name: _counted(case) for case in CASES}
    finally:
        memory.rm("/guard", recursive=True)


def _counted(case: Case) -> dict[str, int]:
    import dask

    import patchloom

    plan = case.plan()
    found = {name: int(n) for name, n in graphed(plan).items()}
    url = f"memory://guard/{case.name}-store.zarr"
    with dask.config.set(scheduler="synchronous"):
        report = patchloom.materialize(plan, url, progress=False)
    found |= {name: int(getattr(report, name)) for name in COUNTS}
    reader = patchloom.stream(plan, memory="64 MiB").reader()
    for start in range(0, plan.n_patches, 64):
        reader.read(np.arange(start, min(start + 64, plan.n_patches)), ("image",))
    live = reader.report()
    found |= {f"live_{name}": int(live[name]) for name in ("chunk_reads", "requests", "bytes_read")}
    return found | _loaded(url.replace("memory://", "counted://"))


def _loaded(url: str) -> dict[str, int]:
    """What an epoch from a store asks for, in its order and batches of 64."""
    import patchloom

    store = patchloom.open_patches(url)
    Counted.requests = Counted.nbytes = 0
    for _ in store.batches(64, shuffle=False, threads=0):
        pass
    return {"load_requests": Counted.requests, "load_bytes": Counted.nbytes}


def differences(found: Mapping[str, Any], kept: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was.

    Parameters
    ----------
    found, kept
        From :func:`counts`, now and when the file was written.

    Yields
    ------
    str
        A line for each number that differs by more than its room, and each that only one has.

    Examples
    --------
    >>> list(differences({"w": {"requests": 9}}, {"w": {"requests": 8}}))
    ['w: requests are 9, not 8']
    >>> list(differences({"w": {"peak_memory": 102}}, {"w": {"peak_memory": 100}}))
    []
    """
    for case in sorted({*found, *kept}):
        ours, theirs = found.get(case, {}), kept.get(case, {})
        for name in sorted({*ours, *theirs}):
            new, old = ours.get(name), theirs.get(name)
            if new is None or old is None:
                yield f"{case}: {name} is {'gone' if new is None else 'new'}"
            elif abs(new - old) > ROOM.get(name, 0) * old:
                yield f"{case}: {name} are {new:,}, not {old:,}"


def ratio(name: str, cache: Path, out: Path, n_pairs: int = 5) -> float:
    """Processor seconds of the whole job over the floor's, each the least of some runs in turns.

    Parameters
    ----------
    name
        Of the workload.
    cache, out
        Folders for images and output.
    n_pairs
        Runs of each side.

    Returns
    -------
    float
        1 is the floor.
    """
    from benchmarks.job import engine, run_job
    from benchmarks.whole import floor_of

    workload = WORKLOADS[name].scaled(0.5)
    sources = workload.dataset.write(cache)
    used: dict[str, list[float]] = {"ours": [], "floor": []}
    with engine("threads") as own:
        rows = run_job(workload, sources, out).rows_per_shard
        shutil.rmtree(out)
        floor = floor_of(workload, sources, rows)
        sides: dict[str, Callable[[], Any]] = {
            "ours": lambda: run_job(workload, sources, out),
            "floor": lambda: floor(out),
        }
        for _ in range(n_pairs):
            for side, run in sides.items():
                gc.collect()
                begun = own()
                run()
                used[side].append(own() - begun)
                shutil.rmtree(out)
    return min(used["ours"]) / min(used["floor"])


def _above(bounds: Mapping[str, float], cache: Path, out: Path) -> Iterator[str]:
    for name, bound in bounds.items():
        found = list[float]()
        begun = time.perf_counter()
        while len(found) < ATTEMPTS and not (found and found[-1] <= bound):
            found.append(ratio(name, cache, out))
        said = ", ".join(f"{r:.2f}" for r in found)
        took = time.perf_counter() - begun
        print(f"{name}: CPU of the floor x {said}; at most {bound:.2f} ({took:.0f} s)", flush=True)
        if found[-1] > bound:
            yield f"{name}: {min(found):.2f} times the floor's CPU seconds, at most {bound:.2f}"
