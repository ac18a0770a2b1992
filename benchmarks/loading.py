"""How fast a store is loaded, beside the decoding of its shards alone and beside loose files.

``python -m benchmarks loading --help`` lists the options; ``README.md`` says what each number
means. Every way is run once in each round, in turn, in one process, with all files in the page
cache.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import zarr
from fsspec.asyn import AsyncFileSystem, sync
from numcodecs import blosc

import patchloom
from benchmarks import environment
from patchloom.load.course import default_threads

SIDE = 128
"""Pixels of a patch along each axis."""


@dataclass(frozen=True)
class Record:
    """One way of loading all patches once, in batches.

    Parameters
    ----------
    way
        What loaded them.
    latency_ms
        Of each request; 0 is the local disk.
    patches_per_s
        Median over rounds.
    of_floor
        Median over rounds of the way's seconds over those of the floor in the same round; of those
        with latency, of `files` in the same round.
    first_batch_s
        From opening to the first batch, median.
    """

    way: str
    latency_ms: float
    patches_per_s: float
    of_floor: float
    first_batch_s: float


class Delayed(AsyncFileSystem):  # type: ignore[misc]
    """Local files, each request of which takes as long as one to an object store."""

    protocol = "delayed"
    latency = 0.0

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        await asyncio.sleep(self.latency)
        with open(self._strip_protocol(path), "rb", buffering=0) as file:
            if start is not None:
                file.seek(start, 2 if start < 0 else 0)
            return file.read() if end is None else file.read(end - (start or 0))


def draw(folder: Path, n_patches: int) -> str:
    """A store of so many patches of blobs under camera noise, some 32 MiB a shard."""
    chance = np.random.default_rng(0)
    rows = -(-n_patches // 64)
    shape = rows * SIDE, 64 * SIDE
    image = zarr.create_array(folder / "image.zarr", shape=shape, chunks=(512, 512), dtype="uint16")
    for y in range(0, shape[0], 512):
        height = min(512, shape[0] - y)
        level = chance.gamma(2, 60, (-(-height // 16), shape[1] // 16)).repeat(16, 0)[:height]
        image[y : y + height] = chance.poisson(level.repeat(16, 1) + 100).astype("uint16")
    images = patchloom.open_images(folder / "image.zarr")
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [SIDE, SIDE]})
    patchloom.materialize(plan, folder / "store.zarr", progress=False)
    return str(folder / "store.zarr")


def floor(url: str, batch: int) -> Iterator[float]:
    """Decode each shard, thread by thread, into batches; nothing is checked, mixed or put in order.

    Yields the moment of each batch.
    """
    names = sorted((Path(url) / "images/c").glob("*/0/0/0"), key=lambda p: int(p.parts[-4]))
    per_shard = int(zarr.open_array(f"{url}/images", mode="r").metadata.shards[0])  # type: ignore[index]

    def decode(name: Path) -> list[float]:
        data = memoryview(name.read_bytes())
        index = np.frombuffer(data[-16 * per_shard - 4 : -4], "<u8").reshape(-1, 2)
        places = index[index[:, 0] != 2**64 - 1].tolist()
        found = []
        for k in range(0, len(places), batch):
            some = places[k : k + batch]
            out = np.empty((len(some), 1, SIDE, SIDE), "uint16")
            for place, (begin, length) in zip(out, some, strict=True):
                blosc.decompress(data[begin : begin + length - 4], place)
            found.append(time.perf_counter())
        return found

    with ThreadPoolExecutor(default_threads()) as pool:
        for moments in pool.map(decode, names):
            yield from moments


def files(folder: Path, n: int, batch: int) -> Iterator[float]:
    """One ``.npy`` a patch, in a random order, batch by batch, by as many threads as ours."""
    order = np.random.default_rng(1).permutation(n)

    def load(some: Sequence[int]) -> None:
        np.stack([np.load(folder / f"{k}.npy") for k in some])

    with ThreadPoolExecutor(default_threads()) as pool:
        for _ in pool.map(load, [order[k : k + batch].tolist() for k in range(0, n, batch)]):
            yield time.perf_counter()


def files_one_by_one(folder: Path, n: int, batch: int) -> Iterator[float]:
    """As a ``Dataset`` of loose files reads them: each thread one request after another."""
    order = np.random.default_rng(1).permutation(n)[: max(batch, n // 16)]
    fs = fsspec.filesystem("delayed")

    def load(some: Sequence[int]) -> None:
        np.stack([np.load(io.BytesIO(fs.cat_file(f"{folder}/{k}.npy"))) for k in some])

    with ThreadPoolExecutor(default_threads()) as pool:
        parts = [order[k : k + batch].tolist() for k in range(0, len(order), batch)]
        for _ in pool.map(load, parts):
            yield time.perf_counter()


def distant_files(folder: Path, n: int, batch: int) -> Iterator[float]:
    """The same, all requests of a batch under way at once, and the next batch with them."""
    order = np.random.default_rng(1).permutation(n)
    fs = fsspec.filesystem("delayed")

    async def fetch(some: Sequence[int]) -> Any:
        return await asyncio.gather(*(fs._cat_file(f"{folder}/{k}.npy") for k in some))

    def load(some: Sequence[int]) -> None:
        found = sync(fs.loop, fetch, some)
        np.stack([np.frombuffer(data[128:], "uint16").reshape(1, SIDE, SIDE) for data in found])

    with ThreadPoolExecutor(default_threads()) as pool:
        for _ in pool.map(load, [order[k : k + batch].tolist() for k in range(0, n, batch)]):
            yield time.perf_counter()


def ours(url: str, batch: int, **options: Any) -> Iterator[float]:
    """The loader."""
    for _ in patchloom.open_patches(url).batches(batch, **options):
        yield time.perf_counter()


def timed(way: Callable[[], Iterator[float]], n: int, batch: int) -> tuple[float, float]:
    """Seconds of all batches, and to the first; of a way that stops early, in proportion."""
    begun = time.perf_counter()
    moments = list(way())
    share = len(moments) * batch / n
    return (time.perf_counter() - begun) / min(1, share), min(moments) - begun


def compare(
    ways: dict[str, Callable[[], Iterator[float]]], n: int, batch: int, rounds: int, latency: float
) -> list[Record]:
    """Run all ways in turn; the first is what the others are compared with.

    A way may load fewer patches than all, and is told by what it takes a patch.
    """
    Delayed.latency = latency / 1000
    for way in ways.values():
        timed(way, n, batch)
    runs = [{name: timed(way, n, batch) for name, way in ways.items()} for _ in range(rounds)]
    first = next(iter(ways))
    return [
        Record(
            name,
            latency,
            round(n / statistics.median(run[name][0] for run in runs), 1),
            round(statistics.median(run[name][0] / run[first][0] for run in runs), 3),
            round(statistics.median(run[name][1] for run in runs), 4),
        )
        for name in ways
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a store, load it in every way, print and save the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks loading", description=__doc__)
    parser.add_argument("--patches", type=int, default=8192, help="of 128 x 128 uint16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency", type=float, default=5.0, help="milliseconds of a request")
    parser.add_argument("--output", type=Path)
    told = parser.parse_args(argv)
    fsspec.register_implementation("delayed", Delayed, clobber=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = draw(folder, told.patches)
        store = patchloom.open_patches(url)
        n, loose = store.n_patches, folder / "loose"
        loose.mkdir()
        for batch in store.batches(256, shuffle=False, columns="row"):
            for row, image in zip(batch["row"], batch["image"], strict=True):
                np.save(loose / f"{row}.npy", image)
        ways: dict[str, Callable[[], Iterator[float]]] = {
            "floor": lambda: floor(url, told.batch),
            "store, sequential": lambda: ours(url, told.batch, shuffle=False),
            "store, window": lambda: ours(url, told.batch, shuffle="window"),
            "store, exact": lambda: ours(url, told.batch, shuffle="exact"),
            "files": lambda: files(loose, n, told.batch),
        }
        records = compare(ways, n, told.batch, told.rounds, 0)
        away = f"delayed://{url}"
        distant: dict[str, Callable[[], Iterator[float]]] = {
            "files": lambda: files_one_by_one(loose, n, told.batch),
            "files, a batch at once": lambda: distant_files(loose, n, told.batch),
            "store, sequential": lambda: ours(away, told.batch, shuffle=False),
            "store, window": lambda: ours(away, told.batch, shuffle="window"),
            "store, exact": lambda: ours(away, told.batch, shuffle="exact"),
        }
        records += compare(distant, n, told.batch, max(1, told.rounds // 2), told.latency)
        memory = [_resident() for _ in ours(away, told.batch, shuffle="window", epochs=6)]
        figures = {
            "n_patches": n,
            "n_shards": len(store.blocks) - 1,
            "batch": told.batch,
            "threads": default_threads(),
            "records": [asdict(record) for record in records],
            "resident_mib": {
                "after_1_epoch": max(memory[: len(memory) // 6]),
                "after_6_epochs": max(memory),
            },
        }
    print(f"{n} patches in {figures['n_shards']} shards, batches of {told.batch}")
    for r in records:
        at = f"{r.latency_ms:g} ms"
        print(
            f"{r.way:24} {at:>6} {r.patches_per_s:>10,.0f} patches/s"
            f"{r.of_floor:>8.2f} x {r.first_batch_s:>8.3f} s to the first batch"
        )
    print("resident MiB:", figures["resident_mib"])
    if told.output:
        environment.save(told.output, "loading", argv or [], **figures)
    return 0


def _resident() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss // 2**20)


if __name__ == "__main__":
    raise SystemExit(main())
