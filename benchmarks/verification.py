"""That both sides did the same job: equal patches, stored in the same way, equal statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr

import patchloom

DECODED = 64
"""One patch in so many is decoded, to see that the stores read as they should."""


def check_equal(ours: Path, floor: Path) -> int:
    """Compare patchloom's store with the floor's, patch by patch, in whatever order each has them.

    Parameters
    ----------
    ours, floor
        The two stores, of the same plan.

    Returns
    -------
    int
        Patches compared.

    Raises
    ------
    ValueError
        When the stores differ in their patches, in one pixel, in chunks, shards or codecs, or in
        the pixels counted and their percentiles.
    """
    store = patchloom.open_patches(str(ours))
    group = zarr.open_group(floor, mode="r")
    images = group["images"]
    if not isinstance(images, zarr.Array):
        raise TypeError(f"{floor} holds no array of patches")
    for name in ("shape", "dtype", "chunks", "shards"):
        mine, other = getattr(store.images, name), getattr(images, name)
        if mine != other:
            raise ValueError(f"{name} differs: patchloom {mine}, floor {other}")
    if store.images.metadata.to_dict()["codecs"] != images.metadata.to_dict()["codecs"]:
        raise ValueError(f"codecs differ: {store.images.metadata}, {images.metadata}")
    mine = _rows_by_start(store.manifest)
    other = _rows_by_start(pq.read_table(floor / "manifest.parquet"))
    if mine.keys() != other.keys():
        only_mine, only_other = mine.keys() - other.keys(), other.keys() - mine.keys()
        raise ValueError(
            f"kept patches differ: {len(only_mine)} only in patchloom's, {len(only_other)} only in "
            f"the floor's, such as {sorted(only_mine | only_other)[:3]}"
        )
    stored, expected = _Encoded(ours / "images", images), _Encoded(floor / "images", images)
    for k, (start, row) in enumerate(sorted(mine.items())):
        # Equal bytes under equal codecs are equal pixels; some are decoded by zarr all the same.
        if k % DECODED and stored[row] == expected[other[start]]:
            continue
        if not np.array_equal(store.images[row], images[other[start]]):
            raise ValueError(f"the patch at {start} differs")
    for name, key in (("count", "count"), ("percentile", "percentiles")):
        statistic = store.statistics[name].values[0]
        wanted = np.asarray(group.attrs[key], dtype=np.float64)
        if not np.allclose(statistic, wanted, rtol=1e-12, atol=0):
            raise ValueError(f"{name} differs: patchloom {statistic}, floor {wanted}")
    return len(mine)


class _Encoded:
    """The stored bytes of each row of a sharded array, its shards mapped into memory."""

    def __init__(self, path: Path, array: zarr.Array[Any]) -> None:
        self._path, self._tail = path, "/".join("0" * (array.ndim - 1))
        self._rows = array.shards[0] if array.shards else 1
        self._shard: int | None = None

    def __getitem__(self, row: int) -> bytes:
        shard, slot = divmod(row, self._rows)
        if shard != self._shard:
            self._bytes = np.memmap(self._path / "c" / str(shard) / self._tail, np.uint8, "r")
            index = self._bytes[-16 * self._rows - 4 : -4].tobytes()
            self._index, self._shard = np.frombuffer(index, "<u8").reshape(-1, 2), shard
        begin, length = self._index[slot].tolist()
        return self._bytes[begin : begin + length].tobytes()


def _rows_by_start(manifest: Any) -> dict[tuple[int, ...], int]:
    names = [f"start_{axis}" for axis in "zyx" if f"start_{axis}" in manifest.column_names]
    starts = zip(*(manifest[name].to_pylist() for name in names), strict=True)
    return dict(zip(starts, manifest["row"].to_pylist(), strict=True))
