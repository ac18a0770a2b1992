"""Packed: summaries as one object, a Parquet file of all their values."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchloom.summaries import Summary, Sums

__all__ = ["read_summaries", "summary_bytes"]


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
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=False,
        column_encoding=dict.fromkeys(whole, "DELTA_BINARY_PACKED"),
    )
    return sink.getvalue()


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


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
