"""Mixing of a store: how fair a sample its batches are, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchloom.arrow_files import arrow_file
from patchloom.errors import StoreError
from patchloom.location import Location
from patchloom.mixing import WHOLE, Columns, Found, drawn, mixing_of, regions
from patchloom.store.additions import n_rows_of
from patchloom.store.schema import manifest_name

__all__ = ["mixing"]


def mixing(location: Location, attributes: Mapping[str, Any], batch: int) -> Found:
    """Measure the batches of a store; see `PatchStore.mixing`."""
    n, rows = int(attributes["n_patches"]), int(attributes["rows_per_shard"])
    # Rows between additions hold no patch, but belong to shards.
    n_rows = n_rows_of(attributes)
    stretches = drawn(n_rows, rows, batch, int(attributes["seed"]))
    spans = [range(a // rows, -(-b // rows)) for a, b in stretches]
    shards = [shard for span in spans for shard in span]
    if not shards:
        return mixing_of([], None, n, rows, batch)
    axes = [a for a in str(attributes["axes"]) if a != "c"]
    names = ["image_id", "sample", *(f"start_{a}" for a in axes), "row"]

    def read(shard: int) -> pa.Table:
        data = location.read(manifest_name(shard))
        if data is None:
            raise StoreError(
                f"mixing is measured of stores that are complete, but {location.shown!r} has no "
                f"{manifest_name(shard)}; run the same materialize call again to finish it"
            )
        file = pq.ParquetFile(arrow_file(data))
        return file.read(names + ["class"] * ("class" in file.schema_arrow.names))

    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(read, shards))
    table = pa.concat_tables(tables, promote_options="permissive")
    columns = _shown(table, attributes, axes)
    # Batches end with a stretch, and with a shard that is not full: another addition follows.
    length = np.array([part.num_rows for part in tables])
    last = length < rows
    last[np.cumsum([len(span) for span in spans]) - 1] = True
    ends = np.cumsum(length)[last]
    parts = {name: np.split(values, ends)[:-1] for name, values in columns.items()}
    each = [{name: parts[name][k] for name in parts} for k in range(len(ends))]
    return mixing_of(each, columns if n_rows > WHOLE else None, n, rows, batch)


def _shown(table: pa.Table, attributes: Mapping[str, Any], axes: list[str]) -> Columns:
    """What rows show: image, region and, where the manifest tells it, class."""
    ids = table["image_id"].combine_chunks().dictionary_encode()
    image = ids.indices.to_numpy().astype(np.int64)
    known = {item["id"]: item for item in attributes["images"]}
    shapes = [
        dict(zip(known[i]["axes"], known[i]["shape"], strict=True))
        for i in ids.dictionary.to_pylist()
    ]
    extent = np.array([[shape[a] for a in axes] for shape in shapes], np.int64)[image]
    start = np.stack([table[f"start_{a}"].to_numpy() for a in axes], -1)
    center2 = 2 * start + np.asarray(attributes["patch_shape"][1:], np.int64)
    region = image * 2**32 + regions(table["sample"].to_numpy(), center2, extent)
    columns = {"image": image, "region": region}
    if "class" in table.column_names:
        # What is of no class is of a class of its own.
        coded = table["class"].combine_chunks().dictionary_encode(null_encoding="encode")
        columns["class"] = coded.indices.to_numpy().astype(np.int64)
    return columns
