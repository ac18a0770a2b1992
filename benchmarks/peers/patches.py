"""What all sides share that cut patches: what is asked, who takes the patches, and the clock.

Needs NumPy and zarr (2 or 3) only. A side is a process that is asked line by line, and a file
``cut_NAME.py`` that says how it cuts.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import zarr

STEP = 997
"""Of a patch one value in so many is compared while the clock runs."""


class CannotError(Exception):
    """Why a side cannot do a workload at all."""


@dataclass(frozen=True)
class Job:
    """What is asked of every side.

    Parameters
    ----------
    arrays
        Paths or URLs of the Zarr v3 arrays.
    twins
        Zarr v2 arrays of the same pixels, for those who read nothing newer.
    axes
        One letter an axis, slowest first; ``c`` comes first or not at all.
    shapes, chunks, dtype
        Of the arrays; all have the same chunks.
    patch_size, overlaps
        Along the spatial axes; no overlaps where patches lie on no grid.
    corners_file, chunks_file
        Columns image, first corner of every patch; and image, indices of every chunk that
        patches touch.
    storage_options
        For fsspec.
    images, mask, config, min_coverage
        For patchloom, which chooses the patches by itself.
    rows_per_shard
        Patches a shard, for those who write shards.
    threads
        As many as a side may keep busy.
    """

    arrays: Sequence[str]
    twins: Sequence[str]
    axes: str
    shapes: Sequence[Sequence[int]]
    chunks: Sequence[int]
    dtype: str
    patch_size: Sequence[int]
    overlaps: Sequence[int] | None
    corners_file: str
    chunks_file: str
    storage_options: dict[str, Any]
    images: Sequence[str]
    mask: str | None
    config: dict[str, Any]
    min_coverage: float
    rows_per_shard: int
    threads: int = 2

    @property
    def corners(self) -> Any:
        """int64[n, 1 + space]: image and first corner of each patch."""
        return np.load(self.corners_file)

    @property
    def n_channels(self) -> int:
        """Channels of every image."""
        return self.shapes[0][0] if self.axes[0] == "c" else 1

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Of one patch, channel first."""
        return (self.n_channels, *self.patch_size)

    def box(self, corner: Sequence[int]) -> tuple[slice, ...]:
        """Slices of an array that are the patch at a corner (without the image)."""
        space = tuple(slice(a, a + n) for a, n in zip(corner, self.patch_size, strict=True))
        return (slice(None), *space) if self.axes[0] == "c" else space

    def chunk_box(self, index: Sequence[int]) -> tuple[slice, ...]:
        """Slices of an array that are a chunk."""
        return tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, self.chunks, strict=True))

    def at(self, corner: Sequence[int]) -> tuple[int, ...]:
        """A first corner as a key to find patches by."""
        return tuple(int(a) for a in corner)


Take = Callable[[int, Any], None]
Cut = Callable[[Job, Any, Take], "Callable[[], Any] | None"]
"""Hands every wanted patch out once, and may answer who numbers them: which patch the ones it
handed out are."""


@dataclass(frozen=True)
class Written:
    """What a side wrote by itself.

    Parameters
    ----------
    array
        Where below the place that was named the Zarr array lies.
    counts
        Figures, by name.
    numbers
        Answers which patch each row is, or None where they are the job's.
    """

    array: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    numbers: Callable[[], Any] | None = None


@dataclass
class Taker:
    """Whoever takes patches: adds up what it was given, compares a little, and may write."""

    job: Job
    seal: Callable[[Any], int]
    out: Any = None
    found: dict[int, int] = field(default_factory=dict)

    def take(self, number: int, pixels: Any) -> None:
        """Take one patch from any thread."""
        # An array of its own, in the type that was asked.
        pixels = np.ascontiguousarray(pixels, dtype=self.job.dtype)
        if pixels.shape != self.job.patch_shape:
            raise ValueError(f"a patch is {self.job.patch_shape}, got {pixels.shape}")
        if self.out is not None:
            self.out[number] = pixels
        self.found[number] = self.seal(pixels)


def part_seal(pixels: Any) -> int:
    """A number that tells most patches apart, for next to nothing."""
    return zlib.crc32(pixels.reshape(-1)[::STEP].tobytes())


def whole_seal(pixels: Any) -> int:
    """A number that depends on every byte."""
    return zlib.crc32(pixels.reshape(-1).view(np.uint8))


def two_threads(job: Job, wanted: Any, one: Callable[[int, Sequence[int]], None]) -> None:
    """Call `one(number, image and corner)` for all wanted patches, on as many threads as allowed.

    Each thread takes every so many-th piece of 16 neighbours.
    """
    corners = job.corners[wanted].tolist()
    numbers = wanted.tolist()

    def some(begin: int) -> None:
        for k in range(begin, min(begin + 16, len(numbers))):
            one(numbers[k], corners[k])

    with ThreadPoolExecutor(job.threads) as pool:
        for _ in pool.map(some, range(0, len(numbers), 16)):
            pass


def open_array(url: str, options: dict[str, Any]) -> Any:
    """A Zarr array to read from."""
    return zarr.open_array(url, mode="r", storage_options=options or None)


def create(job: Job, out: str, n: int) -> Any:
    """A plain Zarr array of patches, one a chunk, in the codec that all use."""
    shape, chunks = (n, *job.patch_shape), (1, *job.patch_shape)
    if zarr.__version__.startswith("2."):
        import numcodecs

        codec = numcodecs.Blosc("zstd", 1, numcodecs.Blosc.BITSHUFFLE)
        return zarr.open(
            out, mode="w", shape=shape, chunks=chunks, dtype=job.dtype, compressor=codec
        )
    from zarr.codecs import BloscCodec

    codec = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    return zarr.create_array(out, shape=shape, chunks=chunks, dtype=job.dtype, compressors=codec)


def serve(
    name: str,
    cut: Cut | None,
    *,
    write: Callable[[Job, str], Written] | None = None,
    decode: Callable[[Job], int] | None = None,
    prepare: Callable[[Job], dict[str, Any]] | None = None,
    package: str | None = None,
) -> None:
    """Answer requests, one a line, until there are no more.

    Parameters
    ----------
    name
        Of the side.
    cut
        How it cuts.
    write
        How it cuts and writes, if not by handing patches out to a plain Zarr array.
    decode
        How it decodes each needed chunk once; answers how many pixels.
    prepare
        What is done before a side cuts and its clock runs; answers counts.
    package
        Whose version is told.
    """
    print(json.dumps({"name": name, "version": metadata.version(package or name)}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            job = Job(**json.loads(Path(request["job"]).read_text()))
            counts = prepare(job) if prepare is not None and request["what"] == "cut" else {}
            answer = _answer(request, job, cut, write, decode)
            answer["counts"] = {**counts, **answer["counts"]}
        except CannotError as error:
            answer = {"cannot": str(error)}
        except BaseException as error:
            traceback.print_exc()
            answer = {"cannot": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer, default=lambda value: value.item()), flush=True)


def _answer(
    request: dict[str, Any],
    job: Job,
    cut: Cut | None,
    write: Callable[[Job, str], Written] | None,
    decode: Callable[[Job], int] | None,
) -> dict[str, Any]:
    n, what = len(job.corners), request["what"]
    wanted = np.arange(0, n, request["every"])
    taker = Taker(job, whole_seal if request["whole"] else part_seal)
    counts: dict[str, Any] = {}
    array: str | None = None
    numbers: Callable[[], Any] | None = None
    gc.collect()
    _forget_peak()
    watch = _Watch(taker, len(wanted), request["seconds"])
    begun, used = time.perf_counter(), time.process_time()
    try:
        if what == "decode":
            if decode is None:
                raise CannotError("decodes nothing by itself")
            counts["pixels"] = decode(job)
        elif what == "cut+write" and write is not None:
            written = write(job, request["out"])
            array, counts, numbers = written.array, written.counts, written.numbers
        else:
            if cut is None:
                raise CannotError("cuts nothing")
            if what == "cut+write":
                taker.out = create(job, request["out"], n)
            numbers = cut(job, wanted, taker.take)
    finally:
        watch.done()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - used
    if array is None:
        found = taker.found
        if numbers is not None:
            of = numbers()
            found = {int(of[k]): seal for k, seal in found.items()}
        done, rows = len(found), sorted(found.items())
    else:
        done, rows = n, list(enumerate(np.arange(n) if numbers is None else numbers()))
    np.save(request["found"], np.array(rows, dtype=np.int64).reshape(-1, 2))
    return {
        "seconds": seconds,
        "cpu": cpu,
        "done": done,
        "array": array,
        "counts": {**counts, "peak_mib": _peak() / 2**20},
    }


class _Watch:
    """Ends the process when time is up, saying how far it came."""

    def __init__(self, taker: Taker, n: int, seconds: float) -> None:
        self._taker, self._n, self._seconds = taker, n, seconds
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.daemon = True
        self._timer.start()

    def done(self) -> None:
        self._timer.cancel()

    def _stop(self) -> None:
        done = min(len(self._taker.found), self._n)
        peak = {"peak_mib": _peak() / 2**20}
        answer = {"stopped": True, "seconds": self._seconds, "done": done, "counts": peak}
        print(json.dumps(answer), flush=True)
        os._exit(0)


def _forget_peak() -> None:
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Most bytes resident since the request came, where the system says so; else ever."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def windows(items: Sequence[Any], n: int) -> Iterator[Sequence[Any]]:
    """Some items at a time."""
    for k in range(0, len(items), n):
        yield items[k : k + n]
