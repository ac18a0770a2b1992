"""xbatcher: a generator over a lazily opened array, asked for batches by two threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from batches import Asked, mixed, serve, threaded
from xbatcher import BatchGenerator


def _array(folder: str, name: str) -> Any:
    opened = xr.open_dataset(
        folder, engine="zarr", consolidated=False, mask_and_scale=False, cache=False
    )
    return opened[name]


def _items(images: Any, n: int) -> Any:
    """Batches of so many patches of the store's array."""
    sizes = dict(images.sizes)
    sizes[images.dims[0]] = n
    return BatchGenerator(images, input_dims=sizes)


def _sequential(asked: Asked) -> Any:
    """A batch is one slice of the store's array."""
    images = _array(asked.store, "images")
    batches = _items(images, asked.batch)
    whole = len(batches) * asked.batch

    def make(k: int) -> Any:
        # What does not fill a batch it leaves out; so that all is read, that is sliced.
        return batches[k].values if k < len(batches) else images[whole:].values

    return threaded(make, range(len(batches) + (whole < asked.n)), asked.threads)


def _shuffled(asked: Asked) -> Any:
    """One item a patch, 64 items a batch, as a loader over its map-style dataset asks."""
    images = _array(asked.store, "images")
    items = _items(images, 1)

    def make(some: Sequence[int]) -> Any:
        return np.concatenate([items[k].values for k in some])

    return threaded(make, mixed(asked.n, asked.batch), asked.threads)


def _live(asked: Asked) -> Any:
    """One item a patch of the image."""
    image = _array(asked.source, "0")
    overlap = asked.side - asked.stride
    items = BatchGenerator(
        image,
        input_dims=dict.fromkeys(image.dims, asked.side),
        input_overlap=dict.fromkeys(image.dims, overlap) if overlap else {},
    )

    def make(some: Sequence[int]) -> Any:
        return np.stack([items[k].values for k in some])

    return threaded(make, mixed(asked.n, asked.batch), asked.threads)


if __name__ == "__main__":
    serve("xbatcher", {"sequential": _sequential, "shuffled": _shuffled, "live": _live})
