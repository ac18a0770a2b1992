"""A loop over tensorstore with a cache that holds the image: reads run ahead of the patches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tensorstore as ts
from patches import Job, Take, Written, part_seal, serve

AHEAD = 64
"""Reads, or writes, under way at a time."""


def _open(job: Job) -> Callable[[int], Any]:
    pixels = sum(math.prod(shape) for shape in job.shapes)
    cache = pixels * np.dtype(job.dtype).itemsize + 2**28
    context = ts.Context(
        {"cache_pool": {"total_bytes_limit": cache}, "data_copy_concurrency": {"limit": 2}}
    )
    opened: dict[int, Any] = {}

    def image(k: int) -> Any:
        if k not in opened:
            spec = {
                "driver": "zarr3",
                "kvstore": _kvstore(job, job.arrays[k]),
                "recheck_cached_data": False,
                "recheck_cached_metadata": False,
            }
            opened[k] = ts.open(spec, read=True, open=True, context=context).result()
        return opened[k]

    return image


def _kvstore(job: Job, url: str) -> dict[str, Any]:
    if not url.startswith("s3://"):
        return {"driver": "file", "path": url}
    parts, options = urlsplit(url), job.storage_options
    return {
        "driver": "s3",
        "bucket": parts.netloc,
        "path": parts.path.lstrip("/") + "/",
        "endpoint": options["endpoint_url"],
        "aws_region": options["client_kwargs"]["region_name"],
        "aws_credentials": {"type": "environment"},
    }


def _patches(job: Job, wanted: Any) -> Iterator[tuple[int, Any]]:
    image = _open(job)
    under_way: deque[tuple[int, Any]] = deque()
    for number, (k, *corner) in zip(wanted.tolist(), job.corners[wanted].tolist(), strict=True):
        under_way.append((number, image(k)[job.box(corner)].read()))
        if len(under_way) == AHEAD:
            first, future = under_way.popleft()
            yield first, future.result().reshape(job.patch_shape)
    for first, future in under_way:
        yield first, future.result().reshape(job.patch_shape)


def cut(job: Job, wanted: Any, take: Take) -> None:
    for number, pixels in _patches(job, wanted):
        take(number, pixels)


def write(job: Job, out: str) -> Written:
    n = len(job.corners)
    blosc = {"cname": "zstd", "clevel": 1, "shuffle": "bitshuffle"}
    typesize = np.dtype(job.dtype).itemsize
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": out},
        "metadata": {
            "shape": [n, *job.patch_shape],
            "data_type": np.dtype(job.dtype).name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [1, *job.patch_shape]},
            },
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "blosc", "configuration": {**blosc, "typesize": typesize}},
            ],
        },
    }
    target = ts.open(spec, create=True, delete_existing=True).result()
    writes: deque[Any] = deque()
    for number, pixels in _patches(job, np.arange(n)):
        part_seal(pixels)
        writes.append(target[number].write(pixels))
        if len(writes) == AHEAD:
            writes.popleft().result()
    for future in writes:
        future.result()
    return Written()


def decode(job: Job) -> int:
    image, n = _open(job), 0
    under_way: deque[Any] = deque()
    for k, *index in np.load(job.chunks_file).tolist():
        array = image(k)
        box = tuple(
            slice(s.start, min(s.stop, size))
            for s, size in zip(job.chunk_box(index), array.shape, strict=True)
        )
        under_way.append(array[box].read())
        if len(under_way) == AHEAD:
            n += int(under_way.popleft().result().size)
    return n + sum(int(future.result().size) for future in under_way)


if __name__ == "__main__":
    serve("tensorstore", cut, write=write, decode=decode)
