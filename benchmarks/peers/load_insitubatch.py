"""insitubatch: its dataset over the store's array, whose first axis it samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batches import Asked, CannotError, Load, serve
from insitubatch import InSituDataset, obstore_store, open_geometries, split_by_chunk


def _load(shuffle: bool) -> Load:
    def load(asked: Asked) -> Iterator[Any]:
        store = obstore_store(f"file://{asked.store}")
        geometries = open_geometries(store, variables=["images"])
        manifest = split_by_chunk(geometries["images"], fractions=(1.0, 0.0, 0.0))
        dataset = InSituDataset(store, manifest, geometries=geometries, batch_size=asked.batch)
        for batch in dataset.train if shuffle else dataset.all:
            yield batch.arrays["images"]

    return load


def _live(asked: Asked) -> Iterator[Any]:
    raise CannotError("it samples one axis, by whole fields, and cuts no patches out of an image")


if __name__ == "__main__":
    ways = {"sequential": _load(False), "shuffled": _load(True), "live": _live}
    serve("insitubatch", ways)
