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

from patchloom.errors import ConfigError
from patchloom.summaries import Summary, Sums

__all__ = [
    "RESERVED",
    "WRITTEN",
    "check_columns",
    "manifest_bytes",
    "part_names",
    "read_manifest",
    "read_sizes",
    "read_skipped",
    "read_summaries",
    "sizes_bytes",
    "skipped_bytes",
    "summary_bytes",
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
    tables = [pq.read_table(io.BytesIO(part)).replace_schema_metadata(None) for part in parts]
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def summary_bytes(summaries: Mapping[Any, Summary]) -> bytes:
    """What one shard adds to the statistics: (image, channel) -> summary.

    Keys may be any tuples of whole numbers and None.
    """
    keys = sorted(summaries, key=lambda key: [-1 if k is None else k for k in key])
    parts = [summaries[key] for key in keys]
    head = [
        {
            "key": key,
            "rows": len(p.values),
            "exact": p.exact,
            "nans": p.nans,
            "nodata": p.nodata,
            "low": p.low.hex(),
            "high": p.high.hex(),
            "sums": None if p.sums is None else p.sums.to_text(),
        }
        for key, p in zip(keys, parts, strict=True)
    ]
    values = _joined([p.values for p in parts], np.float64)
    if _are_small(values):
        # Consecutive grey levels: their differences take next to no room.
        values = values.astype(np.int32)
    table = pa.table(
        {
            "value": values,
            "count": _joined([p.counts for p in parts], np.int64),
            "bits": _joined([p.bits for p in parts], np.uint8),
        }
    ).replace_schema_metadata({b"summaries": json.dumps(head).encode()})
    whole = [name for name in table.column_names if pa.types.is_integer(table[name].type)]
    return _parquet(
        table,
        use_dictionary=False,
        column_encoding=dict.fromkeys(whole, "DELTA_BINARY_PACKED"),
    )


def read_summaries(data: bytes) -> dict[Any, Summary]:
    """Inverse of `summary_bytes`; also of shards that were written before sums were exact."""
    table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    value = table["value"].to_numpy().astype(np.float64)
    count = table["count"].to_numpy()
    bits = table["bits"].to_numpy() if "bits" in table.column_names else count
    found, at = {}, 0
    for entry in json.loads(table.schema.metadata[b"summaries"]):
        if isinstance(entry, list):
            image, channel, n, exact, nans, *numbers = entry
            mine = slice(at, at + n)
            found[image, channel] = Summary.of_floats(
                value[mine], count[mine], exact, nans, *(float.fromhex(v) for v in numbers)
            )
        else:
            n = entry["rows"]
            mine = slice(at, at + n)
            sums = entry["sums"]
            found[tuple(entry["key"])] = Summary(
                value[mine],
                count[mine],
                exact=entry["exact"],
                bits=bits[mine],
                nans=entry["nans"],
                nodata=entry["nodata"],
                low=float.fromhex(entry["low"]),
                high=float.fromhex(entry["high"]),
                sums=None if sums is None else Sums.from_text(sums),
            )
        at += n
    return found


def _are_small(values: npt.NDArray[np.float64]) -> bool:
    """Whether all are whole numbers of 32 bits; -0.0, which names a bucket, is none."""
    if not len(values) or not np.abs(values).max() < 2**31:
        return False
    return bool(((values == np.trunc(values)) & ~((values == 0) & np.signbit(values))).all())


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
        table = pq.read_table(io.BytesIO(data or b""))
        return {name: table[name].to_numpy().astype(np.int64) for name in table.column_names}
    except (pa.ArrowException, ValueError, OSError):
        return {}


def skipped_bytes(table: pa.Table) -> bytes:
    """The rows that a run left out."""
    return _parquet(table)


def read_skipped(data: bytes | None, axes: str) -> pa.Table:
    """The rows that a run left out, in row order; without the object, none."""
    if data is not None:
        return pq.read_table(io.BytesIO(data))
    columns = ["row", "patch_id", "image_id", "sample", *(f"start_{a}" for a in axes), "reason"]
    text = {"patch_id", "image_id", "reason"}
    return pa.table({k: pa.array([], pa.string() if k in text else pa.int64()) for k in columns})


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, **options)
    return sink.getvalue()
