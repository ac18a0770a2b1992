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

from patchloom.arrow_files import arrow_file
from patchloom.summaries import DISTINCT, Summary, Sums
from patchloom.summaries.keys import BITS, Bits, Floats, Ints, keys_of

__all__ = ["read_summaries", "summary_bytes"]

_MOST = 2**24
"""Values and leaves of one summary at most; passes that look closer make some millions."""


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
    """Inverse of `summary_bytes`; also of shards that were written before sums were exact.

    What is read is what was stated: an object of few bytes cannot ask for more memory than
    `_MOST` values of each summary that it names.

    Raises
    ------
    ValueError
        If it is damaged, or what it says cannot be of any pixels.
    """
    try:
        file = pq.ParquetFile(arrow_file(data), page_checksum_verification=True)
        head = json.loads((file.metadata.metadata or {})[b"summaries"])
        spans = _spans(head, file.metadata.num_rows)
        values, counts, bits = _columns(file)
        return {
            key: _summary(entry, values[mine], counts[mine], bits[mine])
            for (key, mine), entry in zip(spans.items(), head, strict=True)
        }
    except (pa.ArrowException, OSError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    except RecursionError as error:
        raise ValueError("its head is nested too deeply") from error


def _spans(head: Any, n_rows: int) -> dict[tuple[int | None, ...], slice]:
    """The rows of each summary."""
    if not isinstance(head, list):
        raise ValueError("its head is not a list")
    found: dict[tuple[int | None, ...], slice] = {}
    at = 0
    for entry in head:
        old = isinstance(entry, list)
        key, n = (tuple(entry[:2]), entry[2]) if old else (tuple(entry["key"]), entry["rows"])
        if not all(k is None or type(k) is int for k in key) or key in found:
            raise ValueError(f"a key of its own is whole numbers, got {key}")
        found[key] = slice(at, at + _whole(n, _MOST))
        at += n
    if at != n_rows:
        raise ValueError(f"it has {n_rows} rows where its head says {at}")
    return found


def _columns(file: pq.ParquetFile) -> tuple[Floats, Ints, Bits]:
    """Values, counts, and bits where they are known: each may be a column of any pixels."""
    names = [name for name in ("value", "count", "bits") if name in file.schema_arrow.names]
    types = {"value": (pa.int32(), pa.float64()), "count": (pa.int64(),), "bits": (pa.uint8(),)}
    for name in names:
        if file.schema_arrow.field(name).type not in types[name]:
            raise ValueError(f"{name} is of type {file.schema_arrow.field(name).type}")
    table = file.read(columns=names)
    if any(table[name].null_count for name in names):
        raise ValueError("a number is null")
    value, count = table["value"].to_numpy().astype(np.float64), table["count"].to_numpy()
    # Not given is not 0: a summary without bits has leaves that are buckets.
    bits = table["bits"].to_numpy() if "bits" in names else np.zeros(0, np.uint8)
    if np.isnan(value).any() or (count < 0).any() or (bits > BITS).any():
        raise ValueError("a value is NaN, a count negative, or a bucket wider than any")
    return value, count, bits


def _summary(entry: Any, values: Floats, counts: Ints, bits: Bits) -> Summary:
    """One summary; `entry` is of either version."""
    if not _ascend(values) or counts.sum(dtype=np.float64) >= 2.0**63:
        raise ValueError("values do not ascend, or there are too many pixels")
    if isinstance(entry, list):
        _, _, _, exact, nans, *numbers = entry
        low, high, total, squares = map(float.fromhex, numbers)
        found = Summary.of_floats(
            values, counts, _flag(exact), _whole(nans), low, high, total, squares
        )
    else:
        sums, exact = entry["sums"], _flag(entry["exact"])
        found = Summary(
            values,
            counts,
            exact=exact,
            bits=bits,
            nans=_whole(entry["nans"]),
            nodata=_whole(entry["nodata"]),
            low=float.fromhex(entry["low"]),
            high=float.fromhex(entry["high"]),
            sums=None if sums is None else Sums.from_text(sums),
        )
    if exact and len(values) > DISTINCT:
        raise ValueError(f"an exact summary has at most {DISTINCT} values, got {len(values)}")
    if found.count and not found.low <= found.high:
        raise ValueError(f"pixels reach from {found.low} to {found.high}")
    if found.sums is not None and not found.sums.fit(found.count):
        raise ValueError("sums are of no pixels")
    return found


def _ascend(values: Floats) -> bool:
    if (values[1:] > values[:-1]).all():
        return True
    # -0.0, which names a bucket, comes before 0.0.
    keys = keys_of(values)
    return bool((keys[1:] > keys[:-1]).all())


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"a flag is true or false, got {value!r}")
    return value


def _whole(value: Any, most: int = 2**63 - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"a count is a whole number up to {most}, got {str(value)[:40]}")
    return value


def _are_small(values: npt.NDArray[np.float64]) -> bool:
    """Whether all are whole numbers of 32 bits; -0.0, which names a bucket, is none."""
    if not len(values) or not np.abs(values).max() < 2**31:
        return False
    return bool(((values == np.trunc(values)) & ~((values == 0) & np.signbit(values))).all())


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
