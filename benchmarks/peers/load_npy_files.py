"""Loose files: one ``.npy`` a patch, in a random order, by as many threads as ours."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from batches import Asked, mixed, serve, threaded
from delayed import delay
from fsspec.asyn import sync

HEADER = 128
"""Bytes of a ``.npy`` file before its pixels."""


def _prepare(asked: Asked) -> None:
    import patchloom

    folder = Path(asked.own)
    if folder.exists():
        return
    folder.mkdir(parents=True)
    store = patchloom.open_patches(asked.store)
    for batch in store.batches(256, shuffle=False, columns="row"):
        for row, image in zip(batch["row"].tolist(), batch["image"], strict=True):
            np.save(folder / f"{row}.npy", image)


def _near(asked: Asked) -> Any:
    def load(some: Sequence[int]) -> Any:
        return np.stack([np.load(f"{asked.own}/{k}.npy") for k in some])

    return threaded(load, mixed(asked.n, asked.batch), asked.threads)


def _one_by_one(asked: Asked) -> Any:
    """As a ``Dataset`` of loose files reads them: each thread one request after another."""
    fs = delay(asked.latency)

    def load(some: Sequence[int]) -> Any:
        return np.stack([np.load(io.BytesIO(fs.cat_file(f"{asked.own}/{k}.npy"))) for k in some])

    return threaded(load, mixed(asked.n, asked.batch), asked.threads)


def _at_once(asked: Asked) -> Any:
    """All requests of a batch under way at once, and those of the next ones with them."""
    fs = delay(asked.latency)

    async def fetch(some: Sequence[int]) -> Any:
        return await asyncio.gather(*(fs._cat_file(f"{asked.own}/{k}.npy") for k in some))

    def load(some: Sequence[int]) -> Any:
        shape = 1, asked.side, asked.side
        found = sync(fs.loop, fetch, some)
        return np.stack(
            [np.frombuffer(data[HEADER:], asked.dtype).reshape(shape) for data in found]
        )

    return threaded(load, mixed(asked.n, asked.batch), asked.threads)


if __name__ == "__main__":
    ways = {"shuffled": _near, "distant": _one_by_one, "distant, a batch at once": _at_once}
    serve("npy files", ways, package="numpy", prepare=_prepare)
