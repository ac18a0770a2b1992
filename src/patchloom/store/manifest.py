"""The manifest: one row a patch, in Parquet parts that commit their shards."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchloom.arrow_files import arrow_file
from patchloom.errors import ConfigError

__all__ = [
    "RESERVED",
    "WRITTEN",
    "check_columns",
    "joined_manifest",
    "manifest_bytes",
    "part_names",
    "read_manifest",
    "read_sizes",
    "read_skipped",
    "sizes_bytes",
    "skipped_bytes",
]

TILES = (
    *(f"{name}_{a}" for name in ("crop_start", "crop_size", "stitch") for a in "zyx"),
    "total_tiles",
)
"""Columns of tiles: what is kept of each, and where it goes."""
RESERVED = frozenset(
    {"patch_id", "image_id", "sample", "start_z", "start_y", "start_x", "coverage", "split", "row"}
    | {"images", "labels", "targets", "patch", "c", "c_labels", "c_targets", "z", "y", "x"}
    | {"class", "place", *TILES}
)
"""Columns of every manifest and names of its xarray view; metadata columns have other names."""

WRITTEN = b"objects"
"""Key of a part's schema metadata: bytes and checksum of the other objects of its shard."""


def check_columns(rows: Sequence[Mapping[str, Any]], places: pa.Table | None = None) -> list[str]:
    """The metadata columns of all images, sorted.

    Parameters
    ----------
    rows
        Metadata of each image.
    places
        Metadata of each place of a plan that lists its patches.

    Raises
    ------
    ConfigError
        If a name is taken, or a value is neither text, number nor flag.
    """
    names = sorted({str(name) for row in rows for name in row})
    listed = [] if places is None else places.column_names
    # Tiles of another library are listed with our own columns.
    own = {*RESERVED, *names} - {"class"} - ({*TILES} if "total_tiles" in listed else set())
    taken = sorted({*names} & RESERVED | {*listed} & own)
    if taken:
        raise ConfigError(
            f"metadata columns have names of their own, got {taken}; the manifest uses "
            f"{sorted(RESERVED)} and the images' own {names}: rename them, or leave them out"
        )
    for row in rows:
        for name, value in row.items():
            if value is not None and not isinstance(value, str | int | float | bool | np.generic):
                raise ConfigError(
                    f"a metadata value is text, a number, a flag or None, got "
                    f"{type(value).__name__} for {name!r}"
                )
    for name in names:
        try:
            pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise ConfigError(
                f"a metadata column has values of one type in all images, got {name!r}: {error}"
            ) from None
    return names


def manifest_bytes(table: pa.Table, written: Mapping[str, Sequence[int]]) -> bytes:
    """One part of the manifest.

    Parameters
    ----------
    table
        Its rows.
    written
        Bytes and checksum of each other object of the shard, by what it holds.
    """
    return _parquet(table.replace_schema_metadata({WRITTEN: json.dumps(written).encode()}))


def part_names(names: Iterable[str]) -> list[str]:
    """The objects of the manifest that hold, of all below its folder, in row order.

    A run that fills a gap writes the whole part, then removes the one with gaps: where both are
    there, the latter is what surely stands.

    >>> part_names(["00000001.parquet", "00000000.parquet", "00000001.partial.parquet"])
    ['00000000.parquet', '00000001.partial.parquet']
    """
    found = sorted(name for name in names if name.endswith(".parquet"))
    gaps = {name.split(".")[0] for name in found if name.endswith(".partial.parquet")}
    return [n for n in found if n.endswith(".partial.parquet") or n.split(".")[0] not in gaps]


def read_manifest(parts: Sequence[bytes]) -> pa.Table:
    """All parts as one table, in row order."""
    return joined_manifest(
        [pq.read_table(arrow_file(part)).replace_schema_metadata(None) for part in parts]
    )


def joined_manifest(parts: Sequence[pa.Table]) -> pa.Table:
    """Parts one below another; of a column that one part knows more of, all do."""
    return pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({})


def sizes_bytes(sizes: Mapping[str, npt.NDArray[np.int64]]) -> bytes:
    """Sizes of the objects of all shards by what they hold; -1 is unknown."""
    return _parquet(
        pa.table(dict(sizes)),
        use_dictionary=False,
        column_encoding=dict.fromkeys(sizes, "DELTA_BINARY_PACKED"),
    )


def read_sizes(data: bytes | None) -> dict[str, npt.NDArray[np.int64]]:
    """Inverse of `sizes_bytes`; nothing is known from what cannot be read."""
    try:
        table = pq.read_table(arrow_file(data or b""))
        return {name: table[name].to_numpy().astype(np.int64) for name in table.column_names}
    except (pa.ArrowException, ValueError, OSError):
        return {}


def skipped_bytes(table: pa.Table) -> bytes:
    """The rows that a run left out."""
    return _parquet(table)


def read_skipped(data: bytes | None, axes: str) -> pa.Table:
    """The rows that a run left out, in row order; without the object, none."""
    if data is not None:
        return pq.read_table(arrow_file(data))
    columns = ["row", "patch_id", "image_id", "sample", *(f"start_{a}" for a in axes), "reason"]
    text = {"patch_id", "image_id", "reason"}
    return pa.table({k: pa.array([], pa.string() if k in text else pa.int64()) for k in columns})


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, **options)
    return sink.getvalue()
