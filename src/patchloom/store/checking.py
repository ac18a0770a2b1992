"""Checking: whether the objects of one shard are what their writer wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchloom.arrow_files import arrow_file
from patchloom.location import Location
from patchloom.store.additions import coming_rows_of, n_rows_of, rows_of_shard
from patchloom.store.manifest import WRITTEN
from patchloom.store.schema import (
    ArraySpec,
    Codec,
    as_json,
    gap_name,
    manifest_name,
    shard_name,
    summary_name,
)
from patchloom.store.shards import decoder, seal
from patchloom.summaries.packed import read_summaries

__all__ = ["Checked", "Damage", "check_metadata", "check_shard", "specs_of"]

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
_ABSENT = 2**64 - 1


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    shard: int | None
    """Number of the shard; None for what belongs to the whole store."""
    object: str
    """Its name below the store."""
    what: str
    """What is wrong with it."""

    def __str__(self) -> str:
        return f"{self.object}: {self.what}"


@dataclass(frozen=True)
class Checked:
    """What was found in one shard."""

    table: pa.Table | None
    """Its part of the manifest, if it can be read."""
    n_objects: int
    nbytes: int
    damage: tuple[Damage, ...]


def specs_of(attributes: Mapping[str, Any], documents: Mapping[str, Any]) -> dict[str, ArraySpec]:
    """The arrays of a store, from its attributes and the metadata documents of its arrays."""
    codec = Codec(attributes["job"]["codec"])
    return {
        name: ArraySpec(
            name,
            tuple(documents[name]["shape"][1:]),
            np.dtype(documents[name]["data_type"]),
            attributes["axes"],
            attributes["rows_per_shard"],
            codec,
        )
        for name in attributes["arrays"]
    }


def check_metadata(
    location: Location, attributes: Mapping[str, Any], documents: Mapping[str, Any]
) -> list[Damage]:
    """What is wrong with the objects that belong to a whole store.

    Parameters
    ----------
    location
        The store.
    attributes
        From `read_attributes`.
    documents
        The metadata of the arrays in the group's document.
    """
    found = []
    for name, spec in specs_of(attributes, documents).items():
        data, wanted = location.read(f"{name}/zarr.json"), spec.document(n_rows_of(attributes))
        if documents[name] != json.loads(as_json(wanted)):
            found.append(Damage(None, "zarr.json", f"tells of other rows than {name!r} has"))
        if data is None:
            found.append(Damage(None, f"{name}/zarr.json", "is missing"))
        elif data not in (as_json(wanted), as_json(spec.document(coming_rows_of(attributes)))):
            # An append writes them before the group's, and may have been killed in between.
            found.append(Damage(None, f"{name}/zarr.json", "is not what belongs there"))
    for name, written in attributes.get("summaries", {}).items():
        wrong: list[str] = []
        _check_summaries(location.read(name), written, wrong.append)
        found += [Damage(None, name, what) for what in wrong]
    return found


def check_shard(
    location: Location,
    attributes: Mapping[str, Any],
    specs: Mapping[str, ArraySpec],
    shard: int,
    *,
    gap: bool,
    rows: Callable[[str, int, Pixels], None] | None = None,
    wanted: frozenset[int] = frozenset(),
) -> Checked:
    """Check every object of one committed shard: one request each, one object held at a time.

    Parameters
    ----------
    location, attributes, specs
        The store.
    shard
        Its number.
    gap
        Whether it was committed without some rows.
    rows
        Given the name of an array, a row and its pixels, for each of the `wanted` rows of sound
        objects.
    wanted
        Rows whose pixels are asked for.
    """
    part = gap_name(shard) if gap else manifest_name(shard)
    damage: list[Damage] = []

    def wrong(name: str, what: str) -> None:
        damage.append(Damage(shard, name, what))

    n_objects = nbytes = 0

    def read(name: str) -> bytes | None:
        nonlocal n_objects, nbytes
        try:
            data = location.read(name)
        except Exception as error:  # each file system has errors of its own
            wrong(name, f"cannot be read ({location.describe(error)})")
            return b""
        n_objects, nbytes = n_objects + (data is not None), nbytes + len(data or b"")
        return data

    table, written = _manifest(read(part), attributes, shard, gap, partial(wrong, part))
    name = summary_name(shard)
    data = read(name)
    _check_summaries(data, written.get("summary"), partial(wrong, name))
    present = None if table is None else table["row"].to_numpy()
    for kind, spec in specs.items():
        name = shard_name(spec, shard)
        if gap and kind not in written and present is not None and not len(present):
            continue  # nothing could be read, so nothing was written
        try:
            held = _pixels(read(name), spec, shard, present, written.get(kind), wanted)
        except _DamagedError as error:
            wrong(name, str(error))
            continue
        for row, pixels in held.items():
            if rows is not None:
                rows(kind, row, pixels)
    return Checked(table, n_objects, nbytes, tuple(damage))


def _check_summaries(
    data: bytes | None, written: list[int] | None, wrong: Callable[[str], None]
) -> None:
    """Check an object with summaries."""
    if _is_written(data, written, wrong):
        try:
            read_summaries(data or b"")
        except Exception as error:  # a damaged file fails in many ways
            wrong(f"cannot be read ({type(error).__name__})")


def _is_written(
    data: bytes | None, written: list[int] | None, wrong: Callable[[str], None]
) -> bool:
    """Whether an object is there, and the one that its part of the manifest tells of."""
    if data is None:
        wrong("is missing")
    elif written is not None and len(data) != written[0]:
        wrong(f"has {len(data):,} bytes, was written with {written[0]:,}")
    elif written is not None and google_crc32c.value(data) != written[1]:
        wrong("is not the object that was written")
    else:
        return True
    return False


def _manifest(
    data: bytes | None,
    attributes: Mapping[str, Any],
    shard: int,
    gap: bool,
    wrong: Callable[[str], None],
) -> tuple[pa.Table | None, dict[str, list[int]]]:
    """A part of the manifest, and what it tells of the other objects."""
    if data is None:
        wrong("is missing")
        return None, {}
    try:
        table = pq.read_table(arrow_file(data), page_checksum_verification=True)
        table.validate(full=True)
        row = table["row"].to_numpy().astype(np.int64)
        written = json.loads((table.schema.metadata or {}).get(WRITTEN, b"{}"))
    except Exception as error:  # a damaged file fails in many ways
        wrong(f"cannot be read ({type(error).__name__})")
        return None, {}
    first, stop = rows_of_shard(attributes, shard)
    if not gap and not np.array_equal(row, np.arange(first, stop)):
        wrong(f"lists {len(row)} rows, which are not the rows {first} to {stop - 1} in order")
        return None, {}
    if gap and ((np.diff(row) < 1).any() or (len(row) and not first <= row[0] <= row[-1] < stop)):
        wrong(f"lists rows that are not ascending from {first} to {stop - 1}")
        return None, {}
    return table, written


class _DamagedError(Exception):
    """What is wrong with an object."""


def _pixels(
    data: bytes | None,
    spec: ArraySpec,
    shard: int,
    present: Ints | None,
    written: list[int] | None,
    wanted: frozenset[int],
) -> dict[int, Pixels]:
    """Check the index and every patch of one object of pixels; the wanted ones by row."""
    n, first = spec.rows_per_shard, shard * spec.rows_per_shard
    if data is None:
        raise _DamagedError("is missing")
    if len(data) < 16 * n + 4:
        raise _DamagedError(f"has {len(data):,} bytes, fewer than an index of {n} rows")
    tail = data[-(16 * n + 4) :]
    if google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
        raise _DamagedError("its index does not match its checksum")
    index = np.frombuffer(tail[:-4], "<u8").reshape(n, 2)
    slots = np.flatnonzero(index[:, 0] != _ABSENT)
    if present is not None and not np.array_equal(slots + first, present):
        raise _DamagedError(
            f"holds {len(slots)} patches, other ones than the {len(present)} of the manifest"
        )
    decode, bad, held = decoder(spec), [], {}
    for slot, (start, length) in zip(slots.tolist(), index[slots].tolist(), strict=True):
        try:
            pixels = decode(data[start : start + length])
        except Exception:  # each codec has errors of its own
            bad.append(first + slot)
            continue
        if first + slot in wanted:
            held[first + slot] = pixels
    if bad:
        raise _DamagedError(
            f"{len(bad)} of {len(slots)} patches do not decode, the first is row {bad[0]}"
        )
    if written is not None and [len(data), seal(data, n)] != written:
        raise _DamagedError("is not the object that was written, its patches are other ones")
    return held
