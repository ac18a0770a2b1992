"""Stitching: predictions of tiles put together, beside reading them once and writing the image.

``python -m benchmarks stitching --side 8192``: the floor reads every tile of the predictions with
zarr-python and writes the image, which it holds already, in one assignment: the least that any
program does. It has no blending and no resume.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from zarr.codecs import BloscCodec

import patchloom
from benchmarks import environment

TILE, OVERLAP, CHUNK = 256, 64, 512


def main(argv: Sequence[str]) -> int:
    """Measure in alternating rounds; print medians and ratios as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks stitching", description=__doc__)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scheduler", default="threads")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as scratch,
        dask.config.set(scheduler=given.scheduler, num_workers=given.workers),
    ):
        figures = _measured(Path(scratch), given.side, given.rounds)
    print(json.dumps(figures, indent=1))
    if given.output is not None:
        environment.save(given.output, "stitching", argv, figures=figures)
    return 0


def _measured(folder: Path, side: int, n_rounds: int) -> dict[str, Any]:
    plan, store, said, pixels = _made(folder, side)
    out = folder / "out.zarr"

    def stitch(tiles: Any, given: Any, blend: str | None) -> Any:
        shutil.rmtree(out, ignore_errors=True)
        return patchloom.stitch(tiles, given, out, blend=blend, progress=False)

    def floor() -> None:
        shutil.rmtree(out, ignore_errors=True)
        array, step = said.array, said.rows_per_shard
        for start in range(0, len(said), step):
            array[start : start + step]
        _written(out, pixels)

    def write() -> None:
        shutil.rmtree(out, ignore_errors=True)
        _written(out, pixels)

    ways: dict[str, Callable[[], Any]] = {
        "write": write,
        "floor": floor,
        "crop": lambda: stitch(store, said, None),
        "hann": lambda: stitch(store, said, "hann"),
        "live": lambda: stitch(plan, _same, "hann"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    reports = {}
    for _ in range(n_rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            reports[name] = way()
            seconds[name].append(time.perf_counter() - begun)
    middle = {name: statistics.median(all_) for name, all_ in seconds.items()}
    ours = ("crop", "hann", "live")
    return {
        "side": side,
        "megabytes": pixels.nbytes / 1e6,
        "seconds": {name: round(s, 3) for name, s in middle.items()},
        "spread": {name: [round(min(s), 3), round(max(s), 3)] for name, s in seconds.items()},
        "over floor": {name: round(middle[name] / middle["floor"], 2) for name in ours},
        "over write": {name: round(middle[name] / middle["write"], 2) for name in ours},
        "reads a tile": {name: round(reports[name].reads_a_tile, 3) for name in ours},
        "decodes a chunk": round(reports["live"].chunk_reads / plan.chunks_needed, 3),
        "machine": environment.machine(),
    }


def _made(folder: Path, side: int) -> tuple[Any, Any, Any, Any]:
    """A plan, its tiles, predictions that are the tiles, and the image."""
    rng = np.random.default_rng(0)
    shape = (side, side)
    y, x = np.ogrid[:side, :side]
    blobs = (np.sin(y / 37) * np.sin(x / 41) * 500 + 1000).astype("u2")
    pixels = blobs + rng.integers(0, 60, shape, dtype="u2")
    zarr.create_array(folder / "a.zarr", data=pixels, chunks=(CHUNK, CHUNK), compressors=_codec())
    images = patchloom.open_images(str(folder / "a.zarr"), axes="YX")
    how = {"name": "tiled", "patch_size": [TILE] * 2, "overlaps": [OVERLAP] * 2}
    plan = patchloom.plan(images, how, edge="pad")
    patchloom.materialize(plan, folder / "tiles.zarr", progress=False)
    store = patchloom.open_patches(folder / "tiles.zarr")
    said = patchloom.Predictions(folder / "said.zarr", store, dtype="u2")
    for rows in said.missing():
        tiles: Any = store.images[rows.start : rows.stop]
        said.put(rows, tiles)
    return plan, store, said, pixels


def _same(tiles: Any) -> Any:
    return tiles


def _codec() -> BloscCodec:
    return BloscCodec(typesize=2, cname="zstd", clevel=1, shuffle="bitshuffle")


def _written(out: Path, pixels: Any) -> None:
    array = zarr.create_array(
        out, shape=pixels.shape, dtype=pixels.dtype, chunks=(CHUNK, CHUNK), compressors=_codec()
    )
    array[...] = pixels
