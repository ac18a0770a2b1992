"""Who decodes fastest: our own calls of the codecs, zarr-python, or the Rust pipeline ``zarrs``.

Every chunk of an array is read once by each, from a warm page cache or an S3 server on this
machine. Figures are processor and wall seconds of this process, medians over the runs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

import patchloom
from benchmarks import environment
from benchmarks.workloads import W1
from patchloom.location import Location
from patchloom.sources.chunks import ZarrReader, reader_for

LAYOUTS: dict[str, dict[str, Any]] = {
    "chunks of 512": {"chunks": (512, 512)},
    "chunks of 64": {"chunks": (64, 64)},
    "chunks of 64 in shards of 1024": {"chunks": (64, 64), "shards": (1024, 1024)},
}
"""How the same plane is stored."""
SIDE = 4096


def main(argv: Sequence[str]) -> int:
    """Measure, print a line each, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks codecs", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--s3", action="store_true", help="also from the tests' S3 server")
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    options = parser.parse_args(argv)
    records = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        places: list[tuple[str, str, dict[str, Any]]] = [("local disk", folder, {})]
        if options.s3:
            from tests.servers.s3 import serve_s3

            server = stack.enter_context(serve_s3(None))
            places.append(("S3", server.fresh_bucket(), dict(server.storage_options)))
        for place, root, given in places:
            for name, layout in LAYOUTS.items():
                url = f"{root}/{name.replace(' ', '-')}.zarr"
                _write(url, layout, given)
                for who, read in _readers(url, given):
                    records.append(
                        {"store": place, "layout": name, "reader": who}
                        | _timed(read, options.repeats)
                    )
                    print(" | ".join(str(value) for value in records[-1].values()), flush=True)
    if options.output is not None:
        environment.save(options.output, "codecs", argv, records=records)
    return 0


def _write(url: str, layout: dict[str, Any], given: dict[str, Any]) -> None:
    """Store a plane of the slide."""
    tiles = [[W1.chunk((0, y, x))[0] for x in range(SIDE // 512)] for y in range(SIDE // 512)]
    codec = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
    zarr.create_array(
        url, data=np.block(tiles), compressors=codec, storage_options=given or None, **layout
    )


def _readers(url: str, given: dict[str, Any]) -> Iterator[tuple[str, Callable[[], int]]]:
    """Name of each way to read, and a function that reads all and answers how many pixels."""
    [image] = patchloom.open_images(url, axes="yx", storage_options=given or None)
    location, metadata = Location.of(url, given), image.source.metadata  # type: ignore[attr-defined]
    index = np.stack(np.unravel_index(np.arange(image.grid.n_chunks), image.grid.counts), -1)

    def chunks(reader: Any) -> int:
        # As tasks do: 32 MiB of pixels a batch.
        together = 2**24 // math.prod(image.grid.chunks)
        batches = (index[k : k + together] for k in range(0, len(index), together))
        return sum(part.size for batch in batches for part in reader.read(batch))

    def whole() -> int:
        array = zarr.open_array(url, mode="r", storage_options=given or None)
        return int(np.asarray(array[...]).size)

    yield "direct", lambda: chunks(reader_for(location, metadata))
    yield (
        "zarr-python, chunk by chunk",
        lambda: chunks(ZarrReader(location, metadata.parsed(), metadata.chunks)),
    )
    yield "zarr-python, whole array", whole
    try:
        import zarrs  # noqa: F401
    except ImportError:
        return
    if given:
        return  # it has stores of its own in place of fsspec's
    rust = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 2}

    def piped() -> int:
        with zarr.config.set(rust):
            return whole()

    yield "zarrs, whole array", piped


def _timed(read: Callable[[], int], repeats: int) -> dict[str, float]:
    read()
    wall, cpu = [], []
    for _ in range(repeats):
        begun, used = time.perf_counter(), time.process_time()
        if read() != SIDE * SIDE:
            raise ValueError("not every pixel was read")
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
    return {
        "seconds": round(statistics.median(wall), 3),
        "cpu": round(statistics.median(cpu), 3),
    }
