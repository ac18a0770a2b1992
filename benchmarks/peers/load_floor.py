"""The floor: each encoded patch, or each chunk of the image, decoded once by hand on two threads.

It hands patches out in an order of its own, checks and mixes nothing, and knows one layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from batches import Asked, serve, threaded
from numcodecs import blosc


def _shards(asked: Asked) -> Any:
    """The patches of shard after shard, out of files that are mapped into memory."""
    names = sorted((Path(asked.store) / "images/c").glob("*/0/0/0"), key=lambda p: int(p.parts[-4]))
    shards = zarr.open_array(f"{asked.store}/images", mode="r").shards
    per_shard = shards[0] if shards else 0

    def parts() -> Iterator[tuple[Any, Any]]:
        for name in names:
            data = np.memmap(name, np.uint8, "r")
            index = data[-16 * per_shard - 4 : -4].view("<u8").reshape(-1, 2)
            places = index[index[:, 0] != 2**64 - 1].tolist()
            for k in range(0, len(places), asked.batch):
                yield data.data, places[k : k + asked.batch]

    def decode(part: tuple[Any, Any]) -> Any:
        data, places = part
        out = np.empty((len(places), 1, asked.side, asked.side), asked.dtype)
        for place, (begin, length) in zip(out, places, strict=True):
            blosc.decompress(data[begin : begin + length - 4], place)
        return out

    return threaded(decode, parts(), asked.threads)


def _image(asked: Asked) -> Iterator[Any]:
    """The patches of row after row of chunks; the whole image is held, and nothing is freed."""
    array = zarr.open_array(f"{asked.source}/0", mode="r")
    (height, width), (tall, wide) = array.shape, array.chunks
    image = np.empty((-(-height // tall) * tall, -(-width // wide) * wide), asked.dtype)

    def decode(row: int, column: int) -> None:
        chunk = np.empty((tall, wide), asked.dtype)
        path = Path(asked.source, "0", array.metadata.encode_chunk_key((row, column)))
        blosc.decompress(path.read_bytes(), chunk)
        image[row * tall :, column * wide :][:tall, :wide] = chunk

    def cut(some: Sequence[tuple[int, int]]) -> Any:
        out = np.empty((len(some), asked.side, asked.side), asked.dtype)
        for place, (y, x) in zip(out, some, strict=True):
            place[...] = image[y : y + asked.side, x : x + asked.side]
        return out

    ys = range(0, height - asked.side + 1, asked.stride)
    xs = range(0, width - asked.side + 1, asked.stride)
    corners = [(y, x) for y in ys for x in xs]
    with ThreadPoolExecutor(asked.threads) as pool:
        rows: list[list[Future[None]]] = [
            [pool.submit(decode, row, column) for column in range(image.shape[1] // wide)]
            for row in range(image.shape[0] // tall)
        ]

        def ready() -> Iterator[Sequence[tuple[int, int]]]:
            done = 0
            for k in range(0, len(corners), asked.batch):
                some = corners[k : k + asked.batch]
                while done * tall < some[-1][0] + asked.side:
                    for one in rows[done]:
                        one.result()
                    done += 1
                yield some

        yield from map(cut, ready())


if __name__ == "__main__":
    serve("floor", {"store": _shards, "live": _image}, package="numcodecs")
