"""The manifest: one row a patch, in Parquet parts that commit their shards."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchloom.errors import ConfigError
from patchloom.summaries import Summary

__all__ = [
    "RESERVED",
    "check_columns",
    "manifest_bytes",
    "read_manifest",
    "read_summaries",
    "summary_bytes",
]

RESERVED = frozenset(
    {"patch_id", "image_id", "sample", "start_z", "start_y", "start_x", "coverage", "split", "row"}
)
"""Columns that every manifest may have; metadata columns have other names."""

SummaryKey = tuple[int, int]


def check_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metadata columns of all images, sorted.

    Raises
    ------
    ConfigError
        If a name is taken, or a value is neither text, number nor flag.
    """
    names = sorted({str(name) for row in rows for name in row})
    taken = sorted(set(names) & RESERVED)
    if taken:
        raise ConfigError(
            f"metadata columns have names of their own, got {taken}; the manifest uses "
            f"{sorted(RESERVED)}: rename them"
        )
    for row in rows:
        for name, value in row.items():
            if value is not None and not isinstance(value, str | int | float | bool | np.generic):
                raise ConfigError(
                    f"a metadata value is text, a number, a flag or None, got "
                    f"{type(value).__name__} for {name!r}"
                )
    return names


def manifest_bytes(columns: Mapping[str, Any]) -> bytes:
    """One part of the manifest."""
    return _parquet(pa.table(dict(columns)))


def read_manifest(parts: Sequence[bytes]) -> pa.Table:
    """All parts as one table, in row order."""
    tables = [pq.read_table(io.BytesIO(part)) for part in parts]
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def summary_bytes(summaries: Mapping[SummaryKey, Summary]) -> bytes:
    """What one shard adds to the statistics: (image, channel) -> summary."""
    keys = sorted(summaries)
    parts = [summaries[key] for key in keys]
    lengths = [len(part.values) for part in parts]
    images = np.repeat(np.array([k[0] for k in keys], np.int32), lengths)
    channels = np.repeat(np.array([k[1] for k in keys], np.int32), lengths)
    head = [
        [*key, p.exact, p.nans, *(float(v).hex() for v in (p.low, p.high, p.total, p.squares))]
        for key, p in zip(keys, parts, strict=True)
    ]
    table = pa.table(
        {
            "image": images,
            "channel": channels,
            "value": _joined([p.values for p in parts], np.float64),
            "count": _joined([p.counts for p in parts], np.int64),
        }
    ).replace_schema_metadata({b"summaries": json.dumps(head).encode()})
    return _parquet(table)


def read_summaries(data: bytes) -> dict[SummaryKey, Summary]:
    """Inverse of `summary_bytes`."""
    table = pq.read_table(io.BytesIO(data))
    image, channel = table["image"].to_numpy(), table["channel"].to_numpy()
    value, count = table["value"].to_numpy(), table["count"].to_numpy()
    found = {}
    for i, c, exact, nans, *numbers in json.loads(table.schema.metadata[b"summaries"]):
        mine = (image == i) & (channel == c)
        found[i, c] = Summary(
            value[mine], count[mine], exact, nans, *(float.fromhex(v) for v in numbers)
        )
    return found


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
