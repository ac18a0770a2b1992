"""Time an epoch read live from the sources against decoding each needed chunk once and cutting.

``python -m benchmarks live --help`` lists the options; ``README.md`` says what each number means.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import courses, epochs, records
from benchmarks.floor import run_cut
from benchmarks.job import plan_of
from benchmarks.records import FLOOR, OURS, Result
from benchmarks.workloads import LARGE, WORKLOADS, Sources, Workload

ORDERS = ("none", "window", "exact")
"""What ``shuffle=`` is."""
BATCH = 64
"""Patches of a batch."""
THREADS = 2
"""Of both sides."""
SEVERAL = 4
"""Images that are mixed."""
FEWER = (1, 2, 4)
"""Windows besides the one by default."""
GRID, GRID_SIDE, GRID_STRIDE = 64, 192, 160
"""Patches along each axis of the image that peers read, too; pixels of one, and how far apart."""
_FLAT, _DEEP = ([192] * 2, [32] * 2), ([64] * 3, [16] * 3)
TOLD = (
    ("64 GiB, 3 channels, chunks 1 x 512 x 512", (3, 98_304, 98_304), (1, 512, 512), "cyx", *_FLAT),
    ("64 GiB, chunks 256 x 256", (184_320, 184_320), (256, 256), "yx", *_FLAT),
    ("64 GiB, chunks 64 x 64 x 64", (2048, 4096, 4096), (64,) * 3, "zyx", *_DEEP),
    ("64 GiB, chunks 64 x 128 x 128", (2048, 4096, 4096), (64, 128, 128), "zyx", *_DEEP),
    ("64 GiB, chunks 16 x 256 x 256", (128, 16_384, 16_384), (16, 256, 256), "zyx", *_DEEP),
)
"""Images of which is told what an epoch decodes: shape, chunks, axes, patch and overlap."""


@dataclass(frozen=True)
class LiveRecord:
    """One workload in one order with some memory.

    Parameters
    ----------
    workload, order, memory
        What was read, in which order, and the bytes that the reader may hold.
    n_patches, n_blocks, window
        Patches of the epoch, blocks that they lie in, and how many of these are mixed together.
    seconds, floor, ratio
        Medians of the wall seconds of the epoch and of the floor, and their ratio.
    spread
        Least and greatest ratio within one round.
    first
        Seconds to the first batch.
    estimate, amplification
        Decodes for each needed chunk: as told before, and as counted.
    peak
        Most bytes that the reader held.
    """

    workload: str
    order: str
    memory: int
    n_patches: int
    n_blocks: int
    window: int
    seconds: float
    floor: float
    ratio: float
    spread: tuple[float, float]
    first: float
    estimate: float
    amplification: float
    peak: int

    def results(self) -> list[Result]:
        """As they are saved: the floor's, of which large workloads have none, and ours."""
        name = f"{self.workload}, {self.order}, {self.memory / 2**20:.0f} MiB"
        same: dict[str, Any] = {"workload": name, "what": "live", "of": self.n_patches}
        same |= {"done": self.n_patches, "equal": "sums of all pixels"}
        has_floor = self.floor == self.floor
        counts = {
            "patches_per_s": self.n_patches / self.seconds,
            "first_batch_s": self.first,
            "decodes_told": self.estimate,
            "decodes_per_chunk": self.amplification,
            "held_mib": self.peak / 2**20,
            "blocks": self.n_blocks,
            "window": self.window,
        }
        ours = Result(
            **{**same, "equal": same["equal"] if has_floor else None},
            side=OURS,
            seconds=self.seconds,
            spread=self.spread if has_floor else None,
            over_floor=self.ratio if has_floor else None,
            counts=counts,
        )
        if not has_floor:
            return [ours]
        over = self.floor / self.seconds
        return [Result(**same, side=FLOOR, seconds=self.floor, over_ours=over), ours]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Parameters
    ----------
    argv
        Options; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks live", description=__doc__)
    parser.add_argument("--workload", action="append", choices=[*WORKLOADS, *LARGE, "grid"])
    parser.add_argument("--order", action="append", choices=ORDERS)
    parser.add_argument("--told", action="store_true", help="only what is told before reading")
    parser.add_argument("--mixing", action="store_true", help="only how well batches are mixed")
    parser.add_argument("--courses", action="store_true", help="only what other courses decode")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--memory", action="append", help="such as '256 MiB'; several times")
    parser.add_argument("--seconds", type=float, default=120.0, help="after which one is stopped")
    parser.add_argument("--environments", type=Path, help="folder of the peers', by name")
    parser.add_argument("--peer", action="append", choices=epochs.PEERS, help="may be repeated")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--output", type=Path, help="JSON file, to which results are added")
    options = parser.parse_args(argv)
    if options.told:
        tell(options.memory or ["256 MiB", "1 GiB", "4 GiB"])
        return 0
    if options.courses:
        courses.tell()
        return 0
    if options.mixing:
        tell_mixing(options.memory or ["1 GiB"])
        return 0
    names = options.workload or ["w1-misaligned", "w2", "grid"]
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        for name in names:
            if name == "grid":
                found = among_peers(Path(folder), cache, options)
            else:
                found = among_orders(name, cache, options)
            if options.output is not None:
                records.add(options.output, "live", argv or (), found)
    return 0


def among_orders(name: str, cache: Path, options: argparse.Namespace) -> list[Result]:
    """Epochs of a workload in each order and with each memory, beside the floor of cutting."""
    workload = {**WORKLOADS, **LARGE}[name]
    scaled = workload if name in LARGE else workload.scaled(options.scale)
    found: list[Result] = []
    print(_HEADER, flush=True)
    for memory in options.memory or ["1 GiB", "128 MiB"]:
        for record in compare(scaled, cache, memory, options.pairs, options.order or ORDERS):
            found += record.results()
            print(_row(record), flush=True)
    return found


def among_peers(scratch: Path, cache: Path, options: argparse.Namespace) -> list[Result]:
    """An epoch of one image's overlapping patches, by windows, beside the peers that can do it."""
    n = max(2, round(GRID * options.scale))
    asked = epochs.draw(cache, "grid", n, n, GRID_SIDE, GRID_STRIDE, batch=BATCH)
    print(epochs.HEADER, flush=True)
    with epochs.sides(scratch, options.environments, options.peer or epochs.PEERS) as sides:
        found = epochs.compare(asked, "live", sides, rounds=options.pairs, seconds=options.seconds)
    print(*map(epochs.row, found), sep="\n", flush=True)
    return found


def compare(
    workload: Workload, cache: Path, memory: str, n_pairs: int, orders: Sequence[str]
) -> list[LiveRecord]:
    """Read an epoch in each order, and cut by the floor between, some times over.

    Of large workloads there is no floor: it would hold all patches.

    Raises
    ------
    ValueError
        If the sums of all pixels differ.
    """
    import patchloom

    sources = workload.dataset.write(cache)
    plan = plan_of(workload, sources)
    live = patchloom.stream(plan, memory=memory)
    is_large = workload.name in LARGE
    expected = None if is_large else _floor(workload, sources)[1]  # also warms the page cache
    times: dict[str, list[Any]] = {order: [] for order in (*orders, "floor")}
    for _ in range(n_pairs):
        gc.collect()
        times["floor"].append((float("nan"), 0) if is_large else _floor(workload, sources))
        for order in orders:
            gc.collect()
            times[order].append(_epoch(live, order))
            if expected not in (None, times[order][-1][1]):
                raise ValueError(f"{workload.name}, {order}: other pixels than the floor's")
    floors = [seconds for seconds, _ in times["floor"]]
    floor = statistics.median(floors)
    found = []
    for order in orders:
        seconds = statistics.median(one[0] for one in times[order])
        told = times[order][-1][3]
        ratios = [one[0] / base for one, base in zip(times[order], floors, strict=True)]
        found.append(
            LiveRecord(
                workload=workload.name,
                order=order,
                memory=live.memory,
                n_patches=len(live),
                n_blocks=len(live.blocks) - 1,
                window=live.window,
                seconds=seconds,
                floor=floor,
                ratio=seconds / floor,
                spread=(min(ratios), max(ratios)),
                first=statistics.median(one[2] for one in times[order]),
                estimate=live.read_amplification,
                amplification=told["read_amplification"],
                peak=told["peak_memory"],
            )
        )
    return found


def tell(memories: Sequence[str]) -> None:
    """Print what an epoch by windows is told to decode, of images without a chunk written."""
    import patchloom

    for name, plan in _told_plans(1):
        lives = [patchloom.stream(plan, memory=memory) for memory in memories]
        told = " | ".join(f"{one.read_amplification:.2f} ({one.window})" for one in lives)
        print(f"| {name} | {told} |", flush=True)


def tell_mixing(memories: Sequence[str]) -> None:
    """Print entropies of batches over those of a permutation of all: regions of one image, then
    images and regions of several; by default, and of the window that decodes least.
    """
    import patchloom

    for (name, alone), (_, several) in zip(_told_plans(1), _told_plans(SEVERAL), strict=True):
        for memory in memories:
            for window in (None, *FEWER):
                one, all_ = (
                    patchloom.stream(p, memory=memory, window=window) for p in (alone, several)
                )
                mixed: dict[str, Any] = one.mixing(BATCH)
                found: dict[str, Any] = all_.mixing(BATCH)
                shown = [f"{found[kind]['relative']:.2f}" for kind in ("image", "region")]
                print(
                    f"| {name} | {memory} | {one.window} | {one.read_amplification:.2f} | "
                    f"{mixed['region']['relative']:.2f} | {' | '.join(shown)} |",
                    flush=True,
                )


def _told_plans(n: int) -> Iterator[tuple[str, Any]]:
    """Plans of so many of each of the images, none with a chunk written."""
    import zarr

    import patchloom

    for name, shape, chunks, axes, size, overlap in TOLD:
        with tempfile.TemporaryDirectory() as folder:
            urls = [f"{folder}/{k}.zarr" for k in range(n)]
            for url in urls:
                zarr.create_array(url, shape=shape, chunks=chunks, dtype="uint16")
            images = patchloom.open_images(urls, axes=axes)
            config = {"name": "sequential", "patch_size": size, "overlaps": overlap}
            yield name, patchloom.plan(images, config)


def _floor(workload: Workload, sources: Sources) -> tuple[float, int]:
    seconds, _, patches = run_cut(
        sources.image,
        sources.mask,
        axes=workload.dataset.axes,
        patch_size=workload.patch_size,
        overlaps=workload.overlaps,
        min_coverage=workload.min_coverage,
        n_threads=THREADS,
    )
    return seconds, int(patches.sum(dtype=np.uint64))


def _epoch(live: Any, order: str) -> tuple[float, int, float, dict[str, Any]]:
    """One epoch.

    Returns
    -------
    float, int, float, dict
        Wall seconds without summing, the sum of all pixels, seconds to the first batch, and what
        the reader tells.
    """
    loader = live.batches(BATCH, shuffle=order, seed=1, threads=THREADS)
    begun, first, total, summing = time.perf_counter(), 0.0, 0, 0.0
    for batch in loader:
        now = time.perf_counter()
        first = first or now - begun
        total += int(batch["image"].sum(dtype=np.uint64))
        summing += time.perf_counter() - now
    seconds = time.perf_counter() - begun - summing
    return seconds, total, first, loader.course.recipe.reader.report()


_HEADER = (
    f"{'workload':16} {'order':7} {'memory':>9} {'patches':>8} {'blocks':>6} {'s':>7} {'floor':>7} "
    f"{'ratio':>5} {'first':>6} {'told':>5} {'decodes':>7} {'peak':>9}"
)


def _row(record: LiveRecord) -> str:
    return (
        f"{record.workload:16} {record.order:7} {record.memory / 2**20:5.0f} MiB "
        f"{record.n_patches:8,} {record.n_blocks:6} {record.seconds:7.2f} {record.floor:7.2f} "
        f"{record.ratio:5.2f} {record.first:6.2f} {record.estimate:5.2f} "
        f"{record.amplification:7.3f} {record.peak / 2**20:5.0f} MiB"
    )
