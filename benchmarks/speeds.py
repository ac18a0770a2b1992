"""Measure the speeds of the price table on this machine: ``python -m benchmarks.speeds``.

Prints the ``speed:`` block of a file for ``patchloom plan JOB.yaml --prices FILE``. What lies
beyond a network (fetch, latency, concurrency) is not measured: put in what your store gives.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from zarr.codecs import BloscCodec

import patchloom

TIMES = 4


def run_seconds(plan: Any, folder: Path) -> float:
    """Least seconds of a run on one thread, of its own work: others on the machine do not count."""
    found = []
    for k in range(TIMES):
        url = folder / f"{plan.fingerprint}-{k}.zarr"
        with dask.config.set(scheduler="synchronous"):
            begun = time.process_time()
            patchloom.materialize(plan, url, progress=False)
            found.append(time.process_time() - begun)
    return min(found)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = zarr.create_array(
            folder / "a.zarr",
            shape=(8192, 8192),
            chunks=(512, 512),
            dtype="uint16",
            compressors=BloscCodec(cname="lz4", shuffle="shuffle"),
        )
        draw = np.random.default_rng(0)
        image[:] = draw.poisson(200, image.shape).astype("uint16")
        images = patchloom.open_images(folder / "a.zarr")

        tiny = patchloom.open_images(np.zeros((64, 64), "uint8"))
        small = {"name": "sequential", "patch_size": [8, 8]}
        idle = patchloom.plan(tiny, small, rows_per_shard=1)
        shard = run_seconds(idle, folder) / idle.n_shards

        # Small patches out of large chunks: all is decoded, next to nothing is written.
        few = {"name": "random", "patch_size": [16, 16], "n_patches": 1024}
        reading = patchloom.plan(images, few)
        decoded = reading.chunk_reads * 512 * 512 * 2
        decode = decoded / (run_seconds(reading, folder) - reading.n_shards * shard)

        whole = patchloom.plan(images, {"name": "sequential", "patch_size": [256, 256]})
        output = whole.figures()["bytes_output"]
        seconds = run_seconds(whole, folder) - whole.n_shards * shard
        encode = output / (seconds - whole.chunk_reads * 512 * 512 * 2 / decode)
    print("speed:")
    print(f"  decode_mb_s: {decode / 1e6:.0f}")
    print(f"  encode_mb_s: {encode / 1e6:.0f}")
    print(f"  shard_s: {shard:.4f}")


if __name__ == "__main__":
    main()
