"""A loop over zarr-python: one read a patch, on two threads; its own codecs or the Rust ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from patches import Job, Take, open_array, serve, two_threads


def cut(job: Job, wanted: Any, take: Take) -> None:
    opened: dict[int, Any] = {}

    def one(number: int, corner: Sequence[int]) -> None:
        image = corner[0]
        if image not in opened:
            opened[image] = open_array(job.arrays[image], job.storage_options)
        pixels = opened[image][job.box(corner[1:])]
        take(number, pixels.reshape(job.patch_shape))

    two_threads(job, wanted, one)


def decode(job: Job) -> int:
    arrays = {0: open_array(job.arrays[0], job.storage_options)}

    def one(row: Sequence[int]) -> int:
        image, *index = row
        if image not in arrays:
            arrays[image] = open_array(job.arrays[image], job.storage_options)
        return int(np.asarray(arrays[image][job.chunk_box(index)]).size)

    with ThreadPoolExecutor(job.threads) as pool:
        return sum(pool.map(one, np.load(job.chunks_file).tolist()))


if __name__ == "__main__":
    if "zarrs" in sys.argv:
        import zarrs  # noqa: F401

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        zarr.config.set({"threading.max_workers": 2})
        serve("zarrs", cut, decode=decode)
    else:
        serve("zarr", cut, decode=decode)
