"""What exact statistics cost: beside decoding, sorting, approximate percentiles and a whole run.

Every figure is taken twice where the extra ``fast`` is installed: with numba and with NumPy alone.
Sides that are compared run in turns; figures are medians of wall and processor seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, reduce
from importlib import import_module
from importlib.util import find_spec
from operator import add
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import dask.array
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

import patchloom
from benchmarks import environment
from benchmarks.job import N_WORKERS, plan_of
from benchmarks.workloads import W1, WORKLOADS, Sources, Workload, link_chunks
from patchloom.sources.chunks import reader_for
from patchloom.summaries import Summary, Tally, percentiles, tally_bytes, targets
from patchloom.summaries.kernels import kernels

Q = (1, 99)
PARTS = ("alone", "histogram", "riding", "floats", "memory")
WAYS = ("fast", "numpy") if find_spec("numba") else ("numpy",)
"""With numba, if it is installed, and with NumPy alone."""

CODECS: dict[str, Any] = {
    "lz4": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
    "blosc-zstd": BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
    "zstd": ZstdCodec(),
}
"""How images are stored: the fastest, one common in OME-Zarr, and zarr-python's default."""

_TIMES = {"lz4": 8, "blosc-zstd": 4, "zstd": 4}
"""Repetitions of an image of integers on each side, half as many of floats."""

Pixels = npt.NDArray[Any]
Timing = dict[str, float]


def main(argv: Sequence[str]) -> int:
    """Measure, print a line each, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks statistics", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="default all")
    parser.add_argument("--codec", action="append", choices=CODECS, help="of alone; default all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks the images' sides")
    parser.add_argument("--cache", type=Path, help="keeps the images; default a temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    options = parser.parse_args(argv)
    found: dict[str, list[dict[str, Any]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="patchloom-statistics-") as folder,
        dask.config.set(scheduler="threads", num_workers=N_WORKERS),
    ):
        cache = options.cache or Path(folder) / "cache"
        measure = {
            "alone": lambda: alone(
                cache, options.scale, options.repeats, options.codec or [*CODECS]
            ),
            "histogram": lambda: histogram(cache, options.scale, options.repeats),
            "riding": lambda: riding(cache, Path(folder), options.scale, options.repeats),
            "floats": lambda: floats(options.scale, options.repeats),
            "memory": lambda: memory(options.scale),
        }
        for part in options.part or PARTS:
            found[part] = []
            for record in measure[part]():
                found[part].append(record)
                print(part, json.dumps(record), flush=True)
    if options.output is not None:
        environment.save(options.output, "statistics", argv, scale=options.scale, **found)
    return 0


def alone(
    cache: Path, scale: float, repeats: int, codecs: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Statistics of a whole image, beside decoding each of its chunks once on two threads."""
    for codec in codecs:
        for name, path in _images(cache, scale, codec).items():
            # Some passes over one slide take milliseconds, no more than starting them.
            path = _repeated(path, _TIMES[codec] // (2 if "float" in name else 1), codec)
            [image] = patchloom.open_images(str(path), axes="yx")
            cases: dict[str, dict[str, Any]] = {"exact": {}}
            if name == "float32":
                cases["one pass"] = {"exact": False}
            for case, given in cases.items():
                sides: dict[str, Callable[[], Any]] = {"decode": partial(_decode, image)}
                for way in WAYS:
                    sides[way] = _counting(way, partial(patchloom.statistics, image, Q, **given))
                timings = _in_turns(sides, repeats)
                yield {
                    "image": name,
                    "codec": codec,
                    "case": case,
                    "n": math.prod(image.grid.shape),
                    **_ratios(timings, "decode"),
                }


def histogram(cache: Path, scale: float, repeats: int) -> Iterator[dict[str, Any]]:
    """The histogram step of decoded pixels, beside percentiles of NumPy and of Dask."""
    for name in ("uint8", "uint16"):
        flat = np.asarray(zarr.open_array(_images(cache, scale)[name], mode="r")[...]).reshape(-1)
        lazy = dask.array.from_array(flat, chunks=max(1, flat.size // 64))
        sides: dict[str, Callable[[], Any]] = {
            "numpy.percentile": partial(np.percentile, flat, Q),
            "dask.array.percentile": dask.array.percentile(lazy, Q).compute,
        }
        for way in WAYS:
            sides[way] = _counting(way, partial(_ranked, _counted, flat))
            sides[f"{way}, two threads"] = _counting(way, partial(_ranked, _counted_by_two, flat))
            if not np.array_equal(sides[way](), np.percentile(flat.astype(np.float64), Q)):
                raise ValueError(f"percentiles of {name} differ from NumPy's")
        timings = _in_turns(sides, repeats)
        yield {"pixels": name, "n": flat.size, **_ratios(timings, "numpy.percentile")}


def riding(cache: Path, folder: Path, scale: float, repeats: int) -> Iterator[dict[str, Any]]:
    """A run with statistics, beside one that counts nothing."""
    for name in ("w1-aligned", "w2"):
        workload = WORKLOADS[name].scaled(scale)
        sources = workload.dataset.write(cache)
        reports: dict[str, Any] = {}
        run = partial(_run, workload, sources, folder / "out.zarr", reports)
        sides: dict[str, Callable[[], Any]] = {"without": partial(_uncounted, run)}
        for way in WAYS:
            sides[way] = _counting(way, partial(run, way))
        timings = _in_turns(sides, repeats)
        reads = {side: report.chunk_reads for side, report in reports.items()}
        survey = {side: report.survey_reads for side, report in reports.items()}
        yield {
            "workload": name,
            "chunk_reads": reads,
            "survey_reads": survey,
            **_ratios(timings, "without"),
        }


def floats(scale: float, repeats: int) -> Iterator[dict[str, Any]]:
    """Passes over decoded floats until percentiles are exact, beside sorting them."""
    n = int(2**24 * scale)
    rng = np.random.default_rng(0)
    slide = (300 + 10 * rng.standard_normal(n) + rng.exponential(50, n)).astype(np.float32)
    cases: dict[str, Pixels] = {
        "float32": slide,
        "float32 of whole numbers": np.rint(slide),
        "float64": slide * (1 + rng.random(n) * 1e-6),
        "int32": (slide * 1e5).astype(np.int32),
    }
    for name, flat in cases.items():
        sides: dict[str, Callable[[], Any]] = {
            "numpy.sort": partial(np.sort, flat),
            "numpy.partition": partial(np.partition, flat, _ranks(flat.size)),
            "numpy.percentile": partial(np.percentile, flat, Q),
        }
        passes = 0
        for way in WAYS:
            sides[f"{way}, first pass"] = _counting(way, partial(_counted, flat))
            sides[f"{way}, exact"] = _counting(way, partial(_exact, flat))
            exact, passes = sides[f"{way}, exact"]()
            if not np.array_equal(exact, np.percentile(flat.astype(np.float64), Q)):
                raise ValueError(f"percentiles of {name} differ from NumPy's")
        timings = _in_turns(sides, repeats)
        yield {"pixels": name, "n": n, "passes": passes, **_ratios(timings, "numpy.sort")}


def memory(scale: float) -> Iterator[dict[str, Any]]:
    """Bytes of the counts of a channel: stated, and held for a slide and for random patterns."""
    n = int(2**22 * scale)
    rng = np.random.default_rng(0)
    slide = 300 + 10 * rng.standard_normal(n) + rng.exponential(50, n)
    for name in ("uint8", "uint16", "float16", "int32", "float32", "float64"):
        dtype = np.dtype(name)
        patterns = np.frombuffer(rng.bytes(n * dtype.itemsize), dtype)
        for way in WAYS:
            with _by(way):
                held = [_tallied(flat).nbytes for flat in (slide.astype(dtype), patterns)]
            stated = tally_bytes(dtype)
            yield {"pixels": name, "way": way, "stated": stated, "slide": held[0], "any": held[1]}


def _images(cache: Path, scale: float, codec: str = "lz4") -> dict[str, Path]:
    """A channel of the slide as several types, stored in chunks of 512 x 512."""
    sources = W1.scaled(scale).write(cache)
    slide = zarr.open_array(sources.image, mode="r")
    height, width = slide.shape[1:]
    # A float image that is no rescaled integer one: shading, as a flat-field correction leaves.
    shade = np.linspace(0.9, 1.1, width, dtype=np.float32)
    kinds: Mapping[str, Callable[[Pixels, int], Pixels]] = {
        "uint8": lambda rows, _: np.clip(rows // 4, 0, 255).astype(np.uint8),
        "uint16": lambda rows, _: rows,
        "float32": lambda rows, y: rows * shade * np.float32(1 + y / (10 * height)),
        "float32 of whole numbers": lambda rows, _: rows.astype(np.float32),
    }
    found = {}
    for name, convert in kinds.items():
        path = found[name] = cache / f"{name.replace(' ', '-')}-{codec}-{height}x{width}.zarr"
        if path.exists():
            continue
        draft = path.with_suffix(".draft")
        array = _created(draft, (height, width), name.split()[0], codec)
        for y in range(0, height, 512):
            array[y : y + 512] = convert(np.asarray(slide[0, y : y + 512]), y)
        draft.rename(path)
    return found


def _created(path: Path, shape: tuple[int, ...], dtype: str, codec: str) -> zarr.Array[Any]:
    return zarr.create_array(
        path,
        shape=shape,
        chunks=(512, 512),
        dtype=dtype,
        compressors=CODECS[codec],
        overwrite=True,
    )


def _repeated(base: Path, times: int, codec: str) -> Path:
    """An image of some times the height and the width."""
    path = base.with_name(f"{times}x{times}-{base.name}")
    if not path.exists():
        drawn: zarr.Array[Any] = zarr.open_array(base, mode="r")
        draft = path.with_suffix(".draft")
        shape = tuple(n * times for n in drawn.shape)
        link_chunks(_created(draft, shape, str(drawn.dtype), codec), draft, base)
        draft.rename(path)
    return path


def _decode(image: Any) -> int:
    """Decode every chunk of an image once, on two threads, and forget each before the next."""
    source = image.source
    index = np.stack(np.unravel_index(np.arange(image.grid.n_chunks), image.grid.counts), -1)
    together = max(1, 2**25 // (image.dtype.itemsize * int(np.prod(image.grid.chunks))))
    batches = [index[k : k + together] for k in range(0, len(index), together)]

    def read(batch: Pixels) -> int:
        reader: Any = reader_for(source.location, source.metadata)
        return sum(part.size for part in reader.each(batch))

    with ThreadPoolExecutor(N_WORKERS) as pool:
        return sum(pool.map(read, batches))


def _run(workload: Workload, sources: Sources, out: Path, reports: Any, side: str) -> None:
    """Plan and materialise, and remove what was written."""
    plan = plan_of(workload, sources)
    reports[side] = patchloom.materialize(plan, str(out), percentiles=Q, progress=False)
    for path in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(path)


def _uncounted(run: Callable[[str], None]) -> None:
    """A run that neither finds out which pixels its patches cover nor counts them."""
    with mock.patch("patchloom.run.cutting._tally"):
        run("without")


def _tallied(flat: Pixels) -> Tally:
    tally = Tally(flat.dtype)
    # As many pixels together as a chunk has.
    for start in range(0, flat.size, 2**18):
        tally.add(flat[start : start + 2**18])
    return tally


def _counted(flat: Pixels) -> Summary:
    return _tallied(flat).summary()


def _counted_by_two(flat: Pixels) -> Summary:
    with ThreadPoolExecutor(N_WORKERS) as pool:
        return reduce(add, pool.map(_counted, np.array_split(flat, N_WORKERS)))


def _ranked(count: Callable[[Pixels], Summary], flat: Pixels) -> npt.NDArray[np.float64]:
    return percentiles(count(flat), Q)


def _exact(flat: Pixels) -> tuple[npt.NDArray[np.float64], int]:
    """Percentiles after as many passes as they need, and how many those are."""
    found, passes = _counted(flat), 1
    while (wanted := targets(found, Q)) is not None:
        tally = Tally(flat.dtype, targets=wanted)
        for start in range(0, flat.size, 2**18):
            tally.add(flat[start : start + 2**18])
        found, passes = found.refined(tally.summary(), wanted), passes + 1
    return percentiles(found, Q), passes


def _ranks(n: int) -> list[int]:
    return sorted({int(q / 100 * (n - 1)) + k for q in Q for k in (0, 1)})


@contextmanager
def _by(way: str) -> Iterator[None]:
    """Count with numba from the first pixel on, or never."""
    module = import_module("patchloom.summaries.compiled") if way == "fast" else None

    def after(_: int) -> Any:
        # A plain function: a mock takes longer than counting a small chunk.
        return module

    with mock.patch.object(kernels, "after", after):
        yield


def _counting(way: str, run: Callable[[], Any]) -> Callable[[], Any]:
    def counted() -> Any:
        with _by(way):
            return run()

    return counted


def _in_turns(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Run all sides once to warm up, then in turns, forwards and backwards."""
    for run in sides.values():
        run()
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            gc.collect()
            neighbours = environment.Neighbours(time.process_time)
            begun, used = time.perf_counter(), time.process_time()
            sides[name]()
            wall, cpu = time.perf_counter() - begun, time.process_time() - used
            runs[name].append((wall, cpu, neighbours.load() or 0.0))
    return {
        name: dict(
            zip(
                ("seconds", "cpu", "others"),
                (round(statistics.median(figures), 4) for figures in zip(*taken, strict=True)),
                strict=True,
            )
        )
        for name, taken in runs.items()
    }


def _ratios(timings: Mapping[str, Timing], base: str) -> dict[str, Any]:
    """The timings, and those of all sides over those of one."""
    return {
        "timings": timings,
        "ratios": {
            name: {
                clock: round(found[clock] / timings[base][clock], 3) for clock in ("seconds", "cpu")
            }
            for name, found in timings.items()
            if name != base
        },
    }
